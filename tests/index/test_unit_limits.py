"""Where units end. Catches: a limit that is off by one, and bytes that are read and not counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.index.read import IndexArrays
from pipeline.index.units import MAX_UNIT_BYTES, MAX_UNIT_SAMPLES, cut_ends


def index(count: int, length: int = 1, **columns: Any) -> IndexArrays:
    numbers = np.arange(1, count + 1, dtype=np.int64)
    values: dict[str, Any] = {
        "width_N": np.full(count, 28),
        "height_N": np.full(count, 28),
        "length_N": np.full(count, length, np.int64),
        "end_N": numbers * length,
        "accepted_N": np.ones(count, np.bool_),
        "group_N": np.full(count, -1),
        "damaged": "",
    }
    return IndexArrays(**values | columns)


def ends(one: IndexArrays, tokens: list[int] | None = None, shard_tokens: int = 1 << 40) -> list[int]:
    count = len(one.length_N)
    return cut_ends(one, np.array([1] * count if tokens is None else tokens), shard_tokens)


def test_a_unit_takes_as_many_tokens_as_just_fit() -> None:
    assert ends(index(6), [4, 4, 4, 4, 3, 1], 8) == [2, 4, 6]
    assert ends(index(6), [4, 4, 5, 4, 4, 1], 8) == [2, 3, 5, 6]
    assert ends(index(4), [9, 1, 9, 9], 8) == [1, 2, 3, 4]  # what fits nowhere is alone
    assert ends(index(4), [8, 0, 0, 1], 8) == [3, 4]  # rejects take none


def test_a_unit_takes_16384_samples() -> None:
    assert MAX_UNIT_SAMPLES == 16_384
    assert ends(index(16_384)) == [16_384]
    assert ends(index(16_385)) == [16_384, 16_385]
    assert ends(index(3 * 16_384)) == [16_384, 32_768, 49_152]


def test_a_unit_takes_512_mib_of_encoded_bytes() -> None:
    assert MAX_UNIT_BYTES == 512 << 20
    assert ends(index(8, 128 << 20)) == [4, 8]
    assert ends(index(8, (128 << 20) + 1)) == [3, 6, 8]
    assert ends(index(3, 600 << 20)) == [1, 2, 3]


def test_what_lies_between_samples_of_a_tar_is_read_and_counts() -> None:
    """A unit is read in one range: members that are no images stand in it."""
    far = np.array([1, 200, 400, 600, 800], np.int64) << 20
    assert ends(index(5, 1 << 20, end_N=far)) == [3, 5]


@pytest.mark.parametrize(("size", "cuts"), [(3, [3, 6, 10]), (2, [4, 8, 10]), (6, [4, 6, 10])])
def test_row_groups_are_not_cut_unless_they_are_too_large(size: int, cuts: list[int]) -> None:
    groups = np.arange(10) // size
    assert ends(index(10, group_N=groups), shard_tokens=4) == cuts


@pytest.mark.parametrize(
    ("parts", "tokens", "units"),
    [
        (1, 100_000, 17),  # images of 100 tokens do not fill 6250
        (3, 100_000, 6),  # 18 in all
        (15, 100_000, 2),
        (16, 100_000, 1),  # no small source
        (0, 100_000, 1),  # an index of an earlier version
        (1, 5_000, 5),  # units of 1024 tokens at least
        (1, 900, 1),
    ],
)
def test_a_small_source_is_cut_finer(parts: int, tokens: int, units: int) -> None:
    one = index(tokens // 100, of=parts)
    found = ends(one, [100] * len(one.length_N))
    assert len(found) == units
    assert ends(one, [100] * len(one.length_N), shard_tokens=300)[:2] == [3, 6][: len(found) + 1]
