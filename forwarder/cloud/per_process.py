"""A value that every process makes for itself: connections must not cross a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerProcess(Generic[T]):
    """Makes a value at its first use in a process, and anew in a process forked later.

    Safe to call from any number of greenlets or threads: one of them makes the
    value, the others wait for it. If ``make`` raises, nothing is kept and the
    next call tries again. Meant for a handful of objects that live as long as
    the program: the interpreter keeps each one's fork hook until it exits.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._forget()
        # A hook rather than a comparison of process ids: the lock has to be
        # replaced too, because another thread may hold it at the moment of the fork.
        os.register_at_fork(after_in_child=self._forget)

    def get(self) -> T:
        """Return this process's value. Blocks while it is being made."""
        if not self._values:
            with self._lock:
                if not self._values:
                    self._values.append(self._make())
        return self._values[0]

    def if_made(self, use: Callable[[T], None]) -> None:
        """Call ``use`` with this process's value, if it has been made."""
        for value in self._values:
            use(value)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._values: list[T] = []  # empty or one: None is a value like any other
