"""Helm; without one the chart's tests are skipped with the reason, and where ``CI`` is set they fail."""

from __future__ import annotations

import os

import pytest

from tests.deploy.charts import CASES, NO_HELM, Helm, Object, find_helm


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    binary = find_helm()
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail(NO_HELM, pytrace=False)
        pytest.skip(NO_HELM)
    return Helm(binary=binary, folder=tmp_path_factory.mktemp("helm"))


@pytest.fixture(params=CASES)
def rendered(request: pytest.FixtureRequest, helm: Helm) -> list[Object]:
    """The objects of each example and of each variant of the values."""
    return helm.render(CASES[request.param])
