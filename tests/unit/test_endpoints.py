"""What the four routes answer, without a socket."""

from __future__ import annotations

import errno
import json
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from forwarder import endpoints
from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.leases import LeaseBook
from forwarder.endpoints import Endpoints, Running
from forwarder.scaling.admission import Admission
from forwarder.settings import SettingsError, resolve
from forwarder.settings.table import SPECS

SECRETS = {
    "broker_url": "redis://user:hunter2@host:6379/0",
    "result_backend": "redis://:hunter2@host:6379/1",
    "callback_url": "https://host/done?token=hunter2",
    "callback_secret": "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg==",
    "predict_url": "http://host/predict?api_key=hunter2",
    "health_url": "http://host/readyz?api_key=hunter2",
    "hooks": "callback",
}


class Broker:
    def receive(self, message: Any) -> Delivery:
        return Delivery(tag="1", queue="q", number=3, confirmed_s=0.0, message=message)


class Scene:
    def __init__(self, **flags: str) -> None:
        self.endpoints = Endpoints(resolved=resolve(flags, {}, {}))
        self.not_live: tuple[str, ...] = ()
        self.not_ready: tuple[str, ...] = ()
        self.starting = False

    def run(self) -> LeaseBook:
        book = LeaseBook(Broker, monotonic=lambda: 0.0)  # type: ignore[arg-type]
        beat = SimpleNamespace(age_s=0.5)
        watch: Any = SimpleNamespace(
            liveness=SimpleNamespace(reasons=lambda: self.not_live),
            readiness=SimpleNamespace(reasons=lambda: self.not_ready, age_s=2.0),
            starting=self.starting,
            leases=beat,
            loop=beat,
            memory=beat,
        )
        self.endpoints.running = Running(
            hostname="forwarder-1@host",
            task_names=["forwarder.forward"],
            watch=watch,
            book=book,
            admission=Admission(slots_max=4, bytes_max=1000),
            numbers=SimpleNamespace(render=lambda: (b"up 1\n", "text/x"), values=lambda: [("up", 1.0)]),
        )
        return book

    def get(self, path: str) -> tuple[int, Any]:
        answer = self.endpoints.routes[path]()
        return answer.status.value, json.loads(answer.body)


def test_until_the_worker_is_put_together_it_is_alive_and_not_ready() -> None:
    scene = Scene()
    assert scene.get("/livez") == (200, {"live": True, "reasons": []})
    assert scene.get("/readyz") == (503, {"ready": False, "reasons": ["starting"], "age_s": None})
    assert scene.get("/status")[1]["not_ready"] == ["starting"]
    told = scene.endpoints.routes["/metrics"]().body.decode()
    values = {
        (s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(told) for s in f.samples
    }
    assert values == {("forwarder_dependency_up", "inference"): 0.0, ("forwarder_live",): 1.0}


def test_each_reason_is_an_answer_of_503() -> None:
    scene = Scene()
    scene.run()
    assert scene.get("/livez")[0] == 200
    assert scene.get("/readyz") == (200, {"ready": True, "reasons": [], "age_s": 2.0})
    scene.not_live, scene.not_ready = ("hub",), ("broker", "inference")
    assert scene.get("/livez") == (503, {"live": False, "reasons": ["hub"]})
    assert scene.get("/readyz")[1]["reasons"] == ["broker", "inference"]
    told = scene.get("/status")
    assert told[0] == 200
    assert (told[1]["live"], told[1]["ready"]) == (False, False)


def test_a_worker_whose_loop_has_not_turned_is_starting() -> None:
    scene = Scene()
    scene.starting = True
    scene.run()
    assert scene.get("/readyz")[1]["reasons"] == ["starting"]


def test_status_tells_what_is_in_flight_and_no_payload() -> None:
    scene = Scene()
    book = scene.run()
    book.open(SimpleNamespace(body=b"the payload", headers={"id": "task-1", "argsrepr": "the payload"}))
    answer = scene.get("/status")[1]
    (task,) = answer["in_flight"]["tasks"]
    assert (task["id"], task["queue"], task["delivery"], task["payload_bytes"]) == ("task-1", "q", 3, 11)
    assert answer["limits"]["slots_max"] == 4
    assert answer["metrics"] == {"up": 1.0}
    assert "the payload" not in json.dumps(answer)


def test_status_shows_every_setting_with_its_source_and_no_secret() -> None:
    told = Scene(**SECRETS).get("/status")[1]
    assert told["settings"].keys() == {spec.field for spec in SPECS}
    assert told["settings"]["callback_secret"] == {"value": "***", "source": "flag --callback-secret"}
    scene_text = json.dumps(told)
    assert "hunter2" not in scene_text
    assert SECRETS["callback_secret"].removeprefix("whsec_") not in scene_text


def test_metrics_are_passed_on_as_they_are() -> None:
    scene = Scene()
    scene.run()
    answer = scene.endpoints.routes["/metrics"]()
    assert (answer.body, answer.content_type) == (b"up 1\n", "text/x")


def test_without_a_port_nothing_is_served() -> None:
    assert Scene().endpoints.serve() is None


def test_a_port_that_can_not_be_had_is_refused_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def listen(host: str, port: int) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(endpoints, "listen", listen)
    with pytest.raises(SettingsError) as refused:
        Scene(http_port="8080", http_host="192.0.2.1").endpoints.serve()
    assert str(refused.value) == (
        "--http-port (FORWARDER_HTTP_PORT) is '8080'; accepted: a port that is free on 192.0.2.1 "
        "(--http-host): Cannot assign requested address"
    )
