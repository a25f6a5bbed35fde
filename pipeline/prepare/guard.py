"""Guard: headers and pixels of bytes that may crash their decoder, or never let it return. No Ray and no torch in here.

ImageReader    reads them in this process, under a timer that ends it
GuardedReader  reads them in a child process: a sample that kills a fresh one twice, alone, is a reject (`crash`)
"""

from __future__ import annotations

import os
import pickle
import resource
import selectors
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import rejects
from ..errors import ReaderLost
from ..fault import fault_point
from ..index.headers import Header, open_image, read_header
from ..rejects import Reject
from .decode import Decoder, Uint8

ALONE = 2  # times that a sample must kill a process that reads nothing else
ALONE_PATIENCE = 3  # times sample_seconds that it has then: a busy machine must not make a reject
START_SECONDS = 120.0
# What a decoder can do to its process. Every other death, and every other signal, came from outside.
OWN_DEATHS = (
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGSYS,
    signal.SIGTRAP,
    signal.SIGALRM,
)
HELLO = b"visionbake"
# Where this package lies: the parent may have found it through the current directory, which is '' in sys.path.
PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
PIECE_BYTES = 1 << 20


class ImageReader:
    """Reads one image after another.

    Args:
        sample_seconds: the time that one may take; then the process ends. None: no limit.
    """

    def __init__(self, sample_seconds: float | None = None) -> None:
        self._seconds = sample_seconds
        self._decoder = Decoder()

    def limit(self, sample_seconds: float | None) -> None:
        """From now on."""
        self._seconds = sample_seconds

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

    Args:
        start_seconds: what a child may take to start, or to answer beyond the time of a sample.

    Raises:
        Reject: `crash`, beside what an ImageReader raises.
        ReaderLost: the child was killed from outside, or cannot be started.
    """

    def __init__(self, sample_seconds: float | None = None, start_seconds: float = START_SECONDS) -> None:
        super().__init__(sample_seconds)
        self._start_seconds = start_seconds
        self._child: subprocess.Popen[bytes] | None = None

    def header(self, key: str, data: bytes) -> Header:
        return self._call("header", key, data)

    def pixels(self, key: str, data: bytes, orientation: int) -> Uint8:
        return self._call("pixels", key, data, orientation)

    def _call(self, method: str, key: str, *arguments: Any) -> Any:
        try:
            return self._try(method, key, *arguments)
        except Reject:
            raise
        except BaseException:  # also an interruption: a half-read answer must not be taken for the next one
            self.close()
            raise

    def _try(self, method: str, key: str, *arguments: Any) -> Any:
        code = 0
        for number in range(1 + ALONE):  # the first time, others have been read in the same process
            seconds = self._seconds and self._seconds * (ALONE_PATIENCE if number else 1)
            child = self._start(fresh=number > 0)
            try:
                answer = self._ask(child, seconds, (method, seconds, key, *arguments))
                break
            except (BrokenPipeError, EOFError):
                code = self._ended()
            if code <= 0 and -code not in OWN_DEATHS:
                raise ReaderLost(f"{key}: the process that read it was killed from outside ({_name_of(code)})")
        else:
            how = f"hangs for {seconds:g} s" if code == -signal.SIGALRM else f"ends its process ({_name_of(code)})"
            raise Reject(rejects.CRASH, f"its decoder {how}, {ALONE} times alone in a fresh process")
        kind, *result = answer
        if kind == "reject":
            raise Reject(*result)
        if kind == "lost":
            raise ReaderLost(f"{key}: {result[0]}")
        if kind == "error":
            raise RuntimeError(f"{key}: {result[0]}")
        return result[0]

    def _start(self, *, fresh: bool) -> subprocess.Popen[bytes]:
        """The running child, or a new one. Raises ReaderLost."""
        if self._child is not None and (fresh or self._child.poll() is not None):
            self.close()  # one that was killed while it waited says nothing about the next image
        if self._child is not None:
            return self._child
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],  # -P: nothing is imported from the current directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join([*filter(None, sys.path), PACKAGE_PARENT])},
                start_new_session=True,  # Ctrl-C is the parent's affair
            )
            assert self._child.stdout is not None
            said = _exactly(self._child.stdout, len(HELLO), time.monotonic() + self._start_seconds)
            if said != HELLO:
                raise EOFError
        except (OSError, EOFError) as error:
            code = self._ended() if self._child is not None else 0
            raise ReaderLost(f"the process that reads images cannot be started ({error or _name_of(code)})") from error
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], seconds: float | None, request: tuple[Any, ...]) -> tuple[Any, ...]:
        """The child's answer. Raises EOFError or BrokenPipeError if it died over it, ReaderLost if it stands still."""
        assert child.stdin is not None and child.stdout is not None
        _send(child.stdin, request)
        # The child ends itself in time, unless it was stopped or sleeps in the kernel.
        deadline = None if seconds is None else time.monotonic() + 2 * seconds + self._start_seconds
        answer: tuple[Any, ...] = _receive(child.stdout, deadline)
        if answer[0] == "pixels":
            return "result", np.frombuffer(_exactly(child.stdout, int(np.prod(answer[1])), deadline), np.uint8).reshape(
                answer[1]
            )
        return answer

    def _ended(self) -> int:
        child, self._child = self._child, None
        assert child is not None and child.stdin is not None and child.stdout is not None
        for stream in (child.stdin, child.stdout):
            with suppress(OSError):
                stream.close()
        try:
            return child.wait(self._start_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return -signal.SIGKILL

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


def _receive(stream: IO[bytes], deadline: float | None = None) -> Any:
    (length,) = struct.unpack("<Q", _exactly(stream, 8, deadline))
    return pickle.loads(_exactly(stream, length, deadline))  # between a process of ours and its own child


def _exactly(stream: IO[bytes], length: int, deadline: float | None = None) -> bytearray:
    """Raises EOFError: the other end is gone; ReaderLost: it said nothing until the deadline."""
    data = bytearray(length)
    view = memoryview(data)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while view:
            if deadline is not None and not selector.select(max(0.0, deadline - time.monotonic())):
                raise ReaderLost("the process that reads images stands still")
            count = os.readv(stream.fileno(), [view[:PIECE_BYTES]])
            if not count:
                raise EOFError
            view = view[count:]
    return data


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
                method, seconds, *arguments = _receive(sys.stdin.buffer)
            except EOFError:
                return
            _answer(answers, reader, method, seconds, arguments)


def _answer(answers: IO[bytes], reader: ImageReader, method: str, seconds: float | None, arguments: list[Any]) -> None:
    reader.limit(seconds)
    try:
        result = getattr(reader, method)(*arguments)
    except Reject as reject:
        _send(answers, ("reject", reject.reason, reject.message))
    except ReaderLost as error:
        _send(answers, ("lost", str(error)))
    except Exception:  # noqa: BLE001 - told to the parent, which raises it
        _send(answers, ("error", traceback.format_exc()))
    else:
        if isinstance(result, np.ndarray):
            _send(answers, ("pixels", result.shape))
            answers.write(np.ascontiguousarray(result).data)
            answers.flush()
        else:
            _send(answers, ("result", result))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    serve()
