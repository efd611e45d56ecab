"""Threads and sockets of the system's own, also where gevent has patched the standard library.

What must answer while gevent's hub is stuck can't be a greenlet of that hub.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def unpatched(module: str, name: str) -> Any:
    """Return what the standard library itself has under a name."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(importlib.import_module(module), name)
    return monkey.get_original(module, name)


def start_native(work: Callable[[], None]) -> None:
    """Run it in a thread of the system's own, which keeps no process alive. Raises RuntimeError without one.

    What blocks in it by a patched part of the standard library does so on a hub
    of that thread's own, beside the worker's.
    """
    unpatched("_thread", "start_new_thread")(work, ())
