"""A queue, a clock and the leases on that queue."""

from __future__ import annotations

import pytest

from forwarder.brokers.sqs.leases import SqsLeases
from tests.unit.brokers.sqs.fake import Clock, FakeSqs, make_leases


@pytest.fixture
def sqs() -> FakeSqs:
    return FakeSqs()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(sqs: FakeSqs, clock: Clock) -> SqsLeases:
    return make_leases(sqs, clock)
