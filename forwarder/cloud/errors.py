"""How AWS's errors are named in logs and results."""

from __future__ import annotations


def error_code(error: BaseException) -> str | None:
    """Return AWS's own word for a botocore ClientError ("AccessDenied"), None for any other error."""
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return None
    code = response.get("Error", {}).get("Code")
    return code if isinstance(code, str) and code else None


def describe(error: BaseException) -> str:
    """Return the error's class and AWS's code, and nothing else.

    AWS's messages name accounts, roles and request parameters, which belong in
    neither logs nor results.
    """
    code = error_code(error)
    name = type(error).__name__
    return name if code is None else f"{name}:{code}"
