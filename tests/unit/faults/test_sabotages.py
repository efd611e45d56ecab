"""What is taken out of our worker is still there to be taken out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults import sabotages
from tests.faults.matrix import SCENARIOS


def test_every_sabotage_that_a_scenario_names_exists_and_each_is_used() -> None:
    assert {scenario.sabotage for scenario in SCENARIOS} - {""} == set(sabotages.SABOTAGES)


@pytest.mark.parametrize("name", sabotages.SABOTAGES)
def test_a_sabotage_replaces_a_method_by_one_that_takes_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced: list[str] = []

    def replace(owner: type, method_name: str, method: Callable[..., Any]) -> None:
        replaced.append(method_name)
        original = inspect.signature(getattr(owner, method_name))
        inspect.signature(method).bind(
            *(p.name for p in original.parameters.values() if p.kind is not p.KEYWORD_ONLY),
            **{p.name: None for p in original.parameters.values() if p.kind is p.KEYWORD_ONLY},
        )

    monkeypatch.setattr(sabotages, "_replace", replace)
    sabotages.SABOTAGES[name]()
    assert len(replaced) == 1
