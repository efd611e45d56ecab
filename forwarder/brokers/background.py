"""Work that must not hold up Celery's loop."""

from __future__ import annotations

import threading
from collections.abc import Callable


def in_background(work: Callable[[], None]) -> None:
    """Run it in a thread, under gevent's patch a greenlet, that does not keep the process alive."""
    threading.Thread(target=work, name="forwarder-background", daemon=True).start()
