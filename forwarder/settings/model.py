"""The worker's settings: one frozen object, made once at start and passed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Pool = Literal["prefork", "gevent"]
QueueType = Literal["classic", "quorum"]

#: Slots that a worker may find for itself where nobody gave it a bound; as many as ``tune`` tries.
AUTO_SLOTS_MAX = 128


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
    redis_wait_s: float = 0.25
    sqs_wait_s: int | None = None  # None: 10, or 3 where the drain is short
    result_expires_s: int = 86400
    track_started: bool = False
    store_retry_s: float = 300.0

    # Pool
    pool: Pool = "prefork"
    concurrency: int = 4
    max_tasks_per_child: int | None = None
    max_memory_per_child_mb: int | None = None
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
    inflight_bytes_max: int | None = None  # None: a part of the memory limit
    unwrap_payload: bool = True
    wrap_response: bool = True
    status_in_body: bool = True
    serialize_results_as_string: bool = False

    # Large bodies
    input_schemes: tuple[str, ...] = ("s3", "https")
    input_allow: tuple[str, ...] = ()
    input_bytes_max: int = 2 * 1024**3
    input_timeout_s: float = 900.0
    destination_bytes_max: int = 1024**3
    stage_folder: str = "/tmp"  # noqa: S108 - a folder of our own is made in it
    stage_bytes_max: int = 4 * 1024**3
    stage_above_bytes: int = 128 * 1024

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
    firehose_linger_s: float | None = None  # None: by the pool and its size
    endpoint: EndpointIdentity = field(default_factory=EndpointIdentity)

    # Operation
    http_port: int = 0
    http_host: str = "0.0.0.0"  # noqa: S104 - the kubelet probes from outside the container
    live_stall_s: float | None = None  # None: as long as a task may take, and a minute
    log_format: str = "console"
    autoscale: tuple[int, int] | None = None
    auto: bool = False
    autoscale_step: int = 8
    autoscale_idle_s: float = 30.0
    memory_low_percent: int = 50
    memory_high_percent: int = 70
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
    def slots_max(self) -> int:
        """Return how many tasks are worked on at the same time, at most."""
        return self.concurrency if self.autoscale is None else self.autoscale[0]

    @property
    def uses_aws(self) -> bool:
        """Return whether any part of the worker calls AWS."""
        return self.broker_kind == "sqs" or self.result_backend.startswith("s3://") or "logging" in self.hooks
