"""A value that can't work fails `helm lint`, which names it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.deploy.charts import ALONE, CHART, MODEL, RABBITMQ, ROOT, SQS, Helm, Values


def merged(values: Values, changes: Values) -> dict[str, Any]:
    """Return values with changes laid over them, mapping by mapping."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


KEDA: Values = {"scaling": {"kind": "keda"}}

REFUSED: list[tuple[str, Values, Values]] = [
    ("/broker/url", ALONE, {"broker": {"url": ""}}),
    ("/results/url", ALONE, {"results": {"url": ""}}),
    ("/broker/url", ALONE, {"broker": {"url": "redis://:secret@r:6379/0"}}),
    ("/broker/url", ALONE, {"broker": {"url": "redis://r:6379/0?password=secret@"}}),
    ("/results/url", ALONE, {"results": {"url": "redis://r:6379/0?x=1&password=hunter"}}),
    ("/broker/url", ALONE, {"broker": {"url": "amqp://r:5672/"}}),
    ("/broker/url", RABBITMQ, {"broker": {"url": "redis://r:6379/0"}}),
    ("/broker/kind", ALONE, {"broker": {"kind": "kafka"}}),
    ("/results/url", ALONE, {"results": {"url": "rediss://u:p@r:6379/1"}}),
    ("/broker/sqsQueueUrl", SQS, {"broker": {"sqsQueueUrl": ""}}),
    ("/queues", SQS, {"queues": ["a", "b"]}),
    ("/queues", ALONE, {"queues": []}),
    ("/queues/0", ALONE, {"queues": ["a b"]}),
    ("/pool", ALONE, {"pool": "threads"}),
    ("/concurrency", ALONE, {"concurrency": 0}),
    ("/concurrency", ALONE, {"concurrency": "many"}),
    ("/drainSeconds", ALONE, {"drainSeconds": 0}),
    ("/http/port", ALONE, {"http": {"port": 0}}),
    ("/settings", ALONE, {"settings": {"FORWARDER_TASK_TIMEOUT": 5}}),
    ("/settings", ALONE, {"settings": {"FORWARDER_DRAIN_TIMEOUT_S": 5}}),
    ("/settings", ALONE, {"settings": {"FORWARDER_CALLBACK_SECRET": "whsec_x"}}),
    ("/extraEnv/0/name", ALONE, {"extraEnv": [{"name": "FORWARDER_CALLBACK_SECRET", "value": "x"}]}),
    ("/model/container", ALONE, {"model": {"enabled": True}}),
    (
        "/model/container/lifecycle/preStop",
        ALONE,
        merged(MODEL, {"model": {"container": {"lifecycle": {"preStop": {"exec": {"command": ["stop"]}}}}}}),
    ),
    (
        "/model/container/restartPolicy",
        ALONE,
        merged(MODEL, {"model": {"container": {"restartPolicy": "Never"}}}),
    ),
    ("/predictUrl", ALONE, {"predictUrl": "model:5005"}),
    ("/predictUrl", ALONE, {"predictUrl": "http://127.0.0.1:5005/predict"}),
    ("/healthUrl", ALONE, {"healthUrl": "http://localhost:5005/readyz"}),
    ("/scaling/kind", ALONE, {"scaling": {"kind": "both"}}),
    ("/scaling/minReplicas", ALONE, {"scaling": {"kind": "hpa", "minReplicas": 0}}),
    ("/podDisruptionBudget/maxUnavailable", ALONE, {"podDisruptionBudget": {"maxUnavailable": "0%"}}),
    ("/aws/region", merged(SQS, KEDA), {"aws": {"region": ""}}),
    ("/scaling/redis/address", merged(ALONE, KEDA), {"broker": {"url": ""}, "existingSecret": "urls"}),
    ("/scaling/authentication", merged(RABBITMQ, KEDA), {}),
    ("additional properties 'drainTimeout'", ALONE, {"drainTimeout": 5}),
    ("/scaling", ALONE, {"scaling": {"keda": True}}),
    ("/probes/kind", ALONE, {"probes": {"kind": "tcp"}}),
]


#: What is asked for where a schema's keyword would not say it.
WORDS: list[tuple[str, Values, Values]] = [
    (
        "a URL without user and password: put one with them into existingSecret, as FORWARDER_BROKER_URL",
        ALONE,
        {"broker": {"url": "redis://:secret@r:6379/0"}},
    ),
    ("put one with them into existingSecret", ALONE, {"broker": {"url": "redis:/u:secret@r"}}),
    (
        "put one with them into existingSecret, as FORWARDER_RESULT_BACKEND",
        ALONE,
        {"results": {"url": "redis://u:secret@r/1"}},
    ),
    ("name an existingSecret that has it as FORWARDER_BROKER_URL", {}, {}),
    ("name an existingSecret that has it as FORWARDER_RESULT_BACKEND", {}, {}),
    ("a URL outside the pod, or set model.enabled", {}, {}),
    ("a URL of redis:// or rediss://: broker.kind is redis", ALONE, {"broker": {"url": "amqp://r:5672/"}}),
    ("a URL of amqp:// or amqps://", RABBITMQ, {"broker": {"url": "redis://r:6379/0"}}),
    ("the URL of a queue that exists: broker.kind is sqs", SQS, {"broker": {"sqsQueueUrl": ""}}),
    ("empty: broker.kind is sqs", SQS, {"broker": {"url": "redis://r:6379/0"}}),
    ("empty: broker.kind is redis", ALONE, {"broker": {"sqsQueueUrl": "https://host/1/q"}}),
    ("a container with an image", ALONE, {"model": {"enabled": True}}),
    ("1 or more: only scaling.kind keda", ALONE, {"scaling": {"kind": "hpa", "minReplicas": 0}}),
    ("the region of the queue", merged(SQS, KEDA), {"aws": {"region": ""}}),
    ("HOST:PORT of Redis", merged(ALONE, KEDA), {"broker": {"url": ""}, "existingSecret": "urls"}),
    ("a secretTargetRef with the management URL", merged(RABBITMQ, KEDA), {}),
    (
        "secrets into existingSecret",
        ALONE,
        {"extraEnv": [{"name": "FORWARDER_CALLBACK_SECRET", "value": "x"}]},
    ),
    ("another name: scratch is taken", ALONE, {"volumes": [{"name": "scratch"}]}),
]


@pytest.mark.parametrize(("words", "values", "changes"), WORDS, ids=lambda part: str(part)[:60])
def test_a_refusal_says_in_words_what_is_wanted(
    helm: Helm, words: str, values: Values, changes: Values
) -> None:
    passed, said = helm.lint(merged(values, changes))
    assert not passed
    assert words in said
    assert "'not' failed" not in said
    assert "secret@" not in said


@pytest.mark.parametrize(("place", "values", "changes"), REFUSED, ids=lambda part: str(part)[:60])
def test_a_value_that_cannot_work_is_refused_by_its_name(
    helm: Helm, place: str, values: Values, changes: Values
) -> None:
    passed, said = helm.lint(merged(values, changes))
    assert not passed
    assert place in said
    assert "secret@" not in said


def test_the_documentation_names_every_example_and_only_values_that_exist() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    for path in (ROOT / "deploy" / "examples").iterdir():
        assert f"`{path.name}`" in text
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    named = {name for name in re.findall(r"`([a-z]\w*(?:\.\w+)+)", text) if name.split(".")[0] in values}
    assert len(named) > 10
    for name in named:
        place: Any = values
        for step in name.split("."):
            assert step in place, name
            place = place[step]


def test_every_value_has_a_place_in_the_schema_and_every_place_a_value() -> None:
    """So that a misspelt value is refused, and no value is forgotten."""

    def compare(values: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> None:
        if not schema.get("additionalProperties", True) and path != ".settings":
            assert set(values) == set(schema["properties"]) - {"global"}, path
            for key, value in values.items():
                if isinstance(value, Mapping):
                    compare(value, schema["properties"][key], f"{path}.{key}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")
