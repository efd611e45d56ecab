"""What compose.yaml says of SQS, done without Docker: its one-shot, its worker's environment, its command."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forwarder.testing.aws import ExistingCloud, LocalStack
from forwarder.testing.services import CHECKOUT, ModelServer, Valkey

if TYPE_CHECKING:
    from tests.integration.conftest import StartWorker

FILE = CHECKOUT / "compose.yaml"


def services() -> dict[str, dict[str, Any]]:
    """Return the services as Docker Compose reads them."""
    program = Path(sys.executable).with_name("docker-compose")
    argv = [str(program), "--file", str(FILE), "--profile", "*", "config", "--format", "json"]
    read: dict[str, dict[str, Any]] = json.loads(subprocess.check_output(argv))["services"]
    return read


def here(environment: Mapping[str, str], places: Mapping[str, str]) -> dict[str, str]:
    """Return a service's environment with the addresses that its hosts have on this machine."""
    text = json.dumps(environment)
    for theirs, ours in places.items():
        text = text.replace(theirs, ours)
    found: dict[str, str] = json.loads(text)
    return found


def run(argv: list[str], environment: Mapping[str, str]) -> str:
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(argv, env=own | dict(environment), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def submitted(environment: Mapping[str, str]) -> Any:
    """Run the command that the file's head tells people to try, and return what it prints last."""
    (line,) = re.findall(r"^#   docker compose exec forwarder forwarder (submit .*)$", FILE.read_text(), re.M)
    printed = run([sys.executable, "-m", "forwarder", *shlex.split(line)], environment)
    return json.loads(printed[printed.index("{") :])


def test_a_task_is_done_on_redis(worker: StartWorker, valkey: Valkey, model_server: ModelServer) -> None:
    places = {"redis://valkey:6379/0": valkey.database(2), "redis://valkey:6379/1": valkey.database(3)}
    environment = here(services()["forwarder"]["environment"], places) | model_server.env
    worker(env=environment | {"FORWARDER_QUEUES": "forwarder"}).wait_ready()
    assert submitted(environment)["result"]["sum"] == 6


def test_a_task_is_done_on_sqs_after_the_one_shot(
    worker: StartWorker, localstack: LocalStack | ExistingCloud, model_server: ModelServer
) -> None:
    read, places = services(), {"http://localstack:4566": localstack.url}
    program = CHECKOUT / "deploy/container/aws_resources.py"
    (mount,) = read["localstack-resources"]["volumes"]
    assert Path(mount["source"]) == program
    assert read["localstack-resources"]["entrypoint"] == ["python", mount["target"]]
    one_shot = here(read["localstack-resources"]["environment"], places)
    for _ in ("at first", "and again"):
        run([sys.executable, str(program)], one_shot)
    environment = here(read["forwarder-sqs"]["environment"], places) | model_server.env
    worker(env=environment | {"FORWARDER_QUEUES": "forwarder", "FORWARDER_HTTP_PORT": "0"}).wait_ready()
    assert submitted(environment)["result"]["sum"] == 6
