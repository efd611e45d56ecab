"""The demo: real services, a real worker, stock Celery clients, and an account of every task."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from forwarder.demo import traffic
from forwarder.demo.account import Account, Outcome, SentTask, balance, percentile_ms
from forwarder.demo.measure import client_builds, memory
from forwarder.demo.screen import Screen
from forwarder.demo.ways import QUEUE, Way, redis_way, sqs_way
from forwarder.testing.aws import Moto
from forwarder.testing.processes import LOOPBACK
from forwarder.testing.services import ModelServer, Service, Valkey
from forwarder.testing.worker import Worker

CONCURRENCY = {"prefork": 4, "gevent": 32}
SAMPLES = 3
NUMBERS = 4  # in a task
NUMBER_MAX = 99

S = TypeVar("S", bound=Service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """The model server's routes; ``is_sample`` when its answers are known and can be checked."""

    predict_url: str
    health_url: str
    is_sample: bool


class Demo:
    """One run: ``tasks`` tasks through Redis, then as many through SQS and S3.

    ``inference`` is the user's own model server; None starts the sample one.
    ``go_on`` is called before and after each task, and raises what is to end the run.
    """

    def __init__(
        self,
        *,
        pool: str,
        tasks: int,
        inference: Inference | None,
        screen: Screen,
        go_on: Callable[[], object] = lambda: None,
    ) -> None:
        self._pool = pool
        self._slots = CONCURRENCY[pool]
        self._tasks = tasks
        self._inference = inference
        self._screen = screen
        self._go_on = go_on

    def run(self) -> Account:
        """Start everything, send, wait, check and stop everything; return the account of all tasks.

        Blocks for as long as that takes. Raises NotInstalled or StartFailed.
        Nothing is left running or lying about, whatever happens.
        """
        self._screen.plain(f"forwarder demo: {self._pool} pool, {self._tasks} tasks on each of two ways")
        with ExitStack() as stack:
            self._screen.heading("Services")
            valkey = self._start(stack, "broker", Valkey())
            moto = self._start(stack, "cloud", Moto())
            inference = self._inference or self._start_model_server(stack)
            account = self._go(redis_way(valkey, moto), inference)
            return account + self._go(sqs_way(moto), inference)

    def _start(self, stack: ExitStack, label: str, service: S) -> S:
        ready_s = _timed(lambda: stack.enter_context(service))
        self._screen.line(label, f"{service.name} on {LOOPBACK}:{service.port}, ready in {ready_s:.1f} s")
        return service

    def _start_model_server(self, stack: ExitStack) -> Inference:
        server = self._start(stack, "model", ModelServer())
        return Inference(predict_url=server.predict_url, health_url=server.health_url, is_sample=True)

    def _go(self, way: Way, inference: Inference) -> Account:
        """Take one way from the first task sent to the last record checked."""
        self._screen.heading(way.title)
        with ExitStack() as stack:
            stack.callback(way.producer.close)
            worker = stack.enter_context(self._worker(way, inference))
            ready_s = _timed(worker.wait_ready)
            self._screen.line("worker", f"pid {worker.pid}, {self._slots} slots, ready in {ready_s:.1f} s")
            tasks = self._send(way)
            outcomes = self._collect(way, tasks)
            self._show_samples(tasks, outcomes)
            self._show_latency(tasks, outcomes)
            self._screen.line("memory", memory(worker.pid).words())
            # It drains: whatever it still owed is done when it has stopped.
            self._screen.line("stopped", f"in {_timed(worker.stop):.1f} s")
            self._screen.line("Firehose", f"client builds: {client_builds(worker.log())}")
            records = traffic.records(way, count=len(tasks))
        account = balance(tasks, outcomes, records, values_known=inference.is_sample)
        self._screen.line("checked", f"{account.results} results, {account.records} records")
        return account

    def _worker(self, way: Way, inference: Inference) -> Worker:
        env = {
            **way.worker_env,
            "FORWARDER_QUEUES": QUEUE,
            "FORWARDER_CONCURRENCY": str(self._slots),
            "FORWARDER_PREDICT_URL": inference.predict_url,
            "FORWARDER_HEALTH_URL": inference.health_url,
        }
        return Worker(pool=self._pool, env=env)

    def _send(self, way: Way) -> list[SentTask]:
        numbers = _numbers(random.Random(way.title))  # noqa: S311 - the same tasks in every run
        with self._screen.progress("sent", self._tasks) as advance:
            return [self._sent(way, numbers(), advance) for _ in range(self._tasks)]

    def _sent(self, way: Way, numbers: list[int], advance: Callable[[], None]) -> SentTask:
        self._go_on()
        task = traffic.send(way, numbers)
        advance()
        return task

    def _collect(self, way: Way, tasks: Sequence[SentTask]) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        with self._screen.progress("results", len(tasks)) as advance:
            for task_id, outcome in traffic.results(way, tasks):
                self._go_on()
                outcomes[task_id] = outcome
                advance()
        return outcomes

    def _show_samples(self, tasks: Sequence[SentTask], outcomes: dict[str, Outcome]) -> None:
        for task in tasks[:SAMPLES]:
            if task.id in outcomes:
                self._screen.line("sample", f"{task.numbers} -> {outcomes[task.id].words()}")

    def _show_latency(self, tasks: Sequence[SentTask], outcomes: dict[str, Outcome]) -> None:
        done = [(task.sent_at, outcomes[task.id].done_at) for task in tasks if task.id in outcomes]
        if not done:
            return
        latencies_s = [(done_at - sent_at).total_seconds() for sent_at, done_at in done]
        p50_ms, p99_ms = (percentile_ms(latencies_s, percent) for percent in (50, 99))
        took_s = (max(at for _, at in done) - min(at for at, _ in done)).total_seconds()
        self._screen.line("latency", f"p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms from sent to stored")
        self._screen.line("rate", f"{len(done) / took_s:.0f} tasks/s")


def _timed(step: Callable[[], object]) -> float:
    """Run a step and return how many seconds it took."""
    began_s = time.monotonic()
    step()
    return time.monotonic() - began_s


def _numbers(source: random.Random) -> Callable[[], list[int]]:
    return lambda: [source.randint(-NUMBER_MAX, NUMBER_MAX) for _ in range(NUMBERS)]
