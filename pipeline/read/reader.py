"""Read: an output's embeddings, as map-style and iterable data sets of torch.

    samples/*.parquet say where each embedding lies; one range read of a data shard gets it, never a row group.

Only committed units are read: a shard without its record does not exist for a reader. Everything here can be pickled,
and works in the workers of a DataLoader.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import Dataset

from ..encode.dtypes import STORED
from ..errors import RequestError
from ..index.units import UnitId
from ..output.dataset import is_complete
from ..output.info import read_dataset
from ..output.layout import samples_path
from ..output.ledger import CommittedUnits, folded_parts, read_committed
from ..output.ledger_file import numbers_of
from ..output.shard import SAMPLES_SCHEMA
from ..source.plan import Plan
from ..storage.files import AnyPath, absolute, map_ahead, reads_ahead, small_file
from ..storage.remote import check_uri
from .items import Item, item_of, medium_of
from .items import collate as collate  # a public name of this module
from .kept import Kept
from .keys import KeyIndex
from .lengths import TokenCounts
from .stored import ServedRow, StoredRow, StoredRows
from .stream import EmbeddingStream

ROWS_KEPT = 1 << 18  # of units that were read: some 50 MB
_WHERE = ("key", "source", "sha256", "grid_thw", "num_tokens", "shard", "offset", "length")


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
        rows_kept: rows of which it is kept where they lie, some 300 bytes each, those that were used last.

    Raises:
        RequestError: it is not an output of visionbake, or not a complete one.
    """

    def __init__(
        self, uri: str | os.PathLike[str], *, allow_incomplete: bool = False, rows_kept: int = ROWS_KEPT
    ) -> None:
        self.uri, self.rows_kept = os.fspath(uri), rows_kept
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
        self._forget()

    def _forget(self) -> None:
        """Forgets what belongs to this process alone."""
        self._tables: Kept[pa.Table] = Kept(self.rows_kept, len)
        self._stored = StoredRows(self._root, self.info)
        # No method of this object: a ring of two would keep files open until it is collected.
        shard_of = partial(_samples_shard, self._root, self._unit_parts, self._unit_numbers)
        self._keys = KeyIndex(shard_of, len(self._ends))
        self._sha256 = KeyIndex(shard_of, len(self._ends), "sha256")
        self._counts = TokenCounts(self._root, self.info.fingerprint, shard_of)

    def __getstate__(self) -> dict[str, Any]:
        private = ("_tables", "_stored", "_keys", "_sha256", "_counts")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

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
            return isinstance(key, str | tuple) and bool(self.find_all(key))
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
        self, index: slice | range | np.ndarray | torch.Tensor | list[int | str | tuple[str, str]]
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
        if isinstance(index, np.ndarray | torch.Tensor):
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

    def find_all(self, key: str | tuple[str, str]) -> list[tuple[int, int]]:
        """The unit and row of every row with this key."""
        source, name = key if isinstance(key, tuple) else (None, key)
        found = []
        for number in self._keys.rows_like(name):
            unit, row = self._place(number)
            at = self._rows(unit).slice(row, 1).select(["key", "source"]).to_pylist()[0]
            if at["key"] == name and source in (None, at["source"]):
                found.append((unit, row))
        return found

    def find_sha256(self, sha256: str) -> list[tuple[int, int]]:
        """The unit and row of every row whose file has this sha256, in lower case. The first call reads all of them."""
        found = map(self._place, self._sha256.rows_like(sha256))
        return [(unit, row) for unit, row in found if self._rows(unit).column("sha256")[row].as_py() == sha256]

    def served(self, unit: int, row: int) -> ServedRow:
        """The row-th accepted image of the unit-th committed unit, without its tokens."""
        columns = self._columns(unit, row)
        medium = medium_of(columns)
        return ServedRow(stored=_stored_row(columns, row), medium=medium, grid_thw=tuple(columns["grid_thw"]))

    def _find(self, key: str | tuple[str, str]) -> tuple[int, int]:
        found = self.find_all(key)
        if not found:
            nearest = self._keys.nearest(key if isinstance(key, str) else key[1])
            raise KeyError(f"{key!r}" + (f"; did you mean {nearest!r}?" if nearest else ""))
        if len(found) > 1:
            where = ", ".join(sorted({self._rows(unit).column("source")[row].as_py() for unit, row in found}))
            raise RequestError(f"the key {key!r} stands {len(found)} times: in {where}; ask by (source, key)")
        return found[0]

    def _rows(self, unit: int) -> pa.Table:
        """The accepted rows of one unit in `samples`."""
        return self._tables.get(unit, lambda: _accepted(self._unit(unit)))

    def _columns(self, unit: int, row: int) -> dict[str, Any]:
        table = self._rows(unit)
        return {name: table.column(name)[row].as_py() for name in table.column_names}

    def read(self, unit: int, row: int) -> Item:
        """The row-th accepted image of the unit-th committed unit. Threads may read at the same time."""
        columns = self._columns(unit, row)
        rows_MO = self._stored.tokens(_stored_row(columns, row))
        item: Item = {
            "key": columns["key"],
            "source": columns["source"],
            **item_of(rows_MO, self.streams),
            "grid_thw": torch.tensor(columns["grid_thw"]),
        }
        return item | {name: value for name, value in columns.items() if name not in _WHERE}

    def read_each(self, places: Iterable[tuple[int, int]]) -> Iterator[Item]:
        """Yields rows by unit and row, in order; of object storage several ranges are under way at once."""
        ahead = reads_ahead(self.uri)
        if not ahead:
            yield from itertools.starmap(self.read, places)
            return
        pool = ThreadPoolExecutor(ahead)
        try:
            yield from map_ahead(pool, lambda at: self.read(*at), places, ahead)
        finally:
            pool.shutdown(cancel_futures=True)  # who stops early waits for what is under way, and for no more

    def carried(self, unit: int) -> pa.Table:
        """The carried columns of the accepted rows of the unit-th committed unit, those of videos among them."""
        return self._rows(unit).drop_columns(list(_WHERE))

    def stream(self, **options: Any) -> EmbeddingStream:
        """The same rows as an iterable data set; options as of `EmbeddingStream`."""
        return EmbeddingStream(self, **options)

    def unit_lengths(self) -> list[int]:
        return np.diff(self._ends, prepend=0).tolist()

    def token_counts(self, unit: int) -> np.ndarray:
        """The tokens of each row of the unit-th committed unit, int32 [rows], from the ledger."""
        rows = int(self._ends[unit]) - (int(self._ends[unit - 1]) if unit else 0)
        return self._counts.of_unit(unit, int(self._unit_parts[unit]), int(self._unit_numbers[unit]), rows)


def _samples_shard(root: AnyPath, parts: np.ndarray, numbers: np.ndarray, unit: int) -> AnyPath:
    """The samples shard of the unit-th committed unit."""
    return samples_path(root, str(UnitId(int(parts[unit]), int(numbers[unit]))))


def _accepted(shard: AnyPath) -> pa.Table:
    """The accepted rows of a samples shard, in one piece."""
    table = pq.read_table(small_file(shard))
    table = table.filter(pc.equal(table.column("status"), "ok"))
    carried = [name for name in table.column_names if name not in SAMPLES_SCHEMA.names]
    return table.select([*_WHERE, *carried]).combine_chunks()


def _stored_row(columns: dict[str, Any], row: int) -> StoredRow:
    return StoredRow(row=row, **{name: columns[name] for name in ("shard", "offset", "length", "num_tokens")})
