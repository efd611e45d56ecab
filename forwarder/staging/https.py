"""Objects behind ``https://``: only from hosts that the operator has named.

The address is resolved once, checked, and connected to; redirects are not
followed and proxy variables not read. So a sender of tasks can make the worker
talk to nobody else. URLs are never shown: a presigned one is a credential.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException

from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, parse_url

from forwarder.forwarding.errors import InputUnavailable, InvalidPayload, is_shortage
from forwarder.lookups import Lookups

PORT = 443
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0

#: Status line and headers are whole by then, or the connection is cut: the read timeout alone
#: starts anew with every byte.
HEADERS_TIMEOUT_S = 30.0

#: Answers after which another try may help.
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpsSource:
    """Opens ``https://`` URLs whose host and address ``permits`` lets through.

    ``tls`` verifies the certificate against the URL's host name. Each object has
    a connection of its own. Safe to share between greenlets or threads.
    """

    def __init__(
        self,
        *,
        permits: Callable[[str, str], bool],
        tls: ssl.SSLContext,
        resolve: Callable[[str, int], Sequence[str]] | None = None,
    ) -> None:
        self._permits = permits
        self._tls = tls
        self._resolve = resolve or Lookups()

    def open(self, url: str, *, after_bytes: int = 0, tag: str | None = None) -> HttpsObject:
        """Open the object behind its first so many bytes, and only the version that has the tag.

        Blocks until the server has answered. Raises InvalidPayload for a URL that
        can't be used or is not allowed, InputUnavailable for any answer but the object.
        """
        parts = _parse(url)
        host, port = (parts.host or "").strip("[]"), parts.port or PORT
        connection = HTTPSConnection(
            self._address(host, port),
            port,
            timeout=CONNECT_TIMEOUT_S,
            ssl_context=self._tls,
            server_hostname=host,
        )
        headers = {"Host": parts.netloc or "", "User-Agent": "forwarder", "Accept-Encoding": "identity"}
        if tag is not None:
            headers["If-Match"] = tag
        if after_bytes:
            headers["Range"] = f"bytes={after_bytes}-"
        try:
            with _translated(), _cut_off(connection):
                connection.request(
                    "GET", parts.request_uri, headers=headers, preload_content=False, decode_content=False
                )
                connection.timeout = READ_TIMEOUT_S
                answer = connection.getresponse()
            _check(answer, after_bytes)
        except BaseException:
            connection.close()
            raise
        return HttpsObject(connection, answer)

    def _address(self, host: str, port: int) -> str:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError):
            raise InputUnavailable("the host that 'url' names was not found", again=True) from None
        for address in addresses:
            if self._permits(host, address):
                return address
        raise InvalidPayload("the host that 'url' names is not allowed here, or its address is not public")


class HttpsObject:
    """An object that is being read."""

    def __init__(self, connection: HTTPSConnection, answer: BaseHTTPResponse) -> None:
        self._connection = connection
        self._answer = answer
        length = answer.headers.get("content-length", "")
        self.size_bytes = int(length) if length.isascii() and length.isdigit() else None
        tag = answer.headers.get("etag", "")
        # A weak one (W/"…") stays the same when bytes change: RFC 9110, section 8.8.1.
        self.tag = tag if tag.startswith('"') else None

    def read(self, bytes_max: int) -> bytes:
        """Return the next bytes, none at the end. Blocks. Raises InputUnavailable where it broke off."""
        with _translated():
            return self._answer.read1(bytes_max, decode_content=False)

    def close(self) -> None:
        """Close the connection. Never raises."""
        with contextlib.suppress(Exception):
            self._answer.close()
        self._connection.close()


def _parse(url: str) -> Url:
    try:
        parts = parse_url(url)
    except LocationParseError:
        parts = None
    if parts is None or parts.scheme != "https" or not parts.host:
        raise InvalidPayload("payload key 'url' is not an https URL with a host")
    if parts.auth is not None:
        raise InvalidPayload("payload key 'url' holds a user or a password, which are never sent")
    return parts


def _check(answer: BaseHTTPResponse, after_bytes: int) -> None:
    """Raise InputUnavailable for an answer that is not the wanted part of the object."""
    expected = 206 if after_bytes else 200
    if answer.status != expected:
        raise InputUnavailable(
            "the object that 'url' names could not be read",
            f"HTTP {answer.status}",
            again=answer.status in AGAIN,
        )
    if (
        "content-length" not in answer.headers
        and answer.headers.get("transfer-encoding", "").lower() != "chunked"
    ):
        # Ends with its connection: nobody could tell that from one that broke off, in its headers even.
        raise InputUnavailable("the object that 'url' names has no length", again=True)
    if after_bytes and not answer.headers.get("content-range", "").startswith(f"bytes {after_bytes}-"):
        raise InputUnavailable("the object that 'url' names broke off, and its server can't go on")


@contextmanager
def _cut_off(connection: HTTPSConnection) -> Iterator[None]:
    """Cut the connection if the headers of its answer take too long."""

    def cut() -> None:
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(HEADERS_TIMEOUT_S, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (HTTPError, HTTPException, OSError) as error:
        if is_shortage(error):
            raise  # not the task's failure
        # Not chained: urllib3's words hold the address, and sometimes the URL.
        raise InputUnavailable(
            "the object that 'url' names could not be read", type(error).__name__, again=True
        ) from None
