"""Frame bytes: the encoded frame images of one clip as one run of bytes, whose sha256 is the clip's.

Of each frame its length (8 bytes, little-endian), then its bytes; frame after frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

LENGTH = struct.Struct("<Q")


def join_frames(frames: Iterable[bytes]) -> bytes:
    """Encoded images, in order, as one run of bytes."""
    pieces: list[bytes] = []
    for frame in frames:
        pieces += (LENGTH.pack(len(frame)), frame)
    return b"".join(pieces)


def split_frames(data: bytes) -> Iterator[bytes]:
    """The inverse of `join_frames`, a frame at a time."""
    position = 0
    while position < len(data):
        (length,) = LENGTH.unpack_from(data, position)
        position += LENGTH.size
        yield data[position : position + length]
        position += length
