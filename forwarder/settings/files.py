"""Configuration files: YAML, TOML or JSON, by the name's ending (anything else is YAML)."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from forwarder.settings.errors import SettingsError

CONFIG_FLAG = "--config"
CONFIG_ENVIRON = "FORWARDER_CONFIG"

_ACCEPTED = "a readable YAML, TOML or JSON file with a mapping at its root"


def read_mapping(path: Path) -> dict[str, Any]:
    """Return what the file holds, {} for an empty one.

    Raises SettingsError for a file that can't be read or parsed; the message
    gives the reason and never a piece of the file, which may hold secrets.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            content: object = tomllib.loads(text)
        elif path.suffix == ".json":
            content = json.loads(text)
        else:
            content = yaml.safe_load(text)
    except OSError as error:
        raise _refused(path, error.strerror or type(error).__name__) from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _refused(path, f"not YAML{line}") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # covers TOML, JSON and UTF-8 errors
        raise _refused(path, f"not {path.suffix.removeprefix('.').upper() or 'YAML'}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _refused(path, "no mapping at its root")
    return {str(key): value for key, value in content.items()}


def _refused(path: Path, reason: str) -> SettingsError:
    return SettingsError(f"{CONFIG_FLAG} ({CONFIG_ENVIRON})", str(path), f"{_ACCEPTED} ({reason})")
