"""Which scenarios run, where, and in which order; and which musts a verdict breaks."""

from __future__ import annotations

from dataclasses import replace

from forwarder.testing.ledger import Verdict
from tests.faults.brokers import BROKERS
from tests.faults.matrix import SCENARIOS
from tests.faults.report import as_json, line, summary, table
from tests.faults.runner import Outcome, broken, next_cell
from tests.faults.scenario import Act, Cell, Scenario, cells, chosen
from tests.faults.stores import STORES

KEPT = Verdict(sent=9, lost=(), repeated_after_commit=(), wrong=(), repeats=3, recovery_s=1.25)


def nothing(act: Act) -> None: ...


SCENARIO = Scenario(name="fault", guarantee="nothing is lost", nemesis=nothing, short=("redis/gevent",))


def test_a_scenario_is_tried_on_every_broker_and_pool_it_names() -> None:
    narrow = replace(SCENARIO, places=("redis", "amqp"), pools=("gevent",))
    assert [str(cell) for cell in cells([narrow])] == ["fault/redis/gevent", "fault/amqp/gevent"]


def test_the_short_form_is_what_the_scenario_says() -> None:
    assert [str(cell) for cell in chosen(cells([SCENARIO]), only=None, everything=False)] == [
        "fault/redis/gevent"
    ]
    assert len(chosen(cells([SCENARIO]), only=None, everything=True)) == 6


def test_a_pattern_chooses_among_all_by_part_of_the_name_or_by_wildcards() -> None:
    assert len(chosen(cells([SCENARIO]), only="amqp", everything=False)) == 2
    assert [str(cell) for cell in chosen(cells([SCENARIO]), only="fault/sqs/g*", everything=False)] == [
        "fault/sqs/gevent"
    ]


def test_every_cell_of_the_short_form_exists_and_names_are_unique() -> None:
    names = [str(cell) for cell in cells(SCENARIOS)]
    assert len(set(names)) == len(names)
    for scenario in SCENARIOS:
        assert {f"{scenario.name}/{cell}" for cell in scenario.short} <= set(names)


def test_a_place_names_the_broker_and_the_result_store_where_that_is_not_redis() -> None:
    plain, elsewhere = Cell(SCENARIO, "sqs", "gevent"), Cell(SCENARIO, "sqs+s3", "gevent")
    assert [(cell.broker, cell.results) for cell in (plain, elsewhere)] == [("sqs", "redis"), ("sqs", "s3")]
    assert str(elsewhere) == "fault/sqs+s3/gevent"


def test_every_place_of_the_matrix_has_a_broker_and_a_store() -> None:
    for cell in cells(SCENARIOS):
        assert cell.broker in BROKERS
        assert cell.results in STORES


def test_a_lane_stays_with_its_broker_and_else_takes_one_that_nobody_runs() -> None:
    redis, sqs, amqp = (Cell(SCENARIO, broker, "gevent") for broker in ("redis", "sqs", "amqp"))
    pending = [redis, sqs, amqp]
    assert next_cell(pending, mine={"amqp"}, others={"redis"}) == amqp
    assert next_cell(pending, mine={"amqp"}, others={"redis"}) == sqs
    assert next_cell(pending, mine={"amqp"}, others={"redis"}) == redis
    assert pending == []


def test_each_must_that_is_broken_is_named() -> None:
    assert broken(SCENARIO, KEPT) == ""
    assert broken(SCENARIO, replace(KEPT, lost=("a", "b"))) == "2 lost"
    assert broken(SCENARIO, replace(KEPT, repeated_after_commit=("a",))) == "1 asked again after the commit"
    assert broken(SCENARIO, replace(KEPT, wrong=("a",))) == "1 with a wrong outcome"
    assert broken(replace(SCENARIO, repeats_max=0), KEPT) == "3 repeats where 0 are due"


def test_a_run_in_which_nothing_was_sent_proves_nothing() -> None:
    assert broken(SCENARIO, replace(KEPT, sent=0)) == "nothing was sent"


def test_the_report_tells_what_held_what_broke_and_what_was_skipped() -> None:
    cell = Cell(SCENARIO, "redis", "gevent")
    kept = Outcome(cell=cell, verdict=KEPT, seconds=8.4)
    lost = Outcome(cell=cell, verdict=replace(KEPT, lost=("a",)), reason="1 lost")
    skipped = Outcome(cell=cell, verdict=None, reason="no libfaketime", skipped=True)
    assert line(kept) == "fault/redis/gevent: ok (8 s)"
    rows = table([kept, lost, skipped]).splitlines()
    assert [row.split()[-1] for row in rows[1:]] == ["ok", "lost", "libfaketime"]
    assert "18 tasks: lost 1 (must be 0)" in summary([kept, lost, skipped])
    assert "slowest recovery 1.2 s; 1 broken, 1 skipped" in summary([kept, lost, skipped])
    assert '"lost": [\n        "a"' in as_json([lost], worker="forwarder", seed="1")
