"""A report is written, read again, set beside another, and shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from forwarder.loadtest.figures import FIGURES, Figures, Sample
from forwarder.loadtest.page import page
from forwarder.loadtest.report import SCHEMA, NotAReport, Report, read, rows, summary

EVENTS = {"grow": 2, "hold": 1, "shrink": 0, "block": 1, "kills": 0, "pressure": 0}


def report(name: str = "one", **figures: float | int | None) -> Report:
    found: Figures = dict.fromkeys((each for names in FIGURES.values() for each in names), None)
    return Report(
        name=name,
        began_at="2026-01-01T00:00:00+00:00",
        target="own worker, prefork",
        machine={"processors": "2"},
        shape={"tasks": 10, "response_bytes": None},
        settings={"concurrency": "4"},
        figures=found | figures,
        failures={"expired": 2},
        samples=[
            Sample(at_s=0.0, sent=0, done=0, processes=1, rss_mb=50.0, events=EVENTS),
            Sample(at_s=9.0, sent=10, done=10, processes=3, rss_mb=80.0, events=EVENTS),
        ],
    )


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    written = report(tasks_per_s=3.5)
    written.write(tmp_path / "a.json")
    assert read(tmp_path / "a.json") == written
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == SCHEMA


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "samples": [{"x": 1}]}', '{"schema": 99}', "null"],
)
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(NotAReport, match=r"a\.json"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("schema", [None, 99])
def test_a_report_of_another_schema_is_refused_not_misread(tmp_path: Path, schema: int | None) -> None:
    path = tmp_path / "a.json"
    report().write(path)
    content = json.loads(path.read_text())
    del content["schema"]
    path.write_text(json.dumps(content if schema is None else {**content, "schema": schema}))
    with pytest.raises(NotAReport, match=r"a\.json"):
        read(path)


@pytest.mark.parametrize(
    ("name", "value", "other", "difference", "percent", "verdict"),
    [
        ("tasks_per_s", 15.0, 10.0, 5.0, 50.0, "better"),
        ("tasks_per_s", 5.0, 10.0, -5.0, -50.0, "worse"),
        ("rss_peak_mb", 60.0, 80.0, -20.0, -25.0, "better"),
        ("rss_peak_mb", 80.0, 80.0, 0.0, 0.0, ""),
        ("kills", 1, 0, 1, None, "worse"),
        ("grow", 5, 4, 1, 25.0, ""),
        ("grow", None, 4, None, None, ""),
        ("grow", 4, None, None, None, ""),
    ],
)
def test_two_runs_are_set_side_by_side(
    name: str, value: float, other: float, difference: float, percent: float, verdict: str
) -> None:
    found = rows({name: value}, {name: other})
    (row,) = (row for row in found if row.name == name)
    assert (row.difference, row.percent, row.verdict) == (difference, percent, verdict)


def test_the_screen_shows_the_other_run_and_the_difference() -> None:
    lines = summary(report(tasks_per_s=15.0), report(tasks_per_s=10.0))
    assert re.search(r"throughput, tasks/s +15 +10 +\+50\.0% better", "\n".join(lines))
    assert "  failed with expired: 2" in lines


def test_the_page_is_whole_in_itself() -> None:
    text = page(report(tasks_per_s=15.0), report("two", tasks_per_s=10.0))
    assert not re.search(r"(src|href)=|<script|url\(|@import", text)
    assert "<td>throughput, tasks/s</td><td>15</td><td>10</td>" in text


def test_what_comes_from_outside_is_escaped() -> None:
    assert "<b>" not in re.sub(r'<div class="tile"><b>', "", page(report("<b>"), report("<b>")))


def test_the_plots_are_well_formed_and_draw_both_runs() -> None:
    plots = re.findall(r"<svg.*?</svg>", page(report(), report("two")), re.DOTALL)
    assert plots
    for plot in plots:
        lines = ET.fromstring(plot).findall("{http://www.w3.org/2000/svg}polyline")
        assert lines
    memory = next(plot for plot in plots if "memory of all processes" in plot)
    assert memory.count("<polyline") == 2
    assert "dashed: two" in memory


def test_what_nobody_could_see_has_no_row_and_no_plot() -> None:
    text = page(report(tasks_per_s=1.0))
    assert "resident, main process" not in text
    assert "open descriptors" not in text
