"""Whether a soak's figures are called flat or not."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Callable

import pytest
from moto.sts.models import STSBackend

from benchmarks.soak.run import Plan, Point, Soaked, judge
from benchmarks.soak.slope import theil_sen
from forwarder.cloud.session import AwsSession, firehose_client_builder
from forwarder.hooks.logging import FirehoseHook

PLAN = Plan(name="default", pool="gevent", concurrency=4, tasks=10_000, seconds=1.0, payload_bytes=1)


def soaked(
    unique_mb: Callable[[int], float],
    descriptors: Callable[[int], int] = lambda tasks: 40,
    *,
    tasks: int = 10_000,
    plan: Plan = PLAN,
) -> Soaked:
    points = [
        Point(
            at_s=tasks / 100,
            tasks=tasks,
            rss_mb=100.0,
            unique_mb=unique_mb(tasks),
            processes=1,
            descriptors=descriptors(tasks),
            connections=30,
        )
        for tasks in range(0, tasks + 1, 100)
    ]
    return judge(plan, points, builds=3)


def test_the_slope_of_a_line_is_its_own() -> None:
    assert theil_sen([(x, 3 + 0.5 * x) for x in range(50)]) == pytest.approx(0.5)


def test_a_quarter_of_wild_points_does_not_bend_the_slope() -> None:
    source = random.Random(1)
    points = [(float(x), 0.5 * x + (1000 * source.random() if x % 4 == 0 else 0)) for x in range(200)]
    assert theil_sen(points) == pytest.approx(0.5, abs=0.05)


def test_many_points_are_judged_by_a_sample() -> None:
    assert theil_sen([(float(x), 2.0 * x) for x in range(5000)]) == pytest.approx(2.0)


def test_points_in_one_place_have_no_slope() -> None:
    with pytest.raises(ValueError, match="different places"):
        theil_sen([(1.0, 1.0), (1.0, 2.0)])


def test_a_rise_while_warming_up_is_flat_afterwards() -> None:
    run = soaked(lambda tasks: 50 + min(tasks, 1500) / 10 + 0.5 * tasks / 10_000, tasks=4000)
    assert run.growth_mb == pytest.approx(0.5)
    assert run.verdict == "flat"


def test_each_prefork_child_has_a_warm_up_of_its_own() -> None:
    plan = dataclasses.replace(PLAN, pool="prefork")
    run = soaked(lambda tasks: 50 + min(tasks, 6000) / 10, tasks=13_000, plan=plan)
    assert run.verdict == "flat"


@pytest.mark.parametrize(("pool", "verdict"), [("gevent", "grows"), ("prefork", "too short")])
def test_a_run_that_has_hardly_warmed_up_says_nothing(pool: str, verdict: str) -> None:
    plan = dataclasses.replace(PLAN, pool=pool)
    assert soaked(lambda tasks: 50 + tasks / 10, tasks=5000, plan=plan).verdict == verdict


@pytest.mark.parametrize(("mb_per_10_000", "flat"), [(0.9, True), (1.1, False)])
def test_one_megabyte_for_ten_thousand_tasks_is_the_bound(mb_per_10_000: float, flat: bool) -> None:
    run = soaked(lambda tasks: 50 + mb_per_10_000 * tasks / 10_000)
    assert run.growth_mb == pytest.approx(mb_per_10_000)
    assert run.flat is flat


def test_descriptors_that_grow_are_not_flat() -> None:
    assert not soaked(lambda tasks: 50.0, lambda tasks: 40 + tasks // 1000).flat


def test_a_client_that_is_rebuilt_may_be_there_twice_for_a_moment() -> None:
    assert soaked(lambda tasks: 50.0, lambda tasks: 80 if tasks == 9000 else 40).flat


def test_what_the_soak_patches_is_still_there() -> None:
    # All of these are ours or moto's own: a rename would make a switch of the soak do nothing.
    assert list(inspect.signature(FirehoseHook.deliver).parameters) == ["self", "completion"]
    assert {"_endpoint", "_stream"} <= set(inspect.getsource(FirehoseHook.__init__).replace(".", " ").split())
    assert {"session", "role_arn", "max_pool_connections"} <= set(
        inspect.signature(firehose_client_builder).parameters
    )
    inspect.signature(AwsSession).bind()  # raises when it needs more than nothing
    assert "duration" in inspect.signature(STSBackend.assume_role).parameters
