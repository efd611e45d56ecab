"""A result backend that writes once, into a dict."""

from __future__ import annotations

import json
from typing import Any

from kombu.utils.encoding import bytes_to_str

from forwarder.results.single_write import SingleWriteBackend


class MemoryBackend(SingleWriteBackend):
    """Keeps values in a dict and notes every call."""

    value_bytes_max = 10_000

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.held: dict[str, str] = {}
        self.calls: list[str] = []

    def get(self, key: Any) -> str | None:
        self.calls.append("get")
        return self.held.get(bytes_to_str(key))

    def set(self, key: Any, value: Any) -> None:
        self.calls.append("set")
        self.held[bytes_to_str(key)] = value

    def meta(self, task_id: str) -> dict[str, Any]:
        return dict(json.loads(self.held[f"celery-task-meta-{task_id}"]))
