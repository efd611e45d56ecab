"""The report of a run as one HTML page, whole in itself: tables, and plots inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from forwarder.loadtest.charts import Line, chart, number
from forwarder.loadtest.figures import Sample
from forwarder.loadtest.report import Report, Row, rows
from forwarder.loadtest.worker_log import DECISIONS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 820px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
.what { color: #666; margin-top: 0 } svg { max-width: 100%; height: auto; margin: .5rem 0; display: block }
table { border-collapse: collapse; width: 100%; font-size: 14px } td, th { padding: .18rem .5rem; text-align: right }
td:first-child, th:first-child { text-align: left; padding-left: 0 } tr + tr td { border-top: 1px solid #eee }
th { color: #666; font-weight: 500; border-bottom: 1px solid #999 } td { font-variant-numeric: tabular-nums }
.better { color: #00734f } .worse { color: #b04a00 } .tiles { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0 }
.tile { border: 1px solid #ddd; border-radius: 6px; padding: .4rem .8rem; min-width: 8rem }
.tile b { display: block; font-size: 1.3rem } .tile span { color: #666; font-size: 13px }
"""  # noqa: E501 - a style sheet

#: What stands large on top: a figure's name, and the words under it.
TILES = {
    "tasks_per_s": "tasks/s",
    "completion_s": "s to completion",
    "workers_peak": "children at peak",
    "rss_peak_mb": "MB resident at peak",
    "memory_share_peak_percent": "% of the memory limit",
    "kills": "kills",
}

#: Title of a plot to the lines in it: what of a sample, and its name.
PLOTS: Mapping[str, Mapping[str, str]] = {
    "tasks": {"sent": "sent", "done": "done"},
    "memory of all processes, MB": {
        "rss_mb": "resident",
        "unique_mb": "unique",
        "proportional_mb": "proportional",
    },
    "memory of one process, MB": {"main_rss_mb": "main, resident", "child_rss_mb": "largest child, resident"},
    "processes and tasks in flight": {"processes": "processes", "in_flight": "in flight"},
    "open descriptors": {"descriptors": "descriptors", "connections": "TCP connections"},
}
DECISIONS_TITLE = "autoscaler: decisions so far"


def page(report: Report, other: Report | None = None) -> str:
    """Return the page; with another run, both side by side."""
    against = f", compared with {escape(other.name)} of {escape(other.began_at)}" if other else ""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>Load test {escape(report.name)}</title><style>{STYLE}</style></head><body>",
        f"<h1>Load test {escape(report.name)}</h1>",
        f'<p class="what">{escape(report.began_at)}, {escape(report.target)}{against}</p>',
        _tiles(report),
        *_plots(report, other),
        *_tables(rows(report.figures, other.figures if other else None), report, other),
        _failures(report.failures),
        "<h2>What was run</h2>",
        _pairs({**report.shape, **report.settings, **report.machine}),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _tiles(report: Report) -> str:
    tiles = [
        f'<div class="tile"><b>{number(value)}</b><span>{words}</span></div>'
        for name, words in TILES.items()
        if (value := report.figures.get(name)) is not None
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _plots(report: Report, other: Report | None) -> list[str]:
    found = []
    for title, names in PLOTS.items():
        lines = _lines(report, names, dashed=False) + (_lines(other, names, dashed=True) if other else [])
        if lines:
            dashed_are = other.name if other else ""
            found.append(chart(title=title, lines=lines, x_title="seconds", dashed_are=dashed_are))
    decided = [
        Line(label=name.upper(), points=points, colour=index)
        for index, name in enumerate(DECISIONS)
        if (points := _decisions(report.samples, name)) and points[-1][1] > 0
    ]
    return [*found, chart(title=DECISIONS_TITLE, lines=decided, x_title="seconds")] if decided else found


def _lines(report: Report, names: Mapping[str, str], *, dashed: bool) -> list[Line]:
    return [
        Line(label=label, points=points, colour=index, dashed=dashed)
        for index, (name, label) in enumerate(names.items())
        if (points := _points(report.samples, name))
    ]


def _points(samples: Sequence[Sample], name: str) -> list[tuple[float, float]]:
    return [(each.at_s, value) for each in samples if (value := getattr(each, name)) is not None]


def _decisions(samples: Sequence[Sample], name: str) -> list[tuple[float, float]]:
    return [(each.at_s, each.events[name]) for each in samples if each.events is not None]


def _tables(found: Sequence[Row], report: Report, other: Report | None) -> list[str]:
    parts = []
    for group, members in groupby(found, key=lambda row: row.group):
        lines = [_row(row, compared=other is not None) for row in members if row.value is not None]
        if not lines:
            continue
        heads = ["", escape(report.name), *((escape(other.name), "difference", "%") if other else ())]
        head = "".join(f"<th>{text}</th>" for text in heads)
        parts += [f"<h2>{group}</h2>", f"<table><tr>{head}</tr>{''.join(lines)}</table>"]
    return parts


def _row(row: Row, *, compared: bool) -> str:
    title = escape(f"{row.figure.title}, {row.figure.unit}" if row.figure.unit else row.figure.title)
    cells = f"<td>{title}</td><td>{_shown(row.value)}</td>"
    if compared:
        verdict = f' class="{row.verdict}"' if row.verdict else ""
        percent = "" if row.percent is None else f"{row.percent:+.1f}"
        cells += (
            f"<td>{_shown(row.other)}</td><td{verdict}>{_shown(row.difference, '+')}</td>"
            f"<td{verdict}>{percent}</td>"
        )
    return f"<tr>{cells}</tr>"


def _shown(value: float | int | None, sign: str = "") -> str:
    if value is None:
        return "&ndash;"
    return ("+" if sign and value > 0 else "") + number(value)


def _failures(failures: Mapping[str, int]) -> str:
    return "<h2>Failures</h2>" + _pairs(failures) if failures else ""


def _pairs(pairs: Mapping[str, Any]) -> str:
    lines = [
        f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>"
        for key, value in pairs.items()
        if value is not None
    ]
    return f"<table>{''.join(lines)}</table>"
