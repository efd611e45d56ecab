"""From what was seen to the figures of the report; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from forwarder.loadtest.processes import Look
from forwarder.loadtest.traffic import Ended
from forwarder.loadtest.worker_log import DECISIONS

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One moment of a run: sums over the worker's processes, the largest child, and the tasks so far.

    What could not be looked at is None: a worker elsewhere shows nothing but results. ``gone``
    is a worker that ended before it was stopped.
    """

    at_s: float
    sent: int
    done: int
    processes: int | None = None
    rss_mb: float | None = None
    unique_mb: float | None = None
    proportional_mb: float | None = None
    main_rss_mb: float | None = None
    child_rss_mb: float | None = None
    child_unique_mb: float | None = None
    descriptors: int | None = None
    connections: int | None = None
    in_flight: int | None = None
    events: Mapping[str, int] | None = None
    gone: bool = False


def sampled(
    at_s: float,
    *,
    sent: int,
    done: int,
    look: Look | None,
    in_flight: int | None,
    events: Mapping[str, int] | None,
) -> Sample:
    """Return the sample of one look at the worker."""
    if look is None or not look.processes:
        gone = look is not None and look.gone
        return Sample(at_s=at_s, sent=sent, done=done, in_flight=in_flight, events=events, gone=gone)
    return Sample(
        at_s=at_s,
        sent=sent,
        done=done,
        processes=len(look.processes),
        rss_mb=look.total("rss_bytes") / MIB,
        unique_mb=look.total("unique_bytes") / MIB,
        proportional_mb=look.total("proportional_bytes") / MIB,
        main_rss_mb=look.processes[0].rss_bytes / MIB,
        child_rss_mb=max((child.rss_bytes for child in look.children), default=0) / MIB or None,
        child_unique_mb=max((child.unique_bytes for child in look.children), default=0) / MIB or None,
        descriptors=look.total("descriptors"),
        connections=look.total("connections"),
        in_flight=in_flight,
        events=events,
    )


@dataclass(frozen=True, slots=True)
class Figure:
    """How a figure is shown. ``better`` is which way a difference is an improvement, where one is."""

    title: str
    unit: str = ""
    better: Literal["less", "more", ""] = ""


#: Groups to figures, in the order of the report.
FIGURES: Mapping[str, Mapping[str, Figure]] = {
    "Tasks": {
        "sent": Figure("sent"),
        "succeeded": Figure("succeeded"),
        "failed": Figure("failed", better="less"),
        "missing": Figure("without a result", better="less"),
        "completion_s": Figure("completion time, first sent to last stored", "s", "less"),
        "tasks_per_s": Figure("throughput", "tasks/s", "more"),
        "latency_p50_s": Figure("sent to stored, median", "s", "less"),
        "latency_p99_s": Figure("sent to stored, 99th percentile", "s", "less"),
    },
    "Worker": {
        "workers_peak": Figure("children at peak"),
        "in_flight_peak": Figure("tasks in flight at peak"),
        "kills": Figure("kills", better="less"),
        "pressure": Figure("times that memory held tasks back", better="less"),
        **{name: Figure(f"{name.upper()} decisions") for name in DECISIONS},
    },
    "Memory": {
        "memory_share_peak_percent": Figure("peak share of the limit", "%", "less"),
        "memory_limit_mb": Figure("limit", "MB"),
        **{
            f"{name}_{moment}_mb": Figure(f"{title}, {words}", "MB", "less")
            for name, title in {
                "rss": "resident, all processes",
                "unique": "unique, all processes",
                "main_rss": "resident, main process",
                "child_rss": "resident, largest child",
                "child_unique": "unique, largest child",
            }.items()
            for moment, words in {"startup": "at start", "mid": "mid-load", "peak": "peak"}.items()
        },
    },
    "Descriptors": {
        "descriptors_startup": Figure("open, at start", better="less"),
        "descriptors_peak": Figure("open, peak", better="less"),
        "descriptors_end": Figure("open, at the end", better="less"),
        "connections_peak": Figure("TCP connections, peak", better="less"),
    },
}


def figures(
    samples: Sequence[Sample], ended: Sequence[Ended], *, sent: int, limit_mb: float | None
) -> Figures:
    """Return every figure by its name; None for what could not be seen."""
    events = next((sample.events for sample in reversed(samples) if sample.events is not None), None)
    found: Figures = {**_of_tasks(ended, sent), **_of_memory(samples, limit_mb)}
    found["workers_peak"] = _less_one(_peak(samples, "processes"))
    found["in_flight_peak"] = _peak(samples, "in_flight")
    for name in ("kills", "pressure", *DECISIONS):
        found[name] = None if events is None else events[name]
    if any(sample.gone for sample in samples):  # the log tells of children alone
        found["kills"] = (found["kills"] or 0) + 1
    seen = [sample for sample in samples if sample.descriptors is not None]
    found["descriptors_startup"] = seen[0].descriptors if seen else None
    found["descriptors_peak"] = _peak(samples, "descriptors")
    found["descriptors_end"] = seen[-1].descriptors if seen else None
    found["connections_peak"] = _peak(samples, "connections")
    return found


Figures = dict[str, float | int | None]


def failures(ended: Sequence[Ended]) -> dict[str, int]:
    """Return how often each code of a failure came, the most frequent first."""
    codes = Counter(task.code or task.state for task in ended if not task.succeeded)
    return dict(codes.most_common())


def middle(samples: Sequence[Sample]) -> Sample | None:
    """Return the sample of mid-load: the first with half of what was done in the end."""
    total = samples[-1].done if samples else 0
    return next((sample for sample in samples if 2 * sample.done >= total > 0), None)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the nearest-rank percentile, None of no values."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(percent) // 100) - 1)] if ordered else None


def _of_tasks(ended: Sequence[Ended], sent: int) -> Figures:
    succeeded = sum(task.succeeded for task in ended)
    took_s = max(task.done_at for task in ended) - min(task.sent_at for task in ended) if ended else None
    # Two clocks of two machines may disagree by more than a task takes.
    latencies_s = [max(0.0, task.done_at - task.sent_at) for task in ended]
    return {
        "sent": sent,
        "succeeded": succeeded,
        "failed": len(ended) - succeeded,
        "missing": sent - len(ended),
        "completion_s": took_s,
        "tasks_per_s": len(ended) / took_s if took_s and took_s > 0 else None,
        "latency_p50_s": percentile(latencies_s, 50),
        "latency_p99_s": percentile(latencies_s, 99),
    }


def _of_memory(samples: Sequence[Sample], limit_mb: float | None) -> Figures:
    found: Figures = {"memory_limit_mb": limit_mb}
    half = middle(samples)
    for name in ("rss", "unique", "main_rss", "child_rss", "child_unique"):
        seen = [value for sample in samples if (value := getattr(sample, f"{name}_mb")) is not None]
        found[f"{name}_startup_mb"] = seen[0] if seen else None
        found[f"{name}_mid_mb"] = None if half is None else getattr(half, f"{name}_mb")
        found[f"{name}_peak_mb"] = max(seen, default=None)
    peak = _peak(samples, "proportional_mb")
    found["memory_share_peak_percent"] = 100 * peak / limit_mb if peak is not None and limit_mb else None
    return found


def _peak(samples: Sequence[Sample], name: str) -> float | int | None:
    return max((value for sample in samples if (value := getattr(sample, name)) is not None), default=None)


def _less_one(number: float | int | None) -> float | int | None:
    return None if number is None else number - 1
