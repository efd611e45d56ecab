"""A connection to the inference server, without a look-up where none is needed."""

from __future__ import annotations

import contextlib
import socket

from forwarder.lookups import is_address

#: What "localhost" always is: RFC 6761, section 6.3; in the order of RFC 6724, section 2.1.
LOCALHOST = ("::1", "127.0.0.1")


def connect(host: str, port: int, timeout_s: float) -> socket.socket:
    """Return a connected socket; an address and "localhost" are not looked up.

    Under gevent look-ups share a few threads, and ``socket.create_connection`` looks up even an
    address: names of others that hang would keep the worker from its own server. Blocks for the
    timeout at each of the host's addresses, and for the look-up of a name. Raises OSError.
    """
    if host == "localhost":
        *others, last = LOCALHOST
        for address in others:
            with contextlib.suppress(OSError):
                return _connect(address, port, timeout_s)
        return _connect(last, port, timeout_s)
    if is_address(host):
        return _connect(host, port, timeout_s)
    return socket.create_connection((host, port), timeout_s)


def _connect(address: str, port: int, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect((address, port))
    except BaseException:  # a killed greenlet too
        sock.close()
        raise
    return sock
