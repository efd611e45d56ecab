"""The process's boto3 session, and how its clients are made.

Clients from sessions of their own keep 77 MB for sixty of them and never give
it back; from one session the same clients cost 47 MB and no more. A client
takes about 130 ms of CPU to make, is thread-safe once made, and is not safe to
make in two threads at a time (https://github.com/boto/boto3/issues/1592).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from forwarder.cloud.refreshing import Built
from forwarder.forwarding.ports import Metrics

if TYPE_CHECKING:
    from botocore.config import Config

#: In CloudTrail and access logs. botocore puts its own together anew for each call, which is 0.4 ms of CPU.
USER_AGENT = "forwarder"

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0

#: Every role allows an hour, and a role assumed by a role (which a pod's identity is)
#: gets no more: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
ROLE_SESSION_S = 3600

#: Shows up in CloudTrail as who made the call. STS takes only ``[\w+=,.@-]{2,64}``.
ROLE_SESSION_NAME = "forwarder"


class ClientFactory(Protocol):
    """Makes AWS clients; :class:`AwsSession` is the real one."""

    def client(
        self,
        service: str,
        *,
        max_pool_connections: int = ...,
        max_attempts: int = ...,
        connect_timeout_s: float = ...,
        read_timeout_s: float = ...,
        credentials: dict[str, Any] | None = ...,
    ) -> Any:
        """Return a new client of the service."""
        ...


class AwsSession:
    """One boto3 session. Make one per process, after the fork.

    Region, profile, endpoints and the ambient credentials come from AWS's own
    variables and files, which boto3 reads. ``config`` is merged into every
    client's botocore Config and wins. ``metrics`` counts every client
    and each of its requests, every try of one.
    """

    def __init__(self, *, config: Config | None = None, metrics: Metrics | None = None) -> None:
        import boto3

        self._session = boto3.session.Session()
        self._config = config
        self._metrics = metrics
        self._lock = threading.Lock()

    def client(
        self,
        service: str,
        *,
        max_pool_connections: int = 10,
        max_attempts: int = 3,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        credentials: dict[str, Any] | None = None,
    ) -> Any:
        """Return a new client; make it once and share it.

        ``max_attempts`` counts the first try; botocore waits with jittered
        backoff between them. ``credentials`` is the ``Credentials`` object of an
        STS answer; without it the ambient credentials are used, which renew
        themselves. Takes about 130 ms of CPU and asks the service nothing. Raises
        botocore's NoRegionError and the like when the environment lacks something.
        """
        from botocore.config import Config
        from botocore.exceptions import NoCredentialsError
        from botocore.handlers import add_expect_header

        config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            max_pool_connections=max_pool_connections,
            retries={"mode": "standard", "total_max_attempts": max_attempts},
            tcp_keepalive=True,
            user_agent=USER_AGENT,
        )
        if self._config is not None:
            config = config.merge(self._config)
        keys = {}
        if credentials is not None:
            keys = {
                "aws_access_key_id": credentials["AccessKeyId"],
                "aws_secret_access_key": credentials["SecretAccessKey"],
                "aws_session_token": credentials["SessionToken"],
            }
        with self._lock:
            if credentials is None and self._session.get_credentials() is None:
                # Some sources answer late (the metadata service of a starting pod). A client made
                # without credentials would be kept, and never look again.
                raise NoCredentialsError
            client = self._session.client(service, config=config, **keys)  # type: ignore[call-overload]
        if service == "s3":
            # It asks whether it may send a body and reads the answer byte by byte: a round trip and 0.5 ms
            # of CPU for results that are smaller than that talk. The handler is not in botocore's documents.
            client.meta.events.unregister("before-call.s3", add_expect_header)
        if self._metrics is not None:
            self._metrics.count("forwarder_aws_client_builds_total", service=service)
            client.meta.events.register("before-send", self._count)
        return client

    def _count(self, event_name: str, **_rest: Any) -> None:
        """Count a request that is about to be sent; None lets botocore send it."""
        _, service, operation = event_name.split(".")
        if self._metrics is not None:
            self._metrics.count("forwarder_aws_calls_total", service=service, operation=operation)


def s3_client(session: ClientFactory, *, max_pool_connections: int) -> Any:
    """Return a new S3 client; size the pool to the concurrency and share it."""
    return session.client("s3", max_pool_connections=max_pool_connections)


def firehose_client_builder(
    *,
    session: ClientFactory,
    role_arn: str | None,
    max_pool_connections: int,
    duration_s: int = ROLE_SESSION_S,
) -> Callable[[], Built[Any]]:
    """Return the build step of a RefreshingClient for Firehose.

    Each build assumes the role and makes a client with the temporary
    credentials, by boto3's public API alone; without a role it makes a client
    with the ambient credentials, which never has to be rebuilt. The build
    blocks for one STS call and raises botocore's errors. The client itself
    makes a single attempt per call: trying again is its user's business, who
    may need a newer client for it.
    """
    sts: list[Any] = []

    def build() -> Built[Any]:
        if role_arn is None:
            client = session.client("firehose", max_pool_connections=max_pool_connections, max_attempts=1)
            return Built(client, expires_at=None)
        if not sts:
            sts.append(session.client("sts", max_pool_connections=1))
        answer = sts[0].assume_role(
            RoleArn=role_arn, RoleSessionName=ROLE_SESSION_NAME, DurationSeconds=duration_s
        )
        credentials = answer["Credentials"]
        client = session.client(
            "firehose",
            max_pool_connections=max_pool_connections,
            max_attempts=1,
            credentials=credentials,
        )
        return Built(client, expires_at=credentials["Expiration"].timestamp())

    return build
