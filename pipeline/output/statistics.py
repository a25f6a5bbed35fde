"""Unit statistics: the facts about a unit's accepted images that `stats` needs, small enough for its commit record.

A record holds them as JSON; `UnitStatistics` is that as arrays. N accepted images, in their order.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rejects
from ..index.read import hashes_of
from ..index.video_facts import seconds_of
from .clip_statistics import CLIP_ARRAYS, ClipStatistics, clip_hash
from .record import CommitRecord

BRANCHES = ("clamped_min", "clamped_max", "scaled_up")  # bit 0, 1, 2 of `branches_N`
COLUMNS = (
    "status",
    "sha256",
    "num_tokens",
    "height",
    "width",
    "resized_height",
    "resized_width",
    "clamped",
    "norm_mean",
    "norm_max",
)
NO_SHA256 = 64 * "0"
_WIDE, _NARROW = np.dtype("<u4"), np.dtype("<u2")


@dataclass(frozen=True, kw_only=True)
class UnitStatistics:
    """The accepted images of one unit.

    Attributes:
        hash_N: the first 64 bits of each image's sha256; of a clip, with the frames that were taken mixed in.
        tokens_N, height_N, width_N: as encoded; the sides as displayed, before resizing.
        branches_N: bits, by BRANCHES.
        repeats: images with the bytes of an earlier one of the unit; `repeated_tokens`: theirs.
        norm_sum: of the images' mean norms; `norm_max`: the largest norm of any token, 0 of no image.
        clips: of those that are clips; None in an output that has none.
    """

    hash_N: npt.NDArray[np.uint64]
    tokens_N: npt.NDArray[np.int32]
    height_N: npt.NDArray[np.int32]
    width_N: npt.NDArray[np.int32]
    branches_N: npt.NDArray[np.uint8]
    repeats: int
    repeated_tokens: int
    norm_sum: float
    norm_max: float
    clips: ClipStatistics | None = None

    def to_json(self) -> dict[str, object]:
        """A JSON object, arrays as base64."""
        return {
            "hashes": _text(self.hash_N.astype("<u8")),
            "tokens": _text(_narrowed(self.tokens_N)),
            "heights": _text(_narrowed(self.height_N)),
            "widths": _text(_narrowed(self.width_N)),
            "branches": _text(self.branches_N),
            "repeats": self.repeats,
            "repeated_tokens": self.repeated_tokens,
            "norm_sum": self.norm_sum,
            "norm_max": self.norm_max,
            **({} if self.clips is None else {"clips": [_text(array) for array in self.clips.arrays()]}),
        }

    @classmethod
    def of_record(cls, record: CommitRecord) -> UnitStatistics | None:
        """Reads a record's; None where it has none, or such as this version does not know."""
        try:
            return cls.from_json(record.statistics) if record.statistics else None
        except (KeyError, TypeError, ValueError):
            return None

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> UnitStatistics:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError: it is something else."""
        hash_N = np.frombuffer(base64.b64decode(tree["hashes"], validate=True), "<u8").astype(np.uint64, copy=False)

        def sizes(name: str) -> npt.NDArray[np.int32]:
            data = base64.b64decode(tree[name], validate=True)
            kind = _WIDE if len(data) == _WIDE.itemsize * len(hash_N) else _NARROW
            return np.frombuffer(data, kind).astype(np.int32)

        result = cls(
            hash_N=hash_N,
            tokens_N=sizes("tokens"),
            height_N=sizes("heights"),
            width_N=sizes("widths"),
            branches_N=np.frombuffer(base64.b64decode(tree["branches"], validate=True), np.uint8),
            repeats=int(tree["repeats"]),
            repeated_tokens=int(tree["repeated_tokens"]),
            norm_sum=float(tree["norm_sum"]),
            norm_max=float(tree["norm_max"]),
            clips=_clips_of(tree["clips"]) if "clips" in tree else None,
        )
        if {len(values) for values in (result.tokens_N, result.height_N, result.width_N, result.branches_N)} != {
            len(hash_N)
        }:
            raise ValueError("statistics of different lengths")
        return result


def _clips_of(texts: Sequence[str]) -> ClipStatistics:
    """Raises TypeError, ValueError."""
    data = [base64.b64decode(text, validate=True) for text in texts]
    kinds = CLIP_ARRAYS.values()
    return ClipStatistics.of_arrays([np.frombuffer(one, kind) for one, kind in zip(data, kinds, strict=True)])


def _as_stored(norm: float | None) -> float:
    return float(np.float32(norm or 0.0))


def _text(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def _narrowed(values_N: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
    """Two bytes a value where all values fit."""
    return values_N.astype(_NARROW if len(values_N) == 0 or int(values_N.max()) <= 0xFFFF else _WIDE)


def statistics_of(columns: Mapping[str, Sequence[Any]]) -> UnitStatistics:
    """Counts the accepted images of a samples shard.

    Args:
        columns: COLUMNS at least, and CLIP_COLUMNS where there may be clips; what is unknown counts as 0.
    """
    chosen = [row for row, status in enumerate(columns["status"]) if status == rejects.OK]

    def numbers(name: str) -> npt.NDArray[np.int64]:
        values = columns[name]
        return np.fromiter((values[row] or 0 for row in chosen), np.int64, len(chosen))

    tokens_N, height_N, width_N = numbers("num_tokens"), numbers("height"), numbers("width")
    hash_N = hashes_of("".join(columns["sha256"][row] or NO_SHA256 for row in chosen).encode("ascii"))
    is_clip = [row for row, of in enumerate(chosen) if columns["media"][of] == "video"] if "media" in columns else []
    for row in is_clip:
        hash_N[row] = clip_hash(hash_N[row], columns["frames"][chosen[row]] or ())
    clamped = columns["clamped"]
    branches_N = (
        np.fromiter((clamped[row] == "min" for row in chosen), np.uint8, len(chosen))
        + 2 * np.fromiter((clamped[row] == "max" for row in chosen), np.uint8, len(chosen))
        + 4 * (numbers("resized_height") * numbers("resized_width") > height_N * width_N)
    )
    norms = [_as_stored(columns["norm_mean"][row]) for row in chosen]
    clips = ClipStatistics.of_rows(
        (
            tokens_N[row],
            len(columns["frames"][chosen[row]] or ()),
            seconds_of(*(columns[name][chosen[row]] for name in ("start", "end", "fps", "duration"))),
            branches_N[row],
        )
        for row in is_clip
    )
    first_N = np.zeros(len(chosen), bool)
    first_N[np.unique(hash_N, return_index=True)[1]] = True
    return UnitStatistics(
        hash_N=hash_N,
        tokens_N=tokens_N.astype(np.int32),
        height_N=height_N.astype(np.int32),
        width_N=width_N.astype(np.int32),
        branches_N=branches_N.astype(np.uint8),
        repeats=int((~first_N).sum()),
        repeated_tokens=int(tokens_N[~first_N].sum()),
        norm_sum=float(sum(norms)),
        norm_max=max((_as_stored(columns["norm_max"][row]) for row in chosen), default=0.0),
        clips=clips if "media" in columns else None,
    )
