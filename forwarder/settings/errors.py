"""The one error that settings raise."""

from __future__ import annotations

_SHOWN_CHARACTERS = 120


class SettingsError(Exception):
    """A setting has a value that can't work; the message is one line for the operator.

    ``setting`` names the flag and the environment variable, ``value`` is what was
    given, with secrets already redacted, ``accepted`` says what would have worked.
    """

    def __init__(self, setting: str, value: str, accepted: str) -> None:
        shown = value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "..."
        super().__init__(f"{setting} is {repr(shown) if shown else 'empty'}; accepted: {accepted}")
        self.setting = setting
        self.value = value
        self.accepted = accepted
