"""Draw what ``scripts/bench`` measured: PNG files beside its JSON.

python -m benchmarks.plots benchmarks/results/redis.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

#: Where the longest bar is so many times the shortest, a linear scale shows that bar alone.
LOG_FROM = 20
OURS, OTHERS = "#1f6feb", "#9aa4b2"
PLOTS = {
    "cpu_ms_0s": "CPU time a task, ms (one HTTP call, one stored result)",
    "tasks_per_s_0s": "tasks a second on one processor",
    "p99_ms": "added latency at half load, p99, ms",
    "unique_mib": "unique memory, MiB",
}


def draw(rows: list[dict[str, Any]], in_flight: int, file: Path) -> None:
    """Draw one figure with a panel for each measure; the longest bars are cut by a log scale."""
    figure, panels = plt.subplots(2, 2, figsize=(12, 7.5), constrained_layout=True)
    figure.suptitle(f"{in_flight} tasks in flight")
    for panel, (name, title) in zip(panels.flat, PLOTS.items(), strict=True):
        names = [row["system"] for row in rows]
        values = [row[name] for row in rows]
        colours = [OURS if each.startswith("forwarder") else OTHERS for each in names]
        bars = panel.barh(names, values, color=colours)
        panel.bar_label(
            bars, [f"{each:,.0f}" if each >= 100 else f"{each:.3g}" for each in values], padding=3
        )
        if max(values) > LOG_FROM * min(values):
            panel.set_xscale("log")
        panel.set_title(title, loc="left", fontsize=10)
        panel.invert_yaxis()
        panel.margins(x=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Draw a file for each number in flight."""
    source = Path(sys.argv[1])
    rows = json.loads(source.read_text())["medians"]
    for in_flight in sorted({row["in_flight"] for row in rows}):
        here = [row for row in rows if row["in_flight"] == in_flight]
        draw(here, in_flight, source.with_name(f"{source.stem}-{in_flight}.png"))


if __name__ == "__main__":
    main()
