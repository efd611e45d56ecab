"""What ``submit`` and ``result`` share: a Celery client, and how a stored result is read."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from forwarder import aws_errors
from forwarder.cli.exits import FAILED, OK, UNREACHABLE
from forwarder.settings.model import Settings

if TYPE_CHECKING:
    from celery import Celery

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.25

_SUCCESS = "SUCCESS"
_LAST_STATES = frozenset({_SUCCESS, "FAILURE", "REVOKED"})

#: Task id to its stored state.
Read = Callable[[str], Mapping[str, Any] | None]


class Unreachable(click.ClickException):
    """A service does not answer; ends the command with exit code 3."""

    exit_code = UNREACHABLE


def impatient_app(settings: Settings, *, results: bool = True, answer_s: float = ANSWER_TIMEOUT_S) -> Celery:
    """Return a Celery client that gives up on a silent service within seconds.

    A worker waits for its services; somebody at a terminal wants to be told.
    Without ``results`` it only sends. Redis has ``answer_s`` for each answer.
    """
    from forwarder.app import client_app

    app = client_app(settings)
    options = app.conf.broker_transport_options
    if settings.broker_kind == "redis":
        options = {**options, "socket_connect_timeout": CONNECT_TIMEOUT_S, "socket_timeout": answer_s}
    app.conf.update(
        broker_transport_options=options,
        broker_connection_timeout=CONNECT_TIMEOUT_S,
        redis_socket_connect_timeout=CONNECT_TIMEOUT_S,
        redis_socket_timeout=answer_s,
    )
    if not results:
        app.conf.update(result_backend="disabled://")
    return app


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Turn the errors of a service's client into Unreachable, which tells a refusal from silence."""
    from kombu.exceptions import OperationalError

    try:
        yield
    except Exception as error:
        if not isinstance(error, _client_errors()):
            raise
        # The class only: texts of these libraries may quote a URL with its password, or the payload.
        cause = error.__cause__ if isinstance(error, OperationalError) else None  # kombu's wrapping
        said = f"can't be reached ({type(cause or error).__name__})"
        if (word := _refusal(error)) is not None:
            said = f"answers, but refuses ({word})"
        raise Unreachable(f"{what} {said}; see `forwarder check`") from error


def _client_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the clients that were imported by now; some are only when they are used."""
    from kombu.exceptions import KombuError
    from redis.exceptions import RedisError

    kinds: tuple[type[Exception], ...] = (OSError, KombuError, RedisError)
    if "botocore" in sys.modules:
        from botocore.exceptions import BotoCoreError, ClientError

        kinds += (BotoCoreError, ClientError)
    if "amqp" in sys.modules:
        from amqp.exceptions import AMQPError, MessageNacked

        kinds += (AMQPError, MessageNacked)
    return kinds


def _refusal(error: BaseException) -> str | None:
    """Return the service's word for a refusal, None for an error that is no answer."""
    from redis.exceptions import ResponseError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ResponseError):
            return type(cause).__name__
        cause = cause.__cause__
    return aws_errors.error_code(error)


def reader(settings: Settings) -> Read:
    """Return how a task's stored state is read, as it was written; None while there is none.

    Read raw: AsyncResult rebuilds an exception from a failure and drops the
    error object under ``custom``. A read blocks for one round trip and raises
    Unreachable.
    """
    backend: Any = impatient_app(settings).backend  # a key-value store; Celery's types know only its base

    def read(task_id: str) -> Mapping[str, Any] | None:
        with reaching("the result store"):
            value = backend.get(backend.get_key_for_task(task_id))
        meta: Mapping[str, Any] | None = backend.decode(value) if value else None
        return meta

    return read


def wait(
    read: Read,
    task_id: str,
    timeout_s: float,
    *,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Mapping[str, Any] | None:
    """Return the stored state once the task has ended, or what there is when the time is over.

    Reads at least once, and then four times a second: the same for every result
    store, and a lost one is noticed at once.
    """
    deadline = monotonic() + timeout_s
    while True:
        meta = read(task_id)
        left_s = deadline - monotonic()
        if ended(meta) or left_s <= 0:
            return meta
        sleep(min(POLL_INTERVAL_S, left_s))


def ended(meta: Mapping[str, Any] | None) -> bool:
    """Return whether the state is a last one."""
    return state_of(meta) in _LAST_STATES


def state_of(meta: Mapping[str, Any] | None) -> str:
    """Return the task's state; PENDING for a task that nobody has written about."""
    return "PENDING" if meta is None else str(meta["status"])


def error_code(meta: Mapping[str, Any] | None) -> str | None:
    """Return the code of a failed task, None for any other."""
    if meta is None or state_of(meta) != "FAILURE":
        return None
    try:
        return str(json.loads(result_text(meta))["code"])
    except (ValueError, TypeError, KeyError):  # a stock worker's
        return None


def exit_code(meta: Mapping[str, Any] | None) -> int:
    """Return 0 for a task that succeeded, 1 for one that failed or has not ended."""
    return OK if state_of(meta) == _SUCCESS else FAILED


def result_text(meta: Mapping[str, Any]) -> str:
    """Return the result as JSON; for a failure its error object (contract section 4)."""
    result = meta.get("result")
    if isinstance(result, dict) and isinstance(result.get("custom"), str):
        return str(result["custom"])
    return json.dumps(result)
