"""The ancestor's command line, read into settings of this worker.

A manifest of the ancestor moves over by its module name alone. What its flags,
its file and its environment say becomes one layer of settings that stands
where a configuration file would: this worker's own flags and ``FORWARDER_*``
variables win over it.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote

from forwarder import settings
from forwarder.settings import Resolved, SettingsError
from forwarder.settings.resolving import given_fields

#: Name of --task-visibility to the broker database and the visibility timeout of
#: the ancestor's workers on it in seconds.
VISIBILITIES: Mapping[str, tuple[int, int]] = {
    "VISIBILITY_1H": (0, 3600),
    "VISIBILITY_10M": (1, 600),
    "VISIBILITY_1M": (2, 60),
    "VISIBILITY_24H": (3, 86400),
}
_RESULT_DATABASE = 1
_BROKERS = ("redis", "sqs")
_BACKENDS = ("redis", "s3")
_PORT_MAX = 65535

#: The source of what the ancestor assumed without being told.
_UNSAID = "the ancestor's default"

_STRING_RESULTS = "SERIALIZE_RESULTS_AS_STRING"

#: What the ancestor assumed for a key that its file leaves out.
_DEFAULTS: Mapping[str, Any] = {
    "user_port": 5005,
    "user_hostname": "localhost",
    "predict_route": "/predict",
    "healthcheck_route": "/readyz",
    "model_engine_unwrap": True,
    "serialize_results_as_string": True,
    "wrap_response": True,
    "forward_http_status_in_body": True,
    "use_grpc": False,
    "batch_route": None,
    "forward_http_status": False,
}
_BOOLEANS = {
    "model_engine_unwrap": "unwrap_payload",
    "serialize_results_as_string": "serialize_results_as_string",
    "wrap_response": "wrap_response",
    "forward_http_status_in_body": "status_in_body",
}
#: What the ancestor's worker could do and this one does not.
_OFF = ("use_grpc", "batch_route", "forward_http_status")

#: Field of Settings to the keys that it is made from.
_ORIGINS: Mapping[str, tuple[str, ...]] = {
    "predict_url": ("predict_route", "user_port", "user_hostname"),
    "health_url": ("healthcheck_route", "user_port", "user_hostname"),
    **{name: (key,) for key, name in _BOOLEANS.items()},
}

#: What stands beside ``async`` in the ancestor's file, for its other servers.
_PARTS = ("async", "sync", "stream", "max_concurrency")


@dataclass(frozen=True, slots=True, kw_only=True)
class AncestorFlags:
    """The flags that only the ancestor had, as they were given."""

    assignments: Sequence[str] = ()
    task_visibility: str | None = None
    broker_type: str | None = None
    backend_protocol: str | None = None

    @property
    def used(self) -> bool:
        """Return whether any of the ancestor's own flags was given."""
        return bool(self.assignments or self.task_visibility or self.broker_type or self.backend_protocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """Values by field name, where each came from, and what the operator should hear."""

    values: Mapping[str, object]
    sources: Mapping[str, str]
    warnings: Sequence[str] = ()


def is_ancestor(document: Mapping[str, Any], flags: AncestorFlags) -> bool:
    """Return whether a configuration file, or the flags beside it, are the ancestor's."""
    forwarder = document.get("forwarder")
    return flags.used or (isinstance(forwarder, Mapping) and "async" in forwarder)


def resolve(
    document: Mapping[str, Any],
    ancestor: AncestorFlags,
    flags: Mapping[str, str | Sequence[str]],
    environ: Mapping[str, str],
    *,
    file_name: str,
) -> Resolved:
    """Return the settings of an ancestor's manifest, this worker's own flags and variables on top.

    Raises SettingsError.
    """
    said = read(document, ancestor, environ, file_name=file_name, decided=given_fields(flags, environ))
    resolved = settings.resolve(flags, environ, said.values, file_sources=said.sources)
    return dataclasses.replace(resolved, warnings=(*said.warnings, *resolved.warnings))


def read(
    document: Mapping[str, Any],
    flags: AncestorFlags,
    environ: Mapping[str, str],
    *,
    file_name: str,
    decided: Collection[str] = (),
) -> Ancestor:
    """Return the settings that the ancestor's file, flags and environment amount to.

    ``document`` is the parsed file, {} without one; ``file_name`` is shown as
    its source. ``decided`` holds the fields that this worker's own flags and
    variables give anyway: what they make needless (``REDIS_HOST``, say) is not
    asked for. Raises SettingsError for whatever the ancestor or this worker
    can't work with.
    """
    document, assigned = _assign(document, flags.assignments)
    forwarder = document.get("forwarder") or {}
    if not isinstance(forwarder, Mapping):
        raise SettingsError("forwarder in the configuration file", _text(forwarder), "a mapping with async")
    given = forwarder.get("async") or {}
    if not isinstance(given, Mapping):
        raise SettingsError("forwarder.async in the configuration file", _text(given), "a mapping")
    values, sources = _inference(given, environ, assigned, file_name)
    broker = _one_of(
        "--broker-type", flags.broker_type or ("sqs" if "sqs_url" in decided else "redis"), _BROKERS
    )
    visibility = _one_of("--task-visibility", flags.task_visibility or "VISIBILITY_24H", VISIBILITIES)
    database, stock_visibility_timeout_s = VISIBILITIES[visibility]
    services, service_sources = _services(flags, environ, broker, database, decided)
    # Not this worker's own timeout: it renews its leases, and can take over its dead soon.
    values["stock_visibility_timeout_s"] = stock_visibility_timeout_s
    sources["stock_visibility_timeout_s"] = "flag --task-visibility" if flags.task_visibility else _UNSAID
    return Ancestor(
        values={**values, **services},
        sources={**sources, **service_sources},
        warnings=_ignored(document, forwarder),
    )


def _ignored(document: Mapping[str, Any], forwarder: Mapping[str, Any]) -> list[str]:
    """Return a warning for each key that no part of the ancestor reads."""
    keys = [str(key) for key in document if key != "forwarder"]
    keys += [f"forwarder.{key}" for key in forwarder if key not in _PARTS]
    return [f"{key} in the configuration file is ignored" for key in keys]


def _assign(document: Mapping[str, Any], assignments: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """Return a copy of the document with every ``--set`` applied, and the paths that were set."""
    copied: dict[str, Any] = json.loads(json.dumps(document, default=str))
    paths = set()
    for assignment in assignments:
        path, _, text = assignment.partition("=")
        *parents, last = path.split(".")
        if assignment.count("=") != 1 or not all([*parents, last]):
            raise SettingsError("--set", assignment, "PATH=VALUE with one '=', the path from the file's root")
        node = copied
        for parent in parents:
            below = node.setdefault(parent, {})
            if below is None:
                below = node[parent] = {}
            if not isinstance(below, dict):
                raise SettingsError("--set", assignment, f"a path through mappings, {parent} is none")
            node = below
        node[last] = _scalar(text)
        paths.add(path)
    return copied, paths


def _scalar(text: str) -> Any:
    """Return the value of one ``--set``: digits, literal lists, YAML's true, false and null, else text."""
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    if text.startswith("[") and text.endswith("]"):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise SettingsError("--set", text, "a literal list such as [1, 2]") from None
    return {"true": True, "false": False, "null": None, "~": None, "": None}.get(text.lower(), text)


def _inference(
    given: Mapping[str, Any], environ: Mapping[str, str], assigned: set[str], file_name: str
) -> tuple[dict[str, object], dict[str, str]]:
    for key in given:
        if key not in _DEFAULTS:
            near = get_close_matches(str(key), _DEFAULTS, n=1)
            raise SettingsError(
                "forwarder.async in the configuration file",
                str(key),
                f"did you mean {near[0]}?" if near else ", ".join(_DEFAULTS),
            )
    options = {key: given.get(key, default) for key, default in _DEFAULTS.items()}
    for key in _OFF:
        if options[key] not in (False, None):
            raise _refused(key, options[key], "false or null: this worker has no such mode")
    base = f"http://{_host(options['user_hostname'])}:{_port(options['user_port'])}"
    values: dict[str, object] = {
        "predict_url": base + _route("predict_route", options["predict_route"]),
        "health_url": base + _route("healthcheck_route", options["healthcheck_route"]),
    }
    for key, name in _BOOLEANS.items():
        if not isinstance(options[key], bool):
            raise _refused(key, options[key], "true or false")
        values[name] = options[key]
    sources = {name: _source(keys, given, assigned, file_name) for name, keys in _ORIGINS.items()}
    if environ.get(_STRING_RESULTS):
        values["serialize_results_as_string"] = environ[_STRING_RESULTS]
        sources["serialize_results_as_string"] = f"environment {_STRING_RESULTS}"
    return values, sources


def _source(keys: Sequence[str], given: Mapping[str, Any], assigned: set[str], file_name: str) -> str:
    if any(f"forwarder.async.{key}" in assigned for key in keys):
        return "flag --set"
    return f"file {file_name}" if any(key in given for key in keys) else _UNSAID


def _services(
    flags: AncestorFlags, environ: Mapping[str, str], broker: str, database: int, decided: Collection[str]
) -> tuple[dict[str, object], dict[str, str]]:
    """Return broker and results, with their sources."""
    backend = _one_of("--backend-protocol", flags.backend_protocol or "s3", _BACKENDS)
    redis = f"environment {'USE_REDIS_LOCALHOST' if _localhost(environ) else 'REDIS_HOST'}"
    values: dict[str, object] = {"track_started": True}  # the ancestor's task stored the state STARTED
    sources = {"track_started": _UNSAID}
    if "broker_url" not in decided:
        values["broker_url"] = "sqs://" if broker == "sqs" else _redis_url(environ, database)
        sources["broker_url"] = "flag --broker-type" if broker == "sqs" else redis
    if "result_backend" not in decided:
        in_s3 = backend == "s3"
        values["result_backend"] = _bucket_url(environ) if in_s3 else _redis_url(environ, _RESULT_DATABASE)
        sources["result_backend"] = "environment S3_BUCKET" if in_s3 else redis
    return values, sources


def _redis_url(environ: Mapping[str, str], database: int) -> str:
    if _localhost(environ):
        return f"redis://127.0.0.1:6379/{database}"
    host = environ.get("REDIS_HOST")
    if not host:
        raise SettingsError("REDIS_HOST", "", "the host of Redis, or USE_REDIS_LOCALHOST=1")
    port = environ.get("REDIS_PORT") or "6379"
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= _PORT_MAX):
        raise SettingsError("REDIS_PORT", port, "a port from 1 to 65535")
    token = environ.get("REDIS_AUTH_TOKEN")
    if token:
        return f"rediss://:{quote(token, safe='')}@{host}:{port}/{database}?ssl_cert_reqs=required"
    return f"redis://{host}:{port}/{database}"


def _localhost(environ: Mapping[str, str]) -> bool:
    return environ.get("USE_REDIS_LOCALHOST") == "1"


def _bucket_url(environ: Mapping[str, str]) -> str:
    bucket = environ.get("S3_BUCKET")
    if not bucket:
        raise SettingsError("S3_BUCKET", "", "the bucket for results, or --backend-protocol redis")
    return f"s3://{bucket}/tmp/celery/"  # noqa: S108 - a key in a bucket, not a path on this machine


def _one_of(flag: str, value: str, names: Mapping[str, Any] | Sequence[str]) -> str:
    if value not in names:
        raise SettingsError(flag, value, " or ".join(names))
    return value


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _PORT_MAX:
        raise _refused("user_port", value, "a port from 1 to 65535")
    return value


def _host(value: Any) -> str:
    if not isinstance(value, str) or not value or set(value) & set(" /@?#"):
        raise _refused("user_hostname", value, "the name or address of a host")
    return value


def _route(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise _refused(key, value, "a path that starts with /")
    return value


def _refused(key: str, value: Any, accepted: str) -> SettingsError:
    return SettingsError(f"forwarder.async.{key} (--set or --config)", _text(value), accepted)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
