"""Threads in the background. Catches: a call that is lost, an error that is swallowed, a pool that never ends."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import pytest

from pipeline.process import DaemonThreads


def test_calls_are_answered_in_order_by_so_many_daemon_threads_at_most() -> None:
    seen: set[threading.Thread] = set()

    def double(value: int) -> int:
        seen.add(threading.current_thread())
        return 2 * value

    with DaemonThreads(3) as pool:
        assert list(pool.map(double, range(100))) == [2 * value for value in range(100)]
    assert 1 <= len(seen) <= 3
    assert all(thread.daemon for thread in seen)
    assert not any(thread.is_alive() for thread in seen)


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    with DaemonThreads(2) as pool, pytest.raises(ZeroDivisionError):
        list(pool.map(lambda value: 1 // value, [1, 0, 1]))


def test_what_has_not_begun_can_be_cancelled() -> None:
    begun, go_on = threading.Event(), threading.Event()
    pool = DaemonThreads(1)
    first = pool.submit(lambda: (begun.set(), go_on.wait(30))[1])
    second = pool.submit(int)
    assert begun.wait(30)
    pool.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    assert first.result(30)
    with pytest.raises(CancelledError):
        second.result(30)
