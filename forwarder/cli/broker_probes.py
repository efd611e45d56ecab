"""What ``check`` asks a broker: whether it lets the worker in, and keeps tasks as the worker needs.

Each function returns what was seen and raises whatever the broker's client raises.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

from forwarder.brokers.redis.refusal import text_of
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

#: Seconds in which a service must answer a small call.
TIMEOUT_S = 3.0

#: Seconds after which a key that was written and could not be deleted is gone.
KEY_S = 60

#: What mends a refused write, by the error's class.
_WRITE_REMEDIES = {
    "ReadOnlyError": "it is a replica: set {setting} to its primary",
    "OutOfMemoryError": "give Redis more memory (maxmemory), or delete what fills it",
    "NoPermissionError": "let this user write the keys of its queues and results (ACL SETUSER)",
}


def ask_redis(settings: Settings) -> str | Caution:
    """Connect and log in as the worker will; Redis must have the commands that it uses."""
    from forwarder.cli.tasks import impatient_app

    with impatient_app(settings, answer_s=TIMEOUT_S).connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        channel: Any = connection.default_channel
        url = without_password(settings.broker_url)
        seen = judge_redis(url, redis_info(channel.client))
        key = f"forwarder:{{{settings.queues[0]}}}:check-{uuid4()}"
        require_write(channel.client, key, url=url, setting=BY_FIELD["broker_url"].title)
        return seen


def require_write(client: Any, key: str, *, url: str, setting: str) -> None:
    """Write a small key that expires, and delete it. Raises NotWorking where Redis refuses to write.

    A replica, and a Redis without memory, answers everything else.
    """
    from redis.exceptions import NoPermissionError, ResponseError

    try:
        client.set(key, "{}", ex=KEY_S)
    except ResponseError as error:
        remedy = _WRITE_REMEDIES.get(type(error).__name__, "mend what it says, in the configuration of Redis")
        said = f"{url} answers, but refuses writes: {text_of(error)}"
        raise NotWorking(said, remedy=remedy.format(setting=setting)) from error
    with contextlib.suppress(NoPermissionError):  # it expires
        client.delete(key)


def url_remedies(url: str, setting: str) -> dict[str, str]:
    """Return what mends a connection to a URL, by the class of the error that it failed with."""
    found = dict.fromkeys(
        ("AuthenticationError", "AccessRefused"),
        f"put the user and the password that the server wants into {setting}",
    )
    scheme = urlsplit(url).scheme
    if scheme in ("rediss", "amqps"):
        plain = f"let the server speak TLS, or begin {setting} with {scheme[:-1]}://"
        found |= dict.fromkeys(("TimeoutError", "SSLError"), plain)
        found["SSLCertVerificationError"] = "let SSL_CERT_FILE name the authority that signed its certificate"
    return found


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
