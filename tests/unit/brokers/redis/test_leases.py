"""What the Redis side decides: which delivery is lost, which is opened again, when it takes over."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError, NoPermissionError, ReadOnlyError, ResponseError

from forwarder.brokers.deliveries import Delivery
from forwarder.brokers.keeper import ROUND_S_MAX
from forwarder.brokers.redis import scripts
from forwarder.brokers.redis.grace import grace_s
from forwarder.brokers.redis.intake import list_for, lists_of
from forwarder.brokers.redis.leases import SWEEP_MAX, RedisLeases
from forwarder.brokers.redis.stock import EVERY_S, PAGE, PAGES_MAX, StockLeftovers

SHA = "a" * 40
TIMEOUT_S = 60.0
GRACE_S = grace_s(TIMEOUT_S)


class Server:
    """What the scripts answer; ``run`` is the server's run id."""

    def __init__(self) -> None:
        self.run = "first"
        self.on_info: Callable[[], None] = lambda: None
        self.on_renew: Callable[[], None] = lambda: None
        self.leases: set[str] = set()
        self.reopened = 0
        self.on_sweep: Callable[[], None] = lambda: None
        self.overdue: int | Exception = 0
        self.connection_pool = self
        self.disconnected = 0
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def register_script(self, script: str) -> Callable[..., Any]:
        def call(args: list[Any]) -> Any:
            self.calls.append((script, tuple(args)))
            return self.answer(script, *args)

        return call

    def answer(self, script: str, *args: Any) -> Any:
        if script == scripts.RENEW:
            self.on_renew()
            return [tag for tag in args[2:] if tag.decode() not in self.leases]
        if script == scripts.REOPEN:
            self.reopened += 1
            self.leases.add(f"new-{self.reopened}")
            return f"new-{self.reopened}".encode()
        if script in (scripts.ACK, scripts.GIVE_BACK, scripts.PUT_OFF):
            held = args[1] in self.leases
            self.leases.discard(args[1])
            return int(held)
        if script == scripts.SWEEP:
            return self.sweep(args[1])
        return [0, 0] if script == scripts.SWEEP_STOCK else 0

    def sweep(self, most: int) -> int:
        self.on_sweep()
        if isinstance(self.overdue, Exception):
            raise self.overdue
        moved = min(self.overdue, most)
        self.overdue -= moved
        return moved

    def disconnect(self, inuse_connections: bool) -> None:
        self.disconnected += 1

    def info(self, section: str) -> dict[str, str]:
        self.on_info()
        return {"run_id": self.run}

    def called(self, script: str) -> int:
        return sum(name == script for name, _ in self.calls)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(server: Server, clock: Clock) -> RedisLeases:
    return RedisLeases(
        client=lambda: server,
        queues=["q"],
        visibility_timeout_s=TIMEOUT_S,
        message_bytes_max=1000,
        stock_visibility_timeout_s=3600,
        monotonic=clock,
    )


def deliver(leases: RedisLeases, server: Server, lease: str = f"1:p:{SHA}") -> Delivery:
    server.leases.add(lease)
    take, _ = leases.begin_take(["q"], ["q", "q6"], 5, 1000)
    (one,) = leases.end_take(take, [[1, lease.encode(), 2, 1, b"item"]])
    assert one.home == "q6"
    return leases.receive(SimpleNamespace(delivery_tag=lease, headers={"id": "a"}))


def test_a_delivery_carries_the_time_at_which_it_was_asked_for(
    leases: RedisLeases, server: Server, clock: Clock
) -> None:
    take, arguments = leases.begin_take(["q"], ["q"], 100, 1000)
    clock.now += 7
    (one,) = leases.end_take(take, [[0, b"1:p:x", 1, 0, None, 5000, b"an-id"]])
    assert (one.taken_s, one.item, one.item_bytes, one.task_id) == (1000.0, None, 5000, "an-id")
    assert arguments[:3] == [10, 60_000, 1000]


def test_an_item_that_can_not_be_read_has_its_bytes(leases: RedisLeases, server: Server) -> None:
    assert deliver(leases, server).payload_bytes == len("item")


def test_an_answer_is_a_refusal_and_its_absence_is_none(leases: RedisLeases) -> None:
    assert leases.refusal(NoPermissionError("no rights")) == "NoPermissionError: no rights"
    for absence in (ReadOnlyError(), BusyLoadingError(), OSError()):
        assert leases.refusal(absence) is None


def test_what_is_put_off_goes_to_the_list_that_is_looked_into_last(
    leases: RedisLeases, server: Server
) -> None:
    assert leases.put_off(deliver(leases, server))
    assert server.calls[-1] == (scripts.PUT_OFF, ("q", f"1:p:{SHA}", lists_of("q")[-1]))


def test_a_missing_lease_is_lost_while_the_server_runs_on(leases: RedisLeases, server: Server) -> None:
    leases.meet()
    delivery = deliver(leases, server)
    server.leases.clear()
    assert leases.renew([delivery]) == [delivery]
    assert server.called(scripts.REOPEN) == 0
    assert leases.ack(delivery) is False


def test_a_missing_lease_is_opened_again_on_a_server_that_started_since(
    leases: RedisLeases, server: Server
) -> None:
    leases.meet()
    delivery = deliver(leases, server)
    server.leases.clear()
    server.run = "second"
    assert leases.renew([delivery]) == []
    assert delivery.tag == "new-1"
    assert leases.ack(delivery) is True


def test_a_server_that_starts_right_after_a_renewal_makes_nothing_lost_at_the_next(
    leases: RedisLeases, server: Server
) -> None:
    """The run is asked for after the leases: what it was while they were confirmed, nobody knows."""
    leases.meet()
    delivery = deliver(leases, server)
    server.on_info = lambda: setattr(server, "run", "second")
    assert leases.renew([delivery]) == []
    server.leases.clear()
    assert leases.renew([delivery]) == []
    assert delivery.tag == "new-1"


def test_a_lease_that_a_restarted_server_still_knew_is_lost_once_a_peer_has_it(
    leases: RedisLeases, server: Server
) -> None:
    leases.meet()
    delivery = deliver(leases, server)
    server.run = "second"
    for _ in range(2):
        assert leases.renew([delivery]) == []
    server.leases.clear()
    assert leases.renew([delivery]) == [delivery]


def test_a_server_that_starts_between_a_take_and_its_reply_makes_nothing_lost(
    leases: RedisLeases, server: Server
) -> None:
    leases.meet()
    take, _ = leases.begin_take(["q"], ["q"], 1, 1000)
    server.run = "second"
    leases.renew([])
    leases.end_take(take, [[0, b"1:p:x", 1, 0, b"item"]])
    delivery = leases.receive(SimpleNamespace(delivery_tag="1:p:x", headers={}))
    assert leases.renew([delivery]) == []


@pytest.mark.parametrize("settle", ["ack", "requeue"])
def test_what_a_server_forgot_can_still_be_settled(leases: RedisLeases, server: Server, settle: str) -> None:
    leases.meet()
    delivery = deliver(leases, server)
    server.leases.clear()
    server.run = "second"
    assert getattr(leases, settle)(delivery) is True
    assert server.leases == set()


def test_what_is_settled_while_it_is_renewed_is_neither_lost_nor_opened_again(
    leases: RedisLeases, server: Server
) -> None:
    leases.meet()
    delivery = deliver(leases, server)
    leases.ack(delivery)
    for run in ("first", "second"):
        server.run = run
        assert leases.renew([delivery]) == []
    assert server.called(scripts.REOPEN) == 0


def test_a_settlement_that_failed_leaves_the_delivery_to_be_renewed(
    leases: RedisLeases, server: Server
) -> None:
    leases.meet()
    delivery = deliver(leases, server)
    answer = server.answer

    def fail(script: str, *args: Any) -> Any:
        raise ConnectionError

    server.answer = fail  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        leases.ack(delivery)
    server.answer = answer  # type: ignore[method-assign]
    server.leases.clear()
    server.run = "second"
    assert leases.renew([delivery]) == []
    assert delivery.tag == "new-1"


def sweeps(leases: RedisLeases, server: Server) -> bool:
    before = server.called(scripts.SWEEP)
    leases.take_over()
    return server.called(scripts.SWEEP) > before


@pytest.mark.parametrize(("visibility_s", "expected_s"), [(3, 1.5), (30, 15), (60, 15), (3600, 15)])
def test_a_replacement_waits_for_living_owners_and_no_longer(visibility_s: float, expected_s: float) -> None:
    assert grace_s(visibility_s) == expected_s


def test_nothing_is_taken_over_before_living_owners_can_have_renewed(
    leases: RedisLeases, server: Server, clock: Clock
) -> None:
    leases.renew([])
    assert not sweeps(leases, server), "just started"
    clock.now += GRACE_S
    leases.renew([])
    assert sweeps(leases, server)
    clock.now += GRACE_S + 1
    leases.renew([])
    assert not sweeps(leases, server), "a gap: the server may have been frozen"
    clock.now += 2 * ROUND_S_MAX
    leases.renew([])
    assert not sweeps(leases, server), "of two rounds one may fail"
    clock.now += ROUND_S_MAX
    leases.renew([])
    assert sweeps(leases, server)


def test_while_the_server_refuses_to_sweep_owners_may_not_have_been_able_to_renew_either(
    leases: RedisLeases, server: Server, clock: Clock
) -> None:
    leases.renew([])
    clock.now += GRACE_S
    server.overdue = ResponseError("NOREPLICAS")
    with pytest.raises(ResponseError):
        leases.take_over()
    server.overdue = 0
    leases.renew([])
    assert not sweeps(leases, server)
    clock.now += GRACE_S
    assert sweeps(leases, server)


def test_what_many_dead_workers_left_comes_back_in_one_round(
    leases: RedisLeases, server: Server, clock: Clock
) -> None:
    clock.now += GRACE_S
    server.overdue = 5 * SWEEP_MAX + 3
    assert leases.take_over() == 5 * SWEEP_MAX + 3


def test_a_sweep_ends_in_time_for_the_next_renewal(leases: RedisLeases, server: Server, clock: Clock) -> None:
    clock.now += GRACE_S
    server.overdue = 100 * SWEEP_MAX
    server.on_sweep = lambda: setattr(clock, "now", clock.now + 0.4)
    assert leases.take_over() == 3 * SWEEP_MAX


def test_a_connection_to_who_was_the_primary_is_closed(leases: RedisLeases, server: Server) -> None:
    def refuse() -> None:
        raise ReadOnlyError

    server.on_renew = refuse
    with pytest.raises(ReadOnlyError):
        leases.renew([deliver(leases, server)])
    assert server.disconnected == 1


@pytest.mark.parametrize("meets", [True, False])
def test_nothing_is_taken_over_on_a_server_that_just_started(
    leases: RedisLeases, server: Server, clock: Clock, meets: bool
) -> None:
    leases.renew([])
    clock.now += GRACE_S
    leases.renew([])
    server.run = "second"
    if meets:
        leases.meet()
    leases.renew([])
    assert not sweeps(leases, server)


def test_what_stays_in_kombus_index_is_passed_over_and_looked_at_again_later() -> None:
    skipped = []

    def run(script: str, timeout_s: float, skip: int, page: int, *_: Any) -> tuple[int, int]:
        skipped.append(skip)
        return (PAGE, 30) if len(skipped) <= PAGES_MAX else (50, 50)

    stock = StockLeftovers(run_script=run, timeout_s=3600)
    assert stock.sweep(["q"], now_s=0.0) == 30 * PAGES_MAX
    assert stock.sweep(["q"], now_s=EVERY_S - 1) == 0
    assert stock.sweep(["q"], now_s=EVERY_S) == 50
    stock.sweep(["q"], now_s=2 * EVERY_S)
    assert skipped == [*range(0, 70 * (PAGES_MAX + 1), 70), 0]


@pytest.mark.parametrize(
    ("priority", "ending"), [(0, ""), (2, ""), (3, "3"), (8, "6"), (9, "9"), (200, "9"), (-1, ""), ("x", "")]
)
def test_a_priority_leads_to_kombus_list(priority: Any, ending: str) -> None:
    assert list_for("q", priority) == (f"q\x06\x16{ending}" if ending else "q")


def test_what_is_handed_back_without_a_lease_is_told_each_time_and_the_rest_once(
    leases: RedisLeases, server: Server
) -> None:
    leases.meet()
    lost, held = deliver(leases, server, f"1:p:{SHA}"), deliver(leases, server, f"2:p:{SHA}")
    server.leases.discard(lost.tag)
    for _ in range(2):  # the second time as after an error on the way
        assert leases.hand_back([lost, held]) == [lost]
    assert server.called(scripts.GIVE_BACK) == 3
