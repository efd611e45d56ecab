"""The dead letters on RabbitMQ: a queue beside each queue, read without being consumed."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from amqp.exceptions import NotFound
from kombu import Connection

from forwarder.brokers.amqp.copies import Copies, open_bounded
from forwarder.brokers.dead_letters import (
    DeadLetter,
    NoSuchLetter,
    OpenedLetter,
    dead_queue,
    read_letter,
    without_death,
)


class AmqpDeadLetters:
    """Looks through ``<queue>.dead`` of each queue, oldest first.

    Every letter is fetched and none acked; when the channel closes, RabbitMQ
    puts those that were not taken out back to their places. Until then nobody
    else sees them.
    """

    def __init__(self, *, connect: Callable[[], Connection], queues: Sequence[str]) -> None:
        self._connect = connect
        self._queues = queues
        self._copies = Copies(connect=connect)

    def __repr__(self) -> str:
        return f"<AmqpDeadLetters {', '.join(self._queues)}>"

    def list(self, limit: int) -> Sequence[DeadLetter]:
        """Return the first ``limit`` letters. Blocks for a round trip a letter."""
        with self._letters() as letters:
            return [letter for letter, _ in islice(letters, limit)]

    def show(self, letter_id: str) -> OpenedLetter:
        """Return one letter with its message. Raises NoSuchLetter."""
        with self._letters() as letters:
            for letter, raw in letters:
                if letter.id == letter_id:
                    return OpenedLetter(letter=letter, headers=raw.headers or {}, body=_text(raw.body))
        raise NoSuchLetter(letter_id)

    def requeue(
        self, ids: Collection[str] | None, before: Callable[[DeadLetter], None]
    ) -> Sequence[DeadLetter]:
        """Publish letters to their queues as new messages, then remove them; return those that went."""
        done: builtins.list[DeadLetter] = []
        with self._letters() as letters:
            for letter, raw in letters:
                if ids is None or letter.id in ids:
                    before(letter)
                    self._copies.publish(letter.queue, raw, headers=without_death(raw.headers or {}))
                    raw.channel.basic_ack(raw.delivery_tag)
                    done.append(letter)
        return done

    def purge(self, ids: Collection[str] | None) -> Sequence[DeadLetter]:
        """Delete letters for good and return them."""
        done: builtins.list[DeadLetter] = []
        with self._letters() as letters:
            for letter, raw in letters:
                if ids is None or letter.id in ids:
                    raw.channel.basic_ack(raw.delivery_tag)
                    done.append(letter)
        return done

    def close(self) -> None:
        """Close the connection for copies."""
        self._copies.close()

    @contextmanager
    def _letters(self) -> Iterator[Iterator[tuple[DeadLetter, Any]]]:
        """Give the letters one by one, each with its message; what is not acked by then goes back."""
        with open_bounded(self._connect()) as connection:
            # Closing the connection closes its channels, after what was acked on them.
            yield (found for queue in self._queues for found in _letters_of(connection, queue))


def _letters_of(connection: Connection, queue: str) -> Iterator[tuple[DeadLetter, Any]]:
    channel: Any = connection.channel()
    name = dead_queue(queue)
    try:
        waiting = channel.queue_declare(name, passive=True).message_count
    except NotFound:
        return
    # No more than there were: what is requeued may come back at once.
    for _ in range(waiting):
        raw = channel.basic_get(name)
        if raw is None:
            return
        raw.channel = channel
        yield read_letter(raw.headers, raw.body, queue=queue), raw


def _text(body: str | bytes) -> str:
    return body if isinstance(body, str) else body.decode(errors="replace")
