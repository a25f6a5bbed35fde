"""Two commits of one unit in every order, with and without a kill at each step: they end in one record of one shard.

The two run in threads that take turns: one of them at a time, from one named point to the next. Every order of turns is
tried, and with each of them every kill; a third commit then is the run that goes on.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import config_for, encoded, noise, run_here, run_in_a_fork

from pipeline import rejects
from pipeline.encode.encoded import EncodedUnit
from pipeline.index.units import Unit
from pipeline.output import commit as commit_module
from pipeline.output.commit import commit_unit
from pipeline.output.committed import Committed
from pipeline.output.layout import data_path, samples_path
from pipeline.output.metadata import read_metadata
from pipeline.output.record import read_record
from pipeline.output.settings import ShardSettings
from pipeline.output.shard_formats import shard_format
from pipeline.output.verify import Report, Verifier
from pipeline.prepare.unit import PreparedUnit
from pipeline.run import encode_stage
from pipeline.storage import publish, replace as replace_module
from pipeline.storage.scratch import Scratch

IMAGES = 4
WAITS = "data_replace_waits"
# From here to the next point nothing is touched that the other could see: no order of such steps differs from another.
ALONE = ("start", "before_data_write", "data_replaced", "after_data_publish", "after_samples_publish")
COMMIT_POINTS = ("before_data_write", "after_data_write", "after_data_publish", "after_samples_write")
POINTS = {*COMMIT_POINTS, "after_samples_publish", "before_data_replace", "data_replace_locked", "data_replaced", WAITS}


@dataclass(frozen=True)
class Made:
    """One process's idea of the unit."""

    prepared: PreparedUnit
    encoded: EncodedUnit

    def crashed(self, *indices: int) -> Made:
        samples = list(self.prepared.samples)
        for index in indices:
            facts = samples[index].facts
            samples[index] = replace(
                type(samples[index])(facts=facts, status=rejects.CRASH, error="its decoder hangs"),
            )
        return Made(replace(self.prepared, samples=tuple(samples)), self.encoded)

    def non_finite(self, *images: int) -> Made:
        finite_N = self.encoded.finite_N.copy()
        finite_N[list(images)] = False
        return Made(self.prepared, replace(self.encoded, finite_N=finite_N))

    def nudged(self) -> Made:
        """Other packs: other last bits."""
        factor = 1 + 1e-6
        more = {name: getattr(self.encoded, name) * factor for name in ("tokens_MO", "norm_mean_N", "norm_max_N")}
        return Made(self.prepared, replace(self.encoded, **more))


@dataclass(frozen=True)
class Bench:
    """A planned output of one unit, and what a process made of it."""

    template: Path
    made: Made
    settings: ShardSettings
    unit: Unit

    def output(self, place: Path) -> Path:
        """A fresh output with this plan."""
        place.mkdir()
        for name in ("plan", "dataset.json"):
            (place / name).symlink_to(self.template / name)
        return place

    def data(self, output: Path) -> Path:
        return data_path(output, self.unit.id, self.settings.format)

    def commit(self, made: Made, output: Path) -> Committed:
        scratch = Scratch(output)  # not removed: a killed process does not either
        return commit_unit(made.prepared, made.encoded, output, scratch, self.settings)


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def bench(request: pytest.FixtureRequest, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("orders")
    for number in range(IMAGES):
        path = folder / "in" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(noise(60 + 20 * number, 70, number)))
    (folder / "in" / "9.png").write_bytes(b"no image")  # a reject of the index: everybody agrees
    output = {"format": request.param, "shard_tokens": 9999}
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_stage, "commit_unit", lambda *a: caught.append(a) or commit_unit(*a))
        assert run_here(config_for(folder / "in", folder / "out", model_path, output=output)).complete
    (((prepared, tokens, _, _, settings, _)),) = caught
    return Bench(folder / "out", Made(prepared, tokens), settings, prepared.unit)


class Killed(BaseException):
    """The thread is gone, as a process by SIGKILL: but for what the kernel lets go, nothing is done any more."""


class Turns:
    """Commits in threads, of which one runs at a time, from one point to the next."""

    def __init__(self, works: list[Callable[[], object]]) -> None:
        self._go = [threading.Semaphore(0) for _ in works]
        self._arrived = threading.Semaphore(0)
        self._me = threading.local()
        self._dies = [False] * len(works)
        self.at: list[str | None] = ["start"] * len(works)
        self.seen: list[str] = []
        self.killed_at: list[str] = []
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(n, work)) for n, work in enumerate(works)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, work: Callable[[], object]) -> None:
        self._me.number = number
        self._go[number].acquire()
        try:
            work()
        except Killed:
            self.killed_at.append(str(self.at[number]))
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.failures.append(error)
        self.at[number] = None
        self._arrived.release()

    def point(self, name: str) -> None:
        """The fault point of the threads."""
        number = getattr(self._me, "number", None)
        if number is None or name not in POINTS:
            return
        self.at[number] = name
        self.seen.append(name)
        if self._dies[number] and name != WAITS:
            raise Killed
        self._arrived.release()
        self._go[number].acquire()

    def step(self, number: int, dies: bool) -> None:
        """Lets one go on to its next point, where it may die."""
        self._dies[number] = dies
        self._go[number].release()
        self._arrived.acquire()

    def enabled(self) -> list[tuple[int, bool]]:
        """The turns that may come next: whose, and whether it dies at the end of it."""
        alive = [number for number, at in enumerate(self.at) if at is not None]
        alive = [number for number in alive if self.at[number] in ALONE][:1] or alive
        moving = [number for number in alive if self.at[number] != WAITS or not self._is_held()]
        return [(number, dies) for dies in (False, True) for number in moving]

    def _is_held(self) -> bool:
        return any(at in ("data_replace_locked", "data_replaced") for at in self.at)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@dataclass
class Explorer:
    """Every order of turns: each run takes a given beginning, and notes what else could have come."""

    kills: int
    points: Counter[str]
    kill_points: Counter[str]

    def orders(self, run: Callable[[Callable[[Turns], None]], None]) -> Iterator[None]:
        pending: list[list[tuple[int, bool]]] = [[]]
        while pending:
            prefix = pending.pop()

            def drive(turns: Turns, prefix: list[tuple[int, bool]] = prefix) -> None:
                taken: list[tuple[int, bool]] = []
                while True:
                    left = self.kills - sum(dies for _, dies in taken)
                    choices = [choice for choice in turns.enabled() if left or not choice[1]]
                    if not choices:
                        break
                    chosen = prefix[len(taken)] if len(taken) < len(prefix) else choices[0]
                    if len(taken) >= len(prefix):
                        pending.extend([*taken, choice] for choice in choices[1:])
                    taken.append(chosen)
                    turns.step(*chosen)
                turns.join()
                self.points.update(turns.seen)
                self.kill_points.update(turns.killed_at)

            run(drive)
            yield


def arm(monkeypatch: pytest.MonkeyPatch, holder: list[Turns]) -> None:
    for module in (commit_module, replace_module):
        monkeypatch.setattr(module, "fault_point", lambda name: holder[0].point(name) if holder else None)
    monkeypatch.setattr(replace_module, "LOCK_PAUSE_SECONDS", 0)
    for module in (publish, shutil):
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def assert_one_record(bench: Bench, output: Path) -> None:
    """One committed record, of the data shard that is there, and nothing wrong with it."""
    data, samples = bench.data(output), samples_path(output, bench.unit.id)
    record = read_record(samples)
    raw = data.read_bytes()
    assert (record.data_sha256, record.data_size) == (hashlib.sha256(raw).hexdigest(), len(raw))
    rows = shard_format(bench.settings.format).rows(data)
    assert record.rows_out == len(rows)
    assert record.rows_in == record.rows_out + sum(record.rejects.values()) == IMAGES + 1
    verifier = Verifier(output)
    problems, found, _ = verifier._unit(bench.unit)
    assert (problems, found) == ([], record)
    report = Report()
    verifier._strangers({bench.unit.id}, report)
    assert (report.problems, report.uncommitted) == ([], [])
    table = {row["key"]: row for row in pq.read_table(samples).to_pylist()}
    for row in rows:  # the facts are the shard's, whoever derived them
        assert {name: table[row["key"]][name] for name in ("norm_max", "norm_mean", "grid_thw", "clamped")} == {
            name: row[name] for name in ("norm_max", "norm_mean", "grid_thw", "clamped")
        }


def try_all(bench: Bench, made: list[Made], place: Path, patch: pytest.MonkeyPatch, **options: Any) -> Explorer:
    """Commits in every order, then once more; `damaged`: what lies there at the start."""
    damaged: bytes | None = options.get("damaged")
    sample: float = options.get("share", 1.0)
    holder: list[Turns] = []
    arm(patch, holder)
    explorer = Explorer(kills=options.get("kills", 0), points=Counter(), kill_points=Counter())
    number = itertools.count()
    chance = random.Random(1)

    def run(drive: Callable[[Turns], None]) -> None:
        output = bench.output(place / f"{next(number)}")
        if damaged is not None:
            bench.data(output).parent.mkdir()
            bench.data(output).write_bytes(damaged)
        turns = Turns([lambda one=one: bench.commit(one, output) for one in made])
        holder[:] = [turns]
        drive(turns)
        holder.clear()
        assert not turns.failures, turns.failures
        if chance.random() < sample:
            recovery = bench.commit(made[-1], output)
            assert recovery.record == read_record(samples_path(output, bench.unit.id))
            assert_one_record(bench, output)
        shutil.rmtree(output)

    for _ in explorer.orders(run):
        pass
    explorer.points["orders"] = next(number)
    return explorer


def test_probe(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time
    good = bench.data(bench.template).read_bytes()
    for label, made in {"agree": [bench.made]*2, "disagree": [bench.made.crashed(1), bench.made.non_finite(2)], "bits": [bench.made, bench.made.nudged()]}.items():
      for damaged in (None, good[: len(good) // 2]):
        for kills in (0, 1, 2):
            t=time.time()
            place = tmp_path / f"{label}{kills}{damaged is None}"; place.mkdir()
            e = try_all(bench, made, place, monkeypatch, damaged=damaged, kills=kills)
            if kills==0:
                import cProfile,pstats
                pr=cProfile.Profile(); place2=tmp_path/f"p{label}{damaged is None}"; place2.mkdir(); pr.enable(); try_all(bench, made, place2, monkeypatch, damaged=damaged, kills=0); pr.disable(); pstats.Stats(pr).sort_stats("cumtime").print_stats(22)
            print(label, damaged is not None, kills, e.points["orders"], round(time.time()-t,1), dict(e.points), dict(e.kill_points), flush=True)
