"""A look at what waits, on a channel that is a fake."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.transport import redis

from forwarder.brokers.redis.look import waiting

LISTS = {"q": [b"3", b"2", b"1"], "q3": [b"5", b"4"], "other": [b"6"]}


class Redis:
    """The lists, as LRANGE shows them."""

    def lrange(self, name: str, first: int, last: int) -> list[bytes]:
        assert last == -1
        return LISTS.get(name, [])[first:]


def channel() -> Any:
    return SimpleNamespace(
        client=Redis(), priority_steps=[0, 3], _q_for_pri=lambda queue, step: f"{queue}{step or ''}"
    )


@pytest.mark.parametrize(
    ("number", "found"),
    [
        (1, [b"1"]),
        (2, [b"1", b"2"]),
        (4, [b"1", b"2", b"3", b"4"]),
        (99, [b"1", b"2", b"3", b"4", b"5", b"6"]),
    ],
)
def test_the_oldest_of_each_list_are_shown_the_first_lists_before_the_others(
    number: int, found: list[bytes]
) -> None:
    assert waiting(channel(), ("q", "other"), number) == found


def test_kombu_still_names_its_lists_by_queue_and_priority() -> None:
    """A private name, which the transport uses too."""
    kombu: Any = redis.Channel
    assert [*inspect.signature(kombu._q_for_pri).parameters] == ["self", "queue", "pri"]
    assert kombu.priority_steps[0] == 0
