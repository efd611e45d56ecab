"""What the worker lacks is told from what a task does wrong."""

from __future__ import annotations

import errno
import threading

import pytest

from forwarder.forwarding.errors import is_shortage


def _raised_from(beneath: Exception, *, hidden: bool = False) -> Exception:
    try:
        try:
            raise beneath
        except (OSError, ValueError):
            if hidden:
                raise ValueError from None
            raise ValueError  # noqa: B904 - without a cause, as libraries do
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EMFILE, ""), True),
        (OSError(errno.EAGAIN, ""), True),
        (OSError(errno.ECONNREFUSED, ""), False),
        (_raised_from(OSError(errno.EMFILE, "")), True),
        (_raised_from(_raised_from(OSError(errno.ENFILE, ""))), True),
        (_raised_from(OSError(errno.EMFILE, ""), hidden=True), False),
        (_raised_from(OSError(errno.EAGAIN, "")), False),
        (RuntimeError("dictionary changed size during iteration"), False),
        (MemoryError(), False),
    ],
)
def test_a_shortage_is_seen_beneath_other_errors(error: BaseException, expected: bool) -> None:
    assert is_shortage(error) is expected


def test_a_thread_that_can_not_be_started_is_a_shortage() -> None:
    """CPython has nothing but words for it."""
    usual = threading.stack_size(1 << 46)
    try:
        with pytest.raises(RuntimeError) as caught:
            threading.Thread(target=int).start()
    finally:
        threading.stack_size(usual)
    assert is_shortage(caught.value)
