"""Clip statistics: the facts about a unit's accepted clips that `stats` needs beside those of images. C clips."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

# By the name of a ledger's column.
CLIP_ARRAYS = {"clip_tokens": "<i4", "clip_frames": "<i4", "clip_seconds": "<f4", "clip_branches": "u1"}
CLIP_COLUMNS = ("media", "start", "end", "fps", "duration", "frames")


@dataclass(frozen=True, kw_only=True)
class ClipStatistics:
    """The accepted clips of one unit, in their order.

    Attributes:
        tokens_C: as encoded.
        frames_C: how many were taken.
        seconds_C: of film that was asked for.
        branches_C: bits, by `statistics.BRANCHES`.
    """

    tokens_C: npt.NDArray[np.int32]
    frames_C: npt.NDArray[np.int32]
    seconds_C: npt.NDArray[np.float32]
    branches_C: npt.NDArray[np.uint8]

    @classmethod
    def of_rows(cls, rows: Iterable[tuple[int, int, float, int]]) -> ClipStatistics:
        """Makes them of each clip's tokens, frames, seconds and branches."""
        columns = tuple(zip(*rows, strict=True)) or ((), (), (), ())
        kinds = CLIP_ARRAYS.values()
        return cls.of_arrays([np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)])

    @classmethod
    def of_arrays(cls, arrays: Sequence[npt.NDArray[np.generic]]) -> ClipStatistics:
        """Makes them of arrays in the order of CLIP_ARRAYS. Raises ValueError: they are of several lengths."""
        if len({len(array) for array in arrays}) != 1:
            raise ValueError("statistics of clips of different lengths")
        names = (field.name for field in fields(cls))
        return cls(**dict(zip(names, arrays, strict=True)))  # type: ignore[arg-type]

    def arrays(self) -> list[npt.NDArray[np.generic]]:
        """In the order of CLIP_ARRAYS, as they are stored."""
        found = (getattr(self, field.name) for field in fields(self))
        return [array.astype(kind) for array, kind in zip(found, CLIP_ARRAYS.values(), strict=True)]


def clip_hash(hash_of_file: int, frames: Sequence[int] | npt.NDArray[np.int64]) -> int:
    """64 bits that tell clips apart: two of one file are equal where the same frames are taken. Never 0."""
    taken = np.asarray(frames, "<i8").tobytes()
    digest = hashlib.blake2b(int(hash_of_file).to_bytes(8, "little") + taken, digest_size=8).digest()
    return max(1, int.from_bytes(digest, "little"))
