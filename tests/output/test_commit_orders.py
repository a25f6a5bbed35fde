"""Two commits of one unit in every order, with and without a kill at each step: they end in one record of one shard.

The two run in threads that take turns: one of them at a time, from one named point to the next. Every order of turns is
tried, and with each of them every kill; a third commit then is the run that goes on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import config_for, encoded, noise, run_here
from s3_server import BUCKET, S3Server

from pipeline import rejects
from pipeline.encode.encoded import EncodedUnit
from pipeline.errors import OutputBusy, OutputError
from pipeline.index.units import Unit
from pipeline.output import commit as commit_module
from pipeline.output.commit import commit_unit
from pipeline.output.committed import Committed
from pipeline.output.layout import data_path, samples_path
from pipeline.output.record import read_record
from pipeline.output.settings import ShardSettings
from pipeline.output.shard import DataShard, ShardRows
from pipeline.output.shard_formats import shard_format
from pipeline.output.standing import Damaged, Standing
from pipeline.output.unit_rows import UnitRows
from pipeline.output.verify import Report, Verifier
from pipeline.prepare.unit import PreparedSample, PreparedUnit
from pipeline.run import encode_stage
from pipeline.storage import replace as replace_module
from pipeline.storage.files import AnyPath
from pipeline.storage.remote import RemotePath
from pipeline.storage.scratch import Scratch

pytestmark = pytest.mark.slow

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
            samples[index] = PreparedSample(facts=facts, status=rejects.CRASH, error="its decoder hangs")
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

    def data(self, output: AnyPath) -> Any:
        return data_path(output, self.unit.id, self.settings.format)

    def fetched(self, output: RemotePath, place: Path) -> Path:
        """A copy of an output's shards, beside this plan."""
        self.output(place)
        for folder in ("data", "samples"):
            s3fs.S3FileSystem().get(f"{output.uri}/{folder}", str(place / folder), recursive=True)
        return place

    def commit(self, made: Made, output: AnyPath) -> Committed:
        scratch = Scratch(output)  # not removed: a killed process does not either
        return commit_unit(made.prepared, made.encoded, output, scratch, self.settings)


def make_bench(kind: str, model_path: Path, folder: Path) -> Bench:
    for number in range(IMAGES):
        path = folder / "in" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(noise(60 + 20 * number, 70, number)))
    (folder / "in" / "9.png").write_bytes(b"no image")  # a reject of the index: everybody agrees
    output = {"format": kind, "shard_tokens": 9999}
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_stage, "commit_unit", lambda *a: caught.append(a) or commit_unit(*a))
        assert run_here(config_for(folder / "in", folder / "out", model_path, output=output)).complete
    ((prepared, tokens, _, _, settings, _),) = caught
    return Bench(folder / "out", Made(prepared, tokens), settings, prepared.unit)


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def bench(request: pytest.FixtureRequest, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(request.param, model_path, tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def parquet_bench(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench("parquet", model_path, tmp_path_factory.mktemp("orders"))


class Killed(BaseException):
    """The thread is gone, as a process by SIGKILL: but for what the kernel lets go, nothing is done any more."""


class Turns:
    """Commits in threads, of which one runs at a time, from one point to the next."""

    def __init__(self, works: list[Callable[[], Committed]]) -> None:
        self._go = [threading.Semaphore(0) for _ in works]
        self._arrived = threading.Semaphore(0)
        self._me = threading.local()
        self._dies = [False] * len(works)
        self.at: list[str | None] = ["start"] * len(works)
        self.seen: list[str] = []
        self.killed_at: list[str] = []
        self.failures: list[BaseException] = []
        self.results: list[Committed] = []
        self._threads = [threading.Thread(target=self._run, args=(n, work)) for n, work in enumerate(works)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, work: Callable[[], Committed]) -> None:
        self._me.number = number
        self._go[number].acquire()
        try:
            self.results.append(work())
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
    count: int = 0
    points: Counter[str] = field(default_factory=Counter)
    killed_at: Counter[str] = field(default_factory=Counter)
    _pending: list[list[tuple[int, bool]]] = field(default_factory=lambda: [[]])

    def explore(self, run: Callable[[Callable[[Turns], None]], None], at_most: int = 10_000) -> None:
        """Runs every order, or so many of them."""
        chance = random.Random(1)
        while self._pending and self.count < at_most:
            run(partial(self._drive, self._pending.pop(chance.randrange(len(self._pending)))))
            self.count += 1

    def _drive(self, beginning: list[tuple[int, bool]], turns: Turns) -> None:
        taken: list[tuple[int, bool]] = []
        while choices := self._choices(taken, turns):
            chosen = choices[0]
            if len(taken) < len(beginning):
                chosen = beginning[len(taken)]
            else:
                self._pending.extend([*taken, choice] for choice in choices[1:])
            taken.append(chosen)
            turns.step(*chosen)
        turns.join()
        self.points.update(turns.seen)
        self.killed_at.update(turns.killed_at)

    def _choices(self, taken: list[tuple[int, bool]], turns: Turns) -> list[tuple[int, bool]]:
        left = self.kills - sum(dies for _, dies in taken)
        return [choice for choice in turns.enabled() if left or not choice[1]]


def arm(monkeypatch: pytest.MonkeyPatch, holder: list[Turns]) -> None:
    for module in (commit_module, replace_module):
        monkeypatch.setattr(module, "fault_point", lambda name: holder[0].point(name) if holder else None)
    monkeypatch.setattr(replace_module, "LOCK_PAUSE_SECONDS", 0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power is cut here


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
    part, number = bench.unit.part, bench.unit.number
    verifier._strangers({part: number + 1}, range(part, part + 1), report)
    assert (report.problems, report.uncommitted) == ([], [])
    table = {row["key"]: row for row in pq.read_table(samples).to_pylist()}
    for row in rows:  # the facts are the shard's, whoever derived them
        assert {name: table[row["key"]][name] for name in ("norm_max", "norm_mean", "grid_thw", "clamped")} == {
            name: row[name] for name in ("norm_max", "norm_mean", "grid_thw", "clamped")
        }


def try_all(
    bench: Bench, made: list[Made], patch: pytest.MonkeyPatch, place: Path, kills: int, damaged: bytes | None = None
) -> Explorer:
    """Commits in every order, then once more. `damaged`: what lies there at the start."""
    holder: list[Turns] = []
    arm(patch, holder)
    explorer = Explorer(kills=kills)

    def run(drive: Callable[[Turns], None]) -> None:
        output = bench.output(place / f"{explorer.count}")
        if damaged is not None:
            bench.data(output).parent.mkdir()
            bench.data(output).write_bytes(damaged)
        turns = Turns([partial(bench.commit, one, output) for one in made])
        holder[:] = [turns]
        drive(turns)
        holder.clear()
        assert not turns.failures, turns.failures
        committed = {one.record.data_sha256 for one in turns.results}
        assert sum(one.fresh for one in turns.results) <= 1 and (kills or any(one.fresh for one in turns.results))
        recovery = bench.commit(made[-1], output)
        assert committed <= {recovery.record.data_sha256}
        assert_one_record(bench, output)

    explorer.explore(run)
    return explorer


def half(bench: Bench) -> bytes:
    whole = bench.data(bench.template).read_bytes()
    return whole[: len(whole) // 2]


def disagreeing(bench: Bench) -> list[Made]:
    return [bench.made.crashed(1), bench.made.nudged().non_finite(2)]


@pytest.mark.parametrize("kills", [0, 2])
def test_two_that_disagree(bench: Bench, kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = try_all(bench, disagreeing(bench), monkeypatch, tmp_path, kills)
    assert explorer.count == {0: 6, 2: 92}[kills]
    assert set(explorer.killed_at) == ({*COMMIT_POINTS, "after_samples_publish"} if kills else set())
    assert "before_data_replace" not in explorer.points  # nobody replaces a whole shard


def test_two_that_agree(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, made in {"the same": [bench.made] * 2, "other bits": [bench.made, bench.made.nudged()]}.items():
        (tmp_path / name).mkdir()
        assert try_all(bench, made, monkeypatch, tmp_path / name, kills=0).count == 6


def test_a_damaged_shard_lies_there(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = try_all(bench, disagreeing(bench), monkeypatch, tmp_path, 0, half(bench))
    assert explorer.count == 42
    assert explorer.points["data_replaced"] == explorer.count  # once each time
    assert explorer.points[WAITS] > 0


@pytest.mark.parametrize(
    "at_most", [pytest.param(12, marks=pytest.mark.slow), pytest.param(66, marks=pytest.mark.chaos)]
)
def test_in_object_storage(
    at_most: int, parquet_bench: Bench, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no lock, and none waits: who is second is refused by the storage, and looks again."""
    bench, holder = parquet_bench, []
    arm(monkeypatch, holder)
    explorer = Explorer(kills=0)

    def run(drive: Callable[[Turns], None]) -> None:
        output = RemotePath(f"s3://{BUCKET}/{explorer.count}")
        s3fs.S3FileSystem().pipe_file(bench.data(output).uri, half(bench))
        turns = Turns([partial(bench.commit, one, output) for one in disagreeing(bench)])
        holder[:] = [turns]
        drive(turns)
        holder.clear()
        assert not turns.failures, turns.failures
        assert bench.commit(bench.made, output).record == read_record(samples_path(output, bench.unit.id))
        assert_one_record(bench, bench.fetched(output, tmp_path / f"{explorer.count}"))

    explorer.explore(run, at_most)
    assert explorer.points["data_replaced"] == explorer.count == at_most
    assert explorer.points["data_replace_locked"] > explorer.count


@pytest.mark.slow
def test_a_damaged_shard_lies_there_and_one_is_killed(
    parquet_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = parquet_bench
    explorer = try_all(bench, disagreeing(bench), monkeypatch, tmp_path, 1, half(bench))
    assert explorer.count == 272
    assert set(explorer.killed_at) == POINTS - {WAITS}


@pytest.mark.chaos
def test_a_damaged_shard_lies_there_and_both_are_killed(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, made in {"disagree": disagreeing(bench), "agree": [bench.made] * 2}.items():
        (tmp_path / name).mkdir()
        assert try_all(bench, made, monkeypatch, tmp_path / name, 2, half(bench)).count == 770


def replaced_without_a_look(source: Path, final: Path, old: object) -> bool:
    replace_module.fault_point("data_replace_locked")
    os.replace(source, final)
    return True


def test_the_orders_find_a_replacement_without_a_look(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted mistake: two that saw the damage replace one another's good shard."""
    monkeypatch.setattr(commit_module, "replace_same", replaced_without_a_look)
    with pytest.raises((AssertionError, OutputError), match=r"does not hold what its committed record says|=="):
        try_all(bench, disagreeing(bench), monkeypatch, tmp_path, 0, half(bench))


def test_the_orders_find_a_replaced_whole_shard(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted mistake: a shard with other rows than ours counts as damaged, as it once did."""

    def examine(path: Path, rows: UnitRows, ours: DataShard, settings: ShardSettings) -> object:
        found = real(path, rows, ours, settings)
        same = isinstance(found, Standing) and found.outcome.accepted == rows.outcome.accepted
        return found if same else Damaged(why="other rows")

    real = commit_module.examine
    monkeypatch.setattr(commit_module, "examine", examine)
    with pytest.raises((AssertionError, OutputError)):
        try_all(bench, disagreeing(bench), monkeypatch, tmp_path, 0)


def test_what_the_publisher_found_is_what_is_recorded(bench: Bench, tmp_path: Path) -> None:
    first, second = disagreeing(bench)
    output = bench.output(tmp_path / "out")
    bench.commit(first, output)
    alone = pq.read_table(samples_path(output, bench.unit.id))
    samples_path(output, bench.unit.id).unlink()
    assert bench.commit(second, output).record.adopted
    assert_one_record(bench, output)
    names = ["key", "status", "error", "num_tokens", "norm_max", "norm_mean", "offset", "length", "grid_thw"]
    assert pq.read_table(samples_path(output, bench.unit.id)).select(names).equals(alone.select(names))
    assert alone.column("status").to_pylist()[1] == rejects.CRASH
    assert alone.column("error").to_pylist()[1] == "its decoder hangs"


def test_a_record_of_another_shard_than_the_one_that_stands_is_told(bench: Bench, tmp_path: Path) -> None:
    """A whole shard of the unit, and not the one that was committed."""
    output, other = bench.output(tmp_path / "out"), bench.output(tmp_path / "other")
    bench.commit(bench.made, output)
    bench.commit(bench.made.nudged(), other)
    bench.data(output).write_bytes(bench.data(other).read_bytes())
    with pytest.raises(OutputError, match="does not hold what its committed record says"):
        bench.commit(bench.made.nudged(), output)
    assert bench.data(output).read_bytes() == bench.data(other).read_bytes()


def test_only_rejects_of_the_moment_are_in_a_shards_metadata(bench: Bench, tmp_path: Path) -> None:
    """A shard without any has the bytes that it had before there were such."""
    plain = bench.output(tmp_path / "plain")
    bench.commit(bench.made, plain)
    shards = shard_format(bench.settings.format)
    assert "rejects" not in shards.read(bench.data(plain)).metadata
    other = bench.output(tmp_path / "other")
    bench.commit(bench.made.crashed(1, 3), other)
    assert shards.read(bench.data(other)).metadata["rejects"] == {"crash": {"its decoder hangs": [1, 3]}}


def forked(work: Callable[[], object], **environment: str) -> Any:
    """A process of its own, which may be killed."""

    def call() -> None:
        os.environ.update(environment)
        work()

    child = multiprocessing.get_context("fork").Process(target=call)
    child.start()
    return child


@pytest.mark.parametrize("point", ["before_data_replace", "data_replace_locked", "data_replaced", "after_data_publish"])
def test_a_real_process_is_killed(point: str, bench: Bench, tmp_path: Path) -> None:
    output, marker = bench.output(tmp_path / "out"), tmp_path / "fired"
    bench.data(output).parent.mkdir()
    bench.data(output).write_bytes(half(bench))
    first, second = disagreeing(bench)
    child = forked(lambda: bench.commit(first, output), VISIONBAKE_FAULT=f"{point}:kill@{marker}")
    child.join(60)
    assert (child.exitcode, marker.exists()) == (-signal.SIGKILL, True)
    record = bench.commit(second, output).record
    assert record.adopted is (point in ("data_replaced", "after_data_publish"))
    assert_one_record(bench, output)


def test_a_lock_is_waited_for_and_ends_with_its_holder(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, marker = bench.output(tmp_path / "out"), tmp_path / "fired"
    bench.data(output).parent.mkdir()
    bench.data(output).write_bytes(half(bench))
    first, second = disagreeing(bench)
    holder = forked(lambda: bench.commit(first, output), VISIONBAKE_FAULT=f"data_replace_locked:sleep=300@{marker}")
    while not marker.exists():
        time.sleep(0.01)
    waited: list[str] = []

    def point(name: str) -> None:
        waited.append(name)
        if waited.count(WAITS) == 2:
            holder.kill()
            holder.join()

    monkeypatch.setattr(replace_module, "fault_point", point)
    assert not bench.commit(second, output).record.adopted
    assert waited.count(WAITS) >= 2
    assert holder.exitcode == -signal.SIGKILL
    assert_one_record(bench, output)


def test_an_output_whose_runs_disagreed_is_proven(
    bench: Bench, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publishes its data and sleeps, B runs to its end, A goes on: both say complete, and `verify` proves it."""
    shards = {"format": bench.settings.format, "shard_tokens": 9999}
    config = config_for(bench.template.parent / "in", tmp_path / "out", model_path, output=shards)
    sleeps, goes_on, who = threading.Event(), threading.Event(), threading.local()

    def point(name: str) -> None:
        if name == "after_data_publish" and getattr(who, "crashes", False):
            sleeps.set()
            assert goes_on.wait(60)

    def commit(prepared: PreparedUnit, tokens: EncodedUnit, *rest: Any) -> Committed:
        made = Made(prepared, tokens)
        made = made.crashed(1) if getattr(who, "crashes", False) else made
        return commit_unit(made.prepared, made.encoded, *rest)

    monkeypatch.setattr(commit_module, "fault_point", point)
    monkeypatch.setattr(encode_stage, "commit_unit", commit)
    summaries: list[Any] = []

    def first() -> None:
        who.crashes = True
        summaries.append(run_here(config))

    thread = threading.Thread(target=first)
    thread.start()
    assert sleeps.wait(60)
    summaries.append(run_here(config))
    goes_on.set()
    thread.join(60)
    assert [summary.complete for summary in summaries] == [True, True]
    assert summaries[0].totals.rejects == summaries[1].totals.rejects == {"crash": 1, "unidentified": 1}
    assert Verifier(tmp_path / "out").verify().proven


def test_a_whole_shard_that_cannot_be_read_is_not_taken_for_damaged(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = bench.output(tmp_path / "out")
    bench.commit(bench.made.crashed(1), output)
    samples_path(output, bench.unit.id).unlink()
    before = bench.data(output).read_bytes()
    for number, kind in ((errno.EIO, OutputBusy), (errno.EACCES, OutputError)):
        failed = []

        def digest(*_: object, number: int = number, failed: list[int] = failed) -> None:
            failed.append(number)
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr("hashlib.file_digest", digest)
            with pytest.raises(OutputError) as raised:
                bench.commit(bench.made, output)
        assert type(raised.value) is kind
        assert failed
    assert bench.data(output).read_bytes() == before


def test_a_file_system_without_locks_is_told_so(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = bench.output(tmp_path / "out")
    bench.data(output).parent.mkdir()
    bench.data(output).write_bytes(half(bench))

    def flock(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(OutputError, match=r"has no locks.*remove it while no other run"):
            bench.commit(bench.made, output)
    assert bench.data(output).read_bytes() == half(bench)
    bench.commit(bench.made, output)
    assert_one_record(bench, output)


def test_another_users_shard_is_adopted(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux makes no second name for it; then it is copied."""
    output = bench.output(tmp_path / "out")
    bench.commit(bench.made.crashed(1), output)
    samples_path(output, bench.unit.id).unlink()
    link, refused = os.link, []

    def refusing(source: Path, target: Path) -> None:
        if "standing-" in str(target):
            refused.append(target)
            raise PermissionError(errno.EPERM, "Operation not permitted")
        link(source, target)

    monkeypatch.setattr(os, "link", refusing)
    assert bench.commit(bench.made, output).record.adopted
    assert refused
    assert_one_record(bench, output)


def _rows(bench: Bench, made: Made, **columns: Any) -> ShardRows:
    rows = UnitRows(made.prepared, made.encoded).shard_rows(bench.settings)
    changed = {name: change(list(rows.columns[name])) for name, change in columns.items()}
    return replace(rows, columns=rows.columns | changed)


def _stating(bench: Bench, made: Made, stated: object) -> ShardRows:
    rows = _rows(bench, made)
    return replace(rows, metadata=rows.metadata | {"rejects": stated})


def _without_reason(bench: Bench) -> ShardRows:
    rows = _rows(bench, bench.made.crashed(1))
    return replace(rows, metadata={name: value for name, value in rows.metadata.items() if name != "rejects"})


def _not_finite(bench: Bench) -> ShardRows:
    tokens_MO = bench.made.encoded.tokens_MO.clone()
    tokens_MO[0, 0] = float("nan")
    return _rows(bench, Made(bench.made.prepared, replace(bench.made.encoded, tokens_MO=tokens_MO)))


def _with_a_row_too_many(bench: Bench) -> ShardRows:
    """Behind all of the unit's, of another one."""
    prepared = bench.made.prepared
    stranger = replace(prepared.samples[0], facts=replace(prepared.samples[0].facts, key="z.png"))
    return _rows(bench, Made(replace(prepared, samples=(*prepared.samples, stranger)), bench.made.encoded))


def _with_another_grid(bench: Bench) -> ShardRows:
    """As many patches in another form."""

    def turned(grids: list[Any]) -> list[Any]:
        frames, height, width = grids[1]
        assert height != width
        return [grids[0], [frames, width, height], *grids[2:]]

    return _rows(bench, bench.made, grid_thw=turned)


DAMAGE: dict[str, Callable[[Bench], ShardRows]] = {
    "left out without a reason": _without_reason,
    "not finite": _not_finite,
    "a row too many": _with_a_row_too_many,
    "another grid": _with_another_grid,
    "other norms": lambda bench: _rows(bench, bench.made, norm_max=lambda norms: [norm * 1.01 for norm in norms]),
    "another order": lambda bench: _rows(bench, bench.made, key=lambda keys: keys[::-1]),
    "another source": lambda bench: _rows(bench, bench.made, source=lambda names: ["x", *names[1:]]),
    "other bytes": lambda bench: _rows(bench, bench.made, sha256=lambda hashes: ["0" * 64, *hashes[1:]]),
    "a row and a reject": lambda bench: _stating(bench, bench.made, {"crash": {"why": [1]}}),
    "a reject of nobody": lambda bench: _stating(bench, bench.made, {"crash": {"why": [99]}}),
    "no such reason": lambda bench: _stating(bench, bench.made.crashed(1), {"corrupt": {"why": [1]}}),
    "no rejects": lambda bench: _stating(bench, bench.made.crashed(1), ["crash"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_well_formed_is_replaced(name: str, bench: Bench, tmp_path: Path) -> None:
    output = bench.output(tmp_path / "out")
    bench.data(output).parent.mkdir()
    shard_format(bench.settings.format).write(bench.data(output), DAMAGE[name](bench), bench.settings.row_group_bytes)
    ours = bench.made.crashed(1) if name == "another grid" else bench.made
    assert not bench.commit(ours, output).record.adopted
    assert_one_record(bench, output)
