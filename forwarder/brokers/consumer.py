"""The worker's consumer: what Celery refuses gets a result with a code, not a log full of payload."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import states
from celery.worker.consumer import Consumer
from vine import promise

from forwarder.forwarding.errors import ForwarderError, InvalidMessage, UnknownTask

log = logging.getLogger(__name__)

NAME_CHARS_MAX = 100


class ForwarderConsumer(Consumer):
    """Celery's consumer with its own way of refusing messages.

    Celery logs up to 1,024 characters of a refused body and leaves its sender
    without an answer. Here the sender gets a FAILURE with a code wherever the
    message has an id, the log gets one line without payload, and whatever goes
    wrong while one message is received ends with that message.
    """

    #: Set by Celery from the transport.
    connection_errors: tuple[type[Exception], ...]

    def create_task_handler(self, promise: type[promise] = promise) -> Callable[[Any], Any]:
        """Return the function that is called with each message."""
        handle = super().create_task_handler(promise)

        def handle_or_refuse(message: Any) -> Any:
            try:
                return handle(message)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001 - one message must not end the worker
                return self._refuse(message, InvalidMessage("the message can't be read as a task"), error)

        return handle_or_refuse

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Refuse a message whose body can't be decoded."""
        self._refuse(message, InvalidMessage("the message's body is not JSON in UTF-8"), exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        """Refuse a message that is not a Celery task message."""
        self._refuse(message, InvalidMessage("the message is not a Celery task message"), None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a task that this worker does not serve."""
        name = (message.headers or {}).get("task")
        shown = name[:NAME_CHARS_MAX] if isinstance(name, str) else "of protocol 1"
        self._refuse(message, UnknownTask(f"this worker does not serve the task {shown!r}"), exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Refuse a task message with headers or a content type that Celery does not take."""
        self._refuse(message, InvalidMessage("the task message is not valid"), exc)

    def _refuse(self, message: Any, error: ForwarderError, cause: Exception | None) -> None:
        task_id = _task_id(message)
        log.warning(
            "message_refused code=%s task_id=%s error=%s body_bytes=%d",
            error.code, task_id, type(cause).__name__ if cause else None, len(message.body or b""),
        )  # fmt: skip
        if task_id is not None:
            try:
                self.app.backend.store_result(task_id, error, states.FAILURE)
            except Exception as store_error:  # noqa: BLE001 - the message goes back whatever it was
                log.error("result_store_failed task_id=%s error=%s", task_id, type(store_error).__name__)
                if not message.acknowledged:
                    message.requeue()
                return
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)


def _task_id(message: Any) -> str | None:
    headers = message.headers
    task_id = headers.get("id") if isinstance(headers, dict) else None
    return task_id if isinstance(task_id, str) and task_id else None
