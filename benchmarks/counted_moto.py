"""moto's server, counting what it is asked, and keeping connections as AWS does.

    python -m benchmarks.counted_moto --port N

``GET /counts`` answers with the number of calls by service and operation, and begins anew.
Calls of clients that say ``bench`` in their user agent are not counted.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

# ruff: noqa: E402 - first the patch
import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from gevent.pywsgi import WSGIServer
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

#: What botocore names the operation by, and S3 does not.
TARGET = "HTTP_X_AMZ_TARGET"

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Counting:
    """A WSGI application in front of another."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._counts: Counter[str] = Counter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Count a request and pass it on."""
        if environ["PATH_INFO"] == "/counts":
            counts, self._counts = self._counts, Counter()
            body = json.dumps(counts).encode()
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        if "bench" not in environ.get("HTTP_USER_AGENT", ""):
            self._counts[operation(environ)] += 1
        return self._app(environ, start_response)


def operation(environ: dict[str, Any]) -> str:
    """Return a request's service and operation."""
    target = environ.get(TARGET)
    if target:  # "Firehose_20150804.PutRecord"
        service, _, name = target.partition(".")
        return f"{service.partition('_')[0].removeprefix('Amazon')} {name}"
    return f"S3 {environ['REQUEST_METHOD']}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve AWS's protocols and count the calls.")
    parser.add_argument("--port", type=int, required=True)
    app = Counting(DomainDispatcherApplication(create_backend_app))
    # moto's own server closes every connection.
    WSGIServer(("127.0.0.1", parser.parse_args().port), app, log=None).serve_forever()
