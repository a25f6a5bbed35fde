"""Read: an output's embeddings, as map-style and iterable data sets of torch.

    samples/*.parquet say where each embedding lies; one range read of a data shard gets it, never a row group.

Only committed units are read: a shard without its record does not exist for a reader. Everything here can be pickled,
and works in the workers of a DataLoader.
"""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

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
from ..output.dataset import is_complete
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
from .keys import KeyIndex
from .stream import EmbeddingStream

TABLES_KEPT = 8
FILES_KEPT = 64
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
    tensors, in the order in which the language model adds them), `grid_thw` (int64 [3]), and the carried columns. Where
    there are videos, `media` of each item, and of a video `frames`, `times`, `timestamps`, `second_per_grid`, `fps`,
    `duration`, `start` and `end` (docs/output.md); those are None of an image.

    Attributes:
        streams: how many further streams a row has.
        hidden_size: values of a row, in all of its streams.

    Args:
        uri: the output, local or anything that fsspec opens.
        allow_incomplete: read what is committed so far of a run that has not ended.

    Raises:
        RequestError: it is not an output of visionbake, or not a complete one.
    """

    def __init__(self, uri: str | os.PathLike[str], *, allow_incomplete: bool = False) -> None:
        self.uri = os.fspath(uri)
        check_uri("output", self.uri)
        self._root = absolute(self.uri)
        try:
            self.info = read_dataset(self._root)
            committed = CommittedUnits(self._root, Plan(self._root).num_parts)
            folded = folded_parts(self._root) if committed.count else set()
        except OSError as error:
            raise RequestError(f"{self.uri} is not an output of visionbake: {error}") from error
        if not allow_incomplete and not is_complete(self._root):
            raise RequestError(
                f"{self.uri} is not complete: {committed.count:,} units are committed; run again to finish it, or read "
                "what there is by allow_incomplete=True"
            )
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
        # No method of this object: a ring of two would keep files open until it is collected.
        shard_of = partial(_samples_shard, self._root, self._unit_parts, self._unit_numbers)
        self._keys = KeyIndex(shard_of, len(self._ends))

    def __getstate__(self) -> dict[str, Any]:
        private = ("_tables", "_files", "_scales", "_keys")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __del__(self) -> None:
        close: Any = getattr(os, "close", None)  # gone when the interpreter ends
        for descriptor in getattr(self, "_files", {}).values() if close is not None else ():
            close(descriptor)

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
        return _samples_shard(self._root, self._unit_parts, self._unit_numbers, unit)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __contains__(self, key: object) -> bool:
        """Whether there is a row with a key, or with `(source, key)`; not whether an item is one of them."""
        try:
            return isinstance(key, str | tuple) and bool(self._find_all(key))
        except (TypeError, ValueError):  # a tuple of something else
            return False

    def __repr__(self) -> str:
        return f"EmbeddingDataset({self.uri!r}, {len(self):,} rows of {self.hidden_size} {self.dtype})"

    def keys(self) -> Iterator[str]:
        """Yields the keys of all rows, in their order; no embedding is read."""
        return iter(self._keys)

    @overload
    def __getitem__(self, index: int | str | tuple[str, str]) -> Item: ...

    @overload
    def __getitem__(
        self, index: slice | range | np.ndarray | Tensor | list[int | str | tuple[str, str]]
    ) -> list[Item]: ...

    def __getitem__(self, index: Any) -> Item | list[Item]:
        """By number, by key, or by `(source, key)`; a slice, a list of those or an array of numbers gives a list.

        Raises:
            IndexError, KeyError: there is no such row.
            TypeError: it is none of those.
            RequestError: the key is in several files of the source.
        """
        if isinstance(index, slice):
            return self.get_many(range(*index.indices(len(self))))
        if isinstance(index, np.ndarray | Tensor):
            index = index.tolist()  # of one without dimensions a number
        if isinstance(index, list | range):
            return self.get_many(index)
        return self.read(*self._place_of(index))

    def _place_of(self, index: int | str | tuple[str, str]) -> tuple[int, int]:
        """The unit and row of one index. Raises as `dataset[index]`."""
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            return self._place(index)
        if isinstance(index, str) or (isinstance(index, tuple) and [type(part) for part in index] == [str, str]):
            return self._find(index)
        raise TypeError(f"a row is asked for by number, key or (source, key), or several by a list, not by {index!r}")

    def get_many(self, keys: Sequence[int | str | tuple[str, str]]) -> list[Item]:
        """Several items, in order; shard by shard. Raises as `dataset[key]` does."""
        places = [self._place_of(key) for key in keys]
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

    def _find_all(self, key: str | tuple[str, str]) -> list[tuple[int, int]]:
        """The unit and row of every row with this key."""
        source, name = key if isinstance(key, tuple) else (None, key)
        found = []
        for number in self._keys.rows_like(name):
            unit, row = self._place(number)
            columns = self._rows(unit).columns
            if columns["key"][row] == name and source in (None, columns["source"][row]):
                found.append((unit, row))
        return found

    def _find(self, key: str | tuple[str, str]) -> tuple[int, int]:
        found = self._find_all(key)
        if not found:
            nearest = self._keys.nearest(key if isinstance(key, str) else key[1])
            raise KeyError(f"{key!r}" + (f"; did you mean {nearest!r}?" if nearest else ""))
        if len(found) > 1:
            where = ", ".join(sorted({self._rows(unit).columns["source"][row] for unit, row in found}))
            raise RequestError(f"the key {key!r} stands {len(found)} times: in {where}; ask by (source, key)")
        return found[0]

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

    def carried(self, unit: int) -> pa.Table:
        """The carried columns of the accepted rows of the unit-th committed unit, those of videos among them."""
        return self._rows(unit).carried

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


def _samples_shard(root: AnyPath, parts: np.ndarray, numbers: np.ndarray, unit: int) -> AnyPath:
    """The samples shard of the unit-th committed unit."""
    return samples_path(root, str(UnitId(int(parts[unit]), int(numbers[unit]))))


def _keep(store: OrderedDict[Any, Any], name: Any, value: Any, limit: int, drop: Any = None) -> None:
    """Adds a value, letting the least recently used go."""
    store[name] = value
    while len(store) > limit:
        _, old = store.popitem(last=False)
        if drop is not None:
            drop(old)
