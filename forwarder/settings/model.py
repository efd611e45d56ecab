"""The worker's settings: one frozen object, made once at start and passed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Pool = Literal["prefork", "gevent"]
QueueType = Literal["classic", "quorum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointIdentity:
    """Who this endpoint is, as hook records and callbacks tell it."""

    name: str | None = None
    id: str | None = None
    type: str | None = None
    bundle_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    user_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, typed and validated. Units stand in the names: ``_s`` seconds, ``_bytes``."""

    # Broker and results
    broker_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    result_backend: str = field(default="redis://127.0.0.1:6379/1", repr=False)
    queues: tuple[str, ...] = ("forwarder",)
    queue_type: QueueType = "classic"
    sqs_url: str | None = None
    visibility_timeout_s: int = 60
    stock_visibility_timeout_s: int = 86400
    result_expires_s: int = 86400
    track_started: bool = False
    store_retry_s: float = 300.0

    # Pool
    pool: Pool = "prefork"
    concurrency: int = 4
    max_tasks_per_child: int | None = None
    drain_timeout_s: float = 30.0
    termination_grace_s: float | None = None

    # Inference
    predict_url: str = "http://127.0.0.1:5005/predict"
    health_url: str = "http://127.0.0.1:5005/readyz"
    connect_timeout_s: float = 5.0
    read_timeout_s: float | None = None  # None: as long as the total deadline
    task_timeout_s: float = 3600.0
    response_bytes_max: int = 64 * 1024 * 1024
    retry_slot_s: float = 60.0
    max_retries: int = 30
    unwrap_payload: bool = True
    wrap_response: bool = True
    status_in_body: bool = True
    serialize_results_as_string: bool = False

    # Delivery
    max_deliveries: int = 5
    message_bytes_max: int = 64 * 1024 * 1024

    # Hooks
    hooks: tuple[str, ...] = ()
    callback_url: str | None = None
    callback_secret: str | None = field(default=None, repr=False)
    callback_allow: tuple[str, ...] = ()
    firehose_stream: str | None = None
    firehose_role_arn: str | None = None
    firehose_max_pool_connections: int = 50
    endpoint: EndpointIdentity = field(default_factory=EndpointIdentity)

    # Operation
    http_port: int = 0
    autoscale: tuple[int, int] | None = None
    memory_limit_mb: int | None = None
    worker_rss_mb: int | None = None
    log_level: str = "INFO"

    @property
    def broker_kind(self) -> Literal["redis", "sqs", "amqp"]:
        """Return which broker the URL names."""
        scheme = self.broker_url.partition("://")[0].lower()
        if scheme in ("redis", "rediss"):
            return "redis"
        if scheme == "sqs":
            return "sqs"
        return "amqp"

    @property
    def uses_aws(self) -> bool:
        """Return whether any part of the worker calls AWS."""
        return self.broker_kind == "sqs" or self.result_backend.startswith("s3://") or "logging" in self.hooks
