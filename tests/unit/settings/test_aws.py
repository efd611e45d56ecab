"""Which region AWS's libraries are told."""

from __future__ import annotations

import pytest

from forwarder.settings.aws import unify_region


@pytest.mark.parametrize(
    ("given", "default_region"),
    [
        ({"AWS_REGION": "eu-west-1"}, "eu-west-1"),
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "us-east-1"}, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "us-east-1"}, "us-east-1"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-east-1"}, "us-east-1"),
        ({"AWS_REGION": ""}, None),
        ({}, None),
    ],
)
def test_aws_region_is_the_region_wherever_it_is_set(
    given: dict[str, str], default_region: str | None
) -> None:
    environ = dict(given)
    unify_region(environ)
    assert environ.pop("AWS_DEFAULT_REGION", None) == default_region
    assert environ == {name: value for name, value in given.items() if name == "AWS_REGION"}
