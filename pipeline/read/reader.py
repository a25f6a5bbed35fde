"""Read: an output's embeddings, as map-style and iterable data sets of torch.

    samples/*.parquet say where each embedding lies; one range read of a data shard gets it, never a row group.

Only committed units are read: a shard without its record does not exist for a reader. Everything here can be pickled,
and works in the workers of a DataLoader.
"""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..encode.dtypes import STORED, is_scaled, restore, scale_bytes, scale_of
from ..errors import OutputError, RequestError
from ..index.units import UnitId
from ..output.info import read_dataset
from ..output.layout import samples_path
from ..output.ledger import CommittedUnits, folded_parts, read_committed
from ..output.ledger_file import numbers_of
from ..output.shard import SAMPLES_SCHEMA
from ..source.plan import Plan
from ..storage import remote
from ..storage.files import AnyPath, absolute, open_input, small_file
from ..storage.remote import RemotePath, check_uri
from .items import Item, item_of
from .items import collate as collate  # a public name of this module
from .stream import EmbeddingStream

TABLES_KEPT = 8
FILES_KEPT = 64
FOOTERS_AT_ONCE = 32
_WHERE = ("key", "source", "grid_thw", "num_tokens", "shard", "offset", "length")


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The accepted rows of one unit, as Python values; carried columns as a table."""

    columns: dict[str, list[Any]]
    carried: pa.Table


class EmbeddingDataset(Dataset[Item]):
    """An output, row by row.

    Each item is a dictionary: `key`, `source`, `image_embeds` (a tensor [num_tokens, stream_width] in the stored dtype;
    int8 and fp8 are restored to bfloat16), of an output with further streams `deepstack_embeds` (a list of as many such
    tensors, in the order in which the language model adds them), `grid_thw` (int64 [3]), and the carried columns.

    Attributes:
        streams: how many further streams a row has.
        hidden_size: values of a row, in all of its streams.

    Args:
        uri: the output, local or anything that fsspec opens.

    Raises:
        RequestError: it is not an output of visionbake.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = os.fspath(uri)
        check_uri("output", self.uri)
        self._root = absolute(self.uri)
        try:
            self.info = read_dataset(self._root)
            committed = CommittedUnits(self._root, Plan(self._root).num_parts)
            folded = folded_parts(self._root) if committed.count else set()
        except OSError as error:
            raise RequestError(f"{self.uri} is not an output of visionbake: {error}") from error
        # Two numbers and a sum for each unit: there may be millions.
        self._unit_parts, self._unit_numbers, counts = (
            np.frombuffer(one, np.int64) for one in self._lengths(committed, folded)
        )
        self._ends = np.cumsum(counts, dtype=np.int64)
        self.dtype = STORED[self.info.config["output"]["dtype"]]
        self.hidden_size: int = self.info.hidden_size
        self.streams: int = self.info.streams
        self._scaled = is_scaled(self.info.config["output"]["dtype"])
        self._forget()

    def _forget(self) -> None:
        """Forgets what belongs to this process alone."""
        self._tables: OrderedDict[int, _Rows] = OrderedDict()
        self._files: OrderedDict[str, int] = OrderedDict()
        self._scales: OrderedDict[str, list[bytes]] = OrderedDict()
        self._hashes: tuple[np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        private = ("_tables", "_files", "_scales", "_hashes")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def _lengths(self, committed: CommittedUnits, folded: set[int]) -> tuple[array[int], array[int], array[int]]:
        """Part, number and rows of each committed unit, in order. Raises OutputError: a footer cannot be read."""
        parts, numbers, rows = array("q"), array("q"), array("q")
        for one in read_committed(self._root, committed, folded, ("rows_out",)):
            if isinstance(one, list):
                ids = [UnitId.parse(record.unit) for record in one]
                parts.extend(unit.part for unit in ids)
                numbers.extend(unit.number for unit in ids)
                rows.extend(record.rows_out for record in one)
            else:
                parts.extend([one.part] * len(one.numbers))
                numbers.extend(one.numbers)
                rows.extend(numbers_of(one.table, "rows_out").tolist())
        return parts, numbers, rows

    def _unit(self, unit: int) -> AnyPath:
        """The samples shard of the unit-th committed unit."""
        return samples_path(self._root, str(UnitId(int(self._unit_parts[unit]), int(self._unit_numbers[unit]))))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int | str | tuple[str, str]) -> Item:
        """By number, by key, or by `(source, key)`.

        Raises:
            IndexError, KeyError: there is no such row.
            RequestError: the key is in several files of the source.
        """
        unit, row = self._place(index) if isinstance(index, int | np.integer) else self._find(index)
        return self.read(unit, row)

    def get_many(self, keys: Sequence[int | str | tuple[str, str]]) -> list[Item]:
        """Several items, in order; shard by shard. Raises as `dataset[key]` does."""
        places = [self._place(key) if isinstance(key, int | np.integer) else self._find(key) for key in keys]
        items: list[Item | None] = [None] * len(places)
        for number in sorted(range(len(places)), key=places.__getitem__):
            items[number] = self.read(*places[number])
        return [item for item in items if item is not None]

    def _place(self, index: int | np.integer[Any]) -> tuple[int, int]:
        wanted = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= wanted < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        unit = int(np.searchsorted(self._ends, wanted, side="right"))
        return unit, wanted - (int(self._ends[unit - 1]) if unit else 0)

    def _find(self, key: str | tuple[str, str]) -> tuple[int, int]:
        source, name = key if isinstance(key, tuple) else (None, key)
        if self._hashes is None:
            self._hashes = self._hash_keys()
        hashes, order = self._hashes
        first, last = (int(np.searchsorted(hashes, hash(name), side=side)) for side in ("left", "right"))
        found = []
        for number in order[first:last].tolist():
            unit, row = self._place(number)
            columns = self._rows(unit).columns
            if columns["key"][row] == name and source in (None, columns["source"][row]):
                found.append((unit, row))
        if not found:
            raise KeyError(key)
        if len(found) > 1:
            sources = sorted({self._rows(unit).columns["source"][row] for unit, row in found})
            where = ", ".join(sources)
            raise RequestError(f"the key {name!r} stands {len(found)} times: in {where}; ask by (source, key)")
        return found[0]

    def _hash_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of all keys in sorted order, and the row of each: 16 bytes a row."""

        def of_unit(unit: int) -> np.ndarray:
            with open_input(self._unit(unit), forwards=False) as stream:
                table = pq.read_table(stream, columns=["key", "status"])
            keys = table.filter(pc.equal(table.column("status"), "ok")).column("key")
            return np.fromiter((hash(key) for key in keys.to_pylist()), np.int64, len(keys))

        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            hashes = np.concatenate([np.empty(0, np.int64), *pool.map(of_unit, range(len(self._ends)))])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order

    def _rows(self, unit: int) -> _Rows:
        if unit not in self._tables:
            table = pq.read_table(small_file(self._unit(unit)))
            table = table.filter(pc.equal(table.column("status"), "ok"))
            columns = {name: table.column(name).to_pylist() for name in _WHERE}
            rows = _Rows(columns=columns, carried=table.drop_columns(SAMPLES_SCHEMA.names))
            _keep(self._tables, unit, rows, TABLES_KEPT)
        self._tables.move_to_end(unit)
        return self._tables[unit]

    def read(self, unit: int, row: int) -> Item:
        """The row-th accepted image of the unit-th committed unit."""
        rows = self._rows(unit)
        columns = {name: values[row] for name, values in rows.columns.items()}
        raw = self._bytes(columns["shard"], columns["offset"], columns["length"])
        rows_MO = raw.view(self.dtype).view(columns["num_tokens"], -1)
        if self._scaled:
            rows_MO = restore(rows_MO, self._scale(columns, row)).to(torch.bfloat16)
        item: Item = {
            "key": columns["key"],
            "source": columns["source"],
            **item_of(rows_MO, self.streams),
            "grid_thw": torch.tensor(columns["grid_thw"]),
        }
        if rows.carried.num_columns:
            item |= rows.carried.slice(row, 1).to_pylist()[0]
        return item

    def _bytes(self, shard: str, offset: int, length: int) -> Tensor:
        """One range, into a tensor of its own."""
        if isinstance(self._root, RemotePath):
            place = (self._root / shard).uri
            data = remote.read(place, offset, offset + length)
            if len(data) != length:
                raise OutputError(f"{place}: {len(data)} of {length} bytes at {offset}")
            return torch.frombuffer(bytearray(data), dtype=torch.uint8)
        path = str(self._root / shard)
        if path not in self._files:
            _keep(self._files, path, os.open(path, os.O_RDONLY), FILES_KEPT, os.close)
        self._files.move_to_end(path)
        buffer = torch.empty(length, dtype=torch.uint8)
        rest = memoryview(buffer.numpy().data)
        while rest:
            count = os.preadv(self._files[path], [rest], offset + length - len(rest))
            if not count:
                raise OutputError(f"{path} ends at byte {offset + length - len(rest)}, inside an embedding")
            rest = rest[count:]
        return buffer

    def _scale(self, columns: dict[str, Any], row: int) -> Tensor:
        """Scales [M, S]: in a tar behind the embedding; in Parquet a small column, read a shard at a time."""
        shard = columns["shard"]
        if shard.endswith(".tar"):
            size = scale_bytes(columns["num_tokens"], self.streams)
            behind = self._bytes(shard, columns["offset"] + columns["length"], size)
            return behind.view(torch.float32).view(-1, 1 + self.streams)
        if shard not in self._scales:
            with open_input(self._root / shard, forwards=False) as stream:
                scales = pq.read_table(stream, columns=["scale"]).column("scale").to_pylist()
            _keep(self._scales, shard, scales, TABLES_KEPT)
        return scale_of(self._scales[shard][row], self.streams)

    def stream(self, **options: Any) -> EmbeddingStream:
        """The same rows as an iterable data set; options as of `EmbeddingStream`."""
        return EmbeddingStream(self, **options)

    def unit_lengths(self) -> list[int]:
        return np.diff(self._ends, prepend=0).tolist()


def _keep(store: OrderedDict[Any, Any], name: Any, value: Any, limit: int, drop: Any = None) -> None:
    """Adds a value, letting the least recently used go."""
    store[name] = value
    while len(store) > limit:
        _, old = store.popitem(last=False)
        if drop is not None:
            drop(old)
