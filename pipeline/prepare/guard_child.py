"""The child process of a guard: it reads what it is sent, and may die of it. Run as a module."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from functools import partial
from typing import IO, Any

import numpy as np

from ..errors import ReaderLost
from ..rejects import Reject
from .decode import Uint8
from .guard import HELLO, ImageReader
from .pipe import receive, send


def serve() -> None:
    """The child: answers until its parent is gone. What decoders print goes to stderr."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whatever the parent was started with
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(1), "wb") as answers:
        if _is_open(2):
            os.dup2(2, 1)
        else:
            os.close(1)
        answers.write(HELLO)
        answers.flush()
        reader = ImageReader()
        while True:
            try:
                method, seconds, *arguments = receive(sys.stdin.buffer)
            except EOFError:
                return
            _answer(answers, reader, method, seconds, arguments)


def _answer(answers: IO[bytes], reader: ImageReader, method: str, seconds: float | None, arguments: list[Any]) -> None:
    reader.limit(seconds)
    if method == "frames":
        arguments.append(partial(_send_frame, answers))
    try:
        result = getattr(reader, method)(*arguments)
    except Reject as reject:
        send(answers, ("reject", reject.reason, reject.message))
    except ReaderLost as error:
        send(answers, ("lost", str(error)))
    except Exception:  # noqa: BLE001 - told to the parent, which raises it
        send(answers, ("error", traceback.format_exc()))
    else:
        if isinstance(result, np.ndarray):
            _send_pixels(answers, ("pixels", result.shape), result)
        else:
            send(answers, ("result", result))


def _send_frame(answers: IO[bytes], index: int, pixels: Uint8) -> None:
    _send_pixels(answers, ("frame", index, pixels.shape), pixels)


def _send_pixels(answers: IO[bytes], message: tuple[Any, ...], pixels: Uint8) -> None:
    send(answers, message)
    answers.write(np.ascontiguousarray(pixels).data)
    answers.flush()


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    serve()
