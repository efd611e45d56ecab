"""compose.yaml as Docker Compose itself reads it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from forwarder.settings.table import SPECS

ROOT = Path(__file__).parents[3]
#: Compose's own reader: what it makes of the file, all profiles on.
PROGRAM = Path(sys.executable).with_name("docker-compose")


def compose(*arguments: str, file: Path = ROOT / "compose.yaml") -> subprocess.CompletedProcess[str]:
    argv = [str(PROGRAM), "--file", str(file), "--profile", "*", "config", *arguments]
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env={"PATH": "", "HOME": "/nowhere"}
    )


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    done = compose("--format", "json")
    assert done.returncode == 0, done.stderr
    read: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    return read


def ours(services: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services.items() if service["image"] == "forwarder"}


def test_compose_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {a: {image: b, restrat: always}}")
    assert "restrat" in compose("--quiet", file=tmp_path / "compose.yaml").stderr


def test_everything_that_is_promised_is_there(services: dict[str, dict[str, Any]]) -> None:
    assert {"valkey", "localstack", "model", "forwarder", "forwarder-sqs", "flower"} <= set(services)
    without_profiles = {name for name, service in services.items() if not service.get("profiles")}
    assert without_profiles == {"valkey", "model", "forwarder"}


def test_the_workers_environment_names_real_settings(services: dict[str, dict[str, Any]]) -> None:
    known = {spec.environ for spec in SPECS}
    for name in ("forwarder", "forwarder-sqs"):
        for variable in services[name]["environment"]:
            assert variable in known or variable.startswith("AWS_"), variable


def test_both_workers_take_the_default_queue_which_the_one_shot_creates(
    services: dict[str, dict[str, Any]],
) -> None:
    (default,) = [spec.default for spec in SPECS if spec.environ == "FORWARDER_QUEUES"]
    for name in ("forwarder", "forwarder-sqs"):
        assert "FORWARDER_QUEUES" not in services[name]["environment"]
    assert services["localstack-resources"]["environment"]["QUEUE"] in str(default)


def test_ours_run_without_rights_and_write_nowhere_but_in_tmp(services: dict[str, dict[str, Any]]) -> None:
    for name in ("forwarder", "forwarder-sqs", "model"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["tmpfs"] == ["/tmp"]


def test_a_worker_has_longer_to_stop_than_its_drain_takes(services: dict[str, dict[str, Any]]) -> None:
    (drain,) = [spec.default for spec in SPECS if spec.environ == "FORWARDER_DRAIN_TIMEOUT_S"]
    for name in ("forwarder", "forwarder-sqs"):
        grace = re.fullmatch(r"(\d+)s", services[name]["stop_grace_period"])
        assert grace is not None
        assert isinstance(drain, int | float)
        assert int(grace[1]) >= drain + 5


def test_ports_are_published_on_loopback_alone_and_each_once(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert {port["host_ip"] for port in published} == {"127.0.0.1"}
    assert len({port["published"] for port in published}) == len(published)


def test_workers_share_the_model_servers_network_with_ports_of_their_own(
    services: dict[str, dict[str, Any]],
) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (default,) = re.findall(r"FORWARDER_HTTP_PORT=(\d+)", dockerfile)
    ports = []
    for name in ("forwarder", "forwarder-sqs"):
        assert services[name]["network_mode"] == "service:model"
        ports.append(services[name]["environment"].get("FORWARDER_HTTP_PORT", default))
    assert len(set(ports)) == 2
    assert {str(port["target"]) for port in services["model"]["ports"]} == set(ports)
    scraped = yaml.safe_load((ROOT / "deploy/container/prometheus.yaml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == [f"model:{port}" for port in ports]


def test_every_file_that_is_mounted_exists(services: dict[str, dict[str, Any]]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", ())]
    assert len(mounts) == 6
    for mount in mounts:
        assert Path(mount["source"]).is_file(), mount["source"]
        assert mount["read_only"] is True


def test_whoever_is_depended_on_as_healthy_has_a_health_check(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], other


def test_foreign_images_have_a_version(services: dict[str, dict[str, Any]]) -> None:
    foreign = {service["image"] for service in services.values()} - {"forwarder"}
    assert ours(services)
    assert all(re.search(r":v?\d", image) for image in foreign)
