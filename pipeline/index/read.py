"""Reading a part's index: the columns that cutting needs, what an estimate needs, or some samples whole.

Written by `index.py`.
"""

from __future__ import annotations

import binascii
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import rejects
from ..errors import output_error
from ..grid import offsets
from ..source.sample import IndexedSample, VideoFacts
from ..storage.files import AnyPath, small_file
from ..storage.remote import RemotePath

NUMBERS = ["width", "height", "offset", "length", "status", "group"]


@dataclass(frozen=True, kw_only=True)
class IndexArrays:
    """The columns that cutting needs, of one part. N samples.

    Attributes:
        damaged: what is wrong with the part, and what came of that; "" where nothing is.
        left_alone: members that are no sample's, counted by extension.
        of: how many parts the source had; 0 in an index of an earlier version.
        clips: the accepted samples that are clips, by their row.
    """

    width_N: npt.NDArray[np.int64]
    height_N: npt.NDArray[np.int64]
    length_N: npt.NDArray[np.int64]
    end_N: npt.NDArray[np.int64]
    accepted_N: npt.NDArray[np.bool_]
    group_N: npt.NDArray[np.int64]
    damaged: str
    left_alone: Counter[str] = field(default_factory=Counter)
    is_lost: bool = False
    of: int = 0
    clips: dict[int, VideoFacts] = field(default_factory=dict)

    @cached_property
    def byte_ends(self) -> npt.NDArray[np.int64]:
        """[N + 1], of what is read: in a tar everything since the sample before it, since a unit is one range."""
        read_N = np.maximum(self.length_N, np.diff(self.end_N, prepend=self.end_N[:1]))
        return offsets(read_N)

    @cached_property
    def group_starts(self) -> npt.NDArray[np.int64] | None:
        """For each sample the first of its row group; None where there are no row groups."""
        if (self.group_N < 0).all():
            return None
        number = np.arange(len(self.group_N))
        starts = self.group_N != np.concatenate([[-2], self.group_N[:-1]])
        return np.where(self.group_N < 0, number, np.maximum.accumulate(np.where(starts, number, 0)))


def read_index_arrays(path: AnyPath) -> IndexArrays:
    """Reads the numeric columns of one part's index."""
    return _arrays_of(_read(path, NUMBERS))


def _clips(table: pa.Table) -> dict[int, VideoFacts]:
    """The accepted samples that are clips."""
    if "video" not in table.schema.names:
        return {}
    pairs = zip(table.column("video").to_pylist(), table.column("status").to_pylist(), strict=True)
    return {
        row: VideoFacts(**video)
        for row, (video, status) in enumerate(pairs)
        if video is not None and status == rejects.OK
    }


def _read(path: AnyPath, columns: list[str]) -> pa.Table:
    """Some columns, and the facts about clips if there are any. Raises OutputError: it is not a complete index."""
    try:
        file = pq.ParquetFile(small_file(path))
        about = json.loads(file.metadata.metadata[b"visionbake.index"])
        return file.read([*columns, "video"] if about.get("videos") else columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise output_error(f"{path} cannot be read: {error}", error) from error


def _arrays_of(table: pa.Table) -> IndexArrays:
    def numbers(name: str) -> npt.NDArray[np.int64]:
        return table.column(name).fill_null(0).cast(pa.int64()).to_numpy()

    facts = json.loads(table.schema.metadata[b"visionbake.index"])
    return IndexArrays(
        width_N=numbers("width"),
        height_N=numbers("height"),
        length_N=numbers("length"),
        end_N=numbers("offset") + numbers("length"),
        accepted_N=pc.equal(table.column("status"), rejects.OK).to_numpy().astype(np.bool_),
        group_N=numbers("group"),
        damaged=facts["damaged"],
        left_alone=Counter(facts.get("left_alone")),
        is_lost=facts.get("is_lost", False),
        of=facts.get("of", 0),
        clips=_clips(table),
    )


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """The facts about one part that an estimate needs. N samples.

    Attributes:
        rejects: by reason, those of the bytes alone.
        no_image: samples that name none.
        hash_N: 64 bits of every sample's sha256, 0 where there is no image.
    """

    arrays: IndexArrays
    rejects: Counter[str]
    no_image: int
    hash_N: npt.NDArray[np.uint64]


def read_index_facts(path: AnyPath) -> IndexFacts:
    """Reads a part's numbers, reject reasons and hashes at once."""
    table = _read(path, [*NUMBERS, "sha256"])
    counts = {one["values"]: one["counts"] for one in table.column("status").value_counts().to_pylist()}
    counts.pop(rejects.OK, None)
    no_image = counts.pop(rejects.NO_IMAGE, 0)
    hash_N = _hashes(table.column("sha256"))
    return IndexFacts(arrays=_arrays_of(table), rejects=Counter(counts), no_image=no_image, hash_N=hash_N)


def _hashes(sha256: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    column = sha256.combine_chunks()
    result = np.zeros(len(column), np.uint64)
    found = column.drop_null()
    if len(found):
        start = int(np.frombuffer(found.buffers()[1], np.int32)[found.offset])
        text = memoryview(found.buffers()[2])[start : start + 64 * len(found)]
        result[column.is_valid().to_numpy(zero_copy_only=False)] = hashes_of(text)
    return result


def hashes_of(sha256: bytes | memoryview) -> npt.NDArray[np.uint64]:
    """The first 64 bits of hexadecimal digests, one after the other; never 0."""
    digests_N4 = np.frombuffer(binascii.unhexlify(sha256), ">u8").reshape(-1, 4)
    return np.maximum(digests_N4[:, 0].astype(np.uint64), np.uint64(1))


def find_index_row(path: AnyPath, source: str, key: str) -> IndexedSample | None:
    """The sample that this key names in a part, None if its header is a reject or there is none."""
    wanted = [("source", "=", source), ("key", "=", key), ("status", "=", rejects.OK)]
    rows = pq.read_table(small_file(path), filters=wanted).to_pylist()
    return IndexedSample.from_row(rows[0]) if rows else None


def read_index_rows(path: AnyPath | BinaryIO, first: int, count: int) -> list[IndexedSample]:
    """Reads `count` samples from row `first` on, from the row groups that hold them only."""
    file = pq.ParquetFile(small_file(path) if isinstance(path, Path | RemotePath) else path)
    samples: list[IndexedSample] = []
    start = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        low, high = max(first, start), min(first + count, start + rows)
        if low < high:
            table = file.read_row_group(group).slice(low - start, high - low)
            samples.extend(IndexedSample.from_row(row) for row in table.to_pylist())
        start += rows
    return samples
