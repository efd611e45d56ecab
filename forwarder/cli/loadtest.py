"""``loadtest``: tasks of a given shape, a worker that is watched, and a report."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forwarder.cli import tasks
from forwarder.cli.exits import FAILED, OK
from forwarder.cli.extras import require
from forwarder.cli.interruption import Interruption
from forwarder.cli.options import SettingsCommand, with_options, with_settings
from forwarder.cli.submit import read_payload
from forwarder.loadtest import shape as shapes
from forwarder.settings import Resolved, Settings
from forwarder.settings.coherence import DEFAULT
from forwarder.settings.spec import environment
from forwarder.settings.table import SPECS

if TYPE_CHECKING:
    from forwarder.loadtest.report import Report
    from forwarder.loadtest.screen import Screen
    from forwarder.loadtest.target import Target

#: Seconds without a result after which the rest is given up, besides two of the longest tasks.
STALL_S = 60.0


class Parsed(click.ParamType[Any]):
    """An option whose text a function reads; ``name`` stands in the message for one that it refuses."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return what the text says."""
        if not isinstance(value, str):
            return value
        try:
            return self._read(value)
        except ValueError:
            self.fail(f"{value!r} is not {self.name}", param, ctx)


SECONDS = Parsed("seconds such as 15, or from..to", shapes.seconds_span)
SIZE = Parsed("a size such as 20k, or from..to", shapes.size_span)
ARRIVAL = Parsed("burst, steady:RATE, poisson:RATE, ramp:RATE or waves:SIZE/SECONDS", shapes.arrival)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

OPTIONS = (
    click.option("--tasks", "number", type=click.IntRange(min=1), default=2000, show_default=True),
    click.option(
        "--sleep", "sleep_s", type=SECONDS, default="0", metavar="S[..S]", help="Inference time, seconds."
    ),
    click.option(
        "--payload", "payload_bytes", type=SIZE, default="200", metavar="N[..N]", help="Size, as 20k..5M."
    ),
    click.option("--response", "response_bytes", type=SIZE, metavar="N[..N]", help="Size of the answers."),
    click.option("--payload-file", metavar="FILE", help="Send this payload, JSON, and none made up."),
    click.option(
        "--arrival",
        type=ARRIVAL,
        default="burst",
        show_default=True,
        metavar="HOW",
        help="burst, steady:RATE, poisson:RATE, ramp:RATE (tasks/s) or waves:SIZE/SECONDS.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of sizes, sleeps and arrivals."),
    click.option(
        "--interval",
        "interval_s",
        type=click.FloatRange(min=0.1),
        default=1.0,
        show_default=True,
        help="Seconds between samples.",
    ),
    click.option(
        "--stall",
        "stall_s",
        type=click.FloatRange(min=1),
        help=f"Seconds without a result after which the rest counts as missing.  [default: {STALL_S:g}, "
        "and two of the longest sleeps]",
    ),
    click.option(
        "--worker-pid",
        type=click.IntRange(min=1),
        help="Watch a deployed worker on this machine.",
    ),
    click.option("--worker-log", type=FILE, help="Its log, for what it decides."),
    click.option("--name", help="Of this run in the report.  [default: the pool]"),
    click.option(
        "--report",
        "folder",
        type=FOLDER,
        default="loadtest",
        show_default=True,
        help="Where report.html and report.json go.",
    ),
    click.option(
        "--compare", "compared", type=FILE, metavar="A.json", help="Set an earlier run's report beside this."
    ),
)


@click.command(cls=SettingsCommand)
@with_options(OPTIONS)
@with_settings
def loadtest(*, resolved: Resolved, folder: Path, compared: Path | None, **asked: Any) -> int:
    """Send tasks of a given shape, watch the worker, and write a report with tables and plots.

    Without a broker URL everything is started on this machine: a broker, the
    sample model server, and a worker with the settings that are given here. With
    one the tasks go to that queue; then --sleep and --response mean something to
    the sample model server only. Exits with 0 when every task succeeded, 1 when
    not, 3 if the broker or the results can't be reached.
    """
    require("the load test", "psutil", "rich")
    from rich.console import Console

    from forwarder.loadtest.page import page
    from forwarder.loadtest.report import summary
    from forwarder.loadtest.screen import Screen
    from forwarder.testing.processes import StartFailed
    from forwarder.testing.services import NotInstalled

    other = None if compared is None else _earlier(compared)
    Interruption()
    screen = Screen(Console())
    try:
        with _target(resolved, asked) as target:
            report, complete = _measured(resolved, target, asked, screen)
    except (NotInstalled, StartFailed) as error:
        raise click.ClickException(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    report.write(folder / "report.json")
    (folder / "report.html").write_text(page(report, other), encoding="utf-8")
    for line in summary(report, other):
        screen.say(line)
    screen.say(f"report: {folder / 'report.html'}, {folder / 'report.json'}")
    return OK if complete else FAILED


def _earlier(path: Path) -> Report:
    from forwarder.loadtest.report import NotAReport, read

    try:
        return read(path)
    except NotAReport as error:
        raise click.UsageError(f"--compare: {error}") from None


def _target(resolved: Resolved, asked: Mapping[str, Any]) -> AbstractContextManager[Target]:
    from forwarder.loadtest import target

    if target.is_own(resolved):
        if asked["worker_pid"] or asked["worker_log"]:
            raise click.UsageError("--worker-pid and --worker-log need the --broker-url of that worker")
        return target.own(resolved, env=given(resolved))
    return target.deployed(resolved, worker_pid=asked["worker_pid"], worker_log=asked["worker_log"])


def given(resolved: Resolved) -> dict[str, str]:
    """Return the environment of a worker that has every setting which somebody gave."""
    return environment(resolved.settings, (spec for spec in SPECS if resolved.sources[spec.field] != DEFAULT))


def _measured(
    resolved: Resolved, target: Target, asked: Mapping[str, Any], screen: Screen
) -> tuple[Report, bool]:
    """Run the test; return its report, and whether every task succeeded."""
    from forwarder.loadtest.figures import failures, figures
    from forwarder.loadtest.report import Report
    from forwarder.loadtest.run import LoadTest
    from forwarder.loadtest.target import machine, shown

    shape = shapes.Shape(
        tasks=asked["number"],
        sleep_s=asked["sleep_s"],
        payload_bytes=asked["payload_bytes"],
        response_bytes=asked["response_bytes"],
        arrival=asked["arrival"],
    )
    screen.say(f"load test: {shape.tasks} tasks, {shape.arrival}, {target.title}")
    source = random.Random(asked["seed"])  # noqa: S311 - the same tasks in every run
    fixed = asked["payload_file"]
    began_at = datetime.now(UTC).isoformat(timespec="seconds")
    with screen.following(shape.tasks):
        outcome = LoadTest(
            shape=shape,
            target=target,
            send=_sender(target.settings),
            read=tasks.reader(target.settings),
            error_code=tasks.error_code,
            watcher=screen,
            payloads=shape.payloads(source)
            if fixed is None
            else repeat(read_payload(None, fixed), shape.tasks),
            source=random.Random(asked["seed"]),  # noqa: S311
            interval_s=asked["interval_s"],
            stall_s=asked["stall_s"] or STALL_S + 2 * shape.sleep_s.high,
        ).run()
    report = Report(
        name=asked["name"] or target.settings.pool,
        began_at=began_at,
        target=target.title,
        machine=machine(),
        shape=shape.as_json(),
        settings=shown(resolved),
        figures=figures(outcome.samples, outcome.ended, sent=outcome.sent, limit_mb=target.limit_mb),
        failures=failures(outcome.ended),
        samples=outcome.samples,
    )
    return report, len(outcome.ended) == shape.tasks and not report.failures


def _sender(settings: Settings) -> Callable[[dict[str, Any], str], object]:
    """Return how a task is sent, by a connection that is kept."""
    from forwarder.forwarding.task import TASK_NAMES

    app = tasks.impatient_app(settings, results=False)

    def send(payload: dict[str, Any], task_id: str) -> object:
        with tasks.reaching("the broker"):
            return app.send_task(
                TASK_NAMES[0],
                args=(payload, time.time()),
                task_id=task_id,
                queue=settings.queues[0],
                # Without these Celery copies the payload into the message's headers, which monitors show.
                argsrepr="(...)",
                kwargsrepr="{}",
            )

    return send
