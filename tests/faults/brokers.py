"""Each broker as the harness needs it: the settings of both sides, raw messages in, dead letters out."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import redis
from kombu import Connection, Exchange
from kombu import Producer as Publisher

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.processes import Command
from forwarder.testing.producer import Producer, sqs_broker_url, sqs_conf
from forwarder.testing.proxy import Proxy
from forwarder.testing.rabbitmq import RabbitMQ
from forwarder.testing.services import Service, Valkey

CLIENT_TIMEOUT_S = 2.0
PUBLISH_POLICY = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2, "errback": None}
VISIBILITY_TIMEOUT_S = 3


class DurableValkey(Valkey):
    """A Valkey that appends every command to a file, and lives on when that can grow no more."""

    def __init__(self) -> None:
        super().__init__(persistent=True)

    def command(self, folder: Path) -> Command:
        """Return the server's command, with the signal ignored that a limit of the file size sends."""
        command = super().command(folder)
        ignoring = ["/bin/sh", "-c", 'trap "" XFSZ; exec "$@"', "sh", *command.argv]
        return dataclasses.replace(command, argv=ignoring)


class Broker(ABC):
    """One broker that a lane of the harness owns; workers reach it through ``link``, producers directly."""

    kind: ClassVar[str]
    service: Service

    def __init__(self) -> None:
        self.link: Proxy

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the server and the way to it; ``stack`` stops them."""
        stack.enter_context(self.service)
        self.link = stack.enter_context(Proxy(target_port=self.service.port))

    def prepare(self, queue: str) -> None:  # noqa: B027 - only SQS has something to make
        """Make what workers don't make."""

    @abstractmethod
    def worker_env(self, queue: str) -> Mapping[str, str]:
        """Return the worker's settings."""

    @abstractmethod
    def producer(self, queue: str) -> Producer:
        """Return a stock producer, which retries like one in production."""

    @abstractmethod
    def plant(self, queue: str, raw: bytes) -> None:
        """Put bytes into the queue that no Celery client would."""

    @abstractmethod
    def dead_letters(self, queue: str) -> list[str]:
        """Return texts in which the ids of dead letters can be looked for; each may be returned only once."""

    def wipe(self) -> None:
        """Lose all that is on disk; for a server that is not running."""
        raise NotImplementedError(f"{self.kind} keeps nothing on disk")


class RedisBroker(Broker):
    """Valkey."""

    kind = "redis"

    def __init__(self) -> None:
        super().__init__()
        self.service: DurableValkey = DurableValkey()

    def worker_env(self, queue: str) -> Mapping[str, str]:
        return {"FORWARDER_BROKER_URL": self.link.through(self.service.url)}

    def producer(self, queue: str) -> Producer:
        options = {"socket_timeout": CLIENT_TIMEOUT_S, "socket_connect_timeout": CLIENT_TIMEOUT_S}
        return _producer(self.service.url, queue, {"broker_transport_options": options})

    def plant(self, queue: str, raw: bytes) -> None:
        with self.client() as client:
            client.lpush(queue, raw)

    def dead_letters(self, queue: str) -> list[str]:
        with self.client() as client:
            items: Any = client.lrange(f"{queue}.dead", 0, -1)
            return [text for item in items for text in readings(item)]

    def wipe(self) -> None:
        shutil.rmtree(self.service.process.folder / "appendonlydir")

    @contextlib.contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """Yield a client of the server itself."""
        with redis.Redis(host="127.0.0.1", port=self.service.port, socket_timeout=CLIENT_TIMEOUT_S) as client:
            yield client


class SqsBroker(Broker):
    """Moto, which keeps everything in memory."""

    kind = "sqs"

    def __init__(self) -> None:
        super().__init__()
        self.service: Moto = Moto()
        self._urls: dict[str, str] = {}

    def prepare(self, queue: str) -> None:
        dead = aws_resources.create_queue(self.service.env, f"{queue}-dead")
        sqs = self._client()
        attributes = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]
        policy = f'{{"deadLetterTargetArn": "{attributes["QueueArn"]}", "maxReceiveCount": "1000"}}'
        url = aws_resources.create_queue(
            self.service.env, queue, VisibilityTimeout=str(VISIBILITY_TIMEOUT_S), RedrivePolicy=policy
        )
        self._urls |= {queue: url, f"{queue}.dead": dead}

    def worker_env(self, queue: str) -> Mapping[str, str]:
        return self.service.env | {
            "AWS_ENDPOINT_URL": self.link.through(self.service.url),
            "FORWARDER_BROKER_URL": "sqs://",
            "FORWARDER_SQS_QUEUE_URL": self.link.through(self._urls[queue]),
        }

    def producer(self, queue: str) -> Producer:
        url = self._urls[queue]
        conf = sqs_conf(self.service.env, queue=queue, url=url)
        return _producer(sqs_broker_url(self.service.env), queue, conf)

    def plant(self, queue: str, raw: bytes) -> None:
        self._client().send_message(QueueUrl=self._urls[queue], MessageBody=raw.decode())

    def dead_letters(self, queue: str) -> list[str]:
        url = self._urls[f"{queue}.dead"]
        sqs = self._client()
        found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        return [text for message in found for text in readings(message["Body"].encode())]

    def _client(self) -> Any:
        return aws_resources.client(self.service.env, "sqs")


class AmqpBroker(Broker):
    """RabbitMQ."""

    kind = "amqp"

    def __init__(self) -> None:
        super().__init__()
        self.service: RabbitMQ = RabbitMQ()

    def worker_env(self, queue: str) -> Mapping[str, str]:
        return {"FORWARDER_BROKER_URL": self.link.through(self.service.url)}

    def producer(self, queue: str) -> Producer:
        timeouts = dict.fromkeys(("read_timeout", "write_timeout", "confirm_timeout"), CLIENT_TIMEOUT_S)
        options = {"confirm_publish": True, **timeouts}
        return _producer(self.service.url, queue, {"broker_transport_options": options})

    def plant(self, queue: str, raw: bytes) -> None:
        with self._connection() as connection:
            publisher = Publisher(connection.default_channel, exchange=Exchange(""), routing_key=queue)
            publisher.publish(raw, content_type="application/json", content_encoding="utf-8", retry=False)

    def dead_letters(self, queue: str) -> list[str]:
        texts = []
        with self._connection() as connection:
            channel: Any = connection.default_channel
            while (message := channel.basic_get(f"{queue}.dead", no_ack=True)) is not None:
                body = message.body.encode() if isinstance(message.body, str) else bytes(message.body)
                texts += [str(message.headers), *readings(body)]
        return texts

    def wipe(self) -> None:
        shutil.rmtree(self.service.process.folder / "mnesia")

    def _connection(self) -> Connection:
        return Connection(self.service.url, connect_timeout=CLIENT_TIMEOUT_S)


BROKERS: Mapping[str, type[Broker]] = {kind.kind: kind for kind in (RedisBroker, SqsBroker, AmqpBroker)}


def readings(raw: bytes) -> list[str]:
    """Return the text of a message, and what it is when it was wrapped in base64."""
    texts = [raw.decode(errors="replace")]
    with contextlib.suppress(binascii.Error, ValueError):
        texts.append(base64.b64decode(raw, validate=True).decode(errors="replace"))
    return texts


def _producer(url: str, queue: str, conf: Mapping[str, Any]) -> Producer:
    always = {"task_publish_retry_policy": PUBLISH_POLICY, "broker_connection_timeout": CLIENT_TIMEOUT_S}
    return Producer(broker_url=url, backend="disabled://", queue=queue, conf={**always, **conf})
