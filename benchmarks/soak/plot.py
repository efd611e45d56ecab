"""The page of a soak: unique memory, descriptors and connections over the tasks done, a run a line."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.soak.run import Point, Soaked
from forwarder.loadtest.charts import Line, chart

PANELS = {
    "unique_mb": "unique memory, MB",
    "rss_mb": "resident memory, MB",
    "descriptors": "open file descriptors",
    "connections": "established connections",
}
HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Soak</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:800px;margin:2rem auto;padding:0 1rem;color:#222}
svg{max-width:100%;height:auto;margin:.6rem 0}</style>"""


def page(runs: Sequence[Soaked]) -> str:
    """Return one HTML page, whole in itself."""
    parts = [HEAD, "<h1>Soak</h1><p>Local SQS, S3 and Firehose. Sums over the worker's processes.</p>"]
    for pool in dict.fromkeys(run.pool for run in runs):
        parts.append(f"<h2>{escape(pool)}</h2>")
        here = [run for run in runs if run.pool == pool]
        shortest = min(run.tasks for run in here)
        if len(here) > 1:
            title = f"unique memory in the first {shortest} tasks, MB"
            parts.append(_panel(title, here, "unique_mb", tasks_max=shortest))
        parts += [_panel(title, here, name) for name, title in PANELS.items()]
    return "\n".join([*parts, "</html>"])


def _panel(title: str, runs: Sequence[Soaked], name: str, tasks_max: float = float("inf")) -> str:
    lines = [
        Line(
            label=run.name,
            colour=index,
            points=[(point.tasks, _value(point, name)) for point in run.points if point.tasks <= tasks_max],
        )
        for index, run in enumerate(runs)
    ]
    return chart(title=title, x_title="tasks done", lines=lines)


def _value(point: Point, name: str) -> float:
    return float(getattr(point, name))
