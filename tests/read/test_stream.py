"""The stream over made rows. Catches: a row lost, doubled or never shuffled; a resumption or second pass that skips."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch

from pipeline.errors import RequestError
from pipeline.read.packing import pack_rows
from pipeline.read.stream import EmbeddingStream, Item


class Made:
    """Units of these lengths; a row is known by its number."""

    def __init__(self, *lengths: int) -> None:
        self._lengths = list(lengths)
        self.read_rows: list[int] = []

    def unit_lengths(self) -> list[int]:
        return self._lengths

    def read(self, unit: int, row: int) -> Item:
        assert 0 <= row < self._lengths[unit]
        number = sum(self._lengths[:unit]) + row
        self.read_rows.append(number)
        return {"number": number}

    def token_counts(self, unit: int) -> np.ndarray:
        """Between 1 and 9 tokens a row, by its number."""
        first = sum(self._lengths[:unit])
        return np.array([1 + number * 7 % 9 for number in range(first, first + self._lengths[unit])], np.int32)

    def read_each(self, places: Iterable[tuple[int, int]]) -> Iterator[Item]:
        return (self.read(unit, row) for unit, row in places)


LENGTHS = (7, 0, 5, 1, 30, 4)
TOTAL = sum(LENGTHS)


def numbers(stream: EmbeddingStream, count: int | None = None) -> list[int]:
    return [item["number"] for item in itertools.islice(stream, count)]


@pytest.mark.parametrize("shuffle_seed", [None, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 10, 100])
def test_consumers_share_every_row_once_and_evenly(shuffle_seed: int | None, world_size: int) -> None:
    """In each epoch; also where there are more consumers than rows."""
    for epoch in (0, 1):
        shares = []
        for rank in range(world_size):
            stream = EmbeddingStream(
                Made(*LENGTHS), shuffle_seed=shuffle_seed, shuffle_buffer=6, rank=rank, world_size=world_size
            )
            stream.set_epoch(epoch)
            shares.append(numbers(stream))
        assert sorted(itertools.chain(*shares)) == list(range(TOTAL))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        if shuffle_seed is None:
            assert list(itertools.chain(*shares)) == list(range(TOTAL))


def test_rows_are_shuffled_within_the_buffer_and_no_further() -> None:
    """A single unit: nothing but the buffer can change its order."""
    order = numbers(EmbeddingStream(Made(2000), shuffle_seed=1, shuffle_buffer=50))
    assert sorted(order) == list(range(2000))
    early = [number - place for place, number in enumerate(order)]
    assert max(early) == 50  # none leaves before it is in the buffer, and some leave at once
    assert sum(abs(number) > 5 for number in early) > 1000
    assert len({after - before for before, after in itertools.pairwise(order)}) > 50
    small = numbers(EmbeddingStream(Made(2000), shuffle_seed=1, shuffle_buffer=3))
    assert max(number - place for place, number in enumerate(small)) == 3
    assert small != list(range(2000))


def test_units_are_shuffled_whatever_the_buffer() -> None:
    order = numbers(EmbeddingStream(Made(*[10] * 50), shuffle_seed=1, shuffle_buffer=0))
    firsts = [number // 10 for number in order[::10]]
    assert sorted(firsts) == list(range(50))
    assert firsts != sorted(firsts)
    assert all(order[start : start + 10] == list(range(order[start], order[start] + 10)) for start in range(0, 500, 10))


def test_another_epoch_and_another_consumer_have_another_order_within_a_unit() -> None:
    orders = []
    for seed, epoch in ((1, 0), (1, 1), (2, 0)):
        stream = EmbeddingStream(Made(100), shuffle_seed=seed, shuffle_buffer=20)
        stream.set_epoch(epoch)
        orders.append(tuple(numbers(stream)))
    assert len(set(orders)) == 3
    shares = [
        numbers(EmbeddingStream(Made(50, 50), shuffle_seed=1, shuffle_buffer=100, rank=rank, world_size=2))
        for rank in (0, 1)
    ]
    assert [number % 50 for number in shares[0]] != [number % 50 for number in shares[1]]


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_a_position_is_resumed_in_its_own_epoch(shuffle_seed: int | None) -> None:
    def fresh() -> EmbeddingStream:
        return EmbeddingStream(Made(*LENGTHS), shuffle_seed=shuffle_seed, shuffle_buffer=6)

    stream = fresh()
    stream.set_epoch(2)
    whole = numbers(stream)
    stream.set_epoch(2)
    iterator = iter(stream)
    first = [next(iterator)["number"] for _ in range(9)]
    state = stream.state_dict()
    resumed = fresh()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # saved again before a row was taken
    iterator = iter(resumed)
    some = [next(iterator)["number"] for _ in range(4)]
    again = fresh()
    again.load_state_dict(resumed.state_dict())  # a resumed run is resumed
    assert first + some + numbers(again) == whole
    assert again.dataset.read_rows == whole[13:]


def test_a_second_pass_has_every_row() -> None:
    stream = EmbeddingStream(Made(*LENGTHS))
    assert numbers(stream) == numbers(stream) == list(range(TOTAL))
    stream.load_state_dict({"epoch": 0, "position": 9})
    assert numbers(stream) == list(range(9, TOTAL))
    assert numbers(stream) == list(range(TOTAL))
    stream.load_state_dict({"epoch": 0, "position": 9})
    stream.set_epoch(1)
    assert stream.state_dict() == {"epoch": 1, "position": 0}
    assert numbers(stream) == list(range(TOTAL))
    numbers(stream, 5)
    assert numbers(stream) == list(range(TOTAL))


def test_ranks_are_those_of_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 3)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    assert numbers(EmbeddingStream(Made(9))) == [3, 4, 5]
    assert numbers(EmbeddingStream(Made(9), rank=0, world_size=1)) == list(range(9))


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0), (0, None), (None, 2)])
def test_ranks_that_cannot_be_are_refused(rank: int | None, world_size: int | None) -> None:
    with pytest.raises(RequestError, match=r"rank"):
        EmbeddingStream(Made(9), rank=rank, world_size=world_size)


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_batches_hold_every_row_once_within_the_budget(shuffle_seed: int | None) -> None:
    made = Made(*LENGTHS)
    shares = [
        [
            [item["number"] for item in batch]
            for batch in EmbeddingStream(
                made, shuffle_seed=shuffle_seed, shuffle_buffer=6, rank=rank, world_size=2, max_tokens=20
            )
        ]
        for rank in (0, 1)
    ]
    batches = [batch for share in shares for batch in share]
    assert sorted(itertools.chain(*batches)) == list(range(TOTAL))
    tokens = [sum(1 + number * 7 % 9 for number in batch) for batch in batches]
    assert max(tokens) <= 20
    assert sum(tokens) > 0.9 * 20 * (len(batches) - 2)  # the last of each rank may be small


def test_a_batch_is_resumed_and_nothing_before_it_is_read() -> None:
    def fresh() -> EmbeddingStream:
        return EmbeddingStream(Made(*LENGTHS), shuffle_seed=3, shuffle_buffer=6, max_tokens=20)

    whole = [[item["number"] for item in batch] for batch in fresh()]
    stream = fresh()
    first = [[item["number"] for item in batch] for batch in itertools.islice(stream, 3)]
    resumed = fresh()
    resumed.load_state_dict(stream.state_dict())
    rest = [[item["number"] for item in batch] for batch in resumed]
    assert first + rest == whole
    assert resumed.dataset.read_rows == [*itertools.chain(*rest)]


def test_rows_fill_the_batches_that_have_room() -> None:
    """First fit, the fullest first where too many are open; what is longer than the budget is alone."""

    def packed(tokens: list[int], open_batches: int) -> list[list[int]]:
        return list(pack_rows(((one, one) for one in tokens), 10, open_batches))

    assert packed([6, 7, 4, 3], 2) == [[6, 4], [7, 3]]
    assert packed([6, 7, 8, 4], 2) == [[8], [6, 4], [7]]
    assert packed([6, 25, 4, 0], 2) == [[25], [6, 4], [0]]
    assert packed([], 2) == []


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="max_tokens: 0"):
        EmbeddingStream(Made(9), max_tokens=0)
