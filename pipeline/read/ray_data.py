"""Ray Data: an output as a Ray data set. M tokens, W values of a token in a stream, S further streams.

A read task has a run of units, reads their rows one range after the other, and hands over blocks of a bounded size.
How many rows there are is known beforehand, from the ledger. Nothing else outside `run/` imports Ray.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray

from ..encode.dtypes import array_of
from .items import DEEPSTACK, EMBEDS, GRID, Item
from .reader import EmbeddingDataset

BLOCK_BYTES = 64 << 20


def ray_dataset(uri: str, *, allow_incomplete: bool = False, block_bytes: int = BLOCK_BYTES) -> ray.data.Dataset:
    """An output as a Ray data set, a row an image or video.

    A row has `key`, `source`, `image_embeds` [M, W], `grid_thw` int64 [3], of an output with further streams
    `deepstack_embeds` [S, M, W], and the carried columns. Arrays are views of the object store. NumPy has no bfloat16:
    its values come as uint16, and `torch.from_numpy(row["image_embeds"]).view(torch.bfloat16)` is them again.

    Args:
        uri: the output, which every node must see.
        allow_incomplete: read what is committed so far of a run that has not ended.
        block_bytes: tokens of a block, at most, of more than one row.

    Raises:
        RequestError: it is not an output of visionbake, or not a complete one.
    """
    return ray.data.read_datasource(_Units(EmbeddingDataset(uri, allow_incomplete=allow_incomplete), block_bytes))


class _Units(Datasource):  # type: ignore[misc]  # Ray is skipped
    """The units of an output, dealt out over read tasks in runs of about equally many rows."""

    def __init__(self, dataset: EmbeddingDataset, block_bytes: int) -> None:
        super().__init__()
        self._lengths, self._block_bytes = dataset.unit_lengths(), block_bytes
        self._shared = ray.put(dataset)  # once, however many tasks there are

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [
            ReadTask(
                _reader(self._shared, units, self._block_bytes),
                BlockMetadata(
                    num_rows=sum(self._lengths[unit] for unit in units),
                    size_bytes=None,
                    exec_stats=None,
                    input_files=None,
                ),
                per_task_row_limit=per_task_row_limit,
            )
            for units in runs_of(self._lengths, parallelism)
        ]


def runs_of(lengths: Sequence[int], count: int) -> list[range]:
    """Cuts units into at most `count` runs of about equally many rows, none of them without rows."""
    ends = np.cumsum(np.asarray(lengths, np.int64))
    if not len(ends) or not ends[-1]:
        return []
    cuts = np.searchsorted(ends, np.arange(1, count) * ends[-1] / count, "left") + 1
    bounds = [0, *np.unique(cuts).tolist(), len(ends)]
    runs = [range(first, last) for first, last in itertools.pairwise(bounds)]
    return [run for run in runs if sum(lengths[unit] for unit in run)]


def _reader(shared: Any, units: range, block_bytes: int) -> Callable[[], Iterator[pa.Table]]:
    def read() -> Iterator[pa.Table]:
        dataset: EmbeddingDataset = ray.get(shared)
        for unit in units:
            yield from blocks_of(dataset, unit, block_bytes)

    return read


def blocks_of(dataset: EmbeddingDataset, unit: int, block_bytes: int) -> Iterator[pa.Table]:
    """Yields the rows of one unit, in tables of at most `block_bytes` of tokens or of one row."""
    carried = dataset.carried(unit)
    items: list[Item] = []
    first = held_bytes = 0
    for row in range(len(carried)):
        item = dataset.read(unit, row)
        size = sum(one.nbytes for one in (item[EMBEDS], *item.get(DEEPSTACK, ())))
        if items and held_bytes + size > block_bytes:
            yield _table(items, carried.slice(first, len(items)))
            items, first, held_bytes = [], row, 0
        items.append(item)
        held_bytes += size
    if items:
        yield _table(items, carried.slice(first, len(items)))


def _table(items: Sequence[Item], carried: pa.Table) -> pa.Table:
    columns: dict[str, Any] = {}
    for name in ("key", "source"):
        columns[name] = pa.array([item[name] for item in items], pa.string())
    columns[EMBEDS] = ArrowVariableShapedTensorArray.from_numpy([array_of(item[EMBEDS]) for item in items])
    if DEEPSTACK in items[0]:
        streams = [np.stack([array_of(one) for one in item[DEEPSTACK]]) for item in items]
        columns[DEEPSTACK] = ArrowVariableShapedTensorArray.from_numpy(streams)
    columns[GRID] = ArrowTensorArray.from_numpy(np.stack([item[GRID].numpy() for item in items]))
    return pa.table(columns | dict(zip(carried.column_names, carried.columns, strict=True)))
