"""What ``check`` asks a broker: whether it lets the worker in, and keeps tasks as the worker needs.

Each function returns what was seen and raises whatever the broker's client raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from forwarder.cli.findings import Caution, NotWorking
from forwarder.settings.coherence import held_s
from forwarder.settings.model import Settings
from forwarder.settings.redact import without_password
from forwarder.settings.table import BY_FIELD

if TYPE_CHECKING:
    from forwarder.cloud.session import ClientFactory

SessionFactory = Callable[[], "ClientFactory"]

#: Since this version Redis has BLMOVE (https://redis.io/docs/latest/commands/blmove/),
#: with which a task is taken and registered in one step.
REDIS_VERSION_MIN = (6, 2)

#: Default of RabbitMQ's consumer_timeout in seconds; AMQP doesn't tell what it is set to.
#: https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
RABBITMQ_CONSUMER_TIMEOUT_S = 1800


def ask_redis(settings: Settings) -> str | Caution:
    """Connect and log in as the worker will; Redis must have the commands that it uses."""
    from forwarder.cli.tasks import impatient_app

    with impatient_app(settings).connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        channel: Any = connection.default_channel
        return judge_redis(without_password(settings.broker_url), redis_info(channel.client))


def redis_info(client: Any) -> Mapping[str, Any] | None:
    """Return what Redis tells of itself, None where this user may not ask."""
    from redis.exceptions import ResponseError

    try:
        info: Mapping[str, Any] = client.info()
    except ResponseError:
        return None
    return info


def judge_redis(url: str, info: Mapping[str, Any] | None) -> str | Caution:
    """Return what a broker's INFO amounts to. Raises NotWorking for a Redis that is too old."""
    if info is None:
        return f"{url} answers; its version and memory policy are not verified: no INFO"
    version = str(info.get("redis_version", ""))  # Valkey's too: the Redis that it stands for
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers and numbers < REDIS_VERSION_MIN:
        raise NotWorking(f"{url} is Redis {version}", remedy="use Redis 6.2 or newer, or Valkey")
    policy = evicts(info)
    if policy and policy.startswith("allkeys"):
        return Caution(
            f"{url} answers, but when its memory is full it drops queues with their tasks ({policy})",
            "set Redis' maxmemory-policy to noeviction",
        )
    return f"{url} answers"


def evicts(info: Mapping[str, Any]) -> str | None:
    """Return the policy by which a Redis drops keys when its memory is full, None when it never does."""
    policy = str(info.get("maxmemory_policy", "noeviction"))
    return policy if policy != "noeviction" and info.get("maxmemory") else None


def ask_amqp(settings: Settings) -> str:
    """Connect, log in and open a channel, as the worker will."""
    from forwarder.cli.tasks import impatient_app

    with impatient_app(settings).connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        _ = connection.default_channel
    detail = f"{without_password(settings.broker_url)} answers"
    if held_s(settings) > RABBITMQ_CONSUMER_TIMEOUT_S:
        detail += (
            f"; its consumer_timeout ({RABBITMQ_CONSUMER_TIMEOUT_S} s unless it was changed) must be above "
            f"{held_s(settings):g} s, or long tasks are run twice"
        )
    return detail


def ask_sqs(settings: Settings, aws: SessionFactory) -> str:
    """Read the queue's attributes; SQS must not move tasks away before the worker has given them up."""
    answer = aws().client("sqs").get_queue_attributes(
        QueueUrl=settings.sqs_url, AttributeNames=["ApproximateNumberOfMessages", "RedrivePolicy"]
    )  # fmt: skip
    attributes = answer["Attributes"]
    _check_redrive(settings, json.loads(attributes.get("RedrivePolicy") or "{}"))
    return f"{settings.sqs_url} has about {attributes['ApproximateNumberOfMessages']} tasks waiting"


def _check_redrive(settings: Settings, policy: Mapping[str, Any]) -> None:
    """The delivery after the last one stores the failure; what SQS moves away before never has a result."""
    receives = int(policy.get("maxReceiveCount", 0))
    needed = settings.max_deliveries + 1
    if not policy or receives >= needed:
        return
    spec = BY_FIELD["max_deliveries"]
    lower = f", or {spec.title} to at most {receives - 1}" if receives > 1 else ""
    raise NotWorking(
        f"{settings.sqs_url} moves tasks to its redrive target after {receives} deliveries: "
        "they would never have a result",
        remedy=f"set the redrive policy's maxReceiveCount to at least {needed}{lower}",
    )
