"""``tune``: what real payloads and the inference server ask for, as settings with their reasons."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from forwarder.cli import tasks
from forwarder.cli.exits import FAILED, OK
from forwarder.cli.extras import require
from forwarder.cli.options import SettingsCommand, with_options, with_settings
from forwarder.cli.wrapping import terminal_width
from forwarder.inference import readiness
from forwarder.inference.connecting import connect
from forwarder.scaling.container import MIB, container_limit_bytes
from forwarder.settings import Resolved, Settings
from forwarder.settings.redact import without_password
from forwarder.settings.spec import environment
from forwarder.settings.specs.inference import INFERENCE, LARGE_BODIES
from forwarder.settings.table import BY_FIELD

if TYPE_CHECKING:
    from forwarder.scaling.container import Limit
    from forwarder.tuning.asking import Asking
    from forwarder.tuning.child import Child
    from forwarder.tuning.levels import Level
    from forwarder.tuning.measure import Found
    from forwarder.tuning.samples import Sample

#: Seconds in which the inference server must tell that it is ready.
HEALTH_TIMEOUT_S = 3.0
#: Responses are measured up to this size at least, whatever the settings allow.
RESPONSE_BYTES_MAX = 256 * MIB

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OPTIONS = (
    click.option(
        "--payload", "payloads", type=FILE, metavar="FILE", help="Payloads, a JSON object in each line."
    ),
    click.option(
        "--sample",
        "sample_max",
        type=click.IntRange(1, 10_000),
        default=100,
        show_default=True,
        metavar="N",
        help="Payloads that are looked at, at most; they are held in memory, or on the disk by reference.",
    ),
    click.option(
        "--max-requests",
        "requests_max",
        type=click.IntRange(min=10),
        default=1000,
        show_default=True,
        metavar="N",
        help="Requests that the inference server is asked, at most.",
    ),
    click.option(
        "--max-seconds",
        "seconds_max",
        type=click.FloatRange(min=0, min_open=True),
        default=120.0,
        show_default=True,
        metavar="S",
        help="Seconds after which no more requests begin.",
    ),
    click.option(
        "--max-concurrency",
        "concurrency_max",
        type=click.IntRange(1, 512),
        default=128,
        show_default=True,
        metavar="N",
        help="Requests at a time, at most; each has a thread and a connection.",
    ),
    click.option(
        "--write",
        "path",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Write an env file.",
    ),
    click.option("--force", is_flag=True, help="Let --write replace a file."),
)


@click.command(cls=SettingsCommand)
@with_options(OPTIONS)
@with_settings
def tune(
    *,
    resolved: Resolved,
    payloads: Path | None,
    sample_max: int,
    path: Path | None,
    force: bool,
    **bounds: Any,
) -> int:
    """Measure real payloads and the inference server, and recommend settings with the arithmetic.

    Payloads come from --payload, or from what waits in the queue: on Redis that
    takes nothing away. The inference server is really asked, with one request at a
    time, two, four, and so on until that brings no more: let no other worker use it
    meanwhile. What a process takes is read from a worker of its own, between a
    broker and a result store of its own. No result is stored elsewhere, no hook
    runs, nothing is written to a destination_path. Exits with 0, 1 if the server
    answered nothing of use, 2 for payloads that can't be had, 3 if a service can't
    be reached.
    """
    require("tune", "psutil", "rich")
    if path is not None and path.exists() and not force:
        raise click.UsageError(f"--write {path}: the file is there; --force replaces it")
    settings = resolved.settings
    samples = _samples(settings, payloads, sample_max)
    reason = readiness.probe(settings.health_url, timeout_s=HEALTH_TIMEOUT_S)
    if reason is not None:
        raise tasks.Unreachable(f"the inference server at {without_password(settings.health_url)}: {reason}")
    _connect(settings.predict_url)  # what is to be asked may be another server
    return _report(settings, samples, path, **bounds)


def _connect(url: str) -> None:
    """Connect once. Raises Unreachable, rather than after every measurement has failed."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        connect(parts.hostname or "", port, HEALTH_TIMEOUT_S).close()
    except OSError as error:
        raise tasks.Unreachable(
            f"the inference server can't be reached at {without_password(url)} ({type(error).__name__}); "
            f"set {BY_FIELD['predict_url'].title}"
        ) from error


def _report(
    settings: Settings,
    samples: Sequence[Sample],
    path: Path | None,
    *,
    requests_max: int,
    seconds_max: float,
    concurrency_max: int,
) -> int:
    from forwarder.tuning import levels as knees
    from forwarder.tuning import page
    from forwarder.tuning.advice import Measured, advise

    asking = _asking(settings, samples, concurrency_max, seconds_max)
    limit = container_limit_bytes(override_mb=settings.memory_limit_mb)
    found = _measure(
        asking,
        child_of=partial(_child, samples, settings, limit),
        requests_max=requests_max,
        seconds_max=seconds_max,
        concurrency_max=concurrency_max,
    )
    levels = found.levels
    knee = knees.knee(levels)
    if levels and levels[0].silent:
        raise tasks.Unreachable(
            f"the inference server at {without_password(settings.predict_url)} answers nothing: "
            f"{levels[0].broken} connections broke, or had no answer in time"
        )
    if knee is None:
        click.echo(f"forwarder: {_of_no_use(levels)}", err=True)
        return FAILED
    measured = Measured(
        message_bytes=[sample.message_bytes for sample in samples],
        knee=knee,
        knee_why=knees.why(levels, knee, concurrency_max=concurrency_max),
        fetched=asking.fetched,
        task_growth_bytes=found.growth_bytes,
        child=found.child,
        limit=limit,
        cores=len(os.sched_getaffinity(0)),
    )
    advice = advise(measured, settings)
    width = min(page.WIDTH, terminal_width() or page.WIDTH)
    measurements = page.measurements(measured, levels, child_why=found.child_why, width=width)
    for lines in (measurements, page.recommendations(measured, settings, advice, width=width)):
        click.echo("\n".join(lines) + "\n")
    if knees.next_concurrency(levels, concurrency_max=concurrency_max) is not None:
        click.echo("warning: the knee was not reached: raise --max-seconds or --max-requests\n")
    if path is not None:
        path.write_text(page.env_file(measured, settings, advice), encoding="utf-8")
        click.echo(f"wrote {path}; to load it into a shell: {loading(path)}")
    return OK


def loading(path: Path) -> str:
    """Return the shell's commands that make an env file's settings its environment's."""
    words = str(path) if path.is_absolute() else f"./{path}"  # else it would be looked for on the PATH
    return f"set -a; . {shlex.quote(words)}; set +a"


def _samples(settings: Settings, path: Path | None, sample_max: int) -> list[Sample]:
    from forwarder.tuning.samples import Unreadable, from_lines, from_messages

    if path is not None:
        try:
            with path.open(encoding="utf-8") as lines:
                samples = from_lines(lines, unwrap=settings.unwrap_payload)
        except (Unreadable, OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"--payload {path}: {_words(error)}") from None
        if not samples:
            raise click.UsageError(f"--payload {path}: no payload in it")
        # Evenly through the file: its beginning may be all of a kind.
        return samples[:: -(-len(samples) // sample_max)]
    samples = from_messages(_waiting(settings, sample_max), unwrap=settings.unwrap_payload)
    if not samples:
        raise click.UsageError(
            f"no task waits in {', '.join(settings.queues)}: give payloads with --payload FILE"
        )
    return samples


def _waiting(settings: Settings, number: int) -> list[bytes]:
    """Return messages that wait, oldest first, as they are; they stay where they are."""
    if settings.broker_kind != "redis":
        # There is no look: RabbitMQ marks what was shown as redelivered and a quorum queue
        # counts it, SQS counts a receive. Such a task would be nearer to its dead letters.
        raise click.UsageError("only Redis shows its messages without delivering them: give --payload FILE")
    from forwarder.brokers.redis.look import waiting

    with tasks.reaching("the broker"), tasks.impatient_app(settings).connection_for_read() as connection:
        return waiting(connection.default_channel, settings.queues, number)


def _asking(
    settings: Settings, samples: Sequence[Sample], concurrency_max: int, seconds_max: float
) -> Asking:
    from forwarder.app import Composition
    from forwarder.tuning.asking import Asking

    measuring = replace(
        settings,
        pool="gevent",  # one process with all the slots; nothing here needs gevent
        concurrency=concurrency_max,
        autoscale=None,
        hooks=(),
        task_timeout_s=min(settings.task_timeout_s, seconds_max),
        response_bytes_max=max(settings.response_bytes_max, RESPONSE_BYTES_MAX),
    )
    parts = Composition(measuring).parts.get()
    return Asking(
        samples=samples,
        server=parts.inference,
        inputs=parts.forwarder.staging,
        unwrap=settings.unwrap_payload,
    )


def _child(
    samples: Sequence[Sample], settings: Settings, limit: Limit, task_bytes: int, within_s: float
) -> Child:
    from forwarder.tuning.child import check_room
    from forwarder.tuning.children import measure

    check_room(settings, limit, task_bytes=task_bytes)
    return measure(samples, env=_env(settings), within_s=within_s, ddtrace="ddtrace" in sys.modules)


def _env(settings: Settings) -> dict[str, str]:
    """Return what a task's own way through a worker depends on, and what leads to AWS, as variables."""
    specs = (BY_FIELD["message_bytes_max"], BY_FIELD["memory_limit_mb"], *INFERENCE, *LARGE_BODIES)
    return environment(settings, specs) | {
        name: value for name, value in os.environ.items() if name.startswith("AWS_")
    }


def _measure(asking: Asking, **bounds: Any) -> Found:
    from rich.console import Console

    from forwarder.forwarding.errors import ForwarderError, InputUnavailable
    from forwarder.tuning.measure import measure

    try:
        return measure(asking, console=Console(stderr=True), **bounds)
    except InputUnavailable as error:
        raise tasks.Unreachable(f"a body by reference can't be read: {error}") from error
    except ForwarderError as error:
        raise click.ClickException(f"a body by reference can't be read: {error}") from error


def _of_no_use(levels: Sequence[Level]) -> str:
    first = levels[0] if levels else None
    if first is None:
        return "no request was answered in time; raise --max-seconds"
    if first.failed:
        return f"the inference server refuses these payloads: {first.failed} answers of 400 and above"
    return f"one request at a time was too much for the server: {first.busy} busy, {first.broken} broken off"


def _words(error: Exception) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
