"""How ``check`` asks a service, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

#: By the error's class, like a probe's own.
_AWS_REMEDIES = {
    "NoRegionError": "set AWS_REGION",
    "NoCredentialsError": "give AWS credentials: a role, AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
    "ProfileNotFound": "set AWS_PROFILE to a profile of your AWS configuration",
}


class NotWorking(Exception):
    """A service answers, but not so that a worker would work; the message says why.

    ``remedy`` is given where it is another than the probe's.
    """

    def __init__(self, detail: str, *, remedy: str = "") -> None:
        super().__init__(detail)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Caution:
    """What was seen at a service with which a worker works, but not as safely as it could."""

    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Probe:
    """One service: ``ask`` returns what was seen or raises, ``remedy`` says how to mend a failure.

    ``remedies`` says it better for an error of a class, or with such a cause.
    """

    name: str
    ask: Callable[[], str | Caution]
    remedy: str
    remedies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one probe; ``remedy`` is empty where all is well; ``ok`` with a remedy is a warning."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    @property
    def word(self) -> str:
        """Return the finding in one word: ok, warn or FAIL."""
        if not self.ok:
            return "FAIL"
        return "warn" if self.remedy else "ok"


def findings(probes: Iterable[Probe], *, secrets: Iterable[str] = ()) -> list[Finding]:
    """Ask every service, one after the other, and return what came of it. Never raises.

    ``secrets`` are removed from error texts. Blocks for a few seconds a service.
    """
    return [_finding(probe, tuple(secrets)) for probe in probes]


def _finding(probe: Probe, secrets: tuple[str, ...]) -> Finding:
    try:
        seen = probe.ask()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong here is the answer
        return _failure(probe, error, secrets)
    if isinstance(seen, Caution):
        return Finding(probe.name, True, seen.detail, seen.remedy)
    return Finding(probe.name, True, seen)


def _failure(probe: Probe, error: Exception, secrets: tuple[str, ...]) -> Finding:
    name = type(error).__name__
    detail = " ".join(str(error).split())
    for secret in secrets:
        detail = detail.replace(secret, "***")
    if isinstance(error, NotWorking):
        return Finding(probe.name, False, detail, error.remedy or probe.remedy)
    detail = f"{name}: {detail}" if detail else name
    known = {**_AWS_REMEDIES, **probe.remedies}
    remedy = next((known[cause] for cause in _causes(error) if cause in known), probe.remedy)
    return Finding(probe.name, False, detail, remedy)


def _causes(error: BaseException) -> Iterator[str]:
    """Yield the class of an error, and of what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield type(cause).__name__
        cause = cause.__cause__
