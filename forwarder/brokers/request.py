"""Celery's request: what becomes of its message is settled in the lease book, once it is durable why."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC
from functools import lru_cache, partial
from typing import Any, NamedTuple

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]  # the stubs lack it
from celery import signals
from celery.app.task import Context
from celery.exceptions import Ignore, InvalidTaskError, Reject
from celery.worker import state
from celery.worker.request import Request
from celery.worker.state import task_ready

from forwarder.brokers.background import in_background, insist_in_background
from forwarder.brokers.deliveries import Death, Delivery, Settlement, is_storable
from forwarder.brokers.leases import LeaseBook
from forwarder.forwarding.errors import DeadLettered, ForwarderError, is_shortage
from forwarder.forwarding.record import REQUEUED

log = logging.getLogger(__name__)

#: Header of a task that was delivered too often: it fails without asking the inference server.
DEAD_HEADER = "forwarder_dead"

#: Header of every task: the queue that it was taken from, by our own knowledge.
QUEUE_HEADER = "forwarder_queue"

#: Header of every task: how often its message was delivered, this time included.
DELIVERIES_HEADER = "forwarder_deliveries"

#: What Celery's protocol has in a body beside the arguments. A slot merges it over the
#: headers, so anything else could pose as one of ours.
EMBEDDED = frozenset({"callbacks", "errbacks", "chain", "chord"})

#: Those of them that are lists.
LISTED = ("callbacks", "errbacks", "chain")

#: What Celery does not count among a message's custom headers: ``Context._get_custom_headers``.
#: Celery builds this set anew for each task.
NOT_CUSTOM = frozenset({*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"})

#: What Celery's tools, events and logs show of a task's arguments.
HIDDEN = "(...)"

#: Seconds between tries to store that a task was revoked.
REVOKED_RETRY_S = 5.0

#: Seconds, from and to, for which a message stays before it goes back where its task is not at fault.
BACK_PAUSE_S = (0.5, 1.5)


class Consuming(NamedTuple):
    """What each request needs of the worker's configuration."""

    book: LeaseBook
    max_deliveries: int
    #: Whether the slots are in this process, and can have the body as it was decoded.
    slots_are_here: bool


@lru_cache(maxsize=1)
def _consuming(app: Any) -> Consuming:
    """Read it once: in Celery's configuration, a chain of views, each look-up goes through all of them."""
    conf = app.conf
    return Consuming(
        conf.forwarder_book, conf.forwarder_max_deliveries, conf.get("forwarder_slots_are_here", False)
    )


def _check(request: Request) -> None:
    """Raise InvalidTaskError for what breaks Celery later, where it acks or loses a slot."""
    if not is_storable(request.id):  # of protocol 1: others are refused before
        raise InvalidTaskError("no result can be stored under the task id")
    args, kwargs, headers = request.args, request.kwargs, request.request_dict
    payload: Any = request.message.payload
    embed = payload[2] if isinstance(payload, (list, tuple)) and len(payload) == 3 else None
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        raise InvalidTaskError("the body's arguments are not a list and an object")
    if embed is not None and not (isinstance(embed, dict) and EMBEDDED.issuperset(embed)):
        raise InvalidTaskError("the body's third part has what Celery's protocol has not")
    if not _can_be_sent(headers, payload if isinstance(payload, dict) else embed or {}):
        raise InvalidTaskError("what is to be sent when the task has ended is no task")
    if not isinstance(headers.get("shadow") or "", str):
        raise InvalidTaskError("the name that the task is to be shown by is no text")
    stamped, stamps = headers.get("stamped_headers") or [], headers.get("stamps") or {}
    if not isinstance(stamped, list) or not isinstance(stamps, dict) or not _are(str, stamped):
        raise InvalidTaskError("the stamps are not a list of texts and an object")
    try:
        request.eta and request.eta.astimezone(UTC).timestamp()
    except (OverflowError, ValueError):
        raise InvalidTaskError("the ETA is no moment that can be waited for") from None


def _can_be_sent(headers: dict[str, Any], embed: dict[str, Any]) -> bool:
    """Return whether the callbacks, errbacks, chain and chord are tasks, wherever the slot finds them.

    Celery sends them once the server has answered, and would throw the answer away.
    """
    found = [embed[name] if name in embed else headers.get(name) for name in LISTED]
    chord = embed["chord"] if "chord" in embed else headers.get("chord")
    if not (chord or any(found)):
        return True  # nearly always
    lists = [each or [] for each in found]
    if not _are(list, lists):
        return False
    signatures = [each for one in lists for each in one] + ([chord] if chord else [])
    return _are(dict, signatures) and _are(str, [each.get("task") for each in signatures])


def _are(kind: type, values: list[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


class ForwardRequest(Request):
    """Celery's request, settled through the lease book; expiry and time limits are the use case's.

    Celery acks through the connection that a message came on, and acks what it
    can't explain: a task whose result could not be stored among it. Here only a
    task with a stored outcome is acked, under its lease; every other end of it
    gives the message back.

    A producer's time limit would end a task in its hooks, after its result was
    stored, and make a failure of it. The worker's own deadlines bound the call.
    """

    #: Overridden by tests only; Celery makes requests, so they can't be passed in.
    in_background: Callable[[Callable[[], None]], None] = staticmethod(in_background)
    sleep: Callable[[float], None] = staticmethod(time.sleep)
    uniform: Callable[[float, float], float] = staticmethod(random.uniform)

    def __init__(self, message: Any, **options: Any) -> None:
        super().__init__(message, **options)
        self.time_limits = (None, None)
        # The producer's, in which Celery copies the payload. Private; its readers are tested.
        self._argsrepr = self._kwargsrepr = HIDDEN
        self._abandoned_to: Any = None
        self._is_over = False
        _check(self)
        consuming = _consuming(self.task.app)
        self._book: LeaseBook = consuming.book
        self._delivery: Delivery = message.delivery
        self._delivery.request = self
        headers = self.request_dict
        headers[QUEUE_HEADER] = self._delivery.queue
        headers[DELIVERIES_HEADER] = self._delivery.number
        headers["argsrepr"] = headers["kwargsrepr"] = HIDDEN
        headers.pop(DEAD_HEADER, None)  # a producer's own
        if self._delivery.number > consuming.max_deliveries:
            headers[DEAD_HEADER] = self._delivery.number
        if headers.get("headers") is None:
            headers["headers"] = {name: headers[name] for name in headers if name not in NOT_CUSTOM}
        # Of a message of protocol 1, whose body is an object, Celery has made a body as decoded.
        if consuming.slots_are_here and not isinstance(message.payload, dict):
            # Without a content type Celery's trace takes a body as decoded, and does not do it again.
            self._body, self._content_type, self._content_encoding = message.payload, None, None

    def info(self, safe: bool = True) -> Any:
        """Return what remote control tells of a task (``inspect active``): never its payload."""
        return super().info(safe=True)

    def maybe_expire(self) -> None:
        """Never expire here, where Celery would store REVOKED: :meth:`Forwarder.forward` does.

        So an expired task ends as every task does: a FAILURE with a code, a hook
        record, a log line; and one that expires while it waits for a busy server
        is caught too.
        """

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event, where events of tasks are sent: Celery makes each before it looks."""
        groups = self.eventer.groups if self.eventer else None
        if not groups or "task" in groups:
            super().send_event(type, **fields)

    def acknowledge(self) -> None:
        """Ack: the outcome is stored and the hooks have run. Blocks for one round trip at most."""
        self._settle(Settlement.ACK)

    def reject(self, requeue: bool = False) -> None:
        """Give the message back, counted; or put aside what Celery can't schedule."""
        if requeue:
            self._end(Settlement.REQUEUE)
        else:
            self._end(Settlement.PUT_ASIDE, self._delivery.death("internal", "the task can't be scheduled"))

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Note that a slot runs the task; kill it there if it was abandoned on its way."""
        super().on_accepted(pid, time_accepted)
        self._book.begun(self._delivery)
        if self._abandoned_to is not None:
            self._kill(self._abandoned_to)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Give back what an operator's remote ``time_limit`` killed: it counts towards the limit."""
        if not soft:
            task_ready(self)
            self.reject(requeue=True)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Settle a task that did not succeed.

        ``return_ok`` is Celery's word for: the task ended, and its outcome is
        stored. Celery also acks what never got that far.
        """
        task_ready(self)
        if self._already_cancelled or self._already_revoked:
            return  # this process ended the copy, and settles the message elsewhere
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, Reject):
            # Not the task's fault: the result store or the broker was away, or the worker lacked something.
            self._end_later(Settlement.HAND_BACK)
        elif isinstance(error, Ignore):
            self.acknowledge()  # it was published again
        elif return_ok and isinstance(error, ForwarderError):
            if isinstance(error, DeadLettered) and DEAD_HEADER in self.request_dict:
                self._settle(Settlement.PUT_ASIDE, self._delivery.death(error.code, str(error)))
            else:
                self.acknowledge()
            self.send_event("task-failed", exception=repr(error), traceback=exc_info.traceback)
        else:
            # A lost child, or an error around the task: nobody knows what was stored. The next
            # delivery looks, and runs the hooks that are owed. Without the text, which may quote it.
            log.error("task_broke_off task_id=%s error=%s", self.id, type(error).__name__)
            self.give_back(error)

    def give_back(self, error: BaseException) -> None:
        """Give back what an error around the task ended: counted, unless the worker ran out of something.

        Without memory the task's own size may be the reason: it is pardoned, which
        has an end. Never blocks.
        """
        if is_shortage(error):
            self._end_later(Settlement.HAND_BACK)
        elif isinstance(error, MemoryError):
            self._end_later(Settlement.REQUEUE)
        else:
            self.reject(requeue=True)

    def _end_later(self, how: Settlement) -> None:
        """Settle in about a second: what is short or away now is so for the next one too."""
        self.send_event("task-rejected", requeue=True)
        self._book.concluded(self._delivery, REQUEUED)
        self._is_over = True

        def settle() -> None:
            if state.should_stop is None:
                self.sleep(self.uniform(*BACK_PAUSE_S))
            if self._settle(how) and how is Settlement.REQUEUE:
                self._book.pardon(self._delivery)
            self._book.wake()

        try:
            self.in_background(settle)
        except RuntimeError:  # no thread is to be had
            self._settle(how)

    def abandon(self, pool: Any) -> None:
        """Kill the running copy, now or as soon as a slot accepts it; settles nothing.

        For a message that is somebody else's from now on. Safe from any thread; does
        nothing the second time.
        """
        if self.acknowledged:
            return  # it ended meanwhile, and its slot may run another
        self.acknowledged = True
        # Celery would take the copy's end for a revoke, store REVOKED and ack.
        self._already_cancelled = True
        self._already_revoked = True  # what waits for a slot is skipped when it gets one
        self._abandoned_to = pool  # before the look at time_start: on_accepted sets that, then looks here
        if self.time_start is not None and not self._is_over:
            self._kill(pool)
        else:
            task_ready(self)

    def _kill(self, pool: Any) -> None:
        task_ready(self)
        pool.terminate_job(self.worker_pid, signal.SIGKILL)

    # Celery has no public seam between the revoke and the ack that follows it even
    # when the state could not be stored.
    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: Any) -> None:
        """Tell everybody, and ack once REVOKED is stored."""
        if self._already_revoked:
            return
        self._already_revoked = True
        task_ready(self)
        self.send_event("task-revoked", terminated=terminated, signum=signum, expired=bool(expired))
        context = self._context  # type: ignore[attr-defined]  # the stubs lack it
        signals.task_revoked.send(
            self.task, request=context, terminated=terminated, signum=signum, expired=bool(expired)
        )
        # Not in Celery's loop: a store that is frozen would stop it. Its lease is kept meanwhile.
        if not insist_in_background(
            partial(self._store_revoked, reason, context),
            gate=self._book.unforked,
            pause_s=REVOKED_RETRY_S,
            sleep=self.sleep,
            in_background=self.in_background,
        ):
            self._settle(Settlement.HAND_BACK)

    def _store_revoked(self, reason: str, context: Any) -> bool:
        """Store REVOKED and ack; return False when the store is away. Does nothing to what is settled."""
        if self.acknowledged:
            return True
        store: Any = self.task.app.conf.forwarder_store
        try:
            # The copy may have stored its result just before it was killed.
            stored_before = store.find(self.id) is not None
            if not stored_before:
                store.mark_as_revoked(self.id, reason, request=context, store_result=self.store_errors)
        except Exception as error:  # noqa: BLE001 - whatever it was, a later try may do
            log.warning("revoked_not_stored task_id=%s error=%s", self.id, type(error).__name__)
            return False
        if not stored_before:
            self._book.concluded(self._delivery, "revoked")
        self.acknowledge()
        self._book.wake()
        return True

    def _end(self, how: Settlement, death: Death | None = None) -> None:
        """Settle without an outcome, and tell Celery's monitors."""
        if self._settle(how, death):
            requeue = how is not Settlement.PUT_ASIDE
            self.send_event("task-rejected", requeue=requeue)
            if requeue:
                self._book.concluded(self._delivery, REQUEUED)

    def _settle(self, how: Settlement, death: Death | None = None) -> bool:
        if self.acknowledged:
            return False
        self.acknowledged = True
        self._book.settle(self._delivery, how, death)
        self._delivery.request = None  # the two refer to each other, and one holds the body
        return True
