"""What forwarding needs from the outside world, stated as small interfaces.

Adapters (inference, hooks, cloud, telemetry) satisfy these by shape; they are
put together in :mod:`forwarder.app` and never import each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from forwarder.forwarding.errors import DeadLettered, InvalidMessage, UnknownTask


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete HTTP answer of the inference server.

    ``body`` is the undecoded body, at most the configured number of bytes.
    A body that was too large for memory is ``staged`` instead, and ``body`` is empty.
    ``headers`` has lower-case names. ``elapsed_s`` runs from before the
    connection is opened to the last byte read.
    """

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    elapsed_s: float
    staged: StagedBody | None = None


@dataclass(frozen=True, slots=True)
class StagedBody:
    """A body that is too large for memory: a file of the staging folder, there until the task is done."""

    path: Path
    size_bytes: int


class Spool(Protocol):
    """Takes an answer's body that is too large for memory: above ``above_bytes``, up to ``bytes_max``."""

    above_bytes: int
    bytes_max: int

    def begin(self) -> None:
        """Forget what an earlier answer left. Doesn't block."""

    def write(self, data: bytes | bytearray, *, within_s: float) -> None:
        """Add bytes. Blocks for the disk, and for room. Raises TimeoutError after ``within_s``."""

    def finish(self) -> StagedBody:
        """Return all that was written. Doesn't block."""


class InferenceServer(Protocol):
    """The HTTP server on localhost that owns the GPU."""

    def predict(
        self,
        body: bytes | StagedBody,
        *,
        headers: Mapping[str, str],
        within_s: float | None = None,
        spool: Spool | None = None,
    ) -> Answer:
        """Send one request and return its answer, whatever its status; a ``spool`` takes a large one.

        Blocks (under gevent: the greenlet only) for at most the total deadline, beside
        what it waits for memory, or ``within_s`` where that is shorter. Raises InferenceUnreachable,
        InferenceTimeout, ResponseTooLarge, and Expired past ``within_s``.
        """


class Staging(Protocol):
    """Room for what may be too large for memory, for as long as a ``with`` block lasts."""

    def fetch(self, url: str, *, within_s: float | None = None) -> AbstractContextManager[bytes | StagedBody]:
        """Give the body that a URL names.

        Blocks while it comes, and while there is no room for it. Raises
        InvalidPayload, InputUnavailable, Expired past ``within_s``, and OSError
        where the worker lacks something, room included.
        """

    def spool(self) -> AbstractContextManager[Spool]:
        """Give what takes one answer."""


class ObjectStore(Protocol):
    """Where answers go by reference: ``s3://bucket/key``."""

    def write(self, url: str, body: bytes | StagedBody) -> None:
        """Store the bytes under the URL. Blocks. Raises InvalidPayload or OutputUnavailable."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What hooks are told about a task whose result has been stored.

    ``payload`` is the task's first argument as it arrived. ``response`` is the
    stored result (contract section 4); for a failed task it is the error object
    ``{"error", "error_metadata", "code"}``. Neither appears in ``repr``.
    """

    task_id: str
    payload: Any = field(repr=False)
    response: Any = field(repr=False)
    succeeded: bool


#: Failures whose messages are in the dead letters: an operator may send them to be run again.
PUT_ASIDE_CODES = frozenset({DeadLettered.code, InvalidMessage.code, UnknownTask.code})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The outcome of a task, as it stands in the result store.

    ``response`` is what :class:`Completion` has: the result, or the error object
    of a failure, whose ``code`` stands here too. A revoked task has neither.
    """

    state: Literal["SUCCESS", "FAILURE", "REVOKED"]
    response: Any = field(default=None, repr=False)
    code: str | None = None

    @property
    def is_final(self) -> bool:
        """Return whether the task is never to be run again."""
        return self.code not in PUT_ASIDE_CODES


class Commits(Protocol):
    """The result store, asked for what it has already.

    ``looks_first``: every task looks before it asks the inference server, because
    the store lets a later outcome replace an earlier one. Otherwise a look is due
    only where the message was seen before.
    """

    @property
    def looks_first(self) -> bool: ...

    def find(self, task_id: str) -> Stored | None:
        """Return the outcome stored under the id, None when there is none yet.

        Blocks for one read; in a running task as long as the store is away,
        within a bound. Raises what sends the task back to the queue past it.
        """


#: Deliveries of one task that at most are pardoned, so that nothing goes round for ever: a task may be why a
#: worker stands still for longer than a lease. RabbitMQ's own limit of deliveries is the same:
#: https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling
PARDONS_MAX = 20


class Pardons(Protocol):
    """The result store, asked what is not to count against a task."""

    def pardons(self, task_id: str) -> int:
        """Return how many deliveries were not the task's fault. Blocks and raises as ``find`` does."""


class Hook(Protocol):
    """Something that runs once per task, after its result is durable."""

    name: str

    def deliver(self, completion: Completion) -> bool:
        """Deliver one completion; return False when this task needs nothing from the hook.

        Blocks until delivered. Any exception counts as a failed hook; it is
        logged and counted and never reaches the task.
        """

    def close(self) -> None:
        """Release connections. Called once, when the process stops."""


class Metrics(Protocol):
    """Counters, histograms and levels, named as in contract section 6."""

    def count(self, name: str, value: int = 1, /, **labels: str) -> None:
        """Add to a counter. Never blocks, never raises."""

    def change(self, name: str, by: int, /, **labels: str) -> None:
        """Raise or lower a gauge of what goes on at this moment. Never blocks, never raises."""

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Record one measurement (seconds or bytes, as the name says)."""
