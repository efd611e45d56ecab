"""The logging hook against real Firehose, STS and S3: records flow while the role's token is renewed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from forwarder.cloud.refreshing import RefreshingClient
from forwarder.cloud.session import AwsSession, firehose_client_builder
from forwarder.forwarding.ports import Completion
from forwarder.hooks.errors import HookError
from forwarder.hooks.logging import FirehoseHook
from forwarder.settings.model import EndpointIdentity
from forwarder.testing.aws_resources import (
    create_bucket,
    create_delivery_stream,
    create_role,
    delivered_records,
)
from tests.integration.scenes import PATIENCE_S

CLOUDS = ["moto", "localstack"]

#: Sends records from eight slots until the client was built four times, and a few more; prints
#: what it sent. botocore wants sessions of 15 minutes at least, so it is told not to look.
SENDER = """
    import sys
    patched, role_arn, stream = sys.argv[1] == "gevent", sys.argv[2], sys.argv[3]
    if patched:
        from gevent import monkey; monkey.patch_all()
    import json, logging, threading, time
    from botocore.config import Config
    from forwarder.cloud.refreshing import RefreshingClient
    from forwarder.cloud.session import AwsSession, firehose_client_builder
    from forwarder.forwarding.ports import Completion
    from forwarder.hooks.logging import FirehoseHook
    from forwarder.settings.model import EndpointIdentity
    from forwarder.telemetry.metrics import ProcessMetrics

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    metrics = ProcessMetrics()
    build = firehose_client_builder(
        session=AwsSession(config=Config(parameter_validation=False), metrics=metrics),
        role_arn=role_arn,
        max_pool_connections=8,
        duration_s=2,
    )
    clients = RefreshingClient(service="firehose", build=build)
    linger_s = 0.05 if patched else None  # as in a worker with many slots, and in one with few
    endpoint = EndpointIdentity(name="e")
    hook = FirehoseHook(clients=clients, stream=stream, endpoint=endpoint, linger_s=linger_s)
    sent, failed, until = [], [], time.monotonic() + 60

    def slot(number):
        records = 0
        while records < 5 or (clients_built() < 4 and time.monotonic() < until):
            task_id = f"{number}-{records}"
            records += 1
            try:
                hook.deliver(Completion(task_id=task_id, payload={"args": 1}, response={}, succeeded=True))
                sent.append(task_id)
            except Exception as error:
                failed.append(repr(error))
            time.sleep(0.2)

    def clients_built():
        return metrics.value("forwarder_aws_client_builds_total", service="firehose")

    slots = [threading.Thread(target=slot, args=(number,)) for number in range(8)]
    [thread.start() for thread in slots]
    [thread.join() for thread in slots]
    print(json.dumps({"sent": sent, "failed": failed, "builds": clients_built()}))
"""


@pytest.fixture
def cloud(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def make_stream(env: Mapping[str, str]) -> tuple[str, str]:
    """Make a bucket, a role and a stream; return the name of bucket and stream, and the role's ARN."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    create_bucket(env, name)
    role_arn = create_role(env, name)
    create_delivery_stream(env, name, bucket=name, role_arn=role_arn)
    return name, role_arn


def wait_for_records(env: Mapping[str, str], bucket: str, number: int) -> list[dict[str, Any]]:
    """Return what was delivered, once it is ``number`` records; what there is when patience ends."""
    until = time.monotonic() + PATIENCE_S
    while True:
        records = list(delivered_records(env, bucket))
        if len(records) >= number or time.monotonic() > until:
            return records
        time.sleep(0.2)


@pytest.mark.parametrize("pool", ["threads", "gevent"])
@pytest.mark.parametrize("cloud", CLOUDS, indirect=True)
def test_no_record_is_lost_while_the_assumed_role_is_renewed_three_times(cloud: Any, pool: str) -> None:
    name, role_arn = make_stream(cloud.env)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SENDER), pool, role_arn, name],
        env={**os.environ, **cloud.env},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    account = json.loads(done.stdout)
    assert account["failed"] == []
    assert len(account["sent"]) >= 40
    # One build at the start and three renewals; slots that all saw the same expiry built once.
    builds = [line for line in done.stderr.splitlines() if line.startswith("aws_client_built ")]
    assert 4 <= account["builds"] == len(builds) <= 6
    assert builds[3].startswith("aws_client_built service=firehose builds=4 expires_in_s=")

    delivered = wait_for_records(cloud.env, name, len(account["sent"]))
    assert Counter(record["TASK_ID"] for record in delivered) == Counter(account["sent"])


def hook_of(stream: str) -> FirehoseHook:
    build = firehose_client_builder(session=AwsSession(), role_arn=None, max_pool_connections=2)
    clients = RefreshingClient(service="firehose", build=build)
    return FirehoseHook(clients=clients, stream=stream, endpoint=EndpointIdentity(name="é"))


@pytest.fixture
def aws_environment(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cloud.env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("aws_environment")
@pytest.mark.parametrize("cloud", CLOUDS, indirect=True)
def test_records_arrive_as_they_were_sent_with_the_ambient_credentials(cloud: Any) -> None:
    name, _ = make_stream(cloud.env)
    hook = hook_of(name)
    hook.deliver(
        Completion(task_id="a", payload={"args": "zwölf\n\u2028"}, response={"result": 12}, succeeded=True)
    )
    hook.deliver(
        Completion(task_id="b", payload={"args": "x" * 2_000_000}, response={"result": 1}, succeeded=True)
    )
    records = {record["TASK_ID"]: record for record in wait_for_records(cloud.env, name, 2)}
    assert json.loads(records["a"]["REQUEST_BODY"]) == {"args": "zwölf\n\u2028"}
    assert records["a"]["RESPONSE_BODY"] == {"result": 12, "task_id": "a"}
    assert records["a"]["ENDPOINT_NAME"] == "é"
    assert json.loads(records["b"]["REQUEST_BODY"])["omitted"] == "record_too_large"
    assert records["b"]["RESPONSE_BODY"] == {"result": 1, "task_id": "b"}


@pytest.mark.usefixtures("aws_environment")
@pytest.mark.parametrize("cloud", CLOUDS, indirect=True)
def test_a_stream_that_is_not_there_fails_at_once_with_awss_word(cloud: Any) -> None:
    completion = Completion(task_id="a", payload={}, response={}, succeeded=True)
    with pytest.raises(HookError, match="after 1 tries: ResourceNotFoundException"):
        hook_of(f"no-{uuid.uuid4().hex}").deliver(completion)
