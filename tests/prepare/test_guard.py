"""Images that crash their decoder, or never let it return: found, rejected, and nothing beside them lost."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, config_for, connected, encoded, noise, run_here

import pipeline.prepare.guard as guard_module
from pipeline import rejects
from pipeline.errors import ReaderLost
from pipeline.output.verify import Verifier
from pipeline.prepare.guard import ALONE, GuardedReader, ImageReader
from pipeline.rejects import Reject
from pipeline.run.failures import DEATHS_BEFORE_GUARD

VICTIM = "0/0002.jpg"


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    def arm(fault: str) -> Path:
        monkeypatch.setenv("VISIONBAKE_FAULT", f"{fault}@+{tmp_path / 'fired'}")
        return tmp_path / "fired"

    return arm


@pytest.fixture
def guarded() -> Any:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and a child inherits that
    reader = GuardedReader(0.7, start_seconds=10.0)
    yield reader
    reader.close()
    signal.signal(signal.SIGHUP, before)


def statuses(output: Path) -> dict[str, str]:
    table = pq.read_table(output / "samples", columns=["key", "status"])
    return dict(zip(*(table.column(name).to_pylist() for name in ("key", "status")), strict=True))


def test_both_readers_give_the_same(guarded: GuardedReader) -> None:
    data = encoded(noise(90, 130, 5), "JPEG")
    here = ImageReader()
    assert guarded.header("a", data) == here.header("a", data)
    assert np.array_equal(guarded.pixels("a", data, 6), here.pixels("a", data, 6))
    for reader in (here, guarded):
        with pytest.raises(Reject) as caught:
            reader.header("b", b"no image")
        assert caught.value.reason == rejects.UNIDENTIFIED
        with pytest.raises(Reject) as caught:
            reader.pixels("c", data[:600], 1)
        assert caught.value.reason in (rejects.TRUNCATED, rejects.CORRUPT)


@pytest.mark.slow
@pytest.mark.parametrize(("action", "says"), [("exit", "exit code 3"), ("sleep=100", "hangs for 2.1 s")])
def test_what_kills_a_fresh_process_twice_is_a_crash(
    action: str, says: str, guarded: GuardedReader, arm: Callable[[str], Path]
) -> None:
    data = encoded(noise(60, 60, 5))
    fired = arm(f"decode=bad:{action}")
    assert guarded.pixels("good", data, 1).shape == (60, 60, 3)
    with pytest.raises(Reject, match=says) as caught:
        guarded.pixels("bad", data, 1)
    assert caught.value.reason == rejects.CRASH
    assert fired.read_bytes() == b"..."  # once in a process that had read others, and twice alone
    assert guarded.pixels("good", data, 1).shape == (60, 60, 3)


def test_what_kills_once_is_no_reject(guarded: GuardedReader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VISIONBAKE_FAULT", f"decode=unlucky:exit@{tmp_path / 'fired'}")
    assert guarded.pixels("unlucky", encoded(noise(60, 60, 5)), 1).shape == (60, 60, 3)
    assert (tmp_path / "fired").exists()


def test_killed_from_outside_says_nothing_about_the_image(guarded: GuardedReader, arm: Callable[[str], Path]) -> None:
    fired = arm("decode=innocent:kill")  # SIGKILL, as the system ends a process when memory is short
    with pytest.raises(ReaderLost, match="killed from outside"):
        guarded.pixels("innocent", encoded(noise(60, 60, 5)), 1)
    assert fired.read_bytes() == b"."


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_idle_child_that_is_killed_is_replaced(number: signal.Signals, guarded: GuardedReader) -> None:
    data = encoded(noise(60, 60, 5))
    guarded.header("a", data)
    first = guarded._child
    assert first is not None
    first.send_signal(number)
    first.wait(timeout=20)
    assert guarded.header("b", data).width == 60
    assert guarded._child is not first


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSTOP])
def test_stopped_or_ended_from_outside_under_a_sample(
    number: signal.Signals, guarded: GuardedReader, arm: Callable[[str], Path]
) -> None:
    fired = arm("decode=x:sleep=100")
    guarded.limit(1.0)

    def hit() -> None:
        while not fired.exists():
            time.sleep(0.02)
        assert guarded._child is not None
        guarded._child.send_signal(number)

    thread = threading.Thread(target=hit)
    thread.start()
    with pytest.raises(ReaderLost):
        guarded.pixels("x", encoded(noise(60, 60, 5)), 1)
    thread.join()
    assert guarded._child is None


def test_nothing_is_imported_from_the_current_directory(
    guarded: GuardedReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("struct", "pipeline", "numpy"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path] + [str(REPOSITORY)])
    assert guarded.header("a", encoded(noise(60, 60, 5))).width == 60


def test_a_child_that_cannot_start_rejects_nothing(
    guarded: GuardedReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("import os; os._exit(7)")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ReaderLost, match="cannot be started"):
        guarded.header("a", encoded(noise(60, 60, 5)))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(ReaderLost, match="cannot be started"):
        guarded.header("a", encoded(noise(60, 60, 5)))


@pytest.mark.slow
def test_an_ignored_alarm_still_ends_a_hang(guarded: GuardedReader, arm: Callable[[str], Path]) -> None:
    arm("decode=x:sleep=100")
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)  # as some launchers leave it
    try:
        with pytest.raises(Reject, match="hangs"):
            guarded.pixels("x", encoded(noise(60, 60, 5)), 1)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_after_an_interruption_answers_are_not_mixed_up(
    guarded: GuardedReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(noise(60, 60, 5))
    guarded.pixels("a", data, 1)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(guard_module, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            guarded.pixels("a", data, 1)
    assert guarded._child is None
    assert guarded.header("b", data).height == 60


def test_a_child_goes_with_its_parent(guarded: GuardedReader) -> None:
    guarded.header("a", encoded(noise(60, 60, 5)))
    child = guarded._child
    assert child is not None
    guarded.close()
    assert child.returncode == -signal.SIGKILL
    other = GuardedReader()
    other.header("a", encoded(noise(60, 60, 5)))
    assert other._child is not None and other._child.stdin is not None
    other._child.stdin.close()  # what the end of the parent does
    assert other._child.wait(timeout=20) == 0
    other._child = None


@pytest.mark.slow
@pytest.mark.parametrize("point", ["header", "decode"])
@pytest.mark.parametrize("action", ["exit", "sleep=100"])
def test_inline(
    point: str,
    action: str,
    source: Path,
    model_path: Path,
    undisturbed: Path,
    tmp_path: Path,
    arm: Callable[[str], Path],
) -> None:
    fired = arm(f"{point}={VICTIM}:{action}")
    config = config_for(source, tmp_path / "out", model_path, limits={"sample_seconds": 0.7})
    assert run_here(config).complete
    assert fired.read_bytes() == b"..."  # once in a process that had read others, and twice alone
    assert statuses(tmp_path / "out") == statuses(undisturbed) | {VICTIM: rejects.CRASH}
    assert_the_others_are_as_ever(tmp_path / "out", undisturbed)


def assert_the_others_are_as_ever(output: Path, undisturbed: Path) -> None:
    def embeddings(folder: Path) -> dict[str, bytes]:
        table = pq.read_table(folder / "data", columns=["key", "embedding"])
        return dict(zip(*(table.column(name).to_pylist() for name in ("key", "embedding")), strict=True))

    ours, expected = embeddings(output), embeddings(undisturbed)
    assert ours.keys() == expected.keys() - {VICTIM}
    for key, data in ours.items():  # its own unit is packed without it: fp32 within 1e-5
        mine, other = (np.frombuffer(one, np.float32) for one in (data, expected[key]))
        assert np.abs(mine - other).max() <= 1e-5 * np.abs(other).max()
    assert Verifier(output).verify().proven


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray(ray_nodes: dict[str, str], source: Path, model_path: Path, undisturbed: Path, tmp_path: Path) -> None:
    """A hang, which the system ends by a signal: a crash is the same death, earlier."""
    fired = tmp_path / "fired"
    with connected(ray_nodes, VISIONBAKE_FAULT=f"decode={VICTIM}:sleep=100@+{fired}"):
        on_cpu = {"engine": "ray", "device": "cpu"}
        summary = run_here(
            config_for(source, tmp_path / "out", model_path, cluster=on_cpu, limits={"sample_seconds": 2.0})
        )
    assert summary.complete
    assert summary.retries == DEATHS_BEFORE_GUARD
    tries = DEATHS_BEFORE_GUARD + 1 + ALONE
    assert tries <= fired.stat().st_size <= 2 * tries  # one that has nothing else to do tries as well, each time
    assert statuses(tmp_path / "out") == statuses(undisturbed) | {VICTIM: rejects.CRASH}
    assert_the_others_are_as_ever(tmp_path / "out", undisturbed)


@pytest.mark.slow
def test_keys_with_colons_can_be_named(model_path: Path, tmp_path: Path, arm: Callable[[str], Path]) -> None:
    table = {"image": [encoded(noise(60, 60, number)) for number in range(3)]}
    import pyarrow as pa

    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    arm("decode=a.parquet:1:exit")
    run_here(config_for(tmp_path / "a.parquet", tmp_path / "out", model_path))
    assert statuses(tmp_path / "out") == {"a.parquet:0": "ok", "a.parquet:1": "crash", "a.parquet:2": "ok"}
