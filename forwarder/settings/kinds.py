"""The kinds of values that settings have: how each is read, and what is accepted in words.

A kind's ``parse`` takes the text of a flag or an environment variable and
returns the typed value; it raises ValueError for anything else.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from forwarder.settings import webhook

Number = TypeVar("Number", int, float)

WEEK_S = 7 * 24 * 3600
YEAR_S = 365 * 24 * 3600

_TRUE = frozenset({"true", "1", "yes"})
_FALSE = frozenset({"false", "0", "no"})
_REDIS_TLS_PARAMETER = "ssl_cert_reqs"


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read (``parse``), what is accepted in words, and its name in ``--help``."""

    parse: Callable[[str], object]
    accepted: str
    metavar: str
    repeatable: bool = False  # the flag may be given more than once
    listed: bool = False  # a file may hold a list


def whole_number(minimum: int, maximum: int) -> Kind:
    """Return the kind of integers from minimum to maximum, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
            raise ValueError
        return _within(int(text), minimum, maximum)

    return Kind(parse, f"a whole number from {minimum} to {maximum}", "N")


def seconds(maximum: int, *, zero: bool = False) -> Kind:
    """Return the kind of durations above zero (or from zero) up to maximum seconds."""

    def parse(text: str) -> float:
        value = float(text)
        if "_" in text or (value == 0 and not zero):
            raise ValueError
        return _within(value, 0.0, maximum)

    return Kind(parse, f"seconds {'from' if zero else 'above'} 0, at most {maximum}", "SECONDS")


def choice(*names: str, any_case: bool = False) -> Kind:
    """Return the kind that accepts exactly these names; ``any_case`` takes lower case too."""

    def parse(text: str) -> str:
        name = text.upper() if any_case else text
        if name not in names:
            raise ValueError
        return name

    return Kind(parse, " or ".join(names), "|".join(names))


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in _TRUE | _FALSE:
        raise ValueError
    return word in _TRUE


def _http_url(text: str) -> str:
    if "@" in _split(text, schemes=("http", "https")).netloc:
        raise ValueError  # user and password would never be sent
    return text


def _broker_url(text: str) -> str:
    if text == "sqs://":
        return text
    parts = _split(text, schemes=("redis", "rediss", "amqp", "amqps"))
    return _redis_url(text, parts) if parts.scheme.startswith("redis") else text


def _result_url(text: str) -> str:
    parts = _split(text, schemes=("redis", "rediss", "s3"))
    if parts.scheme != "s3":
        return _redis_url(text, parts)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", parts.netloc) or parts.query or parts.fragment:
        raise ValueError
    return text


def _redis_url(text: str, parts: SplitResult) -> str:
    if not re.fullmatch(r"/?[0-9]*", parts.path):
        raise ValueError
    if parts.scheme == "rediss" and _REDIS_TLS_PARAMETER not in parts.query:
        # Celery refuses such a URL for results and kombu would connect without
        # TLS: the only safe reading is to require the server's certificate.
        return f"{text}{'&' if parts.query else '?'}{_REDIS_TLS_PARAMETER}=required"
    return text


def _sqs_queue_url(text: str) -> str:
    if _split(text, schemes=("http", "https")).path.strip("/") == "":
        raise ValueError
    return text


def _split(text: str, *, schemes: Iterable[str]) -> SplitResult:
    """Return the URL's parts; ValueError unless scheme, host and port can be used."""
    if re.search(r"[\s\x00-\x1f]", text):
        raise ValueError
    parts = urlsplit(text)
    _ = parts.port  # raises ValueError when it is not a port
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError
    return parts


def _role_arn(text: str) -> str:
    if not re.fullmatch(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}", text, re.ASCII):
        raise ValueError
    return text


def _stream_name(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", text):
        raise ValueError
    return text


def _words(text: str) -> str:
    if not text.strip() or re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError
    return text


def _names(text: str) -> tuple[str, ...]:
    names = _list(text)
    if any(not re.fullmatch(r"[^\s\x00-\x1f\x7f\"'\[\]{}]{1,255}", name) for name in names):
        raise ValueError
    return names


def _hooks(text: str) -> tuple[str, ...]:
    names = _list(text)
    if not set(names) <= {"logging", "callback"}:
        raise ValueError
    return names


def _schemes(text: str) -> tuple[str, ...]:
    names = _list(text)
    if not set(names) <= {"s3", "https"}:
        raise ValueError
    return names


def _folder(text: str) -> str:
    if not text.startswith("/") or re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError
    return text


def _address_patterns(text: str) -> tuple[str, ...]:
    patterns = _list(text)
    for pattern in patterns:
        if "/" in pattern or ":" in pattern:
            ipaddress.ip_network(pattern)
        elif not re.fullmatch(r"[A-Za-z0-9.*_-]{1,253}", pattern):
            raise ValueError
    return patterns


def _list(text: str) -> tuple[str, ...]:
    """Return the items between commas; ValueError for an empty item or one that is there twice."""
    items = tuple(item.strip() for item in text.split(","))
    if not all(items) or len(set(items)) < len(items):
        raise ValueError
    return items


def _autoscale(text: str) -> tuple[int, int]:
    if not re.fullmatch(r"[0-9]{1,5}, ?[0-9]{1,5}", text):
        raise ValueError
    maximum, minimum = (_within(int(number), 1, 10_000) for number in text.split(","))
    if maximum < minimum:
        raise ValueError
    return maximum, minimum


def _labels(text: str) -> Mapping[str, str]:
    labels = json.loads(text)
    if not isinstance(labels, dict) or any(not isinstance(value, str) for value in labels.values()):
        raise ValueError
    return labels


def _webhook_secret(text: str) -> str:
    webhook.signing_key(text)
    return text


def _within(value: Number, minimum: float, maximum: float) -> Number:
    if not minimum <= value <= maximum:
        raise ValueError
    return value


BOOLEAN = Kind(_boolean, "true or false (also 1, 0, yes, no)", "true|false")
HTTP_URL = Kind(_http_url, "an http:// or https:// URL with a host, without user and password", "URL")
BROKER_URL = Kind(
    _broker_url,
    "redis:// or rediss://HOST:PORT/DATABASE, amqp:// or amqps://HOST:PORT/VHOST, or sqs:// alone",
    "URL",
)
RESULT_URL = Kind(
    _result_url,
    "redis:// or rediss://HOST:PORT/DATABASE, or s3://BUCKET/PREFIX/ (a bucket name has 3 to 63 characters)",
    "URL",
)
SQS_QUEUE_URL = Kind(_sqs_queue_url, "the queue's URL, https://HOST/ACCOUNT/NAME", "URL")
ROLE_ARN = Kind(_role_arn, "an IAM role, arn:aws:iam::123456789012:role/NAME", "ARN")
STREAM_NAME = Kind(_stream_name, "a stream name of 1 to 64 letters, digits, '_', '.' and '-'", "NAME")
ADDRESS = Kind(_address, "an IP address", "ADDRESS")
WORDS = Kind(_words, "text without control characters", "TEXT")
QUEUES = Kind(
    _names,
    "queue names without spaces, quotes or brackets, each once, separated by commas",
    "NAME",
    repeatable=True,
    listed=True,
)
HOOKS = Kind(_hooks, "logging, callback, or both, separated by a comma", "NAME", repeatable=True, listed=True)
SCHEMES = Kind(_schemes, "s3, https, or both, separated by a comma", "NAME", repeatable=True, listed=True)
FOLDER = Kind(_folder, "an absolute path without control characters", "PATH")
ADDRESS_PATTERNS = Kind(
    _address_patterns,
    "host patterns (*.example.com) or CIDRs (10.0.0.0/8), separated by commas",
    "PATTERN",
    repeatable=True,
    listed=True,
)
AUTOSCALE = Kind(
    _autoscale, "MAX,MIN, two whole numbers from 1 to 10000, MAX not below MIN", "MAX,MIN", listed=True
)
LABELS = Kind(_labels, 'a JSON object of strings, {"team": "search"}', "JSON")
WEBHOOK_SECRET = Kind(_webhook_secret, webhook.ACCEPTED, "SECRET")
