"""Stand-ins for AWS: moto's server, LocalStack, or whatever stack the user points us at."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from forwarder.testing.processes import LOOPBACK, Command, clean_env
from forwarder.testing.services import NotInstalled, Service, http_status

REGION = "us-east-1"
ACCOUNT = "000000000000"
SERVICES = "sqs,s3,sts,firehose,iam"


class Cloud(Service):
    """A server that speaks the AWS protocols; any credentials do."""

    account = ACCOUNT

    @property
    def url(self) -> str:
        """Return the endpoint of all its services."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """Return what points boto3 at it."""
        return client_env(self.url)


def client_env(endpoint_url: str) -> dict[str, str]:
    """Return the variables that point boto3 at a stand-in, with made-up credentials."""
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
    }


class Moto(Cloud):
    """moto's server. Delivers Firehose records to S3 at once, one object for each call."""

    name = "moto"
    account = "123456789012"

    def command(self, folder: Path) -> Command:
        """Return how to start it."""
        if any(find_spec(name) is None for name in ("moto", "flask", "flask_cors")):
            raise NotInstalled("no moto server: pip install 'forwarder[demo]'")
        argv = [sys.executable, "-m", "forwarder.testing.moto_server", "-H", LOOPBACK, "-p", str(self.port)]
        return Command(argv=argv, env=clean_env(folder) | client_env(self.url))

    def answers(self) -> bool:
        """Return whether it serves its status page."""
        return http_status(self.port, "/moto-api/") == http.client.OK


class LocalStack(Cloud):
    """LocalStack without Docker, from a virtual environment of its own.

    ``python`` is that environment's interpreter.
    """

    name = "localstack"
    start_timeout_s = 90.0
    stop_timeout_s = 20.0

    def __init__(self, *, python: Path) -> None:
        super().__init__()
        self._python = python

    def command(self, folder: Path) -> Command:
        """Return how to start it: its default server would listen on every interface."""
        if not self._python.exists():
            raise NotInstalled(f"no LocalStack: {self._python} does not exist (see CONTRIBUTING)")
        address = f"{LOOPBACK}:{self.port}"
        env = clean_env(folder) | {
            "GATEWAY_LISTEN": address,
            "GATEWAY_SERVER": "hypercorn",
            "OVERRIDE_IN_DOCKER": "0",
            "FILESYSTEM_ROOT": str(folder / "root"),
            "LOCALSTACK_HOST": address,
            "SQS_ENDPOINT_STRATEGY": "path",
            "SERVICES": SERVICES,
            "EAGER_SERVICE_LOADING": "0",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DNS_ADDRESS": "0",
        }
        return Command(argv=[str(self._python), "-m", "localstack.runtime.main"], env=env)

    def answers(self) -> bool:
        """Return whether its health route answers."""
        return http_status(self.port, "/_localstack/health") == http.client.OK


class ExistingCloud:
    """The stack that the user's ``AWS_ENDPOINT_URL`` names; not ours to start or stop."""

    def __init__(self, *, environ: Mapping[str, str]) -> None:
        self.url = environ["AWS_ENDPOINT_URL"]
        self.account = ACCOUNT
        ours = client_env(self.url)
        self.env = {name: environ.get(name, value) for name, value in ours.items()}
