"""What a scenario is, and what its nemesis is given."""

from __future__ import annotations

import fnmatch
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from forwarder.testing.ledger import Expect, Ledger
from forwarder.testing.services import ModelServer
from tests.faults.brokers import Broker
from tests.faults.stores import Store
from tests.faults.traffic import Load, Sender
from tests.faults.workers import Crew

BROKERS = ("redis", "sqs", "amqp")
#: A broker, and after a plus the result store where that is not Redis.
SQS_S3 = "sqs+s3"
POOLS = ("prefork", "gevent")
#: How the model server answers when nothing is wrong: long enough that there is always something in flight.
CALM = {"sleep_s": 0.15}
STEADY = Load()


@dataclass(slots=True, kw_only=True)
class Act:
    """One running scenario, as its nemesis sees it.

    ``complaints`` is what it saw go wrong that the ledger can't tell.
    """

    crew: Crew
    broker: Broker
    results: Store
    model: ModelServer
    sender: Sender
    ledger: Ledger
    queue: str
    random: random.Random
    long: bool
    complaints: list[str] = field(default_factory=list)

    def seconds(self, short: float, long: float | None = None) -> float:
        """Return how long a fault lasts: ``short``, or in the long form anything up to ``long``."""
        return self.random.uniform(short / 2, long or 2 * short) if self.long else short

    def pause(self, short: float, long: float | None = None) -> None:
        """Let time pass, see ``seconds``."""
        time.sleep(self.seconds(short, long))

    def behave(self, **behaviour: object) -> None:
        """Change the model server's answers to everything that brings no behaviour of its own."""
        self.model.control(behaviour=behaviour or CALM)

    def wait_for(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Block until something holds; return whether it did before the time was over."""
        deadline = time.monotonic() + timeout_s
        while not (held := holds()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return held


Nemesis = Callable[[Act], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One fault.

    ``nemesis`` makes the fault and returns when everything works again.
    ``guarantee`` says in a sentence what must hold. ``expect`` is the outcome of each task,
    ``repeats_max`` how many requests may be repeats without a commit, None for
    any number. ``recovery_s``: within so many seconds after the healing all must
    have their outcome. ``places`` names the brokers, with the result store where that
    is not Redis. ``short`` names the cells (``place/pool``) of the short form.
    ``sabotage`` names what is taken out of our worker to show that the scenario
    notices, where a stock worker holds as well.
    ``lacks`` returns why this machine can't make the fault.
    """

    name: str
    guarantee: str
    nemesis: Nemesis
    places: tuple[str, ...] = BROKERS
    pools: tuple[str, ...] = POOLS
    workers: int = 1
    load: Load = STEADY
    settings: Mapping[str, str] = field(default_factory=dict)
    expect: Expect = "success"
    repeats_max: int | None = None
    recovery_s: float = 25.0
    short: Collection[str] = ()
    sabotage: str = ""
    lacks: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Cell:
    """One scenario in one place (``broker`` or ``broker+store``) and on one pool."""

    scenario: Scenario
    place: str
    pool: str

    def __str__(self) -> str:
        return f"{self.scenario.name}/{self.place}/{self.pool}"

    @property
    def is_short(self) -> bool:
        """Return whether the short form runs it."""
        return f"{self.place}/{self.pool}" in self.scenario.short

    @property
    def broker(self) -> str:
        """Return the broker's kind."""
        return self.place.partition("+")[0]

    @property
    def results(self) -> str:
        """Return the result store's kind."""
        return self.place.partition("+")[2] or "redis"


def cells(scenarios: Iterable[Scenario]) -> Iterator[Cell]:
    """Yield every scenario in every place and on every pool where it applies."""
    for scenario in scenarios:
        for place in scenario.places:
            for pool in scenario.pools:
                yield Cell(scenario, place, pool)


def chosen(all_cells: Iterable[Cell], *, only: str | None, everything: bool) -> list[Cell]:
    """Return the cells to run: those that match ``only``, or the short form's, or all.

    ``only`` is a pattern of the shell for the cell's name; without a wildcard, part of it.
    """
    if only is not None:
        pattern = only if any(sign in only for sign in "*?[") else f"*{only}*"
        return [cell for cell in all_cells if fnmatch.fnmatchcase(str(cell), pattern)]
    return [cell for cell in all_cells if everything or cell.is_short]
