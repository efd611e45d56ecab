"""What points clients at a stand-in for AWS."""

from __future__ import annotations

from forwarder.testing.aws import ExistingCloud, client_env
from forwarder.testing.producer import sqs_broker_url, sqs_conf


def test_the_users_own_stack_is_taken_with_the_users_credentials() -> None:
    cloud = ExistingCloud(environ={"AWS_ENDPOINT_URL": "http://stack:4566", "AWS_ACCESS_KEY_ID": "mine"})
    assert cloud.env["AWS_ENDPOINT_URL"] == "http://stack:4566"
    assert cloud.env["AWS_ACCESS_KEY_ID"] == "mine"
    assert cloud.env["AWS_SECRET_ACCESS_KEY"] == "testing"


def test_a_stock_producer_reaches_the_endpoint_without_tls_and_creates_no_queue() -> None:
    env = client_env("http://127.0.0.1:5000")
    assert sqs_broker_url(env) == "sqs://127.0.0.1:5000"
    options = sqs_conf(env, queue="q", url="http://127.0.0.1:5000/1/q")["broker_transport_options"]
    assert options["is_secure"] is False
    assert set(options["predefined_queues"]) == {"q"}
