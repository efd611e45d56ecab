"""A stranger's path: what the quick start says to type, typed, ends with a task done."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from forwarder.testing.processes import clean_env
from forwarder.testing.sandbox import LOCALSTACK
from forwarder.testing.services import CHECKOUT

PAGE = (CHECKOUT / "docs" / "quickstart.md").read_text()
#: Not every machine has one.
CURL = """command -v curl >/dev/null || curl() {
  python -c 'import sys, urllib.request as it; print(it.urlopen(sys.argv[-1]).read().decode())' "$@"
}
"""


def shell_blocks(heading: str) -> list[str]:
    """Return what a section of the page says to type."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def type_in_the_sandbox(folder: Path, broker: str, typed: list[str]) -> str:
    """Run the commands as in the shell that the sandbox opens and return what they print."""
    script = folder / "typed.sh"
    script.write_text("set -eu -o pipefail\n" + CURL + "".join(typed))
    done = subprocess.run(
        [sys.executable, "-m", "forwarder.testing.sandbox", broker, "bash", str(script)],
        cwd=folder,
        env=clean_env(folder) | {"PYTHONPATH": str(CHECKOUT), "FORWARDER_QUEUES": "not-inherited"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    log = folder / "worker.log"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    return done.stdout


def results(printed: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in printed.splitlines() if line.startswith('{"result"')]


def test_a_task_is_done_on_redis_and_seen_in_log_probe_and_metrics(tmp_path: Path) -> None:
    opening, *typed = shell_blocks("On Redis")
    assert opening.strip() == "./scripts/sandbox redis"
    printed = type_in_the_sandbox(tmp_path, "redis", typed)
    (result,) = results(printed)
    assert result["status_code"] == 200
    assert f"\n    {json.dumps(result)}\n" in PAGE, "the page shows another result"
    assert "a worker would work" in printed
    assert re.search(r"task_done .*outcome=success", printed)
    # The queue is the sandbox's: a setting of the user's own would lead out of it.
    assert 'forwarder_tasks_total{outcome="success",queue="forwarder"} 1.0' in printed


@pytest.mark.xdist_group("localstack")
def test_a_task_is_done_on_sqs_by_localstack(tmp_path: Path, missing: Callable[[str], NoReturn]) -> None:
    if not LOCALSTACK.exists():
        missing(f"no LocalStack: {LOCALSTACK} does not exist")
    opening, *typed = shell_blocks("On SQS, with results in S3")
    assert opening.strip() == "./scripts/sandbox sqs"
    printed = type_in_the_sandbox(tmp_path, "sqs", typed)
    assert [result["status_code"] for result in results(printed)] == [200]
    assert "a worker would work" in printed


def test_the_chart_is_rendered(missing: Callable[[str], NoReturn]) -> None:
    if not list(CHECKOUT.glob(".helm/*/helm")) and shutil.which("helm") is None:
        missing("no Helm: ./scripts/helm fetches one")
    (typed,) = shell_blocks("In Kubernetes")
    done = subprocess.run(
        shlex.split(typed), cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    kinds = {manifest["kind"] for manifest in yaml.safe_load_all(done.stdout) if manifest}
    assert {"Deployment", "ScaledObject", "PodDisruptionBudget"} <= kinds


def test_the_sandbox_ends_with_the_commands_exit_code_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "forwarder.testing.sandbox", "redis", "sh", "-c", "echo $PPID; exit 7"],
        env=clean_env(tmp_path) | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 7
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
    assert not list(tmp_path.glob("forwarder-*"))
