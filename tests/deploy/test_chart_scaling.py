"""Pods are counted by all that waits and all that runs, and the pods' number is somebody's alone."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
import yaml

from forwarder.brokers.redis.intake import lists_of
from forwarder.telemetry.catalogue import BY_NAME
from tests.deploy.charts import (
    ALONE,
    CASES,
    CLOSED,
    EXAMPLES,
    SQS,
    WATCHED,
    Helm,
    Object,
    Values,
    environment_of,
    example,
    of_kind,
)


def scaled_object(helm: Helm, values: Values) -> Object:
    """Return the ``spec`` of the ScaledObject."""
    (found,) = of_kind(helm.render(values), "ScaledObject")
    spec: Object = found["spec"]
    return spec


def metadata_of(spec: Object) -> list[dict[str, str]]:
    return [trigger["metadata"] for trigger in spec["triggers"]]


def test_the_number_of_pods_is_the_deployments_or_one_autoscalers(rendered: list[Object]) -> None:
    (deployment,) = of_kind(rendered, "Deployment")
    given_by = ["replicas" in deployment["spec"]]
    given_by += [True for found in rendered if found["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")]
    assert sum(given_by) == 1


def test_an_autoscaler_scales_the_deployment(rendered: list[Object]) -> None:
    (deployment,) = of_kind(rendered, "Deployment")
    for found in (*of_kind(rendered, "ScaledObject"), *of_kind(rendered, "HorizontalPodAutoscaler")):
        assert found["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]


def test_triggers_authenticate_with_what_is_there(rendered: list[Object]) -> None:
    names = {found["metadata"]["name"] for found in of_kind(rendered, "TriggerAuthentication")}
    for scaled in of_kind(rendered, "ScaledObject"):
        used = [entry.get("authenticationRef", {}).get("name") for entry in scaled["spec"]["triggers"]]
        assert set(used) == (names or {None})


def test_on_redis_the_lists_and_the_leases_of_each_queue_are_added_up(helm: Helm) -> None:
    spec = scaled_object(helm, CASES["redis keda"])
    names = [metadata["listName"] for metadata in metadata_of(spec)]
    assert names == ["a", "forwarder:{a}:leases", "b", "forwarder:{b}:leases"]
    assert spec["advanced"]["scalingModifiers"]["formula"] == "t0 + t1 + t2 + t3"
    assert [trigger["name"] for trigger in spec["triggers"]] == ["t0", "t1", "t2", "t3"]


def test_on_redis_the_lists_of_priorities_are_kombus(helm: Helm) -> None:
    spec = scaled_object(helm, CASES["redis keda with priorities"])
    names = [metadata["listName"] for metadata in metadata_of(spec)]
    assert names[:-1] == lists_of("forwarder")


@pytest.mark.parametrize(
    ("url", "address", "database", "tls"),
    [
        ("redis://redis:6379/3", "redis:6379", "3", "false"),
        ("rediss://redis:6380/12", "redis:6380", "12", "true"),
        ("redis://redis:6379", "redis:6379", "0", "false"),
        ("rediss://redis", "redis:6379", "0", "true"),  # KEDA knows no default of the port
        ("redis://[fd00::1]/2", "[fd00::1]:6379", "2", "false"),
    ],
)
def test_on_redis_the_server_is_the_brokers(
    helm: Helm, url: str, address: str, database: str, tls: str
) -> None:
    spec = scaled_object(helm, {**ALONE, "broker": {"url": url}, "scaling": {"kind": "keda"}})
    for metadata in metadata_of(spec):
        assert metadata["address"] == address
        assert metadata["databaseIndex"] == database
        assert metadata["enableTLS"] == tls


def test_on_sqs_the_queue_is_the_workers_and_what_runs_counts(helm: Helm) -> None:
    objects = helm.render(CASES["sqs keda"])
    (metadata,) = metadata_of(scaled_object(helm, CASES["sqs keda"]))
    assert metadata["queueURL"] == environment_of(objects)["FORWARDER_SQS_QUEUE_URL"]
    assert metadata["awsRegion"] == environment_of(objects)["AWS_REGION"]
    assert metadata["scaleOnInFlight"] == "true"
    (authentication,) = of_kind(objects, "TriggerAuthentication")
    assert authentication["spec"] == {"podIdentity": {"provider": "aws"}}


def test_on_rabbitmq_each_queue_is_asked_over_http_because_amqp_hides_what_runs(helm: Helm) -> None:
    spec = scaled_object(helm, {**CASES["rabbitmq keda"], "queues": ["a", "b"]})
    assert [metadata["queueName"] for metadata in metadata_of(spec)] == ["a", "b"]
    assert {metadata["protocol"] for metadata in metadata_of(spec)} == {"http"}
    assert {metadata["excludeUnacknowledged"] for metadata in metadata_of(spec)} == {"false"}


def test_there_is_one_pod_for_as_many_tasks_as_it_works_on_at_a_time(helm: Helm) -> None:
    for case, key in (("redis keda", "listLength"), ("sqs keda", "queueLength"), ("rabbitmq keda", "value")):
        spec = scaled_object(helm, {**CASES[case], "concurrency": 7})
        assert {metadata[key] for metadata in metadata_of(spec)} == {"7"}
    spec = scaled_object(helm, {**CASES["redis keda"], "concurrency": 7})
    assert spec["advanced"]["scalingModifiers"]["target"] == "7"
    other: Any = {**CASES["sqs keda"], "scaling": {"kind": "keda", "tasksPerPod": 40}}
    assert metadata_of(scaled_object(helm, other))[0]["queueLength"] == "40"


def test_zero_pods_are_kedas_to_give(helm: Helm) -> None:
    for name in ("redis", "sqs", "rabbitmq", "long-tasks"):
        spec = scaled_object(helm, example(name))
        assert spec["minReplicaCount"] == 0
        assert spec["cooldownPeriod"] >= 300


def test_the_hpas_metrics_are_the_workers_and_the_adapter_serves_them(helm: Helm) -> None:
    (hpa,) = of_kind(helm.render(CASES["redis hpa"]), "HorizontalPodAutoscaler")
    metrics = [entry["external"]["metric"] for entry in hpa["spec"]["metrics"]]
    adapter = yaml.safe_load((EXAMPLES["hpa"].parent / "prometheus-adapter.yaml").read_text())
    served = {rule["name"]["as"] for rule in adapter["rules"]["external"]}
    assert {metric["name"] for metric in metrics} == served
    for metric in metrics:
        labels = set(metric["selector"]["matchLabels"])
        assert labels - {"app_kubernetes_io_instance"} == set(BY_NAME[metric["name"]].labels)
    queues = [metric["selector"]["matchLabels"].get("queue") for metric in metrics]
    assert queues == ["a", "b", None]


def test_the_label_by_which_the_hpa_selects_comes_from_the_pod_monitor(helm: Helm) -> None:
    objects = helm.render({**CASES["redis hpa"], **WATCHED})
    (monitor,) = of_kind(objects, "PodMonitor")
    (hpa,) = of_kind(objects, "HorizontalPodAutoscaler")
    selected = hpa["spec"]["metrics"][-1]["external"]["metric"]["selector"]["matchLabels"]
    targets = {label.replace(".", "_").replace("/", "_") for label in monitor["spec"]["podTargetLabels"]}
    assert set(selected) == targets


def test_metrics_of_ones_own_replace_the_hpas(helm: Helm) -> None:
    target = {"type": "Value", "value": "1"}
    own = {"type": "External", "external": {"metric": {"name": "x"}, "target": target}}
    values = {**ALONE, "scaling": {"kind": "hpa", "metrics": [own]}}
    (hpa,) = of_kind(helm.render(values), "HorizontalPodAutoscaler")
    assert hpa["spec"]["metrics"] == [own]


def reaches(policy: Object, address: str, port: int) -> bool:
    """Return whether a NetworkPolicy lets a pod out to an address, as far as address blocks tell."""
    target = ipaddress.ip_address(address)

    def within(block: str) -> bool:
        network = ipaddress.ip_network(block)
        return network.version == target.version and target in network

    return any(
        any(entry["port"] == port for entry in rule["ports"])
        and any(
            within(peer["ipBlock"]["cidr"]) and not any(map(within, peer["ipBlock"].get("except", ())))
            for peer in rule.get("to", [{"ipBlock": {"cidr": "0.0.0.0/0"}}])
            if "ipBlock" in peer
        )
        for rule in policy["spec"]["egress"]
    )


@pytest.mark.parametrize(("address", "port"), [("169.254.169.254", 80), ("fd00:ec2::254", 80)])
def test_the_nodes_metadata_is_out_of_reach_unless_asked_for(helm: Helm, address: str, port: int) -> None:
    closed = {**ALONE, "networkPolicy": {"enabled": True}}
    opened = {**ALONE, "networkPolicy": {"enabled": True, "nodeMetadata": True}}
    assert not any(
        reaches(policy, address, any_port)
        for policy in of_kind(helm.render(closed), "NetworkPolicy")
        for any_port in (port, 443)
    )
    (policy,) = of_kind(helm.render(opened), "NetworkPolicy")
    assert reaches(policy, address, port)


def test_a_closed_network_lets_out_to_names_and_aws_and_lets_nobody_in(helm: Helm) -> None:
    (policy,) = of_kind(helm.render({**SQS, "networkPolicy": {"enabled": True}}), "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy["spec"]
    assert reaches(policy, "52.94.1.1", 443)
    assert reaches(policy, "10.0.0.10", 53)
    assert not reaches(policy, "52.94.1.1", 80)
    assert not reaches(policy, "10.0.0.20", 6379)


def test_the_network_is_opened_for_what_is_listed(helm: Helm) -> None:
    (policy,) = of_kind(helm.render({**ALONE, **CLOSED, **WATCHED}), "NetworkPolicy")
    assert reaches(policy, "10.0.0.20", 6379)
    assert reaches(policy, "169.254.170.23", 80)
    assert reaches(policy, "10.0.0.1", 8125)
    (rule,) = policy["spec"]["ingress"]
    assert rule == {"from": [{"podSelector": {}}], "ports": [{"port": "metrics"}]}
