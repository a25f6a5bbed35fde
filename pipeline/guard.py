"""Guard: headers and pixels of bytes that may crash their decoder, or never let it return. No Ray and no torch in here.

ImageReader    reads them in this process, under a timer that ends it
GuardedReader  reads them in a child process: a sample that kills a fresh one twice, alone, is a reject (`crash`)
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from pipeline import rejects
from pipeline.decode import Decoder, Uint8
from pipeline.errors import SourceError
from pipeline.fault import fault_point
from pipeline.headers import Header, open_image, read_header
from pipeline.rejects import Reject

ALONE = 2  # times that a sample must kill a process that reads nothing else


class ImageReader:
    """Reads one image after another.

    Args:
        sample_seconds: the time that one may take; then the process ends. None: no limit.
    """

    def __init__(self, sample_seconds: float | None = None) -> None:
        self._seconds = sample_seconds
        self._decoder = Decoder()

    def header(self, key: str, data: bytes) -> Header:
        """Raises Reject as `read_header` does."""
        with self._timer():
            fault_point(f"header={key}")
            return read_header(data)

    def pixels(self, key: str, data: bytes, orientation: int) -> Uint8:
        """RGB, uint8 [H, W, 3], which the next image may overwrite. Raises Reject as `decode` does."""
        with self._timer():
            fault_point(f"decode={key}")
            with open_image(data) as image:
                return self._decoder.decode(image, data, orientation)

    @contextmanager
    def _timer(self) -> Iterator[None]:
        """The system ends the process by SIGALRM, also while a decoder lets no Python code run."""
        if self._seconds is None:
            yield
            return
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def close(self) -> None:
        """Nothing is held."""


class GuardedReader(ImageReader):
    """The same in a child process, which may die.

    Raises:
        Reject: `crash`, beside what an ImageReader raises.
        SourceError: the child was killed from outside, which says nothing about an image.
    """

    def __init__(self, sample_seconds: float | None = None) -> None:
        super().__init__(sample_seconds)
        self._child: subprocess.Popen[bytes] | None = None

    def header(self, key: str, data: bytes) -> Header:
        return self._call("header", key, data)  # type: ignore[no-any-return]

    def pixels(self, key: str, data: bytes, orientation: int) -> Uint8:
        return self._call("pixels", key, data, orientation)  # type: ignore[no-any-return]

    def _call(self, method: str, key: str, *arguments: Any) -> Any:
        for _ in range(1 + ALONE):  # the first time, others have been read in the same process
            answer = self._ask(method, key, *arguments)
            if answer is not None:
                break
            code = self._ended()
            if code == -signal.SIGKILL:
                raise SourceError(f"{key}: the process that read it was killed from outside")
        else:
            how = "hangs" if code == -signal.SIGALRM else f"ends its process ({_name_of(code)})"
            limit = f" after {self._seconds:g} s" if code == -signal.SIGALRM else ""
            raise Reject(rejects.CRASH, f"its decoder {how}{limit}, {ALONE} times alone in a fresh process")
        kind, *result = answer
        if kind == "reject":
            raise Reject(*result)
        if kind == "error":
            raise RuntimeError(f"{key}: {result[0]}")
        return result[0]

    def _ask(self, *request: Any) -> tuple[Any, ...] | None:
        """The child's answer; None if it died over it."""
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "pipeline.guard", str(self._seconds or 0)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,  # Ctrl-C is the parent's affair
            )
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            _send(self._child.stdin, request)
            return _receive(self._child.stdout)
        except (BrokenPipeError, EOFError):
            return None

    def _ended(self) -> int:
        child, self._child = self._child, None
        assert child is not None and child.stdin is not None and child.stdout is not None
        for stream in (child.stdin, child.stdout):
            try:
                stream.close()
            except BrokenPipeError:
                continue
        return child.wait()

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.kill()
            self._ended()


def _name_of(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    return pickle.loads(_exactly(stream, length))  # between a process of ours and its own child


def _exactly(stream: IO[bytes], length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def serve(sample_seconds: float) -> None:
    """The child: answers until its parent is gone. What decoders print goes to stderr."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        reader = ImageReader(sample_seconds or None)
        while True:
            try:
                method, *arguments = _receive(sys.stdin.buffer)
            except EOFError:
                return
            answer: tuple[Any, ...]
            try:
                result = getattr(reader, method)(*arguments)
                answer = ("result", np.ascontiguousarray(result) if isinstance(result, np.ndarray) else result)
            except Reject as reject:
                answer = ("reject", reject.reason, reject.message)
            except Exception:  # noqa: BLE001 - told to the parent, which raises it
                answer = ("error", traceback.format_exc())
            _send(answers, answer)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
