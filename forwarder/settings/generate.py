"""Writes ``.env.example`` and ``docs/settings.md`` from the table of settings.

``python -m forwarder.settings.generate`` in the root of a checkout rewrites
both; with ``--check`` it only compares, and exits 1 when one is out of date.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from forwarder.settings.spec import Spec, render
from forwarder.settings.table import GROUPS

_HEAD = "Made by `python -m forwarder.settings.generate`: edit forwarder/settings/specs/, not this file."

_PRECEDENCE = (
    "A flag wins over an environment variable, that over `--config FILE` (`FORWARDER_CONFIG`), and that over "
    "the default. The file is YAML, TOML or JSON, and its keys are the names that stand first here. An empty "
    "environment variable counts as not set; an empty flag leaves an optional setting without a value. A "
    "value that can't work ends the program with exit code 2 and one line that says what is accepted. "
    "`forwarder check` shows the settings in effect and where each came from."
)


def env_example() -> str:
    """Return the text of ``.env.example``: every environment name with meaning, values and default."""
    lines = [f"# {_HEAD}", "# A line without its leading # takes effect. An empty value counts as not set."]
    for heading, specs in GROUPS.items():
        lines += ["", "#" * 4 + f" {heading} " + "#" * 4]
        for spec in specs:
            about = f"{spec.meaning} Accepted: {spec.kind.accepted}. Default: {spec.shown_default}."
            lines += ["", *(f"# {line}" for line in textwrap.wrap(about, 108, break_on_hyphens=False))]
            if spec.other_environ:
                lines.append(f"# Also read from {', '.join(spec.other_environ)}.")
            lines.append(f"#{spec.environ}={render(spec.default)}")
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """Return the text of ``docs/settings.md``: a table of settings for each group."""
    lines = [
        "# Settings",
        "",
        f"<!-- {_HEAD} -->",
        "",
        *textwrap.wrap(_PRECEDENCE, 108, break_on_hyphens=False),
    ]
    for heading, specs in GROUPS.items():
        lines += ["", f"## {heading}", "", "| key, flag, environment | default | meaning | accepted |"]
        lines.append("|---|---|---|---|")
        lines += [_row(spec) for spec in specs]
    return "\n".join(lines) + "\n"


def _row(spec: Spec) -> str:
    names = (spec.field, spec.flag, *spec.other_flags, spec.environ, *spec.other_environ)
    default = f"`{render(spec.default)}`" if render(spec.default) else spec.default_words
    cells = ("<br>".join(f"`{name}`" for name in names), default, spec.meaning, spec.kind.accepted)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


FILES: Mapping[str, Callable[[], str]] = {".env.example": env_example, "docs/settings.md": settings_page}


def stale(root: Path) -> list[str]:
    """Return the generated files under ``root`` that differ from what would be written."""
    paths = {name: root / name for name in FILES}
    return [
        name for name, path in paths.items() if not path.exists() or path.read_text("utf-8") != FILES[name]()
    ]


def main() -> int:
    """Write the files below the working directory, or compare them (``--check``); return the exit code."""
    root = Path.cwd()
    out_of_date = stale(root)
    if "--check" in sys.argv[1:]:
        for name in out_of_date:
            sys.stderr.write(f"{name} is out of date: run `python -m forwarder.settings.generate`\n")
        return 1 if out_of_date else 0
    for name in out_of_date:
        (root / name).write_text(FILES[name](), encoding="utf-8")
        sys.stdout.write(f"wrote {name}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
