"""pyproject.toml, the .in files and the compiled .txt files tell the same story."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from forwarder import __version__

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMPILED = {
    "requirements.in": "requirements.txt",
    "requirements-dev.in": "requirements-dev.txt",
    "requirements-build.in": "requirements-build.txt",
}


def asked_for(name: str) -> list[str]:
    """Return the requirement lines of an .in file; not its comments and options."""
    lines = (line.strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def pinned(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return package to (its pin, its hashes) of a compiled file."""
    pins: dict[str, tuple[Requirement, list[str]]] = {}
    text = re.sub(r"^\s*#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    for entry in text.replace("\\\n", " ").splitlines():
        pin, *hashes = re.split(r"\s+--hash=", entry.strip())
        requirement = Requirement(pin)
        pins[canonicalize_name(requirement.name)] = (requirement, hashes)
    return pins


def test_production_requirements_are_the_dependencies_with_datadogs() -> None:
    declared = [*PROJECT["dependencies"], *EXTRAS["datadog"], *EXTRAS["ddtrace"]]
    assert sorted(asked_for("requirements.in")) == sorted(declared)


def test_development_requirements_are_the_demo_and_dev_extras_on_top() -> None:
    assert sorted(asked_for("requirements-dev.in")) == sorted([*EXTRAS["demo"], *EXTRAS["dev"]])


@pytest.mark.parametrize(("source", "compiled"), COMPILED.items())
def test_every_requirement_is_pinned_to_a_version_that_it_allows(source: str, compiled: str) -> None:
    pins = pinned(compiled)
    for line in asked_for(source):
        wanted = Requirement(line)
        pin, _ = pins[canonicalize_name(wanted.name)]
        (specifier,) = pin.specifier
        assert wanted.specifier.contains(specifier.version), f"{line} is pinned to {specifier.version}"


@pytest.mark.parametrize("compiled", COMPILED.values())
def test_every_pin_is_exact_and_hashed(compiled: str) -> None:
    for pin, hashes in pinned(compiled).values():
        assert [specifier.operator for specifier in pin.specifier] == ["=="], pin
        assert hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes), pin


def test_development_runs_on_the_pins_of_production() -> None:
    development = pinned("requirements-dev.txt")
    for name, (pin, _) in pinned("requirements.txt").items():
        assert development[name][0].specifier == pin.specifier, name


@pytest.mark.parametrize("compiled", COMPILED.values())
def test_compiled_files_name_no_place_to_download_from(compiled: str) -> None:
    text = (ROOT / compiled).read_text()
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links", text)


def test_the_version_stands_in_the_package_alone() -> None:
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_supported_pythons_are_those_that_the_scripts_look_for() -> None:
    declared = {
        name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)
    }
    looked_for = set(re.findall(r"python(3\.\d+)", (ROOT / "scripts/_bootstrap.sh").read_text()))
    assert declared <= looked_for
    assert PROJECT["requires-python"] == f">={min(declared, key=lambda name: int(name.split('.')[1]))}"


def test_no_licence_is_claimed() -> None:
    assert "license" not in PROJECT
    assert not any("License" in name for name in PROJECT["classifiers"])
