"""What ``check`` prints, and what its findings amount to; the services are fakes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError

from forwarder.cli import check as check_module
from forwarder.cli.check import as_json_text, descriptors_text, memory_text, settings_table, verdict
from forwarder.cli.findings import Caution, Finding, NotWorking, Probe, findings
from forwarder.cli.main import main
from forwarder.cli.probes import probes_for
from forwarder.scaling.container import MIB, Limit
from forwarder.scaling.descriptors import Allowed, Need
from forwarder.scaling.peak import Peak, Term
from forwarder.settings import Settings, resolve
from forwarder.settings.table import SPECS

SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"
SECRETS = {
    "broker_url": "redis://:hunter2@host/0",
    "result_backend": "redis://user:hunter2@host/1",
    "callback_secret": SECRET,
    "callback_url": "https://host/?token=hunter2",
    "hooks": "callback",
}
FINE = Finding("broker", True, "answers")
BROKEN = Finding("results", False, "refused", "start it")
FITS = Peak((Term(MIB, "one"), Term(2 * MIB, "two")), Limit(4 * MIB, "cgroup2"))
BROKER_REMEDY = (
    "start the broker, or set --broker-url (FORWARDER_BROKER_URL), user and password included, and so on"
)
RISKY = Finding("broker", True, "may forget", "mend it")


class Unpatched(Exception):
    """An error of a class that nobody foresaw."""


def failing(error: Exception) -> Probe:
    def ask() -> str:
        raise error

    return Probe("broker", ask, "start the broker")


def test_every_setting_is_shown_with_its_source() -> None:
    table = settings_table(resolve({"concurrency": "7"}, {"CELERY_WORKER_POOL": "gevent"}, {}))
    lines = {line.split()[0]: line.split() for line in table.splitlines() if line.startswith("  ")}
    assert set(lines) == {spec.field for spec in SPECS}
    assert lines["concurrency"] == ["concurrency", "7", "flag", "--concurrency"]
    assert lines["pool"] == ["pool", "gevent", "environment", "CELERY_WORKER_POOL"]
    assert lines["sqs_url"] == ["sqs_url", "-", "default"]


def test_warnings_follow_the_settings() -> None:
    assert "warning: --sqs-wait" in settings_table(resolve({"sqs_wait_s": "5"}, {}, {}))


def test_no_secret_is_shown() -> None:
    resolved = resolve(SECRETS, {}, {})
    for text in (settings_table(resolved), as_json_text(resolved, [FINE], FITS)):
        assert "hunter2" not in text
        assert SECRET not in text
        assert "redis://***@host/0" in text


def test_the_verdict_names_what_failed_and_how_to_mend_it() -> None:
    assert verdict([FINE, BROKEN]).splitlines() == [
        "ok    broker   answers",
        "FAIL  results  refused; to mend: start it",
        "a worker would not work: results",
    ]


def test_a_warning_tells_how_to_mend_it_and_is_no_failure() -> None:
    assert verdict([RISKY]).splitlines() == [
        "warn  broker  may forget; to mend: mend it",
        "a worker would work",
    ]


def test_on_a_terminal_no_line_is_wider_and_no_name_is_broken() -> None:
    environ = {"FORWARDER_STOCK_VISIBILITY_TIMEOUT_S": "9", "FORWARDER_QUEUE": "x"}
    table = settings_table(resolve({}, environ, {}), width=60)
    lines = table.splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("  stock_visibility_timeout_s"))
    assert lines[number].endswith(" 9")
    assert lines[number + 1].split() == ["environment", "FORWARDER_STOCK_VISIBILITY_TIMEOUT_S"]
    assert len(lines[number + 1]) == 60
    assert next(line for line in lines if line.startswith("  concurrency ")).split()[1:] == ["4", "default"]
    narrow = [
        *verdict([Finding("broker", False, "no answer", BROKER_REMEDY)], width=60).splitlines(),
        *memory_text(replace(FITS, limit=Limit(MIB, "cgroup2")), width=60).splitlines(),
        *descriptors_text(Need(2000, "40 + 280 x 7"), Allowed(soft=9, hard=9), width=60).splitlines(),
        *[line for line in lines if line.startswith("warning")],
    ]
    assert max(map(len, narrow)) <= 60
    assert "(FORWARDER_BROKER_URL)," in " ".join(narrow).split()
    assert verdict([BROKEN], width=200) == verdict([BROKEN])


def test_the_verdict_is_good_where_all_is_well() -> None:
    assert verdict([FINE]).endswith("a worker would work")


def test_the_json_holds_the_same() -> None:
    report = json.loads(as_json_text(resolve({"concurrency": "7"}, {}, {}), [FINE, BROKEN], FITS))
    assert report["ok"] is False
    assert report["settings"]["concurrency"] == {"value": "7", "source": "flag --concurrency"}
    assert report["services"][1] == {
        "name": "results",
        "ok": False,
        "detail": "refused",
        "remedy": "start it",
    }
    assert report["warnings"] == []
    assert report["memory"] == {
        "peak_bytes": 3 * MIB,
        "limit_bytes": 4 * MIB,
        "limit_source": "cgroup2",
        "fits": True,
        "terms": [{"bytes": MIB, "words": "one"}, {"bytes": 2 * MIB, "words": "two"}],
    }
    assert report["descriptors"]["needed"] == 40 + 7 * 7
    assert report["descriptors"]["fits"]


def test_the_most_memory_is_told_and_what_passes_the_limit_is_a_warning() -> None:
    assert memory_text(FITS).splitlines() == [
        "Memory",
        "  1 MiB  one",
        "  2 MiB  two",
        "  3 MiB  at most, of 4 MiB (cgroup2)",
    ]
    assert "warning: that passes the memory limit" in memory_text(replace(FITS, limit=Limit(MIB, "cgroup2")))


def test_descriptors_are_counted_and_too_few_are_a_warning() -> None:
    needed = Need(2000, "40 + 280 x 7")
    assert descriptors_text(needed, Allowed(soft=4096, hard=4096)).splitlines() == [
        "File descriptors",
        "  2,000  40 + 280 x 7",
    ]
    low = descriptors_text(needed, Allowed(soft=1024, hard=4096))
    assert "warning" not in low
    assert "1,024 are allowed now" in low
    assert "warning: that passes the limit of 1,999" in descriptors_text(
        needed, Allowed(soft=1024, hard=1999)
    )


@pytest.mark.parametrize(("found", "code"), [([FINE], 0), ([RISKY], 0), ([FINE, BROKEN], 3)])
@pytest.mark.parametrize("args", [[], ["--json"]])
def test_the_exit_code_tells_whether_a_worker_would_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: list[Finding],
    code: int,
    args: list[str],
) -> None:
    monkeypatch.setattr(check_module, "findings", lambda probes, *, secrets: found)
    assert main(["check", *args]) == code
    assert "broker" in capsys.readouterr().out


def test_a_service_that_answers_is_fine() -> None:
    assert findings([Probe("broker", lambda: "answers", "start it")]) == [Finding("broker", True, "answers")]


def test_a_caution_is_a_finding_with_its_own_remedy() -> None:
    probe = Probe("broker", lambda: Caution("may forget", "mend it"), "start it")
    assert findings([probe]) == [RISKY]


@pytest.mark.parametrize(
    ("error", "detail", "remedy"),
    [
        (NotWorking("is too old", remedy="use a newer one"), "is too old", "use a newer one"),
        (NotWorking("stream s is CREATING"), "stream s is CREATING", "start the broker"),
        (ConnectionRefusedError("nobody\nthere"), "ConnectionRefusedError: nobody there", "start the broker"),
        (Unpatched(), "Unpatched", "start the broker"),
        (type("NoRegionError", (Exception,), {})("no region"), "NoRegionError: no region", "set AWS_REGION"),
        (ValueError("redis://:hunter2@host"), "ValueError: redis://:***@host", "start the broker"),
    ],
)
def test_whatever_a_service_does_is_one_line(error: Exception, detail: str, remedy: str) -> None:
    (finding,) = findings([failing(error)], secrets=["hunter2"])
    assert finding == Finding("broker", False, detail, remedy)


@pytest.mark.parametrize(
    ("url", "cause", "remedy"),
    [
        ("rediss://host/0", TimeoutError(), "let the server speak TLS"),
        ("redis://host/0", TimeoutError(), "start the broker"),
        ("redis://host/0", AuthenticationError(), "put the user and the password"),
    ],
)
def test_what_mends_a_connection_is_told_by_what_it_failed_with(
    url: str, cause: Exception, remedy: str
) -> None:
    error = OperationalError("as kombu wraps it")
    error.__cause__ = cause
    probe = probes_for(Settings(broker_url=url))[0]
    (finding,) = findings([replace(probe, ask=failing(error).ask)])
    assert finding.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (Settings(), ["broker", "results", "inference server", "staging folder"]),
        (Settings(hooks=("callback",)), ["broker", "results", "inference server", "staging folder"]),
        (
            Settings(hooks=("logging",), firehose_stream="s"),
            ["broker", "results", "inference server", "staging folder", "firehose"],
        ),
    ],
)
def test_only_what_a_worker_needs_is_asked(settings: Settings, names: list[str]) -> None:
    assert [probe.name for probe in probes_for(settings)] == names
