"""Packages that only some commands need, which the extra ``demo`` brings."""

from __future__ import annotations

from importlib.util import find_spec

import click


def require(who: str, *packages: str) -> None:
    """Raise ClickException, with how to get them, where packages that ``who`` needs are not installed."""
    if absent := [name for name in packages if find_spec(name) is None]:
        raise click.ClickException(f"{who} needs {', '.join(absent)}: pip install 'forwarder[demo]'")
