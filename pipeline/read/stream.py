"""Stream: an output's rows in order or shuffled, split over ranks and workers. For training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import RequestError
from .items import Item


class Rows(Protocol):
    """Rows in units, from which a stream reads."""

    def unit_lengths(self) -> list[int]: ...

    def read_each(self, places: Iterable[tuple[int, int]]) -> Iterator[Item]: ...


class EmbeddingStream(IterableDataset[Item]):
    """The rows of an output in order, or shuffled; split over ranks and DataLoader workers, each row once.

    Every consumer gets a run of the (shuffled) sequence of units, equal in length to within one row. Shuffling permutes
    the units, then draws from a buffer of row numbers: bytes are read when it is a row's turn, so that a buffer costs
    no memory and skipping to a position no reading.

    Args:
        dataset: the output.
        shuffle_seed: None for the output's own order.
        shuffle_buffer: rows that a row may be drawn from.
        rank, world_size: of this process; by default those of torch.distributed, where it is initialised.
    """

    def __init__(
        self,
        dataset: Rows,
        *,
        shuffle_seed: int | None = None,
        shuffle_buffer: int = 10_000,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if (rank is None) != (world_size is None):
            raise RequestError("rank and world_size belong together")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise RequestError(f"rank {rank} of {world_size}")
        self.dataset = dataset
        self.shuffle_seed, self.shuffle_buffer = shuffle_seed, shuffle_buffer
        self.rank, self.world_size = rank, world_size
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

    def __iter__(self) -> Iterator[Item]:
        consumer, consumers = self._consumer()
        start, self._start = self._start, 0
        self._position = start
        places = itertools.islice(self._order(consumer, consumers), start, None)
        for number, item in enumerate(self.dataset.read_each(places), start):
            self._position = number + 1
            yield item

    def _order(self, consumer: int, consumers: int) -> Iterator[tuple[int, int]]:
        run = self._run(consumer, consumers)
        if self.shuffle_seed is None:
            yield from run
            return
        generator = np.random.default_rng([self.shuffle_seed, self.epoch, consumer])
        buffer: list[tuple[int, int]] = []
        for place in run:
            buffer.append(place)
            if len(buffer) > self.shuffle_buffer:
                yield _draw(buffer, generator)
        while buffer:
            yield _draw(buffer, generator)

    def _run(self, consumer: int, consumers: int) -> Iterator[tuple[int, int]]:
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


def _draw(buffer: list[tuple[int, int]], generator: np.random.Generator) -> tuple[int, int]:
    number = int(generator.integers(len(buffer)))
    buffer[number], buffer[-1] = buffer[-1], buffer[number]
    return buffer.pop()
