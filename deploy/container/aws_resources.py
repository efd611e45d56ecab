"""Creates what the worker of compose.yaml needs in LocalStack: a queue with its dead letters, and a bucket.

Run once, before the worker starts, in the worker's own image; the worker itself never creates any of these.
Everything comes from the environment: AWS's own variables, and QUEUE and BUCKET. It may run again.
"""

from __future__ import annotations

import json
import os
import sys

import boto3

#: More than --max-deliveries: the worker's count decides, which knows whose fault a delivery's end was.
RECEIVES_MAX = 20


def main() -> None:
    """Create them. Blocks; botocore's errors pass through."""
    queue, bucket = os.environ["QUEUE"], os.environ["BUCKET"]
    sqs = boto3.client("sqs")
    letters = sqs.create_queue(QueueName=f"{queue}-dead")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=letters, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = {"deadLetterTargetArn": arn, "maxReceiveCount": str(RECEIVES_MAX)}
    url = sqs.create_queue(QueueName=queue, Attributes={"RedrivePolicy": json.dumps(redrive)})["QueueUrl"]
    boto3.client("s3").create_bucket(Bucket=bucket)
    sys.stdout.write(f"queue {url}, dead letters {letters}, bucket {bucket}\n")


if __name__ == "__main__":
    main()
