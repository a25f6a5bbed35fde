"""Messages between a process and its own child, over pipes, with a deadline."""

from __future__ import annotations

import os
import pickle
import selectors
import struct
import time
from typing import IO, Any

from ..errors import ReaderLost

PIECE_BYTES = 1 << 20


def send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=5)
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes], deadline: float | None = None) -> Any:
    (length,) = struct.unpack("<Q", exactly(stream, 8, deadline))
    return pickle.loads(exactly(stream, length, deadline))  # between a process of ours and its own child


def exactly(stream: IO[bytes], length: int, deadline: float | None = None) -> bytearray:
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
