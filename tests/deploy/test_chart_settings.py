"""What the chart tells the worker is what the worker understands, and its numbers agree with the pod's."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from forwarder.settings import Resolved, Settings, resolve
from forwarder.settings.coherence import ENDING_S
from forwarder.settings.redact import shown
from forwarder.settings.table import BY_FIELD, SPECS
from tests.deploy.charts import (
    ALONE,
    CASES,
    CHART,
    MODEL,
    ROOT,
    Helm,
    Object,
    environment_of,
    pod_of,
    worker_of,
)

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
ENVIRON = {spec.environ for spec in SPECS}
#: What a Secret of this kind of broker holds.
SECRET = {
    "redis": {"FORWARDER_BROKER_URL": "rediss://:secret@redis:6379/0"},
    "rabbitmq": {"FORWARDER_BROKER_URL": "amqp://me:secret@rabbitmq:5672/work"},
    "sqs": {},
}


def settings_of(objects: list[Object], kind: str = "redis") -> Resolved:
    """Return what the worker makes of its variables."""
    secret = {}
    if "envFrom" in worker_of(objects):
        secret = {"FORWARDER_RESULT_BACKEND": "rediss://:secret@redis:6379/1"} | SECRET[kind]
    environ = {
        name: value for name, value in (secret | environment_of(objects)).items() if name not in images_own()
    }
    return resolve({}, environ, {})


def images_own() -> set[str]:
    """Return the variables that the image reads before the worker does, and hides from it."""
    entry = (ROOT / "deploy" / "container" / "entry.sh").read_text()
    return set(re.findall(r"^unset (\w+)", entry, re.MULTILINE))


@pytest.mark.parametrize("case", CASES)
def test_the_worker_takes_its_variables_without_a_warning(helm: Helm, case: str) -> None:
    kind = CASES[case].get("broker", {}).get("kind", "redis")
    resolved = settings_of(helm.render(CASES[case]), kind)
    assert resolved.settings.broker_kind == {"rabbitmq": "amqp"}.get(kind, kind)
    assert not resolved.warnings


def test_every_variable_is_a_real_setting(rendered: list[Object]) -> None:
    names = {entry["name"] for entry in worker_of(rendered)["env"]}
    ours = {name for name in names if re.match("FORWARDER_|CELERY_|FIREHOSE_", name)}
    assert ours
    assert ours - images_own() <= ENVIRON


def test_no_variable_is_given_twice(rendered: list[Object]) -> None:
    names = [entry["name"] for entry in worker_of(rendered)["env"]]
    assert len(names) == len(set(names))


def test_settings_takes_every_setting_that_no_other_value_decides_and_no_secret(helm: Helm) -> None:
    decided = {name for name in environment_of(helm.render(CASES["sqs"])) if name in ENVIRON}
    refuse_passwords = {"FORWARDER_CALLBACK_URL"}
    secrets = {spec.environ for spec in SPECS if spec.redacted is not shown} - refuse_passwords
    accepted = set(SCHEMA["properties"]["settings"]["properties"])
    assert accepted == ENVIRON - decided - secrets


def test_numbers_are_written_as_the_worker_reads_them(helm: Helm) -> None:
    settings = settings_of(helm.render(CASES["large numbers, long drain"])).settings
    assert settings.stage_bytes_max == 10_000_000_000
    assert settings.input_bytes_max == 8_000_000_000
    assert settings.store_retry_s == 0.5
    assert settings.drain_timeout_s == 100_000


def test_the_defaults_of_the_chart_that_are_the_workers_too_agree(helm: Helm) -> None:
    urls = {name: ALONE[name] for name in ("broker", "results")}
    settings, default = settings_of(helm.render({**urls, **MODEL})).settings, Settings()
    for field in ("queues", "drain_timeout_s", "predict_url", "health_url", "stage_bytes_max"):
        assert getattr(settings, field) == getattr(default, field), BY_FIELD[field].title


def test_the_pod_lives_longer_than_its_drain_takes(rendered: list[Object]) -> None:
    environ = environment_of(rendered)
    drain_s, grace_s = (
        int(environ[name]) for name in ("FORWARDER_DRAIN_TIMEOUT_S", "FORWARDER_TERMINATION_GRACE_S")
    )
    assert grace_s >= drain_s + ENDING_S
    assert pod_of(rendered)["terminationGracePeriodSeconds"] >= grace_s


def test_the_model_has_its_own_seconds_after_the_forwarders(helm: Helm) -> None:
    values: dict[str, Any] = {**ALONE, "drainSeconds": 90}
    beside = {**values, "model": {**MODEL["model"], "stopSeconds": 40}}
    assert pod_of(helm.render(values))["terminationGracePeriodSeconds"] == 105
    assert pod_of(helm.render(beside))["terminationGracePeriodSeconds"] == 145
    assert environment_of(helm.render(beside))["FORWARDER_TERMINATION_GRACE_S"] == "105"


def test_the_model_is_started_before_the_forwarder_and_stopped_after_it(helm: Helm) -> None:
    """Kubernetes stops restartable init containers when all others have ended."""
    pod = pod_of(helm.render({**ALONE, **MODEL}))
    (model,) = pod["initContainers"]
    assert model["restartPolicy"] == "Always"
    assert [container["name"] for container in pod["containers"]] == ["forwarder"]


def test_the_scratch_folder_is_larger_than_what_the_worker_puts_there(rendered: list[Object]) -> None:
    environ = environment_of(rendered)
    (scratch,) = (volume for volume in pod_of(rendered)["volumes"] if volume["name"] == "scratch")
    (mount,) = worker_of(rendered)["volumeMounts"]
    assert environ["FORWARDER_STAGE_FOLDER"] == mount["mountPath"]
    assert int(scratch["emptyDir"]["sizeLimit"]) > int(environ["FORWARDER_STAGE_BYTES_MAX"])
    assert "medium" not in scratch["emptyDir"]  # in memory each byte would count against the limit


def test_probes_ask_the_port_that_the_worker_opens(rendered: list[Object]) -> None:
    worker = worker_of(rendered)
    (port,) = worker["ports"]
    assert str(port["containerPort"]) == environment_of(rendered)["FORWARDER_HTTP_PORT"]
    if "exec" in worker["livenessProbe"]:
        assert worker["livenessProbe"]["exec"] == {"command": ["forwarder", "check", "--live"]}
        return
    paths = {
        name: worker[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    assert {worker[name]["httpGet"]["port"] for name in paths} == {port["name"]}


def test_a_worker_that_hangs_is_not_given_an_hour_to_drain(helm: Helm) -> None:
    worker = worker_of(helm.render({**ALONE, "drainSeconds": 3600}))
    assert worker["livenessProbe"]["terminationGracePeriodSeconds"] == 30
