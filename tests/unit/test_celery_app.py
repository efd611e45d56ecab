"""What ``celery -A forwarder.app`` finds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery.app.utils import find_app

import forwarder.app
from forwarder.celery_app import tools_app
from forwarder.settings.errors import SettingsError


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    tools_app.cache_clear()
    yield
    tools_app.cache_clear()


def test_celery_finds_an_app_of_the_environments_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDER_BROKER_URL", "redis://somewhere:1234/5")
    app = find_app("forwarder.app")
    assert app.conf.broker_url == "redis://somewhere:1234/5"
    assert find_app("forwarder.app") is app


def test_nothing_is_made_at_import_time_and_no_other_name_is_invented() -> None:
    assert "app" not in vars(forwarder.app)
    with pytest.raises(AttributeError, match="no attribute 'celery'"):
        _ = forwarder.app.celery  # type: ignore[attr-defined]


def test_a_setting_that_cannot_work_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDER_BROKER_URL", "nonsense://")
    with pytest.raises(SettingsError, match="FORWARDER_BROKER_URL"):
        tools_app()


def test_monitors_get_kombus_own_transport_whose_name_they_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDER_BROKER_URL", "redis://somewhere:1234/5")
    assert tools_app().connection().as_uri().startswith("redis://")


def test_celerys_worker_is_refused() -> None:
    with pytest.raises(SystemExit, match="python -m forwarder"):
        tools_app().Worker()
