"""Faults of what the worker stands on: broker, result store, inference server, and what producers send."""

from __future__ import annotations

import contextlib
import resource
import uuid
from collections.abc import Iterator

import psutil

from forwarder.testing.ledger import open_ids
from forwarder.testing.services import Service
from tests.faults.brokers import DurableValkey
from tests.faults.scenario import CALM, Act, Nemesis
from tests.faults.stores import frozen


def results_killed(away_s: float) -> Nemesis:
    """Kill -9 the result store; it comes back with what it had."""

    def nemesis(act: Act) -> None:
        act.pause(1.0)
        # In the middle of calls: what is asked for by then has to wait with its answer.
        act.wait_for(lambda: act.model.stats()["in_flight"] >= 2, 10.0)
        act.results.kill()
        act.pause(away_s)
        act.results.revive()

    return nemesis


def results_frozen(act: Act) -> None:
    """SIGSTOP the result store for a while."""
    act.pause(1.0)
    with frozen(act.results.service):
        act.pause(3.0, 30.0)


def results_disk_full(act: Act) -> None:
    """Let the result store's disk be full for a while: it refuses every write."""
    assert isinstance(act.results.service, DurableValkey)
    act.pause(1.0)
    with _disk_full(act.results.service):
        act.pause(3.0, 8.0)


def broker_disk_full(act: Act) -> None:
    """Let the broker's disk be full for a while: it refuses every write, an ack included."""
    assert isinstance(act.broker.service, DurableValkey)
    act.pause(1.0)
    with _disk_full(act.broker.service):
        act.pause(3.0, 8.0)


def broker_killed(act: Act) -> None:
    """Kill -9 the broker; it comes back with what it had."""
    act.pause(1.0)
    _killed(act, act.broker.service, 1.5)


def broker_wiped(act: Act) -> None:
    """Kill -9 the broker; it comes back empty. What nobody had begun by then is excused.

    On RabbitMQ what runs, too: a lease ends with the connection, which cancels the task.
    """
    act.pause(1.0)
    act.broker.service.process.kill()
    act.broker.wipe()
    runs_on = act.broker.kind != "amqp"
    asked = {event.id for event in act.ledger.events() if event.what == "asked" and runs_on}
    for task_id in open_ids(act.ledger.events()) - asked:
        act.ledger.note("excused", task_id, "the broker lost it")
    act.broker.service.restart()


def broker_frozen(act: Act) -> None:
    """SIGSTOP the broker: for longer than a lease lasts."""
    act.pause(1.0)
    with frozen(act.broker.service):
        act.pause(5.0, 60.0)


def link_cut(act: Act) -> None:
    """Close every connection of the workers to the broker, and refuse new ones for a while."""
    for _ in range(2):
        act.pause(0.7)
        act.broker.link.cut()
        act.pause(1.0, 10.0)
        act.broker.link.heal()


def link_frozen(act: Act) -> None:
    """Pass nothing between workers and broker although connections stay open; outlasts lease and call."""
    act.pause(1.0)
    act.broker.link.freeze()
    act.pause(7.0, 60.0)
    act.broker.link.heal()


def link_half_open(act: Act) -> None:
    """Let the network forget the workers' connections without a word: only new ones work."""
    act.pause(1.0)
    act.broker.link.freeze()
    act.pause(1.0)
    act.broker.link.cut()
    act.broker.link.heal()


def model_killed(act: Act) -> None:
    """Kill -9 the inference server in the middle of answers; it refuses connections until it is back."""
    act.pause(1.0)
    _killed(act, act.model, 1.0)
    act.model.control(behaviour=CALM)


def model_answers(**behaviour: object) -> Nemesis:
    """Let the inference server misbehave in one way for a while."""

    def nemesis(act: Act) -> None:
        act.pause(1.0)
        act.behave(**behaviour)
        act.pause(3.0, 20.0)
        act.behave()

    return nemesis


def duplicates(act: Act) -> None:
    """Send tasks whose results are stored already once more, as clients do that missed the first answer."""
    done = [act.sender.send() for _ in range(8)]
    act.wait_for(lambda: not open_ids(act.ledger.events()) & set(done), 15.0)
    for task_id in done:
        act.sender.send(task_id=task_id)
    act.pause(2.0)


def bad_messages(act: Act) -> None:
    """Put among the tasks what no worker can run."""
    act.pause(0.5)
    for shape in (b"%s is not JSON", b'["%s is not a Celery message"]', b'{"%s": "has no headers"}'):
        token = f"planted-{uuid.uuid4().hex}"
        act.broker.plant(act.queue, shape % token.encode())
        act.ledger.note("sent", token, "dead")
    act.sender.send(expect="failed_and_dead", task="nobody.serves_this")
    act.sender.send(expect="failed_and_dead", padding_bytes=150_000)
    act.pause(1.0)


def _killed(act: Act, service: Service, away_s: float) -> None:
    service.process.kill()
    act.pause(away_s)
    service.restart()


@contextlib.contextmanager
def _disk_full(service: DurableValkey) -> Iterator[None]:
    """Let no file of the server grow, which needs no rights: it refuses writes as on a full disk."""
    server = psutil.Process(service.pid)
    soft, hard = server.rlimit(resource.RLIMIT_FSIZE)
    server.rlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            server.rlimit(resource.RLIMIT_FSIZE, (soft, hard))
