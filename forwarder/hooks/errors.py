"""Why a hook failed, in words that may be logged."""

from __future__ import annotations


class HookError(Exception):
    """A hook could not deliver, and trying again now would not help.

    The message goes to the log: it holds no payload text, no address and no secret.
    """
