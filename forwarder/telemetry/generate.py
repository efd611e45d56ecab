"""Writes the table in ``docs/metrics.md`` from the catalogue.

``python -m forwarder.telemetry.generate`` in the root of a checkout rewrites what
stands between the two marks; with ``--check`` it only compares, and exits 1 when
it is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from forwarder.telemetry.catalogue import BUCKETS_S, CATALOGUE, Metric

PAGE = Path("docs/metrics.md")
BEGIN = "<!-- Made by `python -m forwarder.telemetry.generate`: edit forwarder/telemetry/catalogue.py. -->"
END = "<!-- End of what is made. -->"


def table() -> str:
    """Return the marks with the table of all metrics between them."""
    lines = [
        BEGIN,
        "",
        "| Prometheus | DogStatsD | type | unit | labels | meaning |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(metric) for metric in CATALOGUE]
    bounds = ", ".join(f"{bound:g}" for bound in BUCKETS_S)
    lines += ["", f"Buckets of the histograms, upper bounds in seconds: {bounds}.", "", END]
    return "\n".join(lines)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    kind = {"histogram": "histogram; distribution", "counter": "counter", "gauge": "gauge"}[metric.kind]
    cells = (
        f"`{metric.name}`",
        f"`{metric.statsd_name}`",
        kind,
        metric.unit or "none",
        labels,
        metric.meaning,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def with_table(page: str) -> str:
    """Return the page with the table as the catalogue has it now. Raises ValueError without the marks."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE} has no marks between which the table goes")
    return before + table() + after


def main() -> int:
    """Write the page below the working directory, or compare it (``--check``); return the exit code."""
    page = PAGE.read_text("utf-8")
    made = with_table(page)
    if made == page:
        return 0
    if "--check" in sys.argv[1:]:
        sys.stderr.write(f"{PAGE} is out of date: run `python -m forwarder.telemetry.generate`\n")
        return 1
    PAGE.write_text(made, encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
