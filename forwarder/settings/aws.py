"""The one AWS setting that AWS's own Python libraries do not read as its other SDKs do."""

from __future__ import annotations

from collections.abc import MutableMapping


def unify_region(environ: MutableMapping[str, str]) -> None:
    """Let ``AWS_REGION`` stand for ``AWS_DEFAULT_REGION`` as well; it wins where they differ.

    botocore, and kombu's SQS channel through it, read ``AWS_DEFAULT_REGION``
    only; every other SDK, and what Kubernetes puts into a pod that has a role,
    goes by ``AWS_REGION``. Without this, Firehose has no region and SQS is asked
    in us-east-1. An empty variable counts as not set.
    https://docs.aws.amazon.com/sdkref/latest/guide/feature-region.html
    """
    if region := environ.get("AWS_REGION"):
        environ["AWS_DEFAULT_REGION"] = region
