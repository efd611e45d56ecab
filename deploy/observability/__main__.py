"""Writes the dashboards and alerts, or compares them (``--check``: exit 1 when one is out of date).

``python -m deploy.observability [--check] [--runbook URL]`` in the root of a checkout; the URL is that
of your own copy of docs/runbook.md, to which every alert links.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.observability import datadog, grafana, prometheus

RUNBOOK = "https://forwarder.example/runbook/"
HEAD = "# Made by `python -m deploy.observability`: edit deploy/observability/alerts.py.\n"


def files(runbook: str = RUNBOOK) -> dict[str, str]:
    """Return the text of every file, by its path below deploy/."""
    rules = prometheus.rules(runbook)
    return {
        "grafana/forwarder.json": _json(grafana.dashboard()),
        "datadog/dashboard.json": _json(datadog.dashboard()),
        "datadog/monitors.json": _json(datadog.monitors(runbook)),
        "alerts/forwarder.rules.yaml": HEAD + _yaml(rules),
        "alerts/prometheusrule.yaml": HEAD + _yaml(prometheus.custom_resource(rules)),
    }


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or compare the files below deploy/ of the working directory; return the exit code."""
    parser = argparse.ArgumentParser(prog="deploy.observability", description="Make dashboards and alerts.")
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument(
        "--runbook", default=RUNBOOK, help="where docs/runbook.md is served (default: %(default)s)"
    )
    asked = parser.parse_args(argv)
    made = files(asked.runbook)
    paths = {name: Path("deploy", name) for name in made}
    stale = [
        name for name, path in paths.items() if not path.exists() or path.read_text("utf-8") != made[name]
    ]
    for name in stale:
        if asked.check:
            sys.stderr.write(f"deploy/{name} is out of date: run `python -m deploy.observability`\n")
            continue
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_text(made[name], encoding="utf-8")
        sys.stdout.write(f"wrote deploy/{name}\n")
    return 1 if asked.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
