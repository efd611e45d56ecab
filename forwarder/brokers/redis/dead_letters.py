"""The dead letters on Redis: a list beside each queue, of envelopes that any Celery client reads.

What is no envelope, or too large to be looked at, is wrapped in one: its body is
then the item as text, and a header says so.
"""

from __future__ import annotations

import base64
import builtins
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from forwarder.brokers.dead_letters import (
    DeadLetter,
    NoSuchLetter,
    OpenedLetter,
    dead_queue,
    read_letter,
    with_death,
    without_death,
)
from forwarder.brokers.deliveries import Death
from forwarder.brokers.redis.intake import Taken, list_for
from forwarder.brokers.redis.scripts import REVIVE

#: True in the headers of a letter whose body is the whole item.
RAW_HEADER = "x-forwarder-raw"
#: Letters fetched at a time.
PAGE = 20


def letter_parts(item: bytes | None, task_id: str | None, death: Death) -> tuple[str, ...]:
    """Return the list for a dead letter, then its text; or the text before and after the item.

    Without an ``item`` at hand, or with one that is no envelope, the server puts it
    between the two as a JSON string.
    """
    into = dead_queue(death.queue)
    try:
        envelope = json.loads(item or b"")
        envelope["headers"] = with_death(envelope["headers"], death)
        return into, json.dumps(envelope)
    except (ValueError, TypeError, KeyError, RecursionError):
        headers = with_death({"id": task_id} if task_id else {}, death) | {RAW_HEADER: True}
        properties = {
            "delivery_tag": "",
            "delivery_info": {"exchange": "", "routing_key": into},
            "priority": 0,
        }
        rest = {
            "content-type": "text/plain",
            "content-encoding": "utf-8",
            "headers": headers,
            "properties": properties,
        }
        return into, '{"body": ', ", " + json.dumps(rest)[1:]


def letter_of(one: Taken, death: Death) -> tuple[str | None, int]:
    """Return the id and the bytes that are shown for a message that is put aside as it was taken."""
    if one.item is None:
        named = one.task_id is not None and one.task_id.isprintable()
        return one.task_id if named else None, one.item_bytes
    into, *texts = letter_parts(one.item, None, death)
    if len(texts) == 1:
        letter = _read(texts[0].encode(), into, one.queue).letter
    else:  # the whole item will be its body
        letter = read_letter({}, one.item, queue=one.queue)
    return letter.id, letter.body_bytes


@dataclass(slots=True, kw_only=True)
class _Entry:
    """One item of a dead letter list; ``gone`` once it was taken out."""

    stored_in: str
    text: bytes = field(repr=False)
    envelope: dict[str, Any] = field(repr=False)
    letter: DeadLetter
    gone: bool = False

    def original(self) -> bytes:
        """Return the item as it was, or for an envelope one that says the same."""
        if self.envelope["headers"].get(RAW_HEADER) is True:
            return _encoded(str(self.envelope.get("body")))
        return json.dumps(self.envelope | {"headers": without_death(self.envelope["headers"])}).encode()

    def goes_to(self) -> str:
        """Return the list of its queue and its priority."""
        properties = self.envelope.get("properties")
        return list_for(
            self.letter.queue, properties.get("priority") if isinstance(properties, dict) else None
        )


class RedisDeadLetters:
    """Looks through the list ``<queue>.dead`` of each queue, oldest first.

    ``client`` makes the ``redis.Redis`` of this object, at its first use.
    """

    def __init__(self, *, client: Callable[[], Any], queues: Sequence[str]) -> None:
        self._make_client = client
        self._queues = queues
        self._client: Any = None

    def __repr__(self) -> str:
        return f"<RedisDeadLetters {', '.join(self._queues)}>"

    def list(self, limit: int) -> Sequence[DeadLetter]:
        """Return the first ``limit`` letters."""
        return [entry.letter for entry in islice(self._entries(), limit)]

    def show(self, letter_id: str) -> OpenedLetter:
        """Return one letter with its message. Raises NoSuchLetter."""
        for entry in self._entries():
            if entry.letter.id == letter_id:
                body = _body(entry.envelope).decode(errors="replace")
                return OpenedLetter(letter=entry.letter, headers=entry.envelope["headers"], body=body)
        raise NoSuchLetter(letter_id)

    def requeue(
        self, ids: Collection[str] | None, before: Callable[[DeadLetter], None]
    ) -> Sequence[DeadLetter]:
        """Move letters back, each in one step, to be taken after what waits; return those that went."""
        done: builtins.list[DeadLetter] = []
        for entry in self._entries():
            if ids is None or entry.letter.id in ids:
                before(entry.letter)
                revive = self._connected().register_script(REVIVE)
                arguments = [entry.stored_in, entry.text, entry.goes_to(), entry.original()]
                entry.gone = True
                if revive(args=arguments):
                    done.append(entry.letter)
        return done

    def purge(self, ids: Collection[str] | None) -> Sequence[DeadLetter]:
        """Delete letters for good and return them."""
        done: builtins.list[DeadLetter] = []
        for entry in self._entries():
            if ids is None or entry.letter.id in ids:
                entry.gone = True
                if self._connected().lrem(entry.stored_in, -1, entry.text):
                    done.append(entry.letter)
        return done

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.connection_pool.disconnect()

    def _entries(self) -> Iterator[_Entry]:
        """Yield what each list held when it was begun: what is requeued may come back at once."""
        for queue in self._queues:
            stored_in = dead_queue(queue)
            left, kept = self._connected().llen(stored_in), 0
            while left > 0:
                number = min(left, PAGE)
                page = self._connected().lrange(stored_in, -kept - number, -kept - 1)
                if not page:
                    break
                entries = [_read(text, stored_in, queue) for text in reversed(page)]
                yield from entries
                left -= number
                kept += sum(not entry.gone for entry in entries)

    def _connected(self) -> Any:
        if self._client is None:
            self._client = self._make_client()
        return self._client


def _read(text: bytes, stored_in: str, queue: str) -> _Entry:
    """Return an item of the list; one that is no envelope was put there by somebody else."""
    readable = text.decode(errors="surrogateescape")
    try:
        envelope = json.loads(readable)
        envelope["headers"] = dict(envelope["headers"])
    except (ValueError, TypeError, KeyError, RecursionError):
        envelope = {"body": readable, "headers": {RAW_HEADER: True}}
    letter = read_letter(envelope["headers"], _body(envelope), queue=queue)
    return _Entry(stored_in=stored_in, text=text, envelope=envelope, letter=letter)


def _body(envelope: dict[str, Any]) -> bytes:
    """Return what the message carries: Celery sends it as base64."""
    body, properties = envelope.get("body"), envelope.get("properties")
    text = body if isinstance(body, str) else json.dumps(body)
    if isinstance(properties, dict) and properties.get("body_encoding") == "base64":
        try:
            return base64.b64decode(text)
        except ValueError:
            pass
    return _encoded(text)


def _encoded(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")  # bytes that were no UTF-8
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")  # JSON can name half a character
