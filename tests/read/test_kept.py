"""What is kept. Catches: a value made twice, or never again after it failed once; a thread that waits for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.read.kept import Kept

THREADS = 8


def test_a_value_is_made_once_however_many_threads_ask() -> None:
    kept: Kept[object] = Kept(4)
    made: list[object] = []
    asked = threading.Barrier(THREADS)

    def make() -> object:
        started.wait(0.2)  # the others ask meanwhile
        made.append(object())
        return made[-1]

    def ask(_: int) -> object:
        asked.wait()
        return kept.get("name", make)

    started = threading.Event()
    with ThreadPoolExecutor(THREADS) as pool:
        values = set(pool.map(ask, range(THREADS)))
    assert values == {made[0]}
    assert len(made) == 1


def test_what_could_not_be_made_is_tried_again() -> None:
    kept: Kept[int] = Kept(4)
    with pytest.raises(ZeroDivisionError):
        kept.get("name", lambda: 1 // 0)
    assert kept.get("name", lambda: 1) == 1
    assert kept.get("name", lambda: 2) == 1


def test_sizes_bound_what_is_kept_but_for_the_last_value() -> None:
    kept: Kept[bytes] = Kept(10, len)
    for name in "abc":
        kept.get(name, lambda: bytes(4))
    assert [name in kept for name in "abc"] == [False, True, True]
    kept.get("d", lambda: bytes(100))
    assert (len(kept), kept.held) == (1, 100)
