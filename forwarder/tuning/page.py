"""What was measured and what follows from it, as text: for a terminal, and for an env file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from forwarder.scaling.container import MIB
from forwarder.settings.model import Settings
from forwarder.settings.spec import render, value_of
from forwarder.settings.table import BY_FIELD
from forwarder.tuning.advice import Advice, Measured, container, size
from forwarder.tuning.child import Child
from forwarder.tuning.levels import Level, quantile

#: Characters of a line at most: of the env file's, and where no terminal is narrower.
WIDTH = 108


def measurements(
    measured: Measured, levels: Sequence[Level], *, child_why: str, width: int = WIDTH
) -> list[str]:
    """Return the tables of what was measured; ``child_why`` tells why no child was."""
    growth = measured.task_growth_bytes
    lines = ["Sizes", f"  {'':<11}{'p50':>12}{'p99':>12}{'largest':>12}"]
    lines.append(_spread("messages", measured.message_bytes))
    lines.append(_spread("responses", measured.knee.response_bytes))
    if measured.fetched:
        lines.append(_spread("inputs", [one.size_bytes for one in measured.fetched]))
    lines += [
        "",
        "Memory",
        *_wrapped(
            f"a task: {size(measured.task_bytes)}"
            + (f" (a process grew by {size(growth)} over one after the other)" if growth is not None else ""),
            2,
            width,
        ),
        *_wrapped(f"a prefork process: {_child(measured.child, child_why)}", 2, width),
        "",
        "Inference",
        f"  {'at a time':>9}{'answers/s':>11}{'p50 s':>9}{'p99 s':>9}{'refused':>9}{'400 and above':>15}",
    ]
    lines += [_row(level) for level in sorted(levels, key=lambda level: level.concurrency)]
    if measured.fetched:
        fetch_s = [one.elapsed_s for one in measured.fetched]
        infer_s = quantile(measured.knee.latencies_s, 0.5)
        lines.append(
            f"  download of an input: {quantile(fetch_s, 0.5):.3g} s (p50), "
            f"{quantile(fetch_s, 0.5) / infer_s:.2g} of its inference"
        )
    return lines


def recommendations(
    measured: Measured, settings: Settings, advice: Sequence[Advice], *, width: int = WIDTH
) -> list[str]:
    """Return each recommended setting with its value, what is in effect now, and why."""
    flag_width = max(len(BY_FIELD[one.field].flag) for one in advice)
    lines = ["Recommended"]
    for one in advice:
        now = render(value_of(settings, one.field)) or "none"
        kept = "as it is" if now == render(one.value) else f"now {now}"
        lines.append(f"  {BY_FIELD[one.field].flag:<{flag_width}}  {one.value}  ({kept})")
        lines += _wrapped(one.why, flag_width + 4, width)
    needed, why = container(measured, settings, advice)
    lines.append(f"  {'the container':<{flag_width}}  {needed} MiB of memory or more")
    lines += _wrapped(why, flag_width + 4, width)
    return lines


def env_file(measured: Measured, settings: Settings, advice: Sequence[Advice]) -> str:
    """Return the recommended settings as an env file; nothing else of the settings is in it."""
    needed, why = container(measured, settings, advice)
    lines = ["# Made by `forwarder tune`."]
    lines += textwrap.wrap(
        f"The container needs {needed} MiB of memory or more: {why}.", WIDTH, initial_indent="# ",
        subsequent_indent="# ",
    )  # fmt: skip
    for one in advice:
        lines.append("")
        lines += textwrap.wrap(f"{one.why}.", WIDTH, initial_indent="# ", subsequent_indent="# ")
        lines.append(BY_FIELD[one.field].assignment(one.value))
    return "\n".join(lines) + "\n"


def _child(child: Child | None, why: str) -> str:
    if child is None:
        return f"not measured: {why}"
    return f"{child.unique_bytes / MIB:.1f} MiB for itself (the larger of two, after {child.tasks} tasks)"


def _spread(name: str, values: Sequence[int]) -> str:
    cells = (quantile(values, 0.5), quantile(values, 0.99), max(values))
    return f"  {name:<11}" + "".join(f"{size(int(cell)):>12}" for cell in cells)


def _row(level: Level) -> str:
    p50, p99 = (
        f"{quantile(level.latencies_s, share):.3f}" if level.latencies_s else "-" for share in (0.5, 0.99)
    )
    refused = level.busy + level.broken
    return f"  {level.concurrency:>9}{level.per_s:>11.3g}{p50:>9}{p99:>9}{refused:>9}{level.failed:>15}"


def _wrapped(text: str, indent: int, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
