"""``python -m tests.faults``: see ``scripts/faults --help``."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from forwarder.testing.ledger import Ledger, judge
from tests.faults import report, sabotages, stock
from tests.faults.matrix import SCENARIOS
from tests.faults.runner import Outcome, Plan, Stage, next_cell, run
from tests.faults.scenario import Cell, cells, chosen

#: Under gevent it takes a message for each slot every two seconds: what is only late must not seem lost.
STOCK_PATIENCE = 3.0
DESCRIPTION = """Inject faults under load, and check that every task that was sent has a result or is in the
dead letters, and that no inference call was made again after its result was stored. Without options: the
short form, about two minutes. See docs/faults.md."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options. Ends the process for --help and for what can't be understood."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description=DESCRIPTION)
    parser.add_argument("--minutes", type=float, help="draw scenarios and fault times until so many are over")
    parser.add_argument("--seed", default="1", help="what the drawing starts from (default: 1)")
    parser.add_argument("--only", metavar="PATTERN", help="scenarios by name, such as poison or '*/sqs/*'")
    parser.add_argument("--all", action="store_true", help="every scenario on every broker and pool, once")
    worker = parser.add_mutually_exclusive_group()
    worker.add_argument(
        "--stock",
        action="store_const",
        const=stock.__name__,
        dest="module",
        help="run them against a stock Celery worker",
    )
    worker.add_argument(
        "--sabotage",
        action="store_const",
        const=sabotages.__name__,
        dest="module",
        help="run those that a stock worker passes against ours with one guarantee taken out",
    )
    parser.set_defaults(module="forwarder")
    parser.add_argument("--lanes", type=int, default=4, help="scenarios that run at a time (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome there as well")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the ledgers and the workers' logs there"
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    parser.add_argument(
        "--judge", type=Path, metavar="LEDGER", help="judge the ledger of an earlier run and end"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the options ask for; return 1 when something broke, 2 when there was nothing to run."""
    options = parse(argv)
    if options.judge is not None:
        verdict = judge(Ledger(options.judge).events())
        say(str(verdict))
        return 0 if verdict.kept else 1
    selected = chosen(
        cells(SCENARIOS),
        only=options.only,
        everything=options.all or options.list or options.minutes is not None,
    )
    if options.module == sabotages.__name__:
        selected = [cell for cell in selected if cell.scenario.sabotage]
    if options.list:
        for cell in selected:
            say(f"{'short' if cell.is_short else '     '}  {cell!s:40}  {cell.scenario.guarantee}")
    if options.list or not selected:
        return 0 if selected else 2
    return conduct(options, selected)


def conduct(options: argparse.Namespace, selected: list[Cell]) -> int:
    """Run the cells, print and write what came of them, and return the exit code."""
    folder = options.keep or Path(tempfile.mkdtemp(prefix="forwarder-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        module=options.module,
        patience=STOCK_PATIENCE if options.module == stock.__name__ else 1.0,
        long=options.minutes is not None,
        seed=options.seed,
        folder=folder,
    )
    outcomes = [
        as_error(outcome) if os.environ.get("CI") else outcome
        for outcome in Lanes(plan=plan, cells=selected, minutes=options.minutes).run(options.lanes)
    ]
    say("\n" + report.table(outcomes) + "\n\n" + report.summary(outcomes))
    if options.json is not None:
        options.json.write_text(report.as_json(outcomes, worker=options.module, seed=options.seed))
    passed = all(outcome.passed for outcome in outcomes)
    if passed and options.keep is None:
        shutil.rmtree(folder)
    else:
        say(f"ledgers and logs: {folder}")
    return 0 if passed else 1


def as_error(outcome: Outcome) -> Outcome:
    """Return the outcome where everything must be at hand: what is missing is a failure."""
    return replace(outcome, skipped=False)


class Lanes:
    """Threads that run cells side by side, each with services of its own: most of the time is waiting."""

    def __init__(self, *, plan: Plan, cells: list[Cell], minutes: float | None) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._pending = list(cells)
        self._draw = random.Random(plan.seed)
        self._ends_at = None if minutes is None else time.monotonic() + 60 * minutes
        self._all = list(cells)
        self._drawn = 0
        self._stages: list[Stage] = []
        self._outcomes: list[Outcome] = []

    def run(self, lanes: int) -> list[Outcome]:
        """Run everything and return the outcomes in the order in which they came."""
        threads = [threading.Thread(target=self._lane, name=f"lane-{n}") for n in range(lanes)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            say("stopping after the scenarios that run now")
            with self._lock:
                self._pending.clear()
                self._ends_at = 0.0
            for thread in threads:
                thread.join()
        return self._outcomes

    def _lane(self) -> None:
        with Stage() as stage:
            with self._lock:
                self._stages.append(stage)
            for cell, seed in self._cells(stage):
                outcome = run(cell, stage, replace(self._plan, seed=seed))
                with self._lock:
                    self._outcomes.append(outcome)
                    say(report.line(outcome))

    def _cells(self, stage: Stage) -> Iterator[tuple[Cell, str]]:
        while True:
            with self._lock:
                found = self._next(stage)
            if found is None:
                return
            yield found

    def _next(self, stage: Stage) -> tuple[Cell, str] | None:
        """Return the next cell and its seed: the next of those due, or one drawn while there is time."""
        if self._ends_at is not None:
            self._drawn += 1
            drawn = self._draw.choice(self._all), f"{self._plan.seed}/{self._drawn}"
            return drawn if time.monotonic() < self._ends_at else None
        if not self._pending:
            return None
        others = {kind for other in self._stages if other is not stage for kind in other.kinds}
        return next_cell(self._pending, mine=stage.kinds, others=others), self._plan.seed


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
