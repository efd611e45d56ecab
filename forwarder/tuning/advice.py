"""Measurements to settings, each with the arithmetic that led to it: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forwarder.scaling.container import MIB, Limit
from forwarder.scaling.peak import AWS_CHILD_BYTES, BASE_BYTES, COPIES, SLOT_BYTES, child_bytes, mib, peak
from forwarder.settings.model import Pool, Settings
from forwarder.settings.table import BY_FIELD
from forwarder.staging.threshold import IN_MEMORY_MAX, above_for
from forwarder.tuning.asking import Fetched
from forwarder.tuning.child import Child
from forwarder.tuning.levels import Level, quantile

#: Seconds of CPU that one task costs a gevent worker, results in Redis: docs/performance.md.
TASK_CPU_S = 0.0008
#: Share of its core that a gevent worker may be planned with.
CORE_SHARE = 0.7

#: How much larger than the largest sample a payload or response may be, and slower than the slowest in a
#: hundred an answer, before a bound refuses it: a sample is not all there is.
SIZE_FACTOR = 4
TIME_FACTOR = 10
TASK_TIMEOUT_S_MIN = 10

#: What a prefork process is planned with, for each byte that a child had: one that is alone has 1.28 of what
#: two have, because it shares less with the main process (docs/tuning.md).
CHILD_FACTOR = 1.3

#: Budget of bytes in flight: twice what every slot's largest payload and response are.
BUDGET_FACTOR = 2

KIB = 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out; ``task_growth_bytes`` and ``child`` are None where they could not be."""

    message_bytes: Sequence[int]
    knee: Level
    knee_why: str
    fetched: Sequence[Fetched]
    task_growth_bytes: int | None
    child: Child | None
    limit: Limit
    cores: int

    @property
    def task_bytes(self) -> int:
        """Return the memory of one task: measured, or by the rule of five copies, whichever is more."""
        held = max(self.message_bytes) + max(self.knee.response_bytes)
        return max(COPIES * held, self.task_growth_bytes or 0)

    def child_bytes(self, settings: Settings) -> int:
        """Return what a prefork process takes but for its task: as given, measured, or the bound for all."""
        if self.child is None or settings.worker_rss_mb:
            return child_bytes(settings)
        wanted = CHILD_FACTOR * self.child.unique_bytes + settings.uses_aws * AWS_CHILD_BYTES
        return _round_up(wanted, MIB)


@dataclass(frozen=True, slots=True)
class Advice:
    """A value for one setting, and why."""

    field: str
    value: int | str
    why: str


def advise(measured: Measured, settings: Settings) -> list[Advice]:
    """Return what to set, with the settings that are in effect for everything else."""
    pool, concurrency, advice = _slots(measured, settings)
    advice.append(_bound("message_bytes_max", measured.message_bytes, "message is put aside"))
    advice.append(_bound("response_bytes_max", measured.knee.response_bytes, "response fails its task"))
    if pool == "gevent":
        advice.append(_budget(measured, settings, concurrency))
    else:
        advice += _child(measured, settings)
    advice.append(_task_timeout(measured))
    advice += _staging(measured, settings, concurrency)
    return advice


def applied(settings: Settings, advice: Sequence[Advice]) -> Settings:
    """Return the settings with the advice taken."""
    values: dict[str, Any] = {one.field: BY_FIELD[one.field].kind.parse(str(one.value)) for one in advice}
    return replace(settings, **values)


def container(measured: Measured, settings: Settings, advice: Sequence[Advice]) -> tuple[int, str]:
    """Return the memory in MiB that the container needs for the settings with the advice taken, and why."""
    most = peak(applied(settings, advice), measured.limit)
    high = settings.memory_high_percent
    needed = _round_up(most.bytes * 100 // high, 64 * MIB) // MIB
    fits = "" if needed * MIB <= measured.limit.bytes else f"; it has {mib(measured.limit.bytes)}"
    return needed, f"{mib(most.bytes)} at most (see check) / {high} % (--memory-high-percent){fits}"


def size(number: int) -> str:
    """Return bytes in words."""
    if number < 10 * KIB:
        return f"{number:,} B"
    return f"{number / KIB:,.0f} KiB" if number < 10 * MIB else f"{number / MIB:,.0f} MiB"


def _slots(measured: Measured, settings: Settings) -> tuple[Pool, int, list[Advice]]:
    """Return pool and concurrency, and both as advice."""
    wanted, why = _wanted(measured)
    per_s = measured.knee.per_s
    cpu = per_s * TASK_CPU_S
    task = measured.task_bytes
    child = measured.child_bytes(settings)
    room = measured.limit.bytes * settings.memory_high_percent / 100 - BASE_BYTES
    load = f"{per_s:.3g} tasks/s x {1000 * TASK_CPU_S:g} ms of CPU are {100 * cpu:.0f} % of a core"
    processes = f"{wanted} processes x ({mib(child)} + {size(task)})"
    pool: Pool = "gevent"
    each = SLOT_BYTES + task
    if cpu > CORE_SHARE and measured.cores > 1 and wanted * (child + task) <= room:
        pool, each = "prefork", child + task
        pool_why = f"{load}, more than one process should have; {processes} fit into {mib(int(room))}"
    elif cpu > CORE_SHARE:
        pool_why = f"{load}: run several workers; {processes} would not fit, or have no second core"
    else:
        pool_why = f"{load}; prefork would take {processes}, gevent {size(wanted * each)} in one process"
    fit = max(1, int(room / each))
    if fit < wanted:
        why += f"; but {mib(int(room))} of memory hold {fit} tasks of {size(each)}"
    concurrency = min(wanted, fit)
    slots = Advice("concurrency", concurrency, why)
    if settings.autoscale is not None:
        slots = Advice("autoscale", f"{concurrency},{min(settings.autoscale[1], concurrency)}", why)
    return pool, concurrency, [slots, Advice("pool", pool, pool_why)]


def _wanted(measured: Measured) -> tuple[int, str]:
    """Return the slots that keep the inference server at its knee: a slot also waits for its input."""
    at_once = measured.knee.concurrency
    if not measured.fetched:
        return at_once, measured.knee_why
    fetch_s = quantile([one.elapsed_s for one in measured.fetched], 0.5)
    infer_s = quantile(measured.knee.latencies_s, 0.5)
    wanted = math.ceil(at_once * (infer_s + fetch_s) / infer_s)
    why = (
        f"{measured.knee_why}; a slot is held for {fetch_s:.3g} s of download beside {infer_s:.3g} s of "
        f"inference, so {at_once} x {infer_s + fetch_s:.3g} / {infer_s:.3g} slots"
    )
    return wanted, why


def _bound(field: str, sizes: Sequence[int], fate: str) -> Advice:
    largest = max(sizes)
    why = f"{SIZE_FACTOR} x {size(largest)}, the largest of {len(sizes)}; a larger {fate}"
    return Advice(field, _round_up(SIZE_FACTOR * largest, MIB), why)


def _budget(measured: Measured, settings: Settings, concurrency: int) -> Advice:
    held = max(measured.message_bytes) + max(measured.knee.response_bytes)
    wanted = _round_up(BUDGET_FACTOR * concurrency * held, MIB)
    room = measured.limit.bytes * settings.memory_high_percent // 100 - BASE_BYTES
    most = max(MIB, room // COPIES // MIB * MIB)
    why = f"{BUDGET_FACTOR} x {concurrency} slots x {size(held)} of payload and response"
    if wanted > most:
        return Advice("inflight_bytes_max", most, f"{why} would not fit: {mib(room)} / {COPIES} copies")
    return Advice("inflight_bytes_max", wanted, f"{why}; {COPIES} x that is {mib(COPIES * wanted)} of memory")


def _child(measured: Measured, settings: Settings) -> Iterator[Advice]:
    # With --autoscale the worker goes by the children that it has.
    if measured.child is None or settings.worker_rss_mb or settings.autoscale is not None:
        return
    had = measured.child.unique_bytes / MIB
    aws = f" + {mib(AWS_CHILD_BYTES)} for AWS clients" if settings.uses_aws else ""
    why = f"{CHILD_FACTOR} x {had:.1f} MiB, the larger of two after {measured.child.tasks} tasks{aws}"
    yield Advice("worker_rss_mb", measured.child_bytes(settings) // MIB, why)


def _task_timeout(measured: Measured) -> Advice:
    slow_s = quantile(measured.knee.latencies_s, 0.99)
    timeout_s = max(TASK_TIMEOUT_S_MIN, math.ceil(TIME_FACTOR * slow_s))
    why = (
        f"{TIME_FACTOR} x {slow_s:.3g} s, the slowest in a hundred with {measured.knee.concurrency} at a time"
    )
    if timeout_s == TASK_TIMEOUT_S_MIN:
        why += f", and {TASK_TIMEOUT_S_MIN} s at least"
    return Advice("task_timeout_s", timeout_s, why)


def _staging(measured: Measured, settings: Settings, concurrency: int) -> Iterator[Advice]:
    if not measured.fetched:
        return
    sizes = [one.size_bytes for one in measured.fetched]
    largest = max(sizes)
    above = above_for(sizes, default=Settings().stage_above_bytes)
    if largest <= IN_MEMORY_MAX:
        why = f"all {len(sizes)} inputs are small ({size(largest)} at most): memory saves them the disk"
        yield Advice("stage_above_bytes", above, why)
    else:
        on_disk = sum(number > above for number in sizes)
        why = f"{on_disk} of {len(sizes)} inputs, up to {size(largest)}, go by way of the disk"
        yield Advice("stage_above_bytes", above, why)
        wanted = _round_up(2 * concurrency * largest, MIB) + settings.destination_bytes_max
        least = settings.input_bytes_max + settings.destination_bytes_max
        answer = size(settings.destination_bytes_max)
        why = f"2 x {concurrency} slots x {size(largest)} and an answer of {answer}"
        if wanted < least:
            why += ", and the least that --input-bytes-max and --destination-bytes-max allow"
        yield Advice("stage_bytes_max", max(wanted, least), why)
    slow_s = max(one.elapsed_s for one in measured.fetched)
    timeout_s = max(TASK_TIMEOUT_S_MIN, math.ceil(TIME_FACTOR * slow_s))
    yield Advice("input_timeout_s", timeout_s, f"{TIME_FACTOR} x {slow_s:.3g} s, the slowest download")


def _round_up(number: float, step: int) -> int:
    return max(1, math.ceil(number / step)) * step
