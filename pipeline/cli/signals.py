"""Signals: SIGINT and SIGTERM end a command with a line, wherever they come: while its modules load, too."""

from __future__ import annotations

import signal
from types import FrameType

EXIT_CODE = 1
_received: list[str] = []  # names


class Interrupted(BaseException):
    """SIGINT or SIGTERM. Like KeyboardInterrupt not an Exception, so that nothing takes it for a failure."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    _received.append(signal.Signals(number).name)
    raise Interrupted(_received[-1])


def catch_signals() -> None:
    """From now on SIGINT and SIGTERM are Interrupted."""
    _received.clear()
    keep_signals()


def keep_signals() -> None:
    """The same again, after Ray has set handlers of its own.

    Raises:
        Interrupted: one has come, and what it interrupted has swallowed the exception, as compiled code may.
    """
    if _received:
        raise Interrupted(_received[-1])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def interruption(error: BaseException) -> str:
    """The signal that an exception comes of, "" of any other.

    Compiled code into which Interrupted was raised makes a SystemError of it, and Ray errors of its own: whatever
    comes after a signal comes of it.
    """
    if _received:
        return _received[-1]
    return str(error) or "SIGINT" if isinstance(error, Interrupted | KeyboardInterrupt) else ""


def interrupted_text(command: str, why: str) -> str:
    """The line that a command ends with."""
    return f"{command}: interrupted ({why}); what is committed stays. Give the same command again to go on."
