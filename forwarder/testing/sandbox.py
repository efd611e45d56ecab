"""A shell in which the worker's settings name real services, all of them on this machine.

``python -m forwarder.testing.sandbox redis|sqs [COMMAND…]`` starts a broker with a result store and the
sample model server, runs the command (without one: the user's shell) with the settings for them in its
environment, and stops them when it ends. The exit code is the command's.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

from forwarder.testing.aws import Cloud, LocalStack, Moto
from forwarder.testing.aws_resources import create_bucket, create_queue
from forwarder.testing.processes import LOOPBACK, StartFailed, free_port
from forwarder.testing.services import CHECKOUT, ModelServer, NotInstalled, Valkey

QUEUE = "forwarder"
BUCKET = "forwarder-results"
LOCALSTACK = CHECKOUT / ".venv-localstack" / "bin" / "python"
#: Settings of the user's own would lead out of the sandbox.
NOT_INHERITED = ("FORWARDER_", "CELERY_", "AWS_")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command among the services and return its exit code; 3 when one of them can't start."""
    parser = argparse.ArgumentParser(prog="sandbox", description="A shell with services for the worker.")
    parser.add_argument("broker", choices=["redis", "sqs"], help="Redis, or SQS with results in S3")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="run this instead of a shell")
    asked = parser.parse_args(argv)
    command = asked.command or [os.environ.get("SHELL", "/bin/sh")]
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, _leave_to_the_command)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with ExitStack() as services:
            settings = services.enter_context(ModelServer()).env
            settings |= _redis(services) if asked.broker == "redis" else _sqs(services)
            settings |= {"FORWARDER_HTTP_HOST": LOOPBACK, "FORWARDER_HTTP_PORT": str(free_port())}
            _tell(settings, leave_with="exit" if not asked.command else None)
            return subprocess.call(command, env=_environment(os.environ, settings))
    except (NotInstalled, StartFailed) as error:
        print(f"sandbox: {error}", file=sys.stderr)  # noqa: T201 - a command speaks to a person
        return 3


def _redis(services: ExitStack) -> dict[str, str]:
    valkey = services.enter_context(Valkey())
    return {"FORWARDER_BROKER_URL": valkey.database(0), "FORWARDER_RESULT_BACKEND": valkey.database(1)}


def _sqs(services: ExitStack) -> dict[str, str]:
    """Start LocalStack, or moto where LocalStack's Python is missing, with a queue and a bucket."""
    stand_in: Cloud = LocalStack(python=LOCALSTACK) if LOCALSTACK.exists() else Moto()
    cloud = services.enter_context(stand_in)
    create_bucket(cloud.env, BUCKET)
    return {
        **cloud.env,
        "FORWARDER_BROKER_URL": "sqs://",
        "FORWARDER_SQS_QUEUE_URL": create_queue(cloud.env, QUEUE),
        "FORWARDER_RESULT_BACKEND": f"s3://{BUCKET}/results/",
    }


def _environment(ours: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in ours.items() if not name.startswith(NOT_INHERITED)}
    path = os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", os.defpath)))
    return {**kept, **settings, "PATH": path}


def _tell(settings: Mapping[str, str], *, leave_with: str | None) -> None:
    lines = [f"{name}={value}" for name, value in settings.items()]
    if leave_with is not None:
        lines.append(f"`{leave_with}` stops the services.")
    print(*lines, sep="\n", file=sys.stderr)  # noqa: T201 - a command speaks to a person


def _leave_to_the_command(number: int, frame: FrameType | None) -> None:
    """Ctrl-C goes to the whole terminal: what it ends is for the command to say."""


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
