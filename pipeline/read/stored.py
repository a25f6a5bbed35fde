"""Stored rows: an embedding's bytes by where they lie, one range read each.

M tokens, O values of a row, S streams of it. Threads may read at the same time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..encode.dtypes import STORED, is_scaled, restore, scale_bytes, scale_of
from ..errors import OutputError
from ..output.info import DatasetInfo
from ..storage import remote
from ..storage.files import AnyPath, open_input
from ..storage.remote import RemotePath
from .kept import Kept

FILES_KEPT = 64
SCALES_KEPT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """Where a row's embedding lies.

    Attributes:
        shard: its data shard, relative to the output.
        row: its number in that shard.
        offset, length: bytes in that file.
    """

    shard: str
    row: int
    offset: int
    length: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRow:
    """An image or video of an output, as a server needs it: where its tokens lie, and its grid."""

    stored: StoredRow
    medium: str
    grid_thw: tuple[int, ...]


class _OpenFile:
    """A local file, open until nobody uses it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor, self._close = os.open(path, os.O_RDONLY), os.close  # `os` is gone when the interpreter ends

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self._close(self.descriptor)


class StoredRows:
    """The data shards of an output.

    Args:
        root: the output.
        info: what its dataset.json says.
    """

    def __init__(self, root: AnyPath, info: DatasetInfo) -> None:
        self._root, self._streams = root, info.streams
        self._dtype = STORED[info.config["output"]["dtype"]]
        self._scaled = is_scaled(info.config["output"]["dtype"])
        self._files: Kept[_OpenFile] = Kept(FILES_KEPT)
        self._scales: Kept[list[bytes]] = Kept(SCALES_KEPT)

    def tokens(self, row: StoredRow) -> Tensor:
        """Whole rows [M, O] in the stored dtype; int8 and fp8 restored to bfloat16.

        Raises:
            OutputError: the file ends inside them.
            OSError: it cannot be read.
        """
        rows_MO = self.range(row.shard, row.offset, row.length).view(self._dtype).view(row.num_tokens, -1)
        return restore(rows_MO, self._scale(row)).to(torch.bfloat16) if self._scaled else rows_MO

    def range(self, shard: str, offset: int, length: int) -> Tensor:
        """One range of a data shard, uint8, into a tensor of its own. Raises as `tokens`."""
        if isinstance(self._root, RemotePath):
            place = (self._root / shard).uri
            data = remote.read(place, offset, offset + length)
            if len(data) != length:
                raise OutputError(f"{place}: {len(data)} of {length} bytes at {offset}")
            buffer = _empty(length)
            buffer.numpy().data[:] = data
            return buffer
        path = str(self._root / shard)
        file = self._files.get(path, lambda: _OpenFile(path))
        buffer = _empty(length)
        rest = memoryview(buffer.numpy().data)
        while rest:
            count = os.preadv(file.descriptor, [rest], offset + length - len(rest))
            if not count:
                raise OutputError(f"{path} ends at byte {offset + length - len(rest)}, inside an embedding")
            rest = rest[count:]
        return buffer

    def _scale(self, row: StoredRow) -> Tensor:
        """Scales [M, S]: in a tar behind the embedding; in Parquet a small column, read a shard at a time."""
        if row.shard.endswith(".tar"):
            behind = self.range(row.shard, row.offset + row.length, scale_bytes(row.num_tokens, self._streams))
            return behind.view(torch.float32).view(-1, 1 + self._streams)
        scales = self._scales.get(row.shard, lambda: self._read_scales(row.shard))
        return scale_of(scales[row.row], self._streams)

    def _read_scales(self, shard: str) -> list[bytes]:
        with open_input(self._root / shard, forwards=False) as stream:
            scales: list[bytes] = pq.read_table(stream, columns=["scale"]).column("scale").to_pylist()
        return scales


def _empty(length: int) -> Tensor:
    """Memory for an embedding, uint8; in a DataLoader's worker what the other process sees, which saves a copy."""
    if get_worker_info() is None or not length:
        return torch.empty(length, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(length))  # as default_collate does
