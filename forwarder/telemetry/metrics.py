"""Counts kept in the process from the first task on; exporters read them."""

from __future__ import annotations

import threading

Key = tuple[str, tuple[tuple[str, str], ...]]


class ProcessMetrics:
    """Counters and sums of one process.

    Thread-safe and greenlet-safe. Labels must be bounded (queue, outcome,
    service): the table keeps every combination that it has seen.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Key, int] = {}
        self._sums: dict[Key, tuple[int, float]] = {}

    def count(self, name: str, value: int = 1, /, **labels: str) -> None:
        """Add ``value`` to the counter."""
        key = _key(name, labels)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + value

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Add one measurement to the sum and its number of measurements."""
        key = _key(name, labels)
        with self._lock:
            number, total = self._sums.get(key, (0, 0.0))
            self._sums[key] = (number + 1, total + value)

    def value(self, name: str, /, **labels: str) -> int:
        """Return a counter's value, 0 if it was never raised."""
        with self._lock:
            return self._counts.get(_key(name, labels), 0)

    def snapshot(self) -> dict[str, float]:
        """Return every counter and sum as ``name{label=value}`` to number."""
        with self._lock:
            flat: dict[str, float] = {_flat(key): value for key, value in self._counts.items()}
            for key, (number, total) in self._sums.items():
                flat[_flat(key) + "_count"] = number
                flat[_flat(key) + "_sum"] = total
        return flat


def _key(name: str, labels: dict[str, str]) -> Key:
    return name, tuple(labels.items() if len(labels) < 2 else sorted(labels.items()))


def _flat(key: Key) -> str:
    name, labels = key
    if not labels:
        return name
    return name + "{" + ",".join(f"{label}={value}" for label, value in labels) + "}"
