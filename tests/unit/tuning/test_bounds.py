"""The most slots, with the arithmetic."""

from __future__ import annotations

import resource

import pytest

from forwarder.scaling.container import MIB, Limit
from forwarder.scaling.descriptors import Allowed, need
from forwarder.settings.model import Pool, Settings
from forwarder.tuning.bounds import bound

PLENTY = Allowed(soft=1024, hard=resource.RLIM_INFINITY)


def settings(pool: Pool) -> Settings:
    return Settings(pool=pool, autoscale=(100, 2))


def test_the_operators_own_bound_holds() -> None:
    found = bound(settings("gevent"), Limit(8192 * MIB, "host"), PLENTY, held_bytes=1000)
    assert (found.slots, found.words) == (100, "MAX of --autoscale")


def test_memory_holds_so_many_of_the_largest_messages() -> None:
    # 700 MiB less 60 for the worker, by five copies of 4 MiB and the slot's 32 KiB.
    found = bound(settings("gevent"), Limit(1000 * MIB, "host"), PLENTY, held_bytes=4 * MIB)
    assert found.slots == 31
    assert found.words == "640 MiB of memory / (32 KiB + 5 x 4,096 KiB)"


def test_prefork_leaves_memory_to_its_autoscaler() -> None:
    assert bound(settings("prefork"), Limit(100 * MIB, "host"), PLENTY, held_bytes=4 * MIB).slots == 100


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_no_more_slots_than_file_descriptors_suffice_for(pool: Pool) -> None:
    files = Allowed(soft=256, hard=256)
    found = bound(settings(pool), Limit(8192 * MIB, "host"), files, held_bytes=0)
    assert found.words == "what 256 file descriptors suffice for"
    fitting = Settings(pool=pool, autoscale=(found.slots, 1))
    more = Settings(pool=pool, autoscale=(found.slots + 1, 1))
    assert need(fitting).number <= 256 < need(more).number
