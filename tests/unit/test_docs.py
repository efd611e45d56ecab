"""The pages say what is so: links lead somewhere, here and on the site; commands and settings exist."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click
import pytest
import yaml

from forwarder.cli.main import commands
from forwarder.settings.table import SPECS
from forwarder.telemetry.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

#: Variables of ours that are no settings of the worker: read before it starts, or by the tests.
OTHER_VARIABLES = {"FORWARDER_CONFIG", "FORWARDER_DDTRACE", "FORWARDER_TEST_LOCALSTACK_PYTHON"}
VARIABLE = re.compile(r"\b(?:FORWARDER|CELERY)_[A-Z0-9_]*[A-Z0-9]\b(?!_)")
LINK = re.compile(r"\]\((?!https?://|mailto:)<?([^)>\s]*)>?\)")
#: What may stand before a command of ours, and what ends it.
LAUNCHERS = ("python", "python3", "-m", "ddtrace-run")
SHELLS_OWN = ("|", "&", "&&", ";")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^ *```sh\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def prose_of(name: str) -> str:
    """Return the page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", text_of(name)))


def anchors(page: Path) -> dict[str, set[str]]:
    """Return what a code host and the site call each heading of a page."""
    host, site = set(), set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCED.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip()
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        host.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        site.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower()))
    return {"a code host": host, "the site": site}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_to_a_file_leads_to_one_and_to_a_heading_of_it(name: str) -> None:
    page = ROOT / name
    for target in LINK.findall(prose_of(name)):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{target}: there is no such file"
        if anchor:
            for where, headings in anchors(place).items():
                assert anchor in headings, f"{target}: no such heading on {where}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/")])
def test_a_page_links_to_nothing_that_the_site_does_not_have(name: str) -> None:
    for target in LINK.findall(prose_of(name)):
        path = (ROOT / name).parent / target.partition("#")[0]
        assert path.resolve().is_relative_to(ROOT / "docs"), target
        assert target.startswith("#") or not path.is_dir(), f"{target}: the site has no page for a folder"


@pytest.mark.parametrize("name", NAMES)
def test_a_list_or_a_table_has_an_empty_line_before_it_without_which_the_site_shows_a_paragraph(
    name: str,
) -> None:
    before = ""
    for line in FENCED.sub("", text_of(name)).splitlines():
        if re.match(r"(- |\d+\. |\|)", line) and before.strip():
            assert re.match(r"(- |\d+\. |\||\s)", before), f"{before!r} runs into {line!r}"
        before = line


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_of_ours_that_a_page_names_is_a_setting(name: str) -> None:
    known = OTHER_VARIABLES | {variable for spec in SPECS for variable in (spec.environ, *spec.other_environ)}
    assert set(VARIABLE.findall(text_of(name))) <= known


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_that_a_page_names_is_in_the_catalogue(name: str) -> None:
    known = {form for metric in CATALOGUE for form in (metric.name, metric.statsd_name)}
    found = re.findall(r"`(forwarder_[a-z_]+(?=[`{])|forwarder\.[a-z_.]+(?=\{))", text_of(name))
    assert {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in found} <= known


def command_lines(name: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``forwarder …`` in a page's shell blocks."""
    for block in SHELL.findall(text_of(name)):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start, word in enumerate(words):
                if word.rpartition("/")[2] == "forwarder" and is_command(words[:start]):
                    rest = words[start + 1 :]
                    ends = (at for at, word in enumerate(rest) if word in SHELLS_OWN or word.startswith(">"))
                    yield rest[: next(ends, len(rest))]


def is_command(before: list[str]) -> bool:
    """Return whether what follows these words of a line is a command, not an argument."""
    return all("=" in word or word.rpartition("/")[2] in LAUNCHERS for word in before)


def command_of(words: list[str]) -> click.Command:
    """Return the command that the arguments name; fails where there is none."""
    command: click.Command = commands
    rest = list(words)
    while isinstance(command, click.Group):
        name = rest.pop(0) if rest and not rest[0].startswith("-") else "run"
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no command {name}"
        command = found
    return command


@pytest.mark.parametrize("name", NAMES)
def test_every_command_in_a_shell_block_exists_with_its_options(name: str) -> None:
    for words in command_lines(name):
        command = command_of(words)
        options = {option for parameter in command.params for option in parameter.opts}
        asked_for = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert asked_for <= options, f"{command.name} has no {', '.join(asked_for - options)}"


@pytest.mark.parametrize("name", NAMES)
def test_every_script_module_and_example_that_a_page_names_exists(name: str) -> None:
    for script in re.findall(r"\./(scripts/\w+|\.ci/\w+)", text_of(name)):
        assert (ROOT / script).exists(), script
    for path in re.findall(
        r"(?<![\w./])(?:deploy|examples)/[\w./-]*\w", "".join(SHELL.findall(text_of(name)))
    ):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:benchmarks|forwarder)\.[\w.]*\w)", text_of(name)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_site_ends_its_build_for_a_link_or_a_heading_that_is_not_there_and_for_a_page_left_out() -> None:
    assert SITE["strict"] is True
    assert SITE["validation"]["links"] == dict.fromkeys(
        ("not_found", "anchors", "absolute_links", "unrecognized_links"), "warn"
    )
    assert SITE["validation"]["nav"]["omitted_files"] == "warn"


def test_the_site_loads_nothing_from_elsewhere() -> None:
    assert SITE["theme"]["font"] is False
    assert not {"extra_javascript", "copyright", "repo_url"} & set(SITE)
    assert cast(list[str], SITE["extra_css"]) == ["site.css"]
    for name in NAMES:
        assert not re.search(r"!\[[^\]]*\]\(https?://", text_of(name)), f"{name}: a picture from elsewhere"
