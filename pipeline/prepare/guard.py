"""Guard: headers and pixels of bytes that may crash their decoder, or never let it return. No Ray and no torch in here.

ImageReader    reads images and videos in this process, under a timer that ends it
GuardedReader  reads them in a child process: a sample that kills a fresh one twice, alone, is a reject (`crash`)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import rejects
from ..errors import ReaderLost
from ..fault import fault_point
from ..grid import Int64
from ..index.headers import Header, header_of, open_image, read_header
from ..rejects import Reject
from ..storage.large import LargeFile
from .decode import Decoder, Uint8
from .pipe import exactly, receive, send

if TYPE_CHECKING:  # av is loaded where a video is read
    from ..index.video_file import VideoSource
    from ..index.video_header import VideoHeader

Take = Callable[[int, Uint8], None]  # what a frame's index and pixels are given to
ALONE = 2  # times that a sample must kill a process that reads nothing else
ALONE_PATIENCE = 3  # times sample_seconds that it has then: a busy machine must not make a reject
START_SECONDS = 120.0
MINUTE_SECONDS, MINUTE_BYTES = 60.0, 256 << 20  # of a video: each gives it `sample_seconds` more
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
CHILD = f"{__package__}.guard_child"
# Where this package lies: the parent may have found it through the current directory, which is '' in sys.path.
PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


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

    def still(self, key: str, data: bytes) -> Uint8:
        """A frame image as displayed; as `pixels`, of an image whose orientation its header says."""
        with self._timer():
            fault_point(f"decode={key}")
            with open_image(data) as image:
                return self._decoder.decode(image, data, header_of(image, data).orientation)

    def video_header(self, key: str, source: VideoSource) -> VideoHeader:
        """Raises Reject and OSError as `read_video_header` does."""
        from ..index.video_header import read_video_header

        with self._timer(_longer_by_bytes(source)):
            fault_point(f"header={key}")
            return read_video_header(source)

    def frames(self, key: str, source: VideoSource, header: VideoHeader, wanted: Int64, take: Take) -> None:
        """Gives `take` each wanted frame, RGB, uint8 [H, W, 3], in order. Raises as `decode_frames` does."""
        from .video_decode import decode_frames

        with self._timer(_longer_by_length(header)):
            fault_point(f"decode={key}")
            for index, pixels in decode_frames(source, header, wanted):
                take(index, pixels)
                fault_point(f"frame={key}")

    @contextmanager
    def _timer(self, longer: float = 1.0) -> Iterator[None]:
        """The system ends the process by SIGALRM, also while a decoder lets no Python code run."""
        if self._seconds is None:
            yield
            return
        signal.setitimer(signal.ITIMER_REAL, self._seconds * longer)
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
        return self._call("header", key, lambda: (data,))

    def pixels(self, key: str, data: bytes, orientation: int) -> Uint8:
        return self._call("pixels", key, lambda: (data, orientation))

    def still(self, key: str, data: bytes) -> Uint8:
        return self._call("still", key, lambda: (data,))

    def video_header(self, key: str, source: VideoSource) -> VideoHeader:
        sent = _sendable(source)
        return self._call("video_header", key, lambda: (sent,), longer=_longer_by_bytes(source))

    def frames(self, key: str, source: VideoSource, header: VideoHeader, wanted: Int64, take: Take) -> None:
        sent, taken = _sendable(source), 0

        def count(index: int, pixels: Uint8) -> None:
            nonlocal taken
            taken += 1
            take(index, pixels)

        # A process that goes on after another has died begins behind what that one gave.
        rest = lambda: (sent, header, wanted[taken:])  # noqa: E731
        self._call("frames", key, rest, longer=_longer_by_length(header), take=count)

    def _call(
        self,
        method: str,
        key: str,
        arguments: Callable[[], tuple[Any, ...]],
        longer: float = 1.0,
        take: Take | None = None,
    ) -> Any:
        try:
            return self._try(method, key, arguments, longer, take)
        except Reject:
            raise
        except BaseException:  # also an interruption: a half-read answer must not be taken for the next one
            self.close()
            raise

    def _try(
        self, method: str, key: str, arguments: Callable[[], tuple[Any, ...]], longer: float, take: Take | None
    ) -> Any:
        code = 0
        for number in range(1 + ALONE):  # the first time, others have been read in the same process
            seconds = self._seconds and self._seconds * (ALONE_PATIENCE if number else 1)
            child = self._start(fresh=number > 0)
            try:
                patience = seconds and seconds * longer
                answer = self._ask(child, patience, (method, seconds, key, *arguments()), take)
                break
            except (BrokenPipeError, EOFError):
                code = self._ended()
            if code <= 0 and -code not in OWN_DEATHS:
                raise ReaderLost(f"{key}: the process that read it was killed from outside ({_name_of(code)})")
        else:
            how = f"hangs for {patience:g} s" if code == -signal.SIGALRM else f"ends its process ({_name_of(code)})"
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
                [sys.executable, "-P", "-m", CHILD],  # -P: nothing is imported from the current directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), PACKAGE_PARENT]),
                    "OPENBLAS_NUM_THREADS": "1",  # it multiplies nothing
                },
                start_new_session=True,  # Ctrl-C is the parent's affair
            )
            assert self._child.stdout is not None
            said = exactly(self._child.stdout, len(HELLO), time.monotonic() + self._start_seconds)
            if said != HELLO:
                raise EOFError
        except (OSError, EOFError) as error:
            code = self._ended() if self._child is not None else 0
            raise ReaderLost(f"the process that reads images cannot be started ({error or _name_of(code)})") from error
        return self._child

    def _ask(
        self, child: subprocess.Popen[bytes], seconds: float | None, request: tuple[Any, ...], take: Take | None
    ) -> tuple[Any, ...]:
        """The child's answer. Raises EOFError or BrokenPipeError if it died over it, ReaderLost if it stands still."""
        assert child.stdin is not None and child.stdout is not None
        send(child.stdin, request)
        # The child ends itself in time, unless it was stopped or sleeps in the kernel.
        deadline = None if seconds is None else time.monotonic() + 2 * seconds + self._start_seconds
        while True:
            kind, *rest = receive(child.stdout, deadline)
            if kind not in ("pixels", "frame"):
                return kind, *rest
            shape = rest[-1]
            pixels = np.frombuffer(exactly(child.stdout, int(np.prod(shape)), deadline), np.uint8).reshape(shape)
            if kind == "pixels":
                return "result", pixels
            assert take is not None
            take(rest[0], pixels)

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


def _sendable(source: VideoSource) -> bytes | str | LargeFile:
    """A video as a child can read it: by its path, or its bytes. Raises OSError."""
    if isinstance(source, bytes | LargeFile):
        return source
    if isinstance(source, str | Path):
        return str(Path(source).absolute())
    source.seek(0)
    return source.read()


def _longer_by_bytes(source: VideoSource) -> float:
    """How many times `sample_seconds` a video has, to be demuxed."""
    if isinstance(source, str | Path):
        size = Path(source).stat().st_size
    else:
        size = len(source) if isinstance(source, bytes | LargeFile) else source.seek(0, os.SEEK_END)
    return 1 + size / MINUTE_BYTES


def _longer_by_length(header: VideoHeader) -> float:
    """How many times `sample_seconds` a video has, to be decoded; damaged times make no hour of a frame."""
    return 1 + min(header.duration, header.frames) / MINUTE_SECONDS


def _name_of(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
