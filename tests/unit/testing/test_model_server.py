"""The sample model server's arithmetic and counts, without its sockets."""

from __future__ import annotations

from forwarder.testing.model_server import Stats, predict


def test_the_weight_of_a_number_is_its_place_counted_from_one() -> None:
    assert predict([3, -1, 4]) == {"sum": 6, "weighted_sum": 13, "sum_of_squares": 26}


def test_nothing_sums_to_nothing() -> None:
    assert predict([]) == {"sum": 0, "weighted_sum": 0, "sum_of_squares": 0}


def test_requests_are_counted_by_id_and_the_peak_is_kept() -> None:
    stats = Stats()
    assert [stats.begin("a"), stats.begin("a"), stats.begin("b")] == [1, 2, 1]
    stats.end()
    snapshot = stats.snapshot()
    assert (snapshot["requests"], snapshot["in_flight"], snapshot["peak"]) == (3, 2, 3)
    assert snapshot["by_id"] == {"a": 2, "b": 1}


def test_a_reset_forgets_all_but_what_runs_now() -> None:
    stats = Stats()
    stats.begin("a")
    stats.begin("b")
    stats.end()
    stats.reset()
    snapshot = stats.snapshot()
    assert (snapshot["requests"], snapshot["in_flight"], snapshot["peak"]) == (0, 1, 1)
