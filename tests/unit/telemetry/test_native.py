"""What the HTTP server has from the standard library past gevent's patch."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

from forwarder.telemetry.native import start_native, unpatched

PATCHED = """
from gevent import monkey
monkey.patch_all()
import _thread, time, gevent
from forwarder.telemetry.native import start_native, unpatched
assert time.sleep is not unpatched("time", "sleep")
main, seen, sleep = unpatched("_thread", "get_ident")(), [], unpatched("time", "sleep")
start_native(lambda: seen.append(unpatched("_thread", "get_ident")()))
while not seen:
    sleep(0.001)  # no greenlet could run meanwhile
assert seen != [main]
"""


def test_the_private_accept_of_sockets_is_there() -> None:
    """The public one makes a socket of whatever class the module has by then."""
    assert callable(socket.socket._accept)  # type: ignore[attr-defined]


def test_without_a_patch_it_is_the_modules_own() -> None:
    assert unpatched("threading", "Thread") is threading.Thread


def test_a_native_thread_runs_beside_its_starter() -> None:
    ran = threading.Event()
    start_native(ran.set)
    assert ran.wait(10)


def test_under_gevents_patch_it_runs_while_no_greenlet_can() -> None:
    subprocess.run([sys.executable, "-c", PATCHED], check=True, timeout=60)
