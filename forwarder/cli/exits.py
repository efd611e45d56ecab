"""Exit codes of every command: part of the public contract."""

from __future__ import annotations

OK = 0
FAILED = 1
WRONG_USAGE = 2
UNREACHABLE = 3
