"""The page of metrics says what the catalogue says."""

from __future__ import annotations

from pathlib import Path

import pytest

from forwarder.telemetry import generate
from forwarder.telemetry.catalogue import CATALOGUE

PAGE = Path(__file__).parents[3] / generate.PAGE


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert generate.with_table(page) == page, "run `python -m forwarder.telemetry.generate`"


def test_the_table_names_every_metric_with_type_unit_and_labels() -> None:
    table = generate.table()
    for metric in CATALOGUE:
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{metric.name}` |")]
        assert f"`{metric.statsd_name}`" in row
        assert metric.kind in row
        assert all(f"`{label}`" in row for label in metric.labels)


def test_the_text_around_the_table_stays() -> None:
    page = f"before\n{generate.BEGIN}\nold\n{generate.END}\nafter\n"
    assert generate.with_table(page) == f"before\n{generate.table()}\nafter\n"


def test_a_page_without_the_marks_is_not_written_over() -> None:
    with pytest.raises(ValueError, match="no marks"):
        generate.with_table("something else")
