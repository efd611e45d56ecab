"""One soak: a worker under load, looked at once a second."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.soak.scene import SoakCloud, SoakScene
from benchmarks.soak.slope import theil_sen
from forwarder.loadtest.processes import Look, Sampler
from forwarder.testing.services import ModelServer
from forwarder.testing.worker import Worker

MIB = 1024 * 1024
LOOK_EVERY_S = 1.0
#: Messages that wait for each slot, so that the worker always has work and the queue stays short.
WAITING_PER_SLOT = 3
#: Tasks of a second that each slot begins with.
SLOW_ROUNDS = 4
#: Of unique memory, for 10,000 tasks, in MB.
GROWTH_MAX = 1.0
#: Tasks of each process that runs tasks until it is warm: caches are full, every size has come. A run
#: of less than twice as many says nothing; of such a one the last part is looked at all the same.
WARM_UP_TASKS = 1500
WARM_UP_SHORT = 0.3

CLIENT_BUILT = re.compile(r"\baws_client_built service=firehose\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is soaked. ``env`` is added to the worker's; the run ends with ``tasks`` or ``seconds``."""

    name: str
    pool: str
    concurrency: int
    tasks: int
    seconds: float
    payload_bytes: int
    module: str = "forwarder"
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One look: tasks done by then, and the sums over the worker's processes."""

    at_s: float
    tasks: int
    rss_mb: float
    unique_mb: float
    processes: int
    descriptors: int
    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Soaked:
    """What came of a run. ``growth_mb`` is of unique memory for 10,000 tasks, after the warm-up."""

    name: str
    pool: str
    tasks: int
    seconds: float
    client_builds: int
    unique_start_mb: float
    unique_end_mb: float
    unique_peak_mb: float
    rss_peak_mb: float
    growth_mb: float
    descriptors_growth: int
    connections_growth: int
    too_short: bool
    points: Sequence[Point]

    @property
    def flat(self) -> bool:
        """Return whether nothing grew."""
        return self.growth_mb < GROWTH_MAX and self.descriptors_growth <= 0 and self.connections_growth <= 0

    @property
    def verdict(self) -> str:
        """Return ``flat``, ``grows`` or ``too short``."""
        if self.too_short:
            return "too short"
        return "flat" if self.flat else "grows"

    def as_json(self) -> dict[str, object]:
        """Return what is written down."""
        return asdict(self) | {"verdict": self.verdict}


def soak(plan: Plan, *, cloud: SoakCloud, model: ModelServer) -> Soaked:
    """Run a worker and keep it busy; return what was seen. Blocks. Raises StartFailed."""
    slow = SLOW_ROUNDS * plan.concurrency
    scene = SoakScene(cloud=cloud, model=model, payload_bytes=plan.payload_bytes, slow=slow)
    env = {**scene.env, "FORWARDER_CONCURRENCY": str(plan.concurrency), **(plan.env or {})}
    cloud.counts()
    points: list[Point] = []
    with Worker(pool=plan.pool, env=env, module=plan.module) as worker:
        worker.wait_ready()
        sampler = Sampler(pid=worker.pid, exact_share=0.1)
        began_s = next_s = time.monotonic()
        while scene.stored < plan.tasks and time.monotonic() < began_s + plan.seconds:
            if scene.sent < scene.stored + WAITING_PER_SLOT * plan.concurrency:
                scene.send()
            else:
                time.sleep(0.05)
                scene.count()
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + LOOK_EVERY_S
                scene.count()
                points.append(_point(time.monotonic() - began_s, scene.stored, sampler.look()))
        builds = len(CLIENT_BUILT.findall(worker.log()))
    scene.close()
    return judge(plan, points, builds)


def _point(at_s: float, tasks: int, look: Look) -> Point:
    return Point(
        at_s=at_s,
        tasks=tasks,
        rss_mb=look.total("rss_bytes") / MIB,
        unique_mb=look.total("unique_bytes") / MIB,
        processes=len(look.processes),
        descriptors=look.total("descriptors"),
        connections=look.total("connections"),
    )


def judge(plan: Plan, points: Sequence[Point], builds: int) -> Soaked:
    """Return the figures of a run; the peaks of descriptors are compared by halves. Pure."""
    tasks = points[-1].tasks
    warm_up = WARM_UP_TASKS * (plan.concurrency if plan.pool == "prefork" else 1)
    too_short = tasks < 2 * warm_up
    begin = WARM_UP_SHORT * tasks if too_short else warm_up
    warm = [point for point in points if point.tasks >= begin]
    middle = len(warm) // 2
    first, second = warm[:middle], warm[middle:]
    return Soaked(
        name=plan.name,
        pool=plan.pool,
        tasks=tasks,
        seconds=points[-1].at_s,
        client_builds=builds,
        unique_start_mb=points[0].unique_mb,
        unique_end_mb=points[-1].unique_mb,
        unique_peak_mb=max(point.unique_mb for point in points),
        rss_peak_mb=max(point.rss_mb for point in points),
        growth_mb=10_000 * theil_sen([(point.tasks, point.unique_mb) for point in warm]),
        descriptors_growth=_growth([p.descriptors for p in first], [p.descriptors for p in second]),
        connections_growth=_growth([p.connections for p in first], [p.connections for p in second]),
        too_short=too_short,
        points=points,
    )


def _growth(before: Sequence[int], after: Sequence[int]) -> int:
    """Return by how much the ninth tenth rose: a connection that is made anew is there twice for a moment."""
    return _ninth_tenth(after) - _ninth_tenth(before)


def _ninth_tenth(numbers: Sequence[int]) -> int:
    return sorted(numbers)[int(0.9 * (len(numbers) - 1))]
