"""Reads a Dockerfile, so that tests run what it says rather than a copy of it."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: ``RUN`` and the text behind it, lines joined."""

    word: str
    text: str

    def words(self) -> list[str]:
        """Return the text as a list of words: of the JSON form its entries, else split as a shell does."""
        return list(map(str, json.loads(self.text))) if self.text.startswith("[") else shlex.split(self.text)

    def pairs(self, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Yield the names and values of an ENV, ``$NAME`` in them replaced."""
        for pair in self.words():
            name, _, value = pair.partition("=")
            yield name, re.sub(r"\$(\w+)", lambda found: environ[found[1]], value)


@dataclass(slots=True)
class Stage:
    """What stands between one FROM and the next; ``name`` is empty without an AS."""

    image: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        """Return the instructions of one kind."""
        return [instruction for instruction in self.instructions if instruction.word == word]


def parse(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile; knows no heredocs and no parser directives."""
    stages: list[Stage] = []
    for instruction in _instructions(text):
        if instruction.word == "FROM":
            image, *rest = instruction.words()
            stages.append(Stage(image, rest[1] if rest else ""))
        elif stages:
            stages[-1].instructions.append(instruction)
    return stages


def _instructions(text: str) -> Iterator[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            yield Instruction(word.upper(), rest.strip())


def context(root: Path, name: str) -> list[Path]:
    """Return the files below ``root / name`` that .dockerignore leaves in the build's context."""
    found = [root / name] if (root / name).is_file() else sorted((root / name).rglob("*"))
    return [path for path in found if path.is_file() and in_context(root, path.relative_to(root))]


def in_context(root: Path, path: Path) -> bool:
    """Return what the last rule of .dockerignore says that fits the path or a folder above it."""
    above = [path.as_posix(), *(parent.as_posix() for parent in path.parents[:-1])]
    included = True
    for rule in (root / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!")
        if not rule.startswith("#") and any(_fits(part, pattern) for part in above):
            included = rule.startswith("!")
    return included


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.rpartition("/")[2], pattern.removeprefix("**/"))
    return fnmatch.fnmatchcase(path, pattern)
