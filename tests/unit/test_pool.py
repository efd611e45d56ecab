"""Choosing the pool before anything is imported: pure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forwarder import pool
from forwarder.settings import resolve


@pytest.mark.parametrize(
    ("argv", "environ", "chosen"),
    [
        ([], {}, "prefork"),
        ([], {"CELERY_WORKER_POOL": "gevent"}, "gevent"),
        ([], {"CELERY_WORKER_POOL": ""}, "prefork"),
        (["run", "--pool", "gevent"], {}, "gevent"),
        (["--pool=gevent"], {"CELERY_WORKER_POOL": "prefork"}, "gevent"),
        (["--pool", "gevent", "--pool", "prefork"], {}, "prefork"),
        (["--config", "/no/such/file"], {}, "prefork"),
    ],
)
def test_the_pool_is_the_flags_then_the_environments(
    argv: list[str], environ: dict[str, str], chosen: str
) -> None:
    assert pool.choose(argv, environ) == chosen


@pytest.mark.parametrize(
    ("name", "text", "chosen"),
    [
        ("c.yaml", "pool: gevent", "gevent"),
        ("c.toml", 'pool = "gevent"', "gevent"),
        ("c.json", '{"pool": "gevent"}', "gevent"),
        ("c.yaml", "forwarder: {async: {user_port: 5005}}", "prefork"),
        ("c.yaml", "{pool: gevent, forwarder: {async: {}}}", "prefork"),
        ("c.yaml", "pool: [", "prefork"),  # resolving the settings says what is wrong
        ("c.yaml", "- pool", "prefork"),
        ("c.yaml", "pool: 5", "prefork"),
    ],
)
def test_the_pool_is_read_from_the_file_when_nothing_goes_before_it(
    tmp_path: Path, name: str, text: str, chosen: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert pool.choose(["--config", str(path)], {}) == chosen
    assert pool.choose([], {"FORWARDER_CONFIG": str(path)}) == chosen
    assert pool.choose(["--config", str(path)], {"CELERY_WORKER_POOL": "prefork"}) == "prefork"


@pytest.mark.parametrize("name", ["eventlet", "solo", "threads", "Gevent", "gevent "])
def test_another_pool_is_refused_with_what_is_accepted(name: str) -> None:
    with pytest.raises(pool.PoolError, match="accepted: prefork or gevent"):
        pool.choose([], {"CELERY_WORKER_POOL": name})


def test_commands_that_run_no_tasks_are_not_patched() -> None:
    for command in pool.UNPATCHED_COMMANDS:
        assert pool.prepare([command], {"CELERY_WORKER_POOL": "gevent"}) == "prefork"


@pytest.mark.parametrize("flag", [None, "prefork", "gevent"])
@pytest.mark.parametrize("environment", [None, "", "prefork", "gevent"])
@pytest.mark.parametrize("in_file", [None, "prefork", "gevent"])
def test_the_settings_come_to_the_same_pool(
    tmp_path: Path, flag: str | None, environment: str | None, in_file: str | None
) -> None:
    """The pool is read twice, before and after the imports; the two must not disagree."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"pool": in_file} if in_file else {}))
    argv = ["--config", str(path), *(["--pool", flag] if flag else [])]
    environ = {} if environment is None else {"CELERY_WORKER_POOL": environment}
    resolved = resolve({"pool": flag} if flag else {}, environ, json.loads(path.read_text()))
    assert resolved.settings.pool == pool.choose(argv, environ)
