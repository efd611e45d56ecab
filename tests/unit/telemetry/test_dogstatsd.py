"""What Datadog's agent gets, and that nobody waits for it."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from forwarder.settings.datadog import dogstatsd_is_on
from forwarder.telemetry import dogstatsd
from forwarder.telemetry.dogstatsd import SAMPLES_MAX, DogStatsdFeed, make_client
from forwarder.telemetry.gauges import Gauges, Reading
from forwarder.telemetry.metrics import ProcessMetrics

DATADOG = ("DD_AGENT_HOST", "DD_DOGSTATSD_URL", "DD_DOGSTATSD_PORT", "DD_ENV", "DD_SERVICE", "DD_VERSION",
           "DD_ENTITY_ID")  # fmt: skip


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DATADOG:
        monkeypatch.delenv(name, raising=False)


class Lines:
    """Datadog's client, whose packets come here."""

    def __init__(self) -> None:
        client: Any = make_client()
        self.client = client
        self.client._container_id = None  # this machine's
        self.packets: list[str] = []
        self.away = False
        self.client._xmit_packet = self._xmit

    def _xmit(self, packet: str, is_telemetry: bool, queue_mode: bool = False) -> bool:
        assert not is_telemetry
        self.packets.append(packet)
        return not self.away

    def taken(self) -> list[str]:
        """Return the lines since the last call."""
        lines = "".join(self.packets).splitlines()
        self.packets.clear()
        return lines


class Scene:
    def __init__(self) -> None:
        self.metrics = ProcessMetrics(samples_max=SAMPLES_MAX)
        self.gauges = Gauges()
        self.lines = Lines()
        self.feed = DogStatsdFeed(client=self.lines.client, metrics=self.metrics, gauges=self.gauges)

    def flushed(self) -> list[str]:
        self.feed.flush()
        return self.lines.taken()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_counters_go_as_what_was_counted_since_and_gauges_as_they_are(scene: Scene) -> None:
    scene.gauges.add(lambda: [Reading("forwarder_inflight", 7)])
    scene.metrics.count("forwarder_tasks_total", 3, queue="q", outcome="success")
    counted = "forwarder.tasks:3|c|#queue:q,outcome:success"
    assert scene.flushed() == [counted, "forwarder.inflight:7.0|g"]
    assert scene.flushed() == ["forwarder.inflight:7.0|g"]
    scene.metrics.count("forwarder_tasks_total", queue="q", outcome="success")
    assert scene.flushed() == [counted.replace("3", "1"), "forwarder.inflight:7.0|g"]


def test_measurements_go_as_distributions_each_once(scene: Scene) -> None:
    for seconds in (0.25, 2.5):
        scene.metrics.observe("forwarder_inference_seconds", seconds, status="200")
    assert scene.flushed() == [
        "forwarder.inference_seconds:0.25|d|#status:200",
        "forwarder.inference_seconds:2.5|d|#status:200",
    ]
    assert scene.flushed() == []


def test_of_more_measurements_than_one_flush_sends_the_rate_is_told(scene: Scene) -> None:
    for number in range(4 * SAMPLES_MAX):
        scene.metrics.observe("forwarder_task_seconds", float(number), queue="q")
    lines = scene.flushed()
    assert len(lines) == SAMPLES_MAX, "the client itself has left some out"
    assert lines[-1] == "forwarder.task_seconds:3999.0|d|@0.25|#queue:q"
    scene.metrics.observe("forwarder_task_seconds", 1.0, queue="q")
    assert scene.flushed() == ["forwarder.task_seconds:1.0|d|#queue:q"]


def test_the_variables_of_datadog_are_tags_of_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DD_ENV", "DD_SERVICE", "DD_VERSION", "DD_ENTITY_ID"):
        monkeypatch.setenv(name, name.lower())
    scene = Scene()
    scene.gauges.add(lambda: [Reading("forwarder_live", 1)])
    (line,) = scene.flushed()
    tags = line.partition("|#")[2].split(",")
    assert {"env:dd_env", "service:dd_service", "version:dd_version"} < set(tags)
    assert "dd.internal.entity_id:dd_entity_id" in tags


def test_a_tag_cannot_forge_a_line(scene: Scene) -> None:
    scene.metrics.count("forwarder_tasks_total", queue="q|c\nx:1|c,y", outcome="success")
    (line,) = scene.flushed()
    assert line.startswith("forwarder.tasks:1|c|#")
    assert line.count(",") == 1


def test_the_client_has_no_thread_and_no_part_in_forks_and_says_nothing_of_itself(scene: Scene) -> None:
    """Its private names and its defaults may change with any version."""
    from datadog.dogstatsd import base

    client = scene.lines.client
    assert client._flush_thread is None
    assert client._active_sender is None
    assert client not in base._instances
    assert client._telemetry is False
    assert all(thread.name.find("DogStatsd") < 0 for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("variables", "reached"),
    [
        ({"DD_AGENT_HOST": "agent"}, ("agent", 8125, None)),
        ({"DD_AGENT_HOST": "agent", "DD_DOGSTATSD_PORT": "9"}, ("agent", 9, None)),
        ({"DD_DOGSTATSD_URL": "udp://agent:9"}, ("agent", 9, None)),
        ({"DD_DOGSTATSD_URL": "unix:///x/dsd.socket"}, (None, None, "unix:///x/dsd.socket")),
        ({"DD_DOGSTATSD_URL": "udp://agent:9", "DD_AGENT_HOST": "x"}, ("agent", 9, None)),
    ],
)
def test_the_agent_is_the_one_that_datadogs_variables_name(
    variables: dict[str, str], reached: tuple[str, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    client: Any = make_client()
    assert (client.host, client.port, client.socket_path) == reached
    assert dogstatsd_is_on()


def test_nothing_is_sent_where_no_variable_names_an_agent() -> None:
    assert not dogstatsd_is_on({"DD_AGENT_HOST": "", "DD_DOGSTATSD_PORT": "9", "DD_ENV": "prod"})


def test_without_datadogs_package_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "datadog.dogstatsd.base", None)
    assert make_client() is None
    assert caplog.messages == ["dogstatsd_off reason=package_missing: pip install 'forwarder[datadog]'"]


def test_an_agent_that_is_away_is_told_once_and_nothing_is_raised(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.gauges.add(lambda: [Reading("forwarder_live", 1)])
    with caplog.at_level(logging.INFO):
        for away in (True, True, False):
            scene.lines.away = away
            scene.feed.flush()
    assert caplog.messages == ["dogstatsd_failing error=not_sent", "dogstatsd_recovered"]


def test_a_client_that_raises_does_not_end_the_feed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> bool:
        raise socket.gaierror("a.secret.host")

    monkeypatch.setattr(scene.lines.client, "flush", refuse)
    scene.feed.flush()
    assert caplog.messages == ["dogstatsd_failing error=gaierror"]


def test_the_end_flushes_once_more(scene: Scene) -> None:
    scene.feed.start()
    scene.metrics.count("forwarder_tasks_total", queue="q", outcome="success")
    scene.feed.stop()
    assert scene.lines.taken() == ["forwarder.tasks:1|c|#queue:q,outcome:success"]


def test_the_end_does_not_wait_for_a_flush_that_hangs_longer_than_it_may() -> None:
    now_s, begun = [0.0], []

    def hangs(work: Callable[[], None]) -> None:
        begun.append(work)

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    feed = DogStatsdFeed(
        client=None, metrics=ProcessMetrics(), gauges=Gauges(),
        start_native=hangs, sleep=sleep, monotonic=lambda: now_s[0],
    )  # fmt: skip
    feed.start()
    feed.stop()
    assert begun
    assert dogstatsd.LAST_FLUSH_S <= now_s[0] < dogstatsd.LAST_FLUSH_S + 1


def test_a_feed_that_was_never_started_ends_at_once() -> None:
    def sleep(seconds: float) -> None:
        pytest.fail("waited")

    DogStatsdFeed(client=None, metrics=ProcessMetrics(), gauges=Gauges(), sleep=sleep).stop()
