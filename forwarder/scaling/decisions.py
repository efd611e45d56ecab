"""Whether the prefork pool grows, holds or shrinks: pure decisions, made from what is seen at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal["grow", "hold", "block", "shrink"]

#: Part of ``low`` that a step may fill after which more would fit. From ``low`` on no step
#: begins, so one that ended just above it would leave the pool there.
LANDING = 0.9

#: Part of a child's measured size by which it is over the cap. What grows a little may stay: the
#: cap is for growing, and the memory that is used tells better how many there may be.
STAYING = 0.9


@dataclass(frozen=True, slots=True)
class Rule:
    """The operator's bounds: of the size, in children, and of memory, in parts of the limit."""

    maximum: int
    minimum: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class View:
    """What is seen at one moment.

    ``size`` is the pool's, in children, ``shown`` how many of them have ended a task, so
    that their size is known. ``child_bytes`` is what one child may need, ``child_now_bytes``
    what the largest has now. ``full`` tells
    whether every child was busy since the last decision, ``calm`` whether two or more have
    been idle for long.
    """

    size: int
    shown: int
    child_bytes: int
    child_now_bytes: int
    used_bytes: int
    limit_bytes: int
    full: bool
    calm: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do and why; ``target`` is the size that the pool is to have, in children."""

    action: Action
    target: int
    reason: str


def hard_cap(*, limit_bytes: int, high: float, child_bytes: int) -> int:
    """Return how many children of a size fit, whatever else is seen; one is left out for the parent."""
    return int(limit_bytes * high / max(1, child_bytes)) - 1


def decide(rule: Rule, view: View) -> Decision:
    """Return the next step.

    Memory comes first: what is above ``high`` or above the cap goes, by one. Then demand:
    a pool with idle children doesn't grow. Then the room: from ``low`` on no step begins,
    and no step is larger than what is known about the children allows.
    """
    cap = hard_cap(limit_bytes=view.limit_bytes, high=rule.high, child_bytes=view.child_bytes)
    ceiling = max(rule.minimum, min(rule.maximum, cap))
    too_many = view.size > rule.minimum and _too_many(rule, view)
    if too_many:
        return Decision("shrink", view.size - 1, too_many)
    if view.size < rule.minimum:
        return Decision("grow", rule.minimum, "minimum")
    if not view.full:
        return Decision("hold", view.size, "idle_children")
    if view.size >= ceiling:
        return Decision("block", view.size, "maximum" if rule.maximum <= cap else "cap")
    return _grow(rule, view, ceiling)


def _too_many(rule: Rule, view: View) -> str | None:
    """Return why one child should go, None where all may stay."""
    if view.used_bytes > rule.high * view.limit_bytes:
        return "memory_above_high"
    if view.size > rule.maximum:
        return "maximum"
    # By what they have now: a large task that is over is a reason not to grow, and none to shrink.
    child_bytes = int(view.child_now_bytes * STAYING)
    if view.size > hard_cap(limit_bytes=view.limit_bytes, high=rule.high, child_bytes=child_bytes):
        return "cap"
    return "idle_children" if view.calm else None


def _grow(rule: Rule, view: View, ceiling: int) -> Decision:
    """Return a step up, or why there is none."""
    if view.used_bytes >= rule.low * view.limit_bytes:
        above_high = view.used_bytes > rule.high * view.limit_bytes
        return Decision("block" if above_high else "hold", view.size, "memory_above_low")
    unknown = view.size - view.shown
    missing = ceiling - view.size
    allowed = min(missing, view.shown - unknown)
    fitting = min(missing, _room(view, rule.high))
    step = min(allowed, fitting)
    # A room that counts children of unknown size twice, as used and as still to grow, no step fills.
    if step < missing and (unknown or step < fitting):
        landing = _room(view, rule.low * LANDING)
        step = min(step, landing if unknown else max(1, landing))
    if allowed < 1 or (unknown and step < allowed):  # where memory decides, all sizes must be known
        return Decision("hold", view.size, "sizes_unknown")
    if step < 1:
        return Decision("block", view.size, "no_room")
    return Decision("grow", view.size + step, "demand")


def _room(view: View, part: float) -> int:
    """Return how many more children fit below a part of the limit, less those that may still grow."""
    fitting = (view.limit_bytes * part - view.used_bytes) / max(1, view.child_bytes)
    return int(fitting) - (view.size - view.shown)
