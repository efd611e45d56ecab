"""The JSON that hooks send."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: What json.dumps raises: for NaN, for a type of no JSON, for nesting beyond the interpreter's bound.
NOT_JSON = (ValueError, TypeError, RecursionError)


def with_task_id(response: Any, task_id: str) -> dict[str, Any]:
    """Return a copy of the response with ``task_id`` in it.

    A response that is no object stands under ``result``, as it would in a
    stored result.
    """
    if isinstance(response, Mapping):
        return {**response, "task_id": task_id}
    return {"result": response, "task_id": task_id}


def to_json(value: Any) -> bytes:
    """Return the value as UTF-8 JSON on one line.

    Raises one of NOT_JSON for what JSON can't say, NaN among it: most parsers
    refuse the word.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        # A lone surrogate: JSON can say it as an escape, UTF-8 can't say it at all.
        return json.dumps(value, allow_nan=False).encode()
