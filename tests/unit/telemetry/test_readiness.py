"""The remembered look at the services."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import pytest

from forwarder.telemetry.readiness import LATE_S, ROUND_S, Look, Readiness


class Scene:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.why_not: str | None = None
        self.error: Exception | None = None
        self.broker = True
        self.draining = False
        self.store: str | None = None
        self.pauses: list[float] = []
        self.inference = self.look("inference", self.ask)
        self.results = self.look("result_store", lambda: self.store, round_s=60.0)
        self.readiness = Readiness(
            inference=self.inference,
            results=self.results,
            broker=lambda: self.broker,
            draining=lambda: self.draining,
        )
        self.results.look()

    def look(self, name: str, ask: Callable[[], str | None], round_s: float = ROUND_S) -> Look:
        return Look(
            name=name,
            ask=ask,
            unforked=contextlib.nullcontext(),
            round_s=round_s,
            monotonic=lambda: self.now_s,
            sleep=self.pause,
        )

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == 2:
            raise StopIteration
        self.store = None

    def ask(self) -> str | None:
        if self.error is not None:
            raise self.error
        return self.why_not


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_before_the_first_look_the_inference_server_is_not_ready(scene: Scene) -> None:
    assert scene.readiness.reasons() == ("inference",)
    assert scene.readiness.age_s is None


def test_after_a_look_it_is_as_it_was_then(scene: Scene) -> None:
    scene.inference.look()
    scene.now_s += 4
    scene.why_not = "HTTP 503"
    assert scene.readiness.reasons() == ()
    assert scene.readiness.age_s == 4
    scene.inference.look()
    assert scene.readiness.reasons() == ("inference",)


def test_a_look_that_is_old_tells_nothing(scene: Scene) -> None:
    scene.inference.look()
    scene.now_s += ROUND_S + LATE_S + 1
    assert scene.readiness.reasons() == ("inference",)
    scene.now_s += 60
    assert scene.readiness.reasons() == ("inference", "results")


def test_every_reason_is_told(scene: Scene) -> None:
    scene.broker, scene.draining, scene.why_not, scene.store = False, True, "HTTP 503", "refused"
    scene.inference.look()
    scene.results.look()
    assert scene.readiness.reasons() == ("draining", "broker", "inference", "results")


def test_a_store_that_is_looked_at_rarely_is_looked_at_soon_while_it_is_away(scene: Scene) -> None:
    scene.store = "refused"
    with pytest.raises(StopIteration):
        scene.results.run()
    assert scene.pauses == [ROUND_S, 60.0]


def test_a_look_that_fails_is_a_server_that_is_not_ready(scene: Scene) -> None:
    scene.error = UnicodeError("no such host")
    scene.inference.look()
    assert scene.readiness.reasons() == ("inference",)


def test_the_log_has_one_line_for_each_change(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for why_not in (None, "HTTP 503", "no answer", None, None):
        scene.why_not = why_not
        scene.inference.look()
    assert caplog.messages == ["inference_away reason='HTTP 503'", "inference_back"]
