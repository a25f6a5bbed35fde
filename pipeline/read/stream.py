"""Stream: an output's rows in order or shuffled, split over ranks and workers. For training."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import RequestError
from .items import Item
from .packing import pack_rows

Place = tuple[int, int]  # a unit, and a row of it


class Rows(Protocol):
    """Rows in units, from which a stream reads."""

    def unit_lengths(self) -> list[int]: ...

    def read_each(self, places: Iterable[tuple[int, int]]) -> Iterator[Item]: ...

    def token_counts(self, unit: int) -> np.ndarray: ...


class EmbeddingStream(IterableDataset[Any]):
    """The rows of an output in order, or shuffled; split over ranks and DataLoader workers, each row once.

    Every consumer gets a run of the (shuffled) sequence of units, equal in length to within one row. Shuffling permutes
    the units, then draws from a buffer of row numbers: bytes are read when it is a row's turn, so that a buffer costs
    no memory and skipping to a position no reading.

    With `max_tokens` what is yielded is a batch, a list of items of at most as many tokens together, packed by what the
    ledger says of their lengths (`read/packing.py`): give a DataLoader `batch_size=None`. An item that is longer is a
    batch of its own. Consumers may have different numbers of batches, which a training with collective operations must
    stop at the fewest.

    Args:
        dataset: the output.
        shuffle_seed: None for the output's own order.
        shuffle_buffer: rows that a row may be drawn from.
        rank, world_size: of this process; by default those of torch.distributed, where it is initialised.
        max_tokens: of a batch; None for one item at a time.

    Raises:
        RequestError: rank, world_size or max_tokens is none.
    """

    def __init__(
        self,
        dataset: Rows,
        *,
        shuffle_seed: int | None = None,
        shuffle_buffer: int = 10_000,
        rank: int | None = None,
        world_size: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise RequestError(f"max_tokens: {max_tokens}: a batch has at least one token")
        if (rank is None) != (world_size is None):
            raise RequestError("rank and world_size belong together")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise RequestError(f"rank {rank} of {world_size}")
        self.dataset = dataset
        self.shuffle_seed, self.shuffle_buffer = shuffle_seed, shuffle_buffer
        self.rank, self.world_size = rank, world_size
        self.max_tokens = max_tokens
        self.epoch = 0
        self._position = 0
        self._start = 0

    def set_epoch(self, epoch: int) -> None:
        """Another epoch has another order."""
        self.epoch, self._start, self._position = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Where this consumer stands; StatefulDataLoader of torchdata keeps one for each worker."""
        return {"epoch": self.epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self._start = state["epoch"], state["position"]
        self._position = self._start

    def _consumer(self) -> tuple[int, int]:
        rank, world_size = self.rank, self.world_size
        if rank is None or world_size is None:
            ready = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank, world_size = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ready else (0, 1)
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        return rank * workers + (worker.id if worker else 0), world_size * workers

    def __iter__(self) -> Iterator[Any]:
        order = self._order(*self._consumer())
        start, self._start = self._start, 0
        self._position = start
        batches = ([place] for place in order) if self.max_tokens is None else self._batches(order, self.max_tokens)
        batches = itertools.islice(batches, start, None)
        sizes: deque[int] = deque()  # of batches whose rows are asked for, some of them ahead

        def places() -> Iterator[Place]:
            for batch in batches:
                sizes.append(len(batch))
                yield from batch

        items = self.dataset.read_each(places())
        for number, first in zip(itertools.count(start), items, strict=False):
            taken = [first, *itertools.islice(items, sizes.popleft() - 1)]
            self._position = number + 1
            yield first if self.max_tokens is None else taken

    def _batches(self, order: Iterator[Place], max_tokens: int) -> Iterator[list[Place]]:
        counts = ((place, int(self.dataset.token_counts(place[0])[place[1]])) for place in order)
        return pack_rows(counts, max_tokens)

    def _order(self, consumer: int, consumers: int) -> Iterator[Place]:
        run = self._run(consumer, consumers)
        if self.shuffle_seed is None:
            yield from run
            return
        generator = np.random.default_rng([self.shuffle_seed, self.epoch, consumer])
        buffer: list[Place] = []
        for place in run:
            buffer.append(place)
            if len(buffer) > self.shuffle_buffer:
                yield _draw(buffer, generator)
        while buffer:
            yield _draw(buffer, generator)

    def _run(self, consumer: int, consumers: int) -> Iterator[Place]:
        """This consumer's rows: one run of the sequence of all units."""
        lengths = self.dataset.unit_lengths()
        units = list(range(len(lengths)))
        if self.shuffle_seed is not None:
            np.random.default_rng([self.shuffle_seed, self.epoch]).shuffle(units)
        total = sum(lengths)
        first, last = total * consumer // consumers, total * (consumer + 1) // consumers
        start = 0
        for unit in units:
            for row in range(max(first - start, 0), min(last - start, lengths[unit])):
                yield unit, row
            start += lengths[unit]
            if start >= last:
                return


def _draw(buffer: list[Place], generator: np.random.Generator) -> Place:
    number = int(generator.integers(len(buffer)))
    buffer[number], buffer[-1] = buffer[-1], buffer[number]
    return buffer.pop()
