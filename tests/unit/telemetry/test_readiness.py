"""The remembered look at the services."""

from __future__ import annotations

import contextlib
import logging

import pytest

from forwarder.telemetry.readiness import OLD_S, Readiness


class Scene:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.why_not: str | None = None
        self.error: Exception | None = None
        self.broker = True
        self.draining = False
        self.readiness = Readiness(
            inference=self.ask,
            broker=lambda: self.broker,
            draining=lambda: self.draining,
            unforked=contextlib.nullcontext(),
            monotonic=lambda: self.now_s,
        )

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
    scene.readiness.look()
    scene.now_s += 4
    scene.why_not = "HTTP 503"
    assert scene.readiness.reasons() == ()
    assert scene.readiness.age_s == 4
    scene.readiness.look()
    assert scene.readiness.reasons() == ("inference",)


def test_a_look_that_is_old_tells_nothing(scene: Scene) -> None:
    scene.readiness.look()
    scene.now_s += OLD_S + 1
    assert scene.readiness.reasons() == ("inference",)


def test_every_reason_is_told(scene: Scene) -> None:
    scene.broker, scene.draining, scene.why_not = False, True, "HTTP 503"
    scene.readiness.look()
    assert scene.readiness.reasons() == ("draining", "broker", "inference")


def test_a_look_that_fails_is_a_server_that_is_not_ready(scene: Scene) -> None:
    scene.error = UnicodeError("no such host")
    scene.readiness.look()
    assert scene.readiness.reasons() == ("inference",)


def test_the_log_has_one_line_for_each_change(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for why_not in (None, "HTTP 503", "no answer", None, None):
        scene.why_not = why_not
        scene.readiness.look()
    assert caplog.messages == ["inference_away reason='HTTP 503'", "inference_back"]
