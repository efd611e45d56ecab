"""Which pool the worker uses, the gevent patch, and the check that both agree.

The pool must be known before anything that opens sockets is imported, so this
module uses the standard library only and looks at the command line, the
environment and the configuration file by itself. ``forwarder.settings`` reads
the same three places again and comes to the same answer.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

POOLS = ("prefork", "gevent")
ENVIRONMENT_NAME = "CELERY_WORKER_POOL"

#: Sub-commands that run no tasks, so they need no patch.
UNPATCHED_COMMANDS = frozenset({"demo", "check", "tune", "loadtest", "submit", "result", "dead"})

#: Users of sockets, ssl and threads: imported before the patch they keep the
#: blocking versions for good, and greenlets then stop the whole worker.
SOCKET_USERS = ("celery", "kombu", "amqp", "redis", "boto3", "botocore", "urllib3", "requests")

#: What a gevent worker needs patched.
PATCHED_MODULES = ("socket", "ssl", "select", "threading", "time", "queue")


class PoolError(Exception):
    """The pool can't be used as asked; the message is one line for the operator."""


def choose(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the pool's name: flag, then environment, then ``--config`` file, then prefork.

    Raises PoolError for a pool that is neither ``prefork`` nor ``gevent``.
    """
    name = _option(argv, "--pool") or environ.get(ENVIRONMENT_NAME)
    if not name:
        config = _option(argv, "--config") or environ.get("FORWARDER_CONFIG")
        name = _pool_in_file(Path(config)) if config else None
    name = name or "prefork"
    if name not in POOLS:
        raise PoolError(f"--pool ({ENVIRONMENT_NAME}): {name!r} is not a pool; accepted: prefork or gevent")
    return name


def prepare(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """Patch the standard library if this process will run a gevent worker; return the pool.

    Called first thing in ``__main__``. Raises PoolError for an unknown pool or
    when it is too late to patch.
    """
    if argv and argv[0] in UNPATCHED_COMMANDS:
        return "prefork"
    pool = choose(argv, environ)
    if pool == "gevent":
        too_early = [name for name in SOCKET_USERS if name in sys.modules]
        if too_early:
            raise PoolError(
                f"gevent pool: {', '.join(too_early)} imported before the patch; "
                "start the worker with `python -m forwarder` or `ddtrace-run python -m forwarder`"
            )
        from gevent import monkey

        monkey.patch_all()
    return pool


def verify(pool: str) -> None:
    """Check at boot that what is patched is what the pool needs.

    Raises PoolError: an unpatched gevent worker runs no task and ignores
    SIGTERM (celery#8168), a patched prefork worker deadlocks in its children.
    """
    monkey = sys.modules.get("gevent.monkey")
    patched = [name for name in PATCHED_MODULES if monkey is not None and monkey.is_module_patched(name)]
    if pool == "gevent" and len(patched) < len(PATCHED_MODULES):
        missing = [name for name in PATCHED_MODULES if name not in patched]
        raise PoolError(f"gevent pool: {', '.join(missing)} not patched; start with `python -m forwarder`")
    if pool == "prefork" and patched:
        raise PoolError(
            f"prefork pool: {', '.join(patched)} patched by gevent; "
            f"set {ENVIRONMENT_NAME}=gevent or do not patch before starting"
        )


def _option(argv: Sequence[str], flag: str) -> str | None:
    """Return the last value of ``flag`` in argv, as click would."""
    value = None
    for position, word in enumerate(argv):
        if word == flag and position + 1 < len(argv):
            value = argv[position + 1]
        elif word.startswith(flag + "="):
            value = word.partition("=")[2]
    return value


def _pool_in_file(path: Path) -> str | None:
    """Return the file's ``pool`` key, if the file can be read; settings report what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            import tomllib

            content: object = tomllib.loads(text)
        else:
            import yaml  # JSON is YAML

            content = yaml.safe_load(text)
    except Exception:  # noqa: BLE001 - unreadable or malformed: resolving the settings says why
        return None
    if not isinstance(content, dict) or "forwarder" in content:  # the ancestor's file has no pool
        return None
    pool = content.get("pool")
    return pool if isinstance(pool, str) else None
