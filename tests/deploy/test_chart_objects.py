"""What the chart renders is what Kubernetes takes, and each pod is closed as far as it can be."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from forwarder import __version__
from forwarder.settings.redact import hidden, without_password
from forwarder.settings.table import SPECS
from forwarder.telemetry.dogstatsd import make_client
from tests.deploy.charts import (
    ALONE,
    CASES,
    CHART,
    ELSEWHERE,
    MODEL,
    ROOT,
    Helm,
    Object,
    containers_of,
    of_kind,
    pod_of,
    texts,
    worker_of,
)
from tests.deploy.custom_kinds import CUSTOM_KINDS

#: The oldest that the chart takes, and the newest that is known here.
KUBERNETES = ("1.29", kubernetes_validate.latest_version())


def load(name: str) -> Any:
    return yaml.safe_load((CHART / name).read_text())


@pytest.mark.parametrize("case", CASES)
def test_every_example_and_variant_passes_helm_lint(helm: Helm, case: str) -> None:
    passed, said = helm.lint(CASES[case])
    assert passed, said


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_valid(rendered: list[Object], version: str) -> None:
    for found in rendered:
        if found["kind"] in CUSTOM_KINDS:
            jsonschema.validate(found, CUSTOM_KINDS[found["kind"]])
        else:
            assert kubernetes_validate.validate(found, version, strict=True)


def test_every_object_has_the_releases_name_and_labels(rendered: list[Object]) -> None:
    assert len({found["metadata"]["name"] for found in rendered} - {"someone"}) == 1
    for found in rendered:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "images"
        assert labels["app.kubernetes.io/version"] == __version__


def test_what_selects_pods_selects_the_deployments(rendered: list[Object]) -> None:
    (deployment,) = of_kind(rendered, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]]
    selectors += [found["spec"]["selector"] for found in of_kind(rendered, "PodDisruptionBudget")]
    selectors += [found["spec"]["selector"] for found in of_kind(rendered, "PodMonitor")]
    selectors += [found["spec"]["podSelector"] for found in of_kind(rendered, "NetworkPolicy")]
    for selector in selectors:
        assert selector["matchLabels"].items() <= labels.items()


def test_the_worker_is_no_root_and_can_write_to_its_scratch_folder_only(rendered: list[Object]) -> None:
    context = worker_of(rendered)["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["readOnlyRootFilesystem"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert worker_of(rendered)["volumeMounts"] == [{"name": "scratch", "mountPath": "/tmp"}]


def test_no_container_gets_capabilities(rendered: list[Object]) -> None:
    for container in containers_of(rendered):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_models_own_security_settings_come_first(helm: Helm) -> None:
    own = {"runAsUser": 7, "capabilities": {"add": ["SYS_PTRACE"]}}
    values = {**ALONE, "model": {"enabled": True, "container": {"image": "m", "securityContext": own}}}
    model, _ = containers_of(helm.render(values))
    assert model["securityContext"] == {
        "runAsUser": 7,
        "allowPrivilegeEscalation": False,
        "capabilities": {"add": ["SYS_PTRACE"], "drop": ["ALL"]},
    }


def test_no_pod_gets_a_token_of_the_cluster_or_the_variables_of_services(rendered: list[Object]) -> None:
    assert pod_of(rendered)["automountServiceAccountToken"] is False
    assert pod_of(rendered)["enableServiceLinks"] is False  # FORWARDER_HTTP_PORT of a Service forwarder-http
    for account in of_kind(rendered, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_a_role_is_the_service_accounts(helm: Helm) -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/forwarder"}
    objects = helm.render({**ALONE, "serviceAccount": {"annotations": role}})
    (account,) = of_kind(objects, "ServiceAccount")
    assert account["metadata"]["annotations"] == role
    assert pod_of(objects)["serviceAccountName"] == account["metadata"]["name"]
    assert pod_of(objects)["securityContext"]["fsGroup"] == 10001  # or the mounted token can't be read


def test_no_secret_stands_in_what_is_rendered(rendered: list[Object]) -> None:
    keys = {spec.environ for spec in SPECS if spec.redacted is hidden}
    assert keys
    assert not of_kind(rendered, "ConfigMap")
    assert not of_kind(rendered, "Secret")
    plain = {entry["name"] for entry in worker_of(rendered)["env"]}
    assert not plain & keys
    for text in texts(rendered):
        assert without_password(text) == text or "://" not in text
        assert not re.search(r"://[^/\s]*@", text)


def test_secrets_come_from_a_secret_under_their_settings_names(helm: Helm) -> None:
    objects = helm.render({**ELSEWHERE, "existingSecret": "urls"})
    assert worker_of(objects)["envFrom"] == [{"secretRef": {"name": "urls"}}]
    plain = {entry["name"] for entry in worker_of(objects)["env"]}
    # They would win over the Secret's.
    assert not plain & {"FORWARDER_BROKER_URL", "FORWARDER_RESULT_BACKEND"}


def test_a_node_can_be_drained_whatever_the_pods_state(rendered: list[Object]) -> None:
    for budget in of_kind(rendered, "PodDisruptionBudget"):
        assert "minAvailable" not in budget["spec"]
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_strategy_without_surge_takes_nothing_of_the_defaults(helm: Helm) -> None:
    """Kubernetes refuses a Recreate that has a rollingUpdate."""
    (deployment,) = of_kind(helm.render({**ALONE, "strategy": {"type": "Recreate"}}), "Deployment")
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_datadogs_tags_are_text_whatever_they_look_like(helm: Helm) -> None:
    objects = helm.render({**ALONE, "datadog": {"enabled": True, "env": "1", "service": "2026"}})
    (deployment,) = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels["tags.datadoghq.com/env"] == "1"
    assert labels["tags.datadoghq.com/service"] == "2026"


def test_gauges_of_two_pods_on_a_node_are_told_apart(helm: Helm, monkeypatch: pytest.MonkeyPatch) -> None:
    env = worker_of(helm.render({**ALONE, "datadog": {"enabled": True}}))["env"]
    names = [entry["name"] for entry in env]
    assert names.index("POD_NAME") < names.index("DATADOG_TAGS"), "Kubernetes replaces what stands before"
    value = next(entry["value"] for entry in env if entry["name"] == "DATADOG_TAGS")
    for pod in ("a", "b"):
        monkeypatch.setenv("DATADOG_TAGS", value.replace("$(POD_NAME)", pod))
        client = make_client()
        assert client is not None
        assert f"pod_name:{pod}" in client.constant_tags


def test_datadogs_tags_are_labels_and_variables(helm: Helm) -> None:
    objects = helm.render({**ALONE, **MODEL, "datadog": {"enabled": True, "env": "live", "service": "s"}})
    (deployment,) = of_kind(objects, "Deployment")
    tags = {
        f"tags.datadoghq.com/{name}": value
        for name, value in {"env": "live", "service": "s", "version": __version__}.items()
    }
    assert tags.items() <= deployment["metadata"]["labels"].items()
    assert tags.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    fields = {
        entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in worker_of(objects)["env"]
        if "valueFrom" in entry
    }
    assert fields["DD_AGENT_HOST"] == "status.hostIP"
    assert {fields["DD_ENV"], fields["DD_SERVICE"], fields["DD_VERSION"]} == {
        f"metadata.labels['{name}']" for name in tags
    }


def test_the_charts_version_user_and_port_are_the_images(helm: Helm) -> None:
    image = (ROOT / "Dockerfile").read_text()
    objects = helm.render(ALONE)
    worker = worker_of(objects)
    assert load("Chart.yaml")["appVersion"] == __version__
    assert worker["image"] == f"forwarder:{__version__}"
    user = worker["securityContext"]["runAsUser"]
    assert re.search(rf"^USER {user}:{user}$", image, re.MULTILINE)
    assert pod_of(objects)["securityContext"]["fsGroup"] == user
    assert re.search(rf"^EXPOSE {worker['ports'][0]['containerPort']}$", image, re.MULTILINE)
