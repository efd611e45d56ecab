"""Draw what ``scripts/bench`` measured: PNG files beside its JSON.

python -m benchmarks.plots benchmarks/results/redis.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

#: Measures that differ by more than a linear scale shows. Bars have no meaning on a logarithmic one, which
#: begins anywhere: there a dot for each run and a tick for the median stand for them.
LOGARITHMIC = {"p50_ms", "p99_ms", "unique_mib"}
OURS, OTHERS, FLOOR, RUN = "#1f6feb", "#9aa4b2", "#d9dee5", "#24292f"
PLOTS = {
    "cpu_ms_0s": "CPU time a task, ms (one HTTP call, one stored result)",
    "tasks_per_s_0s": "tasks a second on one processor",
    "ideal_1s": "tasks of 1 s: share of what so many slots could do",
    "p50_ms": "added latency at half load, p50, ms",
    "p99_ms": "added latency at half load, p99, ms",
    "unique_mib": "unique memory, MiB",
}

Row = dict[str, Any]


def draw(rows: list[Row], runs: list[Row], in_flight: int, file: Path) -> None:
    """Draw one figure with a panel for each measure: bars are medians, dots are runs."""
    figure, panels = plt.subplots(2, 3, figsize=(17, 9), constrained_layout=True)
    figure.suptitle(f"{in_flight} tasks in flight: medians, and a dot for each run")
    for panel, (name, title) in zip(panels.flat, PLOTS.items(), strict=True):
        here = [row for row in rows if row[name] is not None]
        panel.set_title(title, loc="left", fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
        if here:
            bars(panel, here, runs, name)
        else:
            panel.text(0.5, 0.5, "not measured", ha="center", transform=panel.transAxes)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def bars(panel: Axes, rows: list[Row], runs: list[Row], name: str) -> None:
    """Draw a bar for each worker, with its runs."""
    names, values = [row["system"] for row in rows], [row[name] for row in rows]
    logarithmic = name in LOGARITHMIC
    for at, (system, value) in enumerate(zip(names, values, strict=True)):
        if not logarithmic:
            panel.barh(at, value, color=colour(system))
        else:
            panel.plot([value, value], [at - 0.4, at + 0.4], color=colour(system), linewidth=4)
        found = [run[name] for run in runs if run["system"] == system and run.get(name) is not None]
        panel.plot(found, [at] * len(found), "o", color=RUN, markersize=3.5, alpha=0.7)
        text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        panel.annotate(text, (max(found), at), xytext=(7, 0), textcoords="offset points", va="center")
    if logarithmic:
        panel.set_xscale("log")
        panel.grid(axis="x", which="major", color=FLOOR)
        panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.margins(x=0.17)
    if not logarithmic:
        panel.set_xlim(left=0)


def colour(system: str) -> str:
    """Return the colour of a worker's bar."""
    if system.startswith("floor"):
        return FLOOR
    return OURS if system.startswith("forwarder") else OTHERS


def main() -> None:
    """Draw a file for each number in flight."""
    source = Path(sys.argv[1])
    found = json.loads(source.read_text())
    for in_flight in sorted({row["in_flight"] for row in found["medians"]}):
        rows, runs = (
            [row for row in found[part] if row["in_flight"] == in_flight] for part in ("medians", "runs")
        )
        draw(rows, runs, in_flight, source.with_name(f"{source.stem}-{in_flight}.png"))


if __name__ == "__main__":
    main()
