"""Whether the inference server is ready, and the wait for it before consuming."""

from __future__ import annotations

import http.client
import logging
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from forwarder.inference.connecting import connect

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 1.0
SAY_EVERY_S = 15.0


def probe(url: str, *, timeout_s: float = 2.0) -> str | None:
    """GET the health URL once; return None when it answers 2xx, else why it is not ready.

    Blocks for at most about the timeout, beside the look-up of a name. Never raises.
    """
    parts = urlsplit(url)
    host, path = parts.hostname or "", parts.path or "/"
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.sock = connect(host, port, timeout_s)
        if tls is not None:
            connection.sock = tls.wrap_socket(connection.sock, server_hostname=host)
        connection.request("GET", path + (f"?{parts.query}" if parts.query else ""))
        status = connection.getresponse().status
    except OSError as error:
        return f"no answer ({type(error).__name__})"
    except http.client.HTTPException:
        return "the answer is not HTTP"
    finally:
        connection.close()
    return None if 200 <= status < 300 else f"HTTP {status}"


def wait_until_ready(
    check: Callable[[], str | None],
    *,
    url: str,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Block until ``check`` returns None, saying so at once and then every 15 s.

    There is no bound: a model may load for an hour, and a worker without its
    server has nothing else to do. Whoever waits too long stops the process.
    """
    started = monotonic()
    said: float | None = None
    while (reason := check()) is not None:
        now = monotonic()
        if said is None or now - said >= SAY_EVERY_S:
            said = now
            log.info("inference_wait url=%s reason=%r waited_s=%.0f", url, reason, now - started)
        sleep(POLL_INTERVAL_S)
    log.info("inference_ready url=%s waited_s=%.1f", url, monotonic() - started)
