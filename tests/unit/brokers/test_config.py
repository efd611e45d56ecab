"""Settings to broker configuration, and messages that can't be read."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from forwarder.brokers.amqp.transport import AdoptedQueue
from forwarder.brokers.config import broker_config, consumer_timeout_s, heartbeat_s, sqs_wait_s
from forwarder.brokers.redis.messages import GuardedMessage
from forwarder.settings.coherence import held_s
from forwarder.settings.model import Settings


def test_redis_gets_connections_for_every_task_and_the_visibility_timeout() -> None:
    config = broker_config(Settings(concurrency=256, visibility_timeout_s=600, queues=("a", "b")))
    assert config["broker_transport_options"]["max_connections"] > 256
    assert config["broker_transport_options"]["visibility_timeout"] == 600
    assert [queue.name for queue in config["task_queues"]] == ["a", "b"]
    assert config["task_default_queue"] == "a"


def test_sqs_uses_the_given_queue_under_both_spellings_and_creates_none() -> None:
    url = "https://sqs.eu-west-1.amazonaws.com/123456789012/launch-endpoint_id"
    config = broker_config(Settings(broker_url="sqs://", sqs_url=url, queues=("launch.endpoint@id",)))
    predefined = config["broker_transport_options"]["predefined_queues"]
    assert predefined == {"launch.endpoint@id": {"url": url}, "launch-endpoint_id": {"url": url}}
    assert config["worker_enable_remote_control"] is False


def test_a_fifo_queue_keeps_its_ending() -> None:
    config = broker_config(Settings(broker_url="sqs://", sqs_url="https://x/a-b.fifo", queues=("a.b.fifo",)))
    assert set(config["broker_transport_options"]["predefined_queues"]) == {"a.b.fifo", "a-b.fifo"}


@pytest.mark.parametrize(
    ("queue_type", "arguments"), [("classic", {}), ("quorum", {"x-queue-type": "quorum"})]
)
def test_rabbitmq_queues_are_adopted_or_made_of_the_configured_type(
    queue_type: Any, arguments: dict[str, str]
) -> None:
    config = broker_config(Settings(broker_url="amqp://guest@127.0.0.1//", queue_type=queue_type))
    [queue] = config["task_queues"]
    assert isinstance(queue, AdoptedQueue)
    assert queue.queue_arguments == {"x-consumer-timeout": 2000 * int(held_s(Settings())), **arguments}


def test_rabbitmq_waits_at_least_as_long_as_without_being_told() -> None:
    short = Settings(task_timeout_s=1.0, retry_slot_s=1.0, store_retry_s=1.0, input_timeout_s=1.0)
    assert consumer_timeout_s(short) == 1800
    assert consumer_timeout_s(replace(short, input_timeout_s=7200.0)) == 2 * 7203


@pytest.mark.parametrize("visibility_timeout_s", [2, 5, 60, 86400])
def test_a_dead_peer_is_noticed_within_the_visibility_timeout_and_ten_seconds(
    visibility_timeout_s: int,
) -> None:
    assert 3 * heartbeat_s(visibility_timeout_s) <= visibility_timeout_s + 10
    assert 4 <= heartbeat_s(visibility_timeout_s) <= 30


def test_the_worker_outlives_a_channel_that_rabbitmq_closes() -> None:
    assert broker_config(Settings(broker_url="amqp://guest@127.0.0.1//"))["broker_channel_error_retry"]


def channel() -> Any:
    return SimpleNamespace(decode_body=lambda body, encoding: body)


@pytest.mark.parametrize(
    "item",
    [
        [],
        None,
        5,
        "text",
        {},
        {"properties": 5},
        {"properties": {}},
        {"properties": {"delivery_tag": "1"}},
        {"body": "x", "properties": {"delivery_tag": "1", "delivery_info": {"exchange": ""}}},
        {"body": "x", "properties": {"delivery_tag": "1", "delivery_info": []}},
    ],
)
def test_an_item_that_is_no_envelope_becomes_an_empty_one(item: Any) -> None:
    message = GuardedMessage(item, channel=channel())
    assert message.headers == {}
    assert message.delivery_info["routing_key"] == ""
    assert message.delivery_tag


def test_an_envelope_stays_as_it_is() -> None:
    item = {
        "body": "x",
        "headers": {"task": "t"},
        "properties": {"delivery_tag": "7", "delivery_info": {"exchange": "e", "routing_key": "k"}},
    }
    message = GuardedMessage(item, channel=channel())
    body: Any = message.body
    assert body == b"x"
    assert (message.headers, message.delivery_tag) == ({"task": "t"}, "7")


@pytest.mark.parametrize(("drain_s", "wait_s"), [(30.0, 10), (12.0, 10), (11.0, 3), (0.0, 3)])
def test_a_poll_of_sqs_is_as_long_as_a_stop_can_wait_for(drain_s: float, wait_s: int) -> None:
    assert sqs_wait_s(Settings(drain_timeout_s=drain_s)) == wait_s
    assert sqs_wait_s(Settings(drain_timeout_s=drain_s, sqs_wait_s=20)) == 20


def test_the_wait_in_a_list_of_redis_is_the_setting() -> None:
    assert broker_config(Settings(redis_wait_s=0.5))["broker_transport_options"]["wait_s"] == 0.5
