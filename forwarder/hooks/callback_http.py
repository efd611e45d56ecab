"""Sends callbacks to an address that was checked before, whatever the name resolves to by then."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from forwarder.hooks.callback_target import Target

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 10.0

#: Status line and headers are whole by then, or the connection is cut. The read timeout
#: alone starts anew with every byte, so an answer that trickles would never end.
HEADERS_TIMEOUT_S = 15.0

#: Nobody needs an answer's body. What is read keeps the connection alive, no more.
BODY_BYTES_MAX = 64 * 1024
BODY_TIMEOUT_S = 5.0

#: Receivers with connections kept open, the longest unused ones close first.
RECEIVERS_MAX = 32


@dataclass(frozen=True, slots=True)
class Reply:
    """What a receiver answered: the status and the text of its Retry-After header."""

    status: int
    retry_after: str | None = None


class CallbackPoster:
    """Posts to addresses over kept-alive connections, verified against the URL's host name.

    Follows no redirect and reads no proxy variables. Certificates are checked
    with the system's authorities. Safe to share between greenlets or threads;
    ``connections_max`` bounds the idle connections to one receiver.
    """

    def __init__(self, *, connections_max: int) -> None:
        self._pools = urllib3.PoolManager(
            num_pools=RECEIVERS_MAX,
            maxsize=connections_max,
            ssl_context=ssl.create_default_context(),  # one for all: it takes milliseconds to make
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        )
        self._pools.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def post(self, target: Target, *, address: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one request to ``address`` in the name of the target's host.

        Blocks for at most the sum of the timeouts above. Raises urllib3's
        HTTPError when no answer came.
        """
        pool = self._pools.connection_from_host(
            address,
            target.port,
            target.scheme,
            pool_kwargs={"server_hostname": target.host} if target.scheme == "https" else None,
        )
        response = pool.urlopen(
            "POST",
            target.path,
            body=body,
            headers={**headers, "host": target.host_header},
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
        )
        _read_little(response)
        return Reply(response.status, response.headers.get("retry-after"))

    def close(self) -> None:
        """Close the idle connections."""
        self._pools.clear()


class _CutOff(HTTPConnection):
    """Cuts the connection when an answer's headers take too long."""

    _was_cut = False

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        self._was_cut = False
        timer = threading.Timer(HEADERS_TIMEOUT_S, self._cut)
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
        finally:
            timer.cancel()
        if self._was_cut:
            response.close()  # to http.client the cut looked like the end of the headers
            raise TimeoutError("the answer's headers took too long")
        return response

    def _cut(self) -> None:
        self._was_cut = True
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


class _TLSCutOff(_CutOff, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _CutOff


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSCutOff


def _read_little(response: urllib3.BaseHTTPResponse) -> None:
    """Read a short body to its end, so that the connection can be used again; close on a long one."""
    give_up_at = time.monotonic() + BODY_TIMEOUT_S
    left = BODY_BYTES_MAX
    # The status is known, which is all that counts: a body that breaks off is no failure.
    with contextlib.suppress(urllib3.exceptions.HTTPError):
        while left > 0 and time.monotonic() < give_up_at:
            chunk = response.read1(left, decode_content=False)
            if not chunk:
                break
            left -= len(chunk)
    response.close()  # at its end a body has given its connection back; otherwise this ends it
