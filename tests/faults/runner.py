"""Runs one cell: services, workers, load, nemesis, and the wait until everything has its outcome."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from forwarder.testing.ledger import Ledger, Verdict, judge, open_ids
from forwarder.testing.services import ModelServer, NotInstalled
from tests.faults import sabotages, stock
from tests.faults.brokers import BROKERS, VISIBILITY_TIMEOUT_S, Broker
from tests.faults.scenario import CALM, Act, Cell, Scenario
from tests.faults.stores import STORES, Store
from tests.faults.traffic import Sender
from tests.faults.workers import Crew

SETTINGS = {
    "FORWARDER_CONCURRENCY": "4",
    "FORWARDER_VISIBILITY_TIMEOUT_S": str(VISIBILITY_TIMEOUT_S),
    "FORWARDER_DRAIN_TIMEOUT_S": "3",
    "FORWARDER_STORE_RETRY_S": "10",
    "FORWARDER_RETRY_SLOT_S": "5",
    "FORWARDER_TASK_TIMEOUT_S": "20",
    "FORWARDER_CONNECT_TIMEOUT_S": "1",
}
#: Seconds after the healing in which a lease that nobody settled would come back.
AFTERMATH_S = VISIBILITY_TIMEOUT_S + 1
STOP_TIMEOUT_S = 8.0
CALM_AGAIN_S = 1.0


#: Tasks a second that a recovered worker does at least: four slots, and 0.4 s for each at the model server.
BACKLOG_PER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a cell. ``reason`` says what broke, or why it could not be run (no ``verdict`` then)."""

    cell: Cell
    verdict: Verdict | None
    reason: str = ""
    skipped: bool = False
    seconds: float = 0.0
    ledger: Path | None = None

    @property
    def passed(self) -> bool:
        """Return whether it held, or could not be tried for a reason that is no fault."""
        return not self.reason or self.skipped


class Stage:
    """The services of one lane, started when first needed and kept for the lane's next cells."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._brokers: dict[str, Broker] = {}
        self._stores: dict[str, Store] = {}

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.strike()

    @property
    def kinds(self) -> set[str]:
        """Return the brokers that run."""
        return set(self._brokers)

    def strike(self) -> None:
        """Stop everything; what is needed next is started anew."""
        self._brokers.clear()
        self._stores.clear()
        self._stack.close()

    def results(self, kind: str) -> Store:
        """Return a result store, empty. Raises NotInstalled or StartFailed."""
        if kind not in self._stores:
            store = STORES[kind]()
            store.start(self._stack)
            self._stores[kind] = store
        self._stores[kind].clear()
        return self._stores[kind]

    def broker(self, kind: str) -> Broker:
        """Return a broker. Raises NotInstalled or StartFailed."""
        if kind not in self._brokers:
            broker = BROKERS[kind]()
            broker.start(self._stack)
            self._brokers[kind] = broker
        self._brokers[kind].link.heal()
        return self._brokers[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How cells are run: which module is the worker, how long faults last, the seed, files to where.

    ``patience`` multiplies the time for recovery.
    """

    module: str
    patience: float
    long: bool
    seed: str
    folder: Path


def run(cell: Cell, stage: Stage, plan: Plan) -> Outcome:
    """Run one cell and return what became of it. Blocks for seconds to minutes; raises only an interrupt."""
    lacks = cell.scenario.lacks()
    if lacks is None and plan.module == stock.__name__:
        lacks = stock.lacks(cell.broker, cell.pool)
    if lacks is not None:
        return Outcome(cell=cell, verdict=None, reason=lacks, skipped=True)
    ledger = Ledger(plan.folder / f"{str(cell).replace('/', '.')}.{uuid.uuid4().hex[:6]}.jsonl")
    started = time.monotonic()
    try:
        complaints = _run(cell, stage, plan, ledger)
    except NotInstalled as error:
        return Outcome(cell=cell, verdict=None, reason=str(error), skipped=True)
    except Exception as error:  # noqa: BLE001 - one scenario that can't be run must not end the others
        stage.strike()  # nobody knows what state it was left in
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(
            cell=cell, verdict=None, reason=reason, seconds=time.monotonic() - started, ledger=ledger.path
        )
    verdict = judge(ledger.events())
    return Outcome(
        cell=cell,
        verdict=verdict,
        reason=", ".join(filter(None, [broken(cell.scenario, verdict), *complaints])),
        seconds=time.monotonic() - started,
        ledger=ledger.path,
    )


def broken(scenario: Scenario, verdict: Verdict) -> str:
    """Return which musts a verdict breaks, empty for none. Pure."""
    found = []
    if verdict.sent == 0:
        found.append("nothing was sent")
    if verdict.lost:
        found.append(f"{len(verdict.lost)} lost")
    if verdict.repeated_after_commit:
        found.append(f"{len(verdict.repeated_after_commit)} asked again after the commit")
    if verdict.wrong:
        found.append(f"{len(verdict.wrong)} with a wrong outcome")
    if scenario.repeats_max is not None and verdict.repeats > scenario.repeats_max:
        found.append(f"{verdict.repeats} repeats where {scenario.repeats_max} are due")
    return ", ".join(found)


def _run(cell: Cell, stage: Stage, plan: Plan, ledger: Ledger) -> list[str]:
    scenario = cell.scenario
    results = stage.results(cell.results)
    broker = stage.broker(cell.broker)
    queue = f"faults-{uuid.uuid4().hex[:10]}"
    broker.prepare(queue)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(ModelServer(ledger=ledger.path))
        model.control(behaviour=CALM)
        env = {**_env(queue, broker, results, model), **scenario.settings, sabotages.NAME: scenario.sabotage}
        crew = Crew(module=plan.module, pool=cell.pool, env=env, stop_timeout_s=STOP_TIMEOUT_S)
        stack.enter_context(crew)
        stack.callback(lambda: ledger.path.with_suffix(".log").write_text(crew.logs()))
        producer = broker.producer(queue)
        stack.callback(producer.close)
        stack.enter_context(results.watch(ledger))
        crew.hire(scenario.workers)
        act = Act(
            crew=crew,
            broker=broker,
            results=results,
            model=model,
            sender=Sender(producer=producer, ledger=ledger, expect=scenario.expect),
            ledger=ledger,
            queue=queue,
            random=random.Random(f"{plan.seed}/{cell}"),
            long=plan.long,
        )
        _play(scenario, act)
        _wait_for_outcomes(act, scenario.recovery_s * plan.patience)
        return act.complaints


def _play(scenario: Scenario, act: Act) -> None:
    """Let the nemesis do its work under load, and some calm load after it."""
    with act.sender.under(scenario.load):
        scenario.nemesis(act)
        act.ledger.note("healed", scenario.name)
        if scenario.load.per_s:
            time.sleep(CALM_AGAIN_S)


def _wait_for_outcomes(act: Act, recovery_s: float) -> None:
    """Block until nothing is due: at least for the aftermath, at most as long as recovery may take.

    What waits by then needs its time as well: a fault of a minute leaves hundreds of tasks.
    """
    healed_at = time.monotonic()
    backlog_s = len(open_ids(act.ledger.events())) / BACKLOG_PER_S
    while time.monotonic() < healed_at + recovery_s + backlog_s:
        _look_for_dead(act)
        if not open_ids(act.ledger.events()) and time.monotonic() > healed_at + AFTERMATH_S:
            return
        time.sleep(0.3)


def _look_for_dead(act: Act) -> None:
    try:
        texts = act.broker.dead_letters(act.queue)
    except Exception:  # noqa: BLE001 - there is no such queue yet, or the broker is still coming back
        return
    if not texts:
        return
    events = list(act.ledger.events())
    known = {event.id for event in events if event.what == "dead"}
    for task_id in {event.id for event in events if event.what in ("sent", "unsure")} - known:
        if any(task_id in text for text in texts):
            act.ledger.note("dead", task_id)


def _env(queue: str, broker: Broker, results: Store, model: ModelServer) -> dict[str, str]:
    return {
        **SETTINGS,
        **model.env,
        **broker.worker_env(queue),
        **results.worker_env(),
        "FORWARDER_QUEUES": queue,
    }


def next_cell(pending: list[Cell], *, mine: set[str], others: set[str]) -> Cell:
    """Take the cell that a lane runs next: on a broker that it runs already, else on one that nobody runs.

    Keeps the lanes from each starting every broker. ``pending`` must not be empty.
    """
    by_preference = (
        [cell for cell in pending if cell.broker in mine],
        [cell for cell in pending if cell.broker not in others],
        pending,
    )
    cell = next(group[0] for group in by_preference if group)
    pending.remove(cell)
    return cell
