"""The alert rules in Prometheus' own hands: each fires for its symptom, none while all is well."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from forwarder.testing.services import CHECKOUT

RULES = CHECKOUT / "deploy/alerts/forwarder.rules.yaml"

#: What a worker shows that is well, under load: promtool's `start+step x times`, a minute apart.
WELL = {
    "forwarder_live": "1x180",
    "forwarder_loop_lag_seconds": "0.1x180",
    'forwarder_dependency_up{dependency="broker"}': "1x180",
    'forwarder_dependency_up{dependency="inference"}': "1x180",
    'forwarder_dependency_up{dependency="results"}': "1x180",
    'forwarder_queue_depth{queue="q"}': "50x180",
    'forwarder_queue_oldest_seconds{queue="q"}': "30x180",
    'forwarder_tasks_total{queue="q", outcome="success"}': "0+600x180",
    'forwarder_tasks_total{queue="q", outcome="invalid_payload"}': "0+6x180",
    'forwarder_tasks_total{queue="q", outcome="requeued"}': "0+6x180",
    'forwarder_deliveries_total{queue="q", kind="first"}': "0+600x180",
    'forwarder_deliveries_total{queue="q", kind="redelivered"}': "0+6x180",
    'forwarder_inference_seconds_count{status="200"}': "0+600x180",
    'forwarder_inference_seconds_count{status="500"}': "0+6x180",
    'forwarder_inference_seconds_count{status="503"}': "0+300x180",  # busy, and asked again
    'forwarder_hook_total{hook="callback", outcome="ok"}': "0+600x180",
    'forwarder_hook_total{hook="callback", outcome="failed"}': "0+6x180",
    'forwarder_hook_backlog{hook="logging"}': "5x180",  # the same five tasks are in the next one's backlog
    'forwarder_hook_backlog{hook="callback"}': "5x180",
    "forwarder_concurrency_limit": "16x180",
    'forwarder_memory_bytes{kind="used"}': "700x180",
    'forwarder_memory_bytes{kind="limit"}': "1000x180",
    'forwarder_aws_client_builds_total{service="s3"}': "4x180",
}
#: Alert to what is different when it is due. `_` is no sample: the series was not there yet.
ILL: dict[str, dict[str, str]] = {
    "ForwarderNotLive": {"forwarder_live": "1x90 0x90"},
    "ForwarderLoopLate": {"forwarder_loop_lag_seconds": "0.1x90 9x90"},
    "ForwarderBrokerAway": {'forwarder_dependency_up{dependency="broker"}': "1x90 0x90"},
    "ForwarderInferenceAway": {'forwarder_dependency_up{dependency="inference"}': "1x90 0x90"},
    "ForwarderResultsAway": {'forwarder_dependency_up{dependency="results"}': "1x90 0x90"},
    "ForwarderNothingFinishes": {
        'forwarder_tasks_total{queue="q", outcome="success"}': "9x180",
        'forwarder_tasks_total{queue="q", outcome="invalid_payload"}': "9x180",
        'forwarder_tasks_total{queue="q", outcome="requeued"}': "0x180",
    },
    "ForwarderQueueLate": {'forwarder_queue_oldest_seconds{queue="q"}': "0+60x180"},
    "ForwarderQueueGrows": {'forwarder_queue_depth{queue="q"}': "50+10x180"},
    "ForwarderTasksFail": {'forwarder_tasks_total{queue="q", outcome="inference_timeout"}': "0+60x180"},
    "ForwarderTasksGoBack": {'forwarder_tasks_total{queue="q", outcome="requeued"}': "0+100x180"},
    "ForwarderDeadLetters": {'forwarder_deliveries_total{queue="q", kind="dead"}': "_x110 1x70"},
    "ForwarderRedeliveries": {'forwarder_deliveries_total{queue="q", kind="redelivered"}': "0+100x180"},
    "ForwarderInferenceErrors": {'forwarder_inference_seconds_count{status="502"}': "0+60x180"},
    "ForwarderHooksFail": {'forwarder_hook_total{hook="callback", outcome="failed"}': "0+60x180"},
    "ForwarderHooksHoldSlots": {'forwarder_hook_backlog{hook="callback"}': "12x180"},
    "ForwarderMemory": {'forwarder_memory_bytes{kind="used"}': "700x90 950x90"},
    "ForwarderAwsClients": {'forwarder_aws_client_builds_total{service="s3"}': "0+1x180"},
}
#: What looks like a symptom and is none.
HARMLESS: dict[str, dict[str, str]] = {
    "a gap in what was scraped": {'forwarder_deliveries_total{queue="q", kind="dead"}': "5x95 _x20 5x65"},
    "a model that loaded for eight minutes": {
        'forwarder_dependency_up{dependency="inference"}': "_x105 0x8 1x67",
        'forwarder_queue_depth{queue="q"}': "_x112 400x68",
        'forwarder_tasks_total{queue="q", outcome="success"}': "_x112 0+600x68",
    },
    "a deployment that was scaled to zero": {
        name: samples.replace("x180", "x115 _x65") for name, samples in WELL.items()
    },
}
AT = "120m"


def series(values: dict[str, str]) -> list[dict[str, str]]:
    """Return the series with the labels that scraping adds."""
    found = []
    for name, samples in values.items():
        metric, _, labels = name.rstrip("}").partition("{")
        own = ", ".join(filter(None, ['job="forwarder"', 'instance="a:9109"', labels]))
        found.append({"series": f"{metric}{{{own}}}", "values": samples})
    return found


def question(different: dict[str, str], *expected: str) -> dict[str, Any]:
    """Ask whether exactly these alerts fire at ``AT`` when a worker that is well has this difference."""
    firing = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected]
    expression = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": AT}
    return {
        "name": expected[0] if expected else "well",
        "interval": "1m",
        "input_series": series(WELL | different),
        "promql_expr_test": [expression | {"exp_samples": firing}],
    }


def promtool(missing: Callable[[str], NoReturn], *arguments: str) -> str:
    """Run promtool and return what it prints; fail where it finds something."""
    program = shutil.which("promtool") or missing("no promtool: apt-get install prometheus")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_rules(missing: Callable[[str], NoReturn]) -> None:
    assert f"{len(ILL)} rules found" in promtool(missing, "check", "rules", str(RULES))
    promtool(missing, "check", "config", "--syntax-only", str(CHECKOUT / "deploy/container/prometheus.yaml"))


def test_each_alert_fires_for_its_symptom_and_for_no_other(
    tmp_path: Path, missing: Callable[[str], NoReturn]
) -> None:
    questions = [question({}), *(question(different, name) for name, different in ILL.items())]
    file = tmp_path / "rules.test.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": questions})
    )
    promtool(missing, "test", "rules", str(file))


def test_no_alert_fires_for_what_is_harmless(tmp_path: Path, missing: Callable[[str], NoReturn]) -> None:
    questions = [question(different) | {"name": name} for name, different in HARMLESS.items()]
    file = tmp_path / "rules.test.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": questions})
    )
    promtool(missing, "test", "rules", str(file))


def test_every_alert_has_a_symptom_here() -> None:
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == set(ILL)
