"""The report of a run as JSON: written, read again, and compared with another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forwarder.loadtest.charts import number
from forwarder.loadtest.figures import FIGURES, Figure, Figures, Sample

#: Of the JSON; raised when a reader of the one before would misread it.
SCHEMA = 1


class NotAReport(ValueError):
    """A file is no report that this version can read; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run. ``settings`` are the ones that were given, secrets redacted; ``failures`` codes to numbers."""

    name: str
    began_at: str
    target: str
    machine: Mapping[str, Any]
    shape: Mapping[str, Any]
    settings: Mapping[str, str]
    figures: Figures
    failures: Mapping[str, int]
    samples: Sequence[Sample]

    def write(self, path: Path) -> None:
        """Write the JSON. Raises OSError."""
        path.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Report:
    """Read a report. Raises NotAReport, or OSError where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.pop("schema")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise NotAReport(f"{path} is no report of a load test") from error
    if schema != SCHEMA:
        raise NotAReport(f"{path} has schema {schema}; this version reads {SCHEMA}")
    try:
        samples = [Sample(**sample) for sample in content.pop("samples")]
        return Report(**content, samples=samples)
    except (KeyError, TypeError) as error:
        raise NotAReport(f"{path} is no report of a load test") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure of one run, or of two side by side; ``percent`` is the difference of the other's value."""

    group: str
    name: str
    figure: Figure
    value: float | int | None
    other: float | int | None = None
    difference: float | None = None
    percent: float | None = None

    @property
    def verdict(self) -> str:
        """Return ``better``, ``worse`` or nothing, where there is no telling or no difference."""
        if not self.difference or not self.figure.better:
            return ""
        return "better" if (self.difference < 0) == (self.figure.better == "less") else "worse"


def rows(figures: Figures, other: Figures | None = None) -> list[Row]:
    """Return all figures, with the other run's beside them."""
    found = []
    for group, names in FIGURES.items():
        for name, figure in names.items():
            value = figures.get(name)
            than = None if other is None else other.get(name)
            difference = None if value is None or than is None else value - than
            found.append(
                Row(
                    group=group,
                    name=name,
                    figure=figure,
                    value=value,
                    other=than,
                    difference=difference,
                    percent=100 * difference / abs(than) if difference is not None and than else None,
                )
            )
    return found


#: The figures that stand on the screen after a run; all are in the report.
IN_SHORT = (
    "succeeded", "failed", "missing", "completion_s", "tasks_per_s", "workers_peak", "rss_peak_mb",
    "unique_peak_mb", "memory_share_peak_percent", "kills",
)  # fmt: skip


def summary(report: Report, other: Report | None = None) -> list[str]:
    """Return the few lines that are shown on the screen."""
    lines = []
    for row in rows(report.figures, other.figures if other else None):
        if row.name not in IN_SHORT or row.value is None:
            continue
        title = f"{row.figure.title}, {row.figure.unit}" if row.figure.unit else row.figure.title
        line = f"  {title:<45} {number(row.value):>10}"
        if row.other is not None:
            line += f" {number(row.other):>10}"
            line += "" if row.percent is None else f" {row.percent:>+8.1f}% {row.verdict}".rstrip()
        lines.append(line)
    return lines + [f"  failed with {code}: {count}" for code, count in report.failures.items()]
