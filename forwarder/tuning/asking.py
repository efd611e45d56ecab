"""One task as a worker works on it, between its broker and its result store: what is measured."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from forwarder.forwarding.errors import ForwarderError
from forwarder.forwarding.forwarder import BUSY_STATUSES
from forwarder.forwarding.payload import ResultShape, decode_answer, encode_body, parse_payload
from forwarder.forwarding.ports import Answer, StagedBody
from forwarder.tuning.climb import Asked
from forwarder.tuning.samples import Sample

Body = bytes | StagedBody


class Server(Protocol):
    """The inference client."""

    def predict(self, body: Body, *, headers: dict[str, str]) -> Answer: ...


class Inputs(Protocol):
    """What fetches bodies by reference: the worker's staging."""

    def fetch(self, url: str) -> AbstractContextManager[Body]: ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """One body by reference: what it took to read it, in seconds, and how large it is."""

    elapsed_s: float
    size_bytes: int


class Asking:
    """Asks the inference server with samples, in turn.

    Nothing is written anywhere: no result, no hook, no ``destination_path``. Bodies
    by reference are read once, when ``inputs_read`` begins.
    """

    def __init__(self, *, samples: Sequence[Sample], server: Server, inputs: Inputs, unwrap: bool) -> None:
        self.samples = samples
        self.fetched: list[Fetched] = []
        self._server = server
        self._inputs = inputs
        self._unwrap = unwrap
        self._bodies: dict[str, Body] = {}

    @contextmanager
    def inputs_read(self, *, monotonic: Callable[[], float] = time.monotonic) -> Iterator[None]:
        """Read what the samples refer to and keep it for the block. Raises what staging raises."""
        with contextlib.ExitStack() as held:
            for url in dict.fromkeys(sample.url for sample in self.samples if sample.url):
                began_s = monotonic()
                body = held.enter_context(self._inputs.fetch(url))
                size_bytes = len(body) if isinstance(body, bytes) else body.size_bytes
                self.fetched.append(Fetched(monotonic() - began_s, size_bytes))
                self._bodies[url] = body
            yield

    def ask(self, number: int) -> Asked:
        """Ask with one of the samples, and read the answer as a worker does. Raises no error of a task."""
        sample = self.samples[number % len(self.samples)]
        try:
            answer = self._server.predict(self._body(sample), headers={})
        except ForwarderError:
            return Asked("broken")
        if answer.status in BUSY_STATUSES:
            return Asked("busy")
        outcome = "answered" if answer.status < 400 else "failed"
        try:
            json.dumps(ResultShape().build(decode_answer(answer), answer.status))
        except ForwarderError:
            outcome = "failed"
        return Asked(outcome, answer.elapsed_s, len(answer.body))  # type: ignore[arg-type]

    def _body(self, sample: Sample) -> Body:
        if sample.url is not None:
            return self._bodies[sample.url]
        return encode_body(parse_payload(sample.payload, unwrap=self._unwrap).body)
