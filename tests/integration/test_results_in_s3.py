"""Results in S3: the first outcome stays, without a look before each task."""

from __future__ import annotations

from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from forwarder.testing import aws_resources
from forwarder.testing.aws import Moto
from forwarder.testing.producer import s3_conf, sqs_broker_url, sqs_conf
from forwarder.testing.services import ModelServer
from tests.integration.scenes import HELD, POOLS, asked, total, wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import MakeProducer, StartWorker


@pytest.mark.parametrize("cloud", ["moto", "localstack"])
def test_the_stand_ins_take_one_of_several_first_writes_at_the_same_moment(
    cloud: str, queue_name: str, request: pytest.FixtureRequest
) -> None:
    env = request.getfixturevalue(cloud).env
    aws_resources.create_bucket(env, queue_name)
    s3 = aws_resources.client(env, "s3")
    # A checksum to be made, and much to make it of: what lies between a look and the write that follows it.
    body = bytes(1_000_000)
    for key in map(str, range(20)):
        params = {"Bucket": queue_name, "Key": key, "IfNoneMatch": "*"}
        url = urlsplit(s3.generate_presigned_url("put_object", params))
        writers = [HTTPConnection(str(url.netloc)) for _ in range(12)]
        for writer in writers:
            writer.putrequest("PUT", f"{url.path}?{url.query}")
            writer.putheader("If-None-Match", "*")
            writer.putheader("x-amz-sdk-checksum-algorithm", "CRC32")
            writer.putheader("Content-Length", str(len(body)))
            writer.endheaders(body[:-1])
        for writer in writers:
            writer.send(body[-1:])
        answers = sorted(writer.getresponse().status for writer in writers)
        assert answers == [200] + 11 * [412]


@pytest.mark.parametrize("pool", POOLS)
def test_an_id_that_was_sent_twice_has_one_outcome_and_the_later_message_finds_it(
    pool: str,
    moto: Moto,
    queue_name: str,
    model_server: ModelServer,
    producer: MakeProducer,
    worker: StartWorker,
) -> None:
    url = aws_resources.create_queue(moto.env, queue_name)
    aws_resources.create_bucket(moto.env, queue_name)
    s3 = aws_resources.client(moto.env, "s3")
    s3.put_bucket_versioning(Bucket=queue_name, VersioningConfiguration={"Status": "Enabled"})
    settings = {
        "FORWARDER_BROKER_URL": "sqs://",
        "FORWARDER_SQS_QUEUE_URL": url,
        "FORWARDER_RESULT_BACKEND": f"s3://{queue_name}/results/",
        "FORWARDER_VISIBILITY_TIMEOUT_S": "30",
        "FORWARDER_DRAIN_TIMEOUT_S": "2",
        "FORWARDER_CONCURRENCY": "2",
    }
    conf = sqs_conf(moto.env, queue=queue_name, url=url)
    conf |= s3_conf(moto.env, bucket=queue_name, prefix="results/")
    sender = producer(broker_url=sqs_broker_url(moto.env), backend="s3://", conf=conf)
    running = worker(pool=pool, env=moto.env | model_server.env | settings)
    running.wait_ready()
    for _ in range(2):
        payload = {"args": {"id": "task", "numbers": [1, 2], "behaviour": HELD}}
        result = sender.send(payload, task_id="sent-twice")
    model_server.wait_in_flight(2)
    model_server.control(release=True)
    assert total(result) == 3
    sqs = aws_resources.client(moto.env, "sqs")

    def left() -> set[str]:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)
        return set(answer["Attributes"].values())

    wait_until(lambda: left() == {"0"}, "both messages are acked")
    versions = s3.list_object_versions(Bucket=queue_name)["Versions"]
    assert [each["Key"] for each in versions] == ["results/celery-task-meta-sent-twice"]
    log = running.log()
    assert log.count("outcome_not_stored task_id=sent-twice") == 1
    assert log.count("task_already_done task_id=sent-twice") == 1
    assert log.count("task_done task_id=sent-twice") == 1
    assert asked(model_server, "task") == 2
