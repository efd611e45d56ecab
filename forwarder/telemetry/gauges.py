"""Gauges: what is read at the moment somebody asks, from whoever knows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from forwarder.telemetry.catalogue import BY_NAME
from forwarder.telemetry.metrics import Series

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of a gauge, at this moment."""

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


#: What is asked for readings, in any thread, beside the worker's own loop: it reads what is at hand, and
#: neither blocks, nor takes a lock, nor writes a log line. What isn't known now it leaves out.
Source = Callable[[], Iterable[Reading]]


class Gauges:
    """The sources of all gauges."""

    def __init__(self) -> None:
        self._sources: list[Source] = []

    def add(self, source: Source) -> None:
        """Ask this source, too."""
        self._sources.append(source)

    def read(self) -> list[tuple[Series, float]]:
        """Return what the sources tell now, without those that fail. Raises ValueError as counting does.

        A series of two sources is the sum of both.
        """
        found: dict[Series, float] = {}
        for source in self._sources:
            for reading in _told(source):
                series = _series(reading)
                found[series] = found.get(series, 0.0) + reading.value
        return list(found.items())


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Return what is resident of this process's memory. https://docs.kernel.org/filesystems/proc.html"""
    return int(statm.read_text().split()[1]) * PAGE_BYTES


def _told(source: Source) -> list[Reading]:
    try:
        return list(source())
    except Exception:  # noqa: BLE001 - a series that is absent is how a scrape tells of it
        return []


def _series(reading: Reading) -> Series:
    metric = BY_NAME.get(reading.name)
    if metric is None or metric.kind != "gauge" or reading.labels.keys() != set(metric.labels):
        raise ValueError(
            f"no gauge {reading.name} with the labels {sorted(reading.labels)} is in the catalogue"
        )
    return Series(reading.name, tuple(reading.labels[label] for label in metric.labels))
