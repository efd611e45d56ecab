"""The Dockerfile as hadolint and its reader see it; that its steps work, an integration test shows."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from forwarder.settings.table import SPECS
from tests.dockerfile import Instruction, context, in_context, parse

ROOT = Path(__file__).parents[3]
BUILD, IMAGE = parse((ROOT / "Dockerfile").read_text())
BUILD_TOOLS = ("gcc", "g++", "make", "build-essential", "python3-dev", "git", "curl", "wget")


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing() -> None:
    done = hadolint(ROOT / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text((ROOT / "Dockerfile").read_text() + "RUN sudo pip install celery\n")
    assert hadolint(tmp_path / "Dockerfile").returncode != 0


def test_both_stages_are_slim_and_of_one_python() -> None:
    assert BUILD.image == IMAGE.image == "python:${PYTHON}-slim"


def test_the_pythons_version_is_one_that_is_tested() -> None:
    version = (ROOT / "Dockerfile").read_text().partition("ARG PYTHON=")[2].partition("\n")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {version}" in project["classifiers"]


def test_it_runs_as_a_user_by_number_who_is_not_root() -> None:
    (user,) = IMAGE.all("USER")
    number, _, group = user.text.partition(":")
    assert int(number) > 0
    assert int(group) > 0
    (made,) = [run.text for run in IMAGE.all("RUN") if "useradd" in run.text]
    assert f"--uid {number} " in made


def test_every_package_is_installed_by_its_hash() -> None:
    installs = [run.text for run in BUILD.all("RUN") if " install " in run.text]
    assert installs
    for text in installs:
        assert "--require-hashes" in text or "--no-deps dist/*.whl" in text


def test_the_image_has_no_tools_to_build_with() -> None:
    words = {word for run in IMAGE.all("RUN") for word in run.words()}
    assert not words & {*BUILD_TOOLS, "pip"}
    assert "--without-pip" in {word for run in BUILD.all("RUN") for word in run.words()}


def test_signals_go_through_an_init_to_the_worker_alone() -> None:
    (entry,) = IMAGE.all("ENTRYPOINT")
    assert entry.words() == ["tini", "--", "forwarder-entry"]
    script = (ROOT / "deploy/container/entry.sh").read_text()
    starts = [line for line in script.splitlines() if "python -m forwarder" in line]
    assert len(starts) == 2
    assert all("exec " in line for line in starts)


def test_its_health_check_asks_the_worker_itself() -> None:
    (check,) = IMAGE.all("HEALTHCHECK")
    assert Instruction("CMD", check.text.partition("CMD ")[2]).words() == ["forwarder", "check", "--live"]


def test_what_it_sets_are_settings_of_the_worker() -> None:
    names = {spec.environ for spec in SPECS}
    set_here = {name for env in IMAGE.all("ENV") for name, _ in env.pairs({"PATH": ""})}
    assert {name for name in set_here if name.startswith("FORWARDER_")} <= names


def test_the_exposed_port_is_the_one_that_is_served() -> None:
    (env,), (expose,) = IMAGE.all("ENV"), IMAGE.all("EXPOSE")
    assert dict(env.pairs({"PATH": ""}))["FORWARDER_HTTP_PORT"] == expose.text


def test_the_build_tools_are_those_of_the_project() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    lines = (ROOT / "requirements-build.in").read_text().splitlines()
    assert [line for line in lines if line and line[0] not in "#-"] == wanted


@pytest.mark.parametrize("name", [".git/HEAD", ".env", ".venv/bin/python", "tests/x.py", "compose.yaml"])
def test_the_context_leaves_out_what_the_build_does_not_need(name: str) -> None:
    assert not in_context(ROOT, Path(name))


def test_the_context_has_everything_that_is_copied() -> None:
    for stage in (BUILD, IMAGE):
        for instruction in stage.all("COPY"):
            *sources, _ = instruction.words()
            assert sources[0] == "--from=build" or all(context(ROOT, source) for source in sources)
    assert not [path for path in context(ROOT, "forwarder") if path.suffix == ".pyc"]


def test_the_reader_joins_lines_and_knows_both_forms() -> None:
    build, image = parse('FROM a AS build\n# comment\nENV A=1 \\\n    B=$A:2\nFROM b\nCMD ["x", "y z"]\n')
    assert (build.image, build.name, image.image, image.name) == ("a", "build", "b", "")
    assert dict(build.all("ENV")[0].pairs({"A": "0"})) == {"A": "1", "B": "0:2"}
    assert image.all("CMD")[0].words() == ["x", "y z"]
