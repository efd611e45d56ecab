"""Draw what ``benchmarks.autoscale_burst`` saw: memory, children and decisions over time, a panel each run.

python -m benchmarks.burst_plot FOLDER/burst.json
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

COLOURS = {"grow": "tab:green", "hold": "tab:grey", "block": "tab:orange", "shrink": "tab:red"}


def draw(bursts: list[dict[str, Any]], file: Path) -> None:
    """Draw one figure with a panel for each run."""
    figure, panels = plt.subplots(len(bursts), 1, figsize=(11, 2.7 * len(bursts)), constrained_layout=True)
    for panel, burst in zip(panels, bursts, strict=True):
        looks = burst["looks"]
        at = [look["at_s"] for look in looks]
        panel.axhspan(50, 70, color="0.93")
        panel.axhline(100, color="tab:red", linewidth=0.8)
        panel.plot(at, [100 * look["share"] for look in looks], color="tab:blue")
        panel.set(xlim=(0, None), ylim=(0, 108), ylabel="memory, % (blue)")
        done, kills = looks[-1]["done"], burst["kills"]
        panel.set_title(
            f"{burst['name']}: {done} of {burst['tasks']} done, {kills} killed", loc="left", fontsize=11
        )
        children = panel.twinx()
        children.step(at, [look["children"] for look in looks], "k", where="post")
        children.set(ylim=(0, 32), ylabel="children (black)")
        for second, action in decisions(burst):
            panel.axvline(second, color=COLOURS[action], linewidth=1.5, ymax=0.07)
    panels[-1].set_xlabel("seconds since the burst. Ticks: grow green, hold grey, block orange, shrink red")
    figure.savefig(file, dpi=90)
    plt.close(figure)


def decisions(burst: dict[str, Any]) -> list[tuple[float, str]]:
    """Return when, in seconds since the burst, which action was logged."""
    return [
        (datetime.fromisoformat(when).timestamp() - burst["began_at"], action)
        for when, action in re.findall(r"^(\S+) INFO .* autoscale action=(\w+)", burst["log"], re.MULTILINE)
    ]


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
