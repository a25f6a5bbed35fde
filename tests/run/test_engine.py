"""The driver and the engine of actors over a stand-in for Ray, in virtual time. Catches: a fault that ends it.

What is real: the driver, the engine, the fleet, sizing. What is made up: actors, nodes, time. Each fault is told by the
stand-in, which counts how often it fired.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import pipeline
from jobs.bench.cluster import SHARDS, UNIT_BYTES
from jobs.bench.driver import RECORD
from jobs.bench.virtual_ray import Actor, Fate, VirtualRay
from pipeline.config import Cluster
from pipeline.errors import OutputBusy, RequestError, RunFailed, SourceBusy, SourceError
from pipeline.index.units import Unit
from pipeline.output.committed import Committed
from pipeline.run.actors import Introduction
from pipeline.run.backend import ProcessDied
from pipeline.run.calls import Call
from pipeline.run.driver import Driver
from pipeline.run.engine_ray import RayEngine
from pipeline.run.events import Stage
from pipeline.run.progress import Progress
from pipeline.run.work import DriverLimits, Observer, Work

PACKAGE = str(Path(pipeline.__file__).parent)
DEADLINE_SECONDS = 4 * 3600.0
DIED = ProcessDied("The actor died.\nmore of it")
Tell = Callable[[Actor, Call], Fate | None]


class Fault:
    """Tells the fate of calls; `fired`: how many that were, by the actor's node."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self.fired: Counter[str] = Counter()

    def __call__(self, actor: Actor, call: Call) -> Fate | None:
        fate = self._tell(actor, call)
        self.fired[actor.node] += fate is not None
        return fate


class Ray(VirtualRay):
    """The stand-in; a run in it that does not end is an error."""

    def wait(self, timeout_seconds: float) -> list[tuple[Call, Any]]:
        assert self.now() < DEADLINE_SECONDS, "it waits for ever"
        return super().wait(timeout_seconds)

    def started_by_kind(self, kind: str) -> list[int]:
        """The numbers of those that were started."""
        return [actor.number for actor in self.started if actor.kind == kind]


class Job:
    """A run of so many parts of ten units each, and what it said."""

    def __init__(self, ray: VirtualRay, parts: int = 8, **options: Any) -> None:
        self.ray, self.lines, self.admitted = ray, [], []  # type: ignore[var-annotated]
        limits = {name: options.pop(name) for name in list(options) if name in DriverLimits.__dataclass_fields__}
        self.refuse = options.pop("refuse", None)
        device, encoding = options.pop("device", "cuda"), options.pop("encoding", True)
        to_index = options.pop("to_index", [])
        self.engine = RayEngine(ray, Cluster(**options), device, say=self.lines.append, encoding=encoding)
        self.work = Work(
            parts=parts,
            to_index=to_index,
            to_cut=[part for part in range(parts) if part not in to_index],
            units_of=lambda part: [
                Unit(part=part, number=number, first=number, count=1, tokens=1, patches=1) for number in range(10)
            ],
            unit_bytes=lambda unit: UNIT_BYTES,
        )
        self.limits = DriverLimits(**({"attempts": 1} | limits))
        self.began = 0.0

    def admit(self, identity: dict[str, object]) -> Any:
        self.admitted.append(identity)
        if self.refuse is not None:
            raise RequestError(self.refuse)
        return SHARDS

    def run(self) -> Progress:
        self.engine.begin(self.admit)
        self.driver = Driver(self.engine, self.work, self.limits, Observer(say=self.lines.append))
        return self.driver.run()

    def ends_whole(self) -> Progress:
        """Runs; every unit is committed once, and none is set aside."""
        progress = self.run()
        assert (progress.totals.units, progress.set_aside, progress.failed_parts) == (10 * self.work.parts, {}, {})
        board = self.driver._board
        assert (len(board), len(board.waiting), len(board.leases), board._bytes, board._all_bytes) == (0, 0, 0, {}, 0)
        return progress

    def said(self, text: str) -> int:
        """How many lines have this in them."""
        return sum(text in line for line in self.lines)


def introduced(identity: dict[str, object], *, sees: bool = True) -> Fate:
    return 5.0, Introduction(sees_output=sees, identity=identity)


def starts(actor: Actor, call: Call) -> bool:
    return call.stage is None


# Nodes


def test_a_cluster_is_kept_busy_and_patches_stay_near() -> None:
    ray = Ray(16)
    progress = Job(ray, parts=64).ends_whole()
    assert progress.retries == 0
    assert ray.local / ray.encoded > 0.9
    assert ray.now() < 640 / 16 * 1.5 + 15  # seconds: a unit takes one; starting, the first units and the last ones


def lines_for_a_unit(nodes: int) -> float:
    """How many lines of the package run for each unit, once all encoders are at work."""
    ray = Ray(8)
    for _ in range(nodes - 1):
        ray.add_node(8)
    job, lines = Job(ray, parts=8 * nodes), 0

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        lines += event == "line"
        return count

    ray.skip(10.0)
    before = sys.gettrace()
    sys.settrace(count)
    try:
        job.ends_whole()
    finally:
        sys.settrace(before)
    return lines / job.driver.progress.totals.units


def test_a_units_work_does_not_grow_with_the_cluster() -> None:
    few, many = lines_for_a_unit(2), lines_for_a_unit(16)
    assert many < 1.3 * few, (few, many)


@pytest.mark.parametrize("at", [2.0, 4.9, 6.5, 20.0], ids=["starting", "half started", "beginning", "working"])
def test_a_node_that_is_lost_with_all_its_processes_is_one_loss(at: float) -> None:
    ray = Ray(8, cpus_per_gpu=8)
    lost = ray.add_node(4)
    job = Job(ray, parts=40)
    ray.after(at, lambda: ray.remove_node(lost))
    job.ends_whole()
    assert ray.lost_nodes == 1
    assert job.said(f"node {lost} is lost, with 4 encoders and 24 preparers") == 1
    assert job.said("is lost") == 1
    assert not job.said("died and is replaced") and not job.said("fewer")
    assert job.engine.fleet.nodes() == 1


def test_no_gpu_at_the_start_and_one_that_joins() -> None:
    ray = Ray(0)
    ray.add_node(0, 4)
    job = Job(ray)
    ray.after(100.0, lambda: ray.add_node(1))
    job.ends_whole()
    assert ray.now() > 100
    assert ("GPU", 1) in ray.asked_for
    assert job.said("waiting for encoders: 0 are starting; the cluster has 1 nodes, 4 free CPUs, 0 GPUs") >= 2
    assert job.said("has joined") == 1


def test_no_node_at_the_start_and_one_that_joins() -> None:
    ray = Ray(0)
    job = Job(ray, to_index=[0, 1])
    ray.after(50.0, lambda: ray.add_node(2))
    job.ends_whole()
    assert ray.now() > 50 and job.said("waiting for preparers") >= 2


def test_a_number_of_encoders_is_asked_for_once_and_others_are_used_meanwhile() -> None:
    ray = Ray(2)
    job = Job(ray, parts=20, encoders=6)
    ray.after(30.0, lambda: ray.add_node(8))
    job.ends_whole()
    assert ("GPU", 6) in ray.asked_for
    assert max(ray.started_by_kind("encoder")) == 5  # six of them


def test_a_node_that_joins_is_used() -> None:
    ray, joined = Ray(4), []
    job = Job(ray, parts=40)
    ray.after(20.0, lambda: joined.append(ray.add_node(4)))
    job.ends_whole()
    assert job.said(f"node {joined[0]} has joined: 32 CPUs, 4 GPUs") == 1
    assert ray.now() < 20 + 400 / 4 * 0.9
    assert job.engine.fleet.count("encoder") == 8


def test_all_nodes_are_lost_and_one_comes_later() -> None:
    ray = Ray(8)
    ray.add_node(8)
    names = list(ray.cluster)
    job = Job(ray, parts=40, to_index=list(range(30, 40)))
    for name in names:
        ray.after(12.0, lambda name=name: ray.remove_node(name))  # type: ignore[misc]
    ray.after(200.0, lambda: ray.add_node(8))
    job.ends_whole()
    assert ray.now() > 200 and job.said("is lost, with") == 2
    assert job.said("waiting for encoders") and job.said("waiting for preparers")


def test_a_node_that_ray_still_lists_is_left_alone_and_taken_back_when_it_answers() -> None:
    """Its manager is gone; Ray lists it for five more minutes. Nothing is started there meanwhile."""
    ray = Ray(4, noticed_seconds=300.0)
    lost = ray.add_node(4)
    job = Job(ray, parts=80)
    ray.after(10.0, lambda: ray.remove_node(lost))
    job.ends_whole()
    assert 100 < ray.now() < 310  # it was listed all the time
    assert job.said("is lost") == 1 and not job.said("has joined")
    assert not [actor for actor in ray.started if actor.node == lost and actor.number >= 48]


def test_a_node_that_was_cut_off_for_a_while_is_used_again() -> None:
    ray = Ray(4, noticed_seconds=300.0)
    lost = ray.add_node(4)
    job = Job(ray, parts=160)
    ray.after(10.0, lambda: ray.remove_node(lost))
    ray.after(30.0, lambda: ray.bring_back(lost))
    job.ends_whole()
    assert job.said("is lost") == 1 and job.said(f"node {lost} has joined") == 1
    assert job.engine.fleet.count("encoder") == 8
    assert not job.engine.fleet._nodes[lost].budget_bytes < 0


# Processes that fail at work


@pytest.mark.parametrize("encode_seconds", [1.0, 30.0])
def test_a_gpu_that_fails_every_call_is_replaced_once_then_its_place_is_given_up(encode_seconds: float) -> None:
    ray = Ray(4, encode_seconds=encode_seconds)
    bad = next(iter(ray.cluster))
    ray.cluster[bad].bad.add(0)
    job = Job(ray, parts=12, attempts=3)
    job.ends_whole()
    assert ray.failed >= 4
    assert job.said("failed twice in a row, at last: CUDA error: unspecified launch failure: it is replaced") == 2
    assert job.said(f"node {bad} gets one encoder fewer: 2 in a row came to nothing") == 1
    assert job.engine.fleet.count("encoder") == 3
    assert ray.failed <= 30  # it takes no unit after the other from those that are at work


def test_an_encoder_that_hangs_is_replaced() -> None:
    fault = Fault(lambda actor, call: (math.inf, None) if (call.stage, actor.number) == (Stage.ENCODE, 1) else None)
    ray = Ray(4, fate=fault)
    job = Job(ray, parts=40, unit_seconds=30.0, attempts=2)
    job.ends_whole()
    assert fault.fired.total() == 2  # both of its calls
    assert job.said("has not answered for") == 2  # by the driver, and by the engine
    assert job.engine.fleet.count("encoder") == 4
    assert max(ray.started_by_kind("encoder")) == 4


def test_a_preparer_that_hangs_is_replaced() -> None:
    fault = Fault(lambda actor, call: (math.inf, None) if (call.stage, actor.number) == (Stage.PREPARE, 1) else None)
    job = Job(Ray(4, fate=fault), parts=40, unit_seconds=30.0, attempts=2)
    job.ends_whole()
    assert fault.fired.total() == 1


def test_at_the_end_a_unit_that_hangs_is_done_by_another() -> None:
    fault = Fault(lambda actor, call: (math.inf, None) if (call.stage, actor.number) == (Stage.ENCODE, 1) else None)
    ray = Ray(4, fate=fault)
    job = Job(ray, parts=4)
    job.ends_whole()
    assert fault.fired.total() == 2 and job.said("tries it too") == 2
    assert ray.now() < 100


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.ENCODE])
def test_a_place_where_processes_die_again_and_again_is_given_up(stage: Stage) -> None:
    """One GPU, or one core, kills whoever works there; the others do the work."""
    places = {}  # type: ignore[var-annotated]

    def tell(actor: Actor, call: Call) -> Fate | None:
        if call.stage is not stage or actor.node != ray.first:
            return None
        mine = actor.gpu == 0 if stage is Stage.ENCODE else places.setdefault(actor.kind, actor.number) is not None
        return (1.0, DIED) if mine else None

    fault = Fault(tell)
    ray = Ray(1 if stage is Stage.PREPARE else 4, cpus_per_gpu=2 if stage is Stage.PREPARE else 8, fate=fault)
    ray.first = next(iter(ray.cluster))  # type: ignore[attr-defined]
    ray.add_node(4)
    job = Job(ray, parts=100, attempts=3)
    job.ends_whole()
    kind = "preparer" if stage is Stage.PREPARE else "encoder"
    assert fault.fired.total() >= 20
    assert job.said(f"node {ray.first} gets one {kind} fewer: 20 in a row") == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["preparer", "encoder"])
def test_processes_that_die_wherever_they_work_end_the_run(kind: str) -> None:
    stage = Stage.PREPARE if kind == "preparer" else Stage.ENCODE
    fault = Fault(lambda actor, call: (1.0, DIED) if call.stage is stage else None)
    with pytest.raises(RunFailed, match=r"in a row|can be kept alive"):
        Job(Ray(2, fate=fault), attempts=3).run()
    assert fault.fired.total() >= 10


@pytest.mark.parametrize("kind", ["preparer", "encoder"])
def test_processes_that_die_while_they_start_end_the_run_though_the_other_kind_answers(kind: str) -> None:
    fault = Fault(lambda actor, call: (2.0, DIED) if call.stage is None and actor.kind == kind else None)
    job = Job(Ray(2, fate=fault))
    with pytest.raises(RunFailed, match=f"no {kind} process can be kept alive, the last: The actor died"):
        job.run()
    places = 2 if kind == "encoder" else 12
    assert fault.fired.total() == 5 * places
    assert job.said("fewer: 5 in a row came to nothing") == places


def test_each_that_dies_has_one_successor() -> None:
    """Whenever that is: also while it is not known yet whether its node is gone, and others are looked for."""
    ray = Ray(8)
    job = Job(ray, parts=40, attempts=20)

    def kill_the_oldest() -> None:
        actor = next(actor for actor in ray._actors if actor.kind == "encoder")
        ray._die(actor, ProcessDied("the worker died"))

    for number in range(10):
        ray.after(12.0 + 0.7 * number, kill_the_oldest)
    job.ends_whole()
    assert job.said("a encoder process died and is replaced") == 10
    assert len(ray.started_by_kind("encoder")) == 8 + 10
    assert job.engine.fleet.count("encoder") == 8


def test_many_that_die_at_once_on_a_node_that_lives_on_set_nothing_aside() -> None:
    """A container's memory limit, say: no unit has to do with it."""
    ray = Ray(8)
    job = Job(ray, parts=40, attempts=2)
    ray.after(15.0, lambda: ray.kill_all("preparer"))
    job.ends_whole()
    assert job.said("a preparer process died and is replaced") == 48


@pytest.mark.parametrize("error", [SourceError("no such file"), DIED])
@pytest.mark.parametrize("indexed", [0, 40])
def test_a_node_where_nothing_can_be_read_uses_up_no_attempts(error: Exception, indexed: int) -> None:
    """The source is not mounted there; it fails a hundred times faster than others read."""
    ray = Ray(4)
    bad = ray.add_node(4)
    reads = (Stage.INDEX, Stage.PREPARE)
    ray._fate = fault = Fault(lambda actor, call: (0.05, error) if call.stage in reads and actor.node == bad else None)
    job = Job(ray, parts=40, attempts=3, to_index=list(range(indexed, 40)))
    job.ends_whole()
    assert fault.fired[bad] > 20
    assert job.said(f"with the preparers of node {bad}: {str(error).splitlines()[0]}") >= 3


def test_parts_that_can_be_read_nowhere_are_set_aside_and_no_node_is() -> None:
    """Two tars were deleted under the run: their units fail on whichever node."""
    gone = SourceError("has vanished")
    ray = Ray(4)
    ray.add_node(4)
    ray._fate = Fault(
        lambda actor, call: (
            (0.05, gone) if call.stage is Stage.PREPARE and call.part == 7 and call.unit.number < 8 else None
        )  # type: ignore[union-attr]
    )
    job = Job(ray, parts=40, attempts=3)
    progress = job.run()
    assert sorted(progress.set_aside) == [f"000007-{number:04d}" for number in range(8)]
    assert progress.totals.units == 400 - 8
    assert ray.now() < 110


# Processes that cannot start, or are others than they should be


def cannot_start(when: Callable[[Actor], bool], error: BaseException) -> Fault:
    return Fault(lambda actor, call: (3.0, ProcessDied("init", error)) if starts(actor, call) and when(actor) else None)


def never_starts(when: Callable[[Actor], bool]) -> Fault:
    return Fault(lambda actor, call: (math.inf, None) if starts(actor, call) and when(actor) else None)


@pytest.mark.parametrize("kind", ["preparer", "encoder"])
def test_a_start_that_fails_once_is_tried_again(kind: str) -> None:
    fault = cannot_start(lambda actor: (actor.kind, actor.number) == (kind, 0), MemoryError("no memory"))
    job = Job(Ray(2, fate=fault))
    job.ends_whole()
    assert fault.fired.total() == 1
    assert job.said(f"a {kind} cannot start on node") == 1 and not job.said("fewer")


@pytest.mark.parametrize("kind", ["preparer", "encoder"])
def test_a_start_that_hangs_is_made_anew(kind: str) -> None:
    ray = Ray(1)
    fault = ray._fate = never_starts(lambda actor: actor.kind == kind and ray.now() < 500)
    job = Job(ray)
    job.ends_whole()
    assert fault.fired.total() >= 1 and 600 < ray.now() < 2000
    assert job.said("has not started for long: it is started anew") >= 1


def test_a_gpu_that_another_job_holds_is_left_for_one_that_is_free() -> None:
    """What is started where no GPU is free waits for it. A node joins whose GPU is free: it goes there."""
    ray = Ray(1)
    held = next(iter(ray.cluster))
    ray.cluster[held].facts = replace(ray.cluster[held].facts, free_gpus=0)
    ray._fate = never_starts(lambda actor: (actor.kind, actor.node) == ("encoder", held))
    job = Job(ray, encoders=1)
    ray.after(100.0, lambda: ray.add_node(1))
    job.ends_whole()
    assert 600 < ray.now() < 2000


def test_the_only_gpu_is_not_given_up_because_a_replacement_does_not_start_at_once() -> None:
    """Its encoder dies at work, and so does the next; the third cannot start; the fourth works."""

    def tell(actor: Actor, call: Call) -> Fate | None:
        if actor.kind == "encoder" and call.stage is Stage.ENCODE and actor.number < 2:
            return 1.0, DIED
        if actor.kind == "encoder" and call.stage is None and actor.number == 2:
            return 3.0, ProcessDied("init", RuntimeError("in use"))
        return None

    fault = Fault(tell)
    ray = Ray(1, fate=fault)
    Job(ray, parts=4, attempts=3).ends_whole()
    assert fault.fired.total() >= 3 and ray.started_by_kind("encoder") == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["preparer", "encoder"])
@pytest.mark.parametrize("error", [RuntimeError("no such library"), RequestError("model.path is not there")])
def test_a_node_where_nothing_starts_is_named_and_others_do_the_work(kind: str, error: BaseException) -> None:
    ray = Ray(4)
    bad = ray.add_node(2)
    ray._fate = fault = cannot_start(lambda actor: (actor.kind, actor.node) == (kind, bad), error)
    job = Job(ray, parts=20)
    job.ends_whole()
    places = 2 if kind == "encoder" else 12
    assert fault.fired.total() == (places if isinstance(error, RequestError) else 2 * places)
    assert job.said(f"node {bad} gets one {kind} fewer") == places
    assert job.engine.fleet.count(kind, bad) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["preparer", "encoder"])
def test_a_start_that_fails_everywhere_with_what_the_request_is_to_blame_for_is_a_refusal(kind: str) -> None:
    ray = Ray(4)
    ray.add_node(2)
    ray._fate = cannot_start(lambda actor: actor.kind == kind, RequestError("model.path is not there"))
    job = Job(ray)
    with pytest.raises(RequestError, match=r"model\.path is not there"):
        job.run()
    assert not job.admitted


def test_a_start_that_fails_everywhere_ends_the_run() -> None:
    fault = cannot_start(lambda actor: actor.kind == "encoder", RuntimeError("no driver for this GPU\nat line 3"))
    with pytest.raises(RunFailed, match=r"no encoder process can be kept alive, the last: no driver for this GPU$"):
        Job(Ray(2, fate=fault)).run()
    assert fault.fired.total() == 4


def test_a_refusal_everywhere_but_on_a_node_that_is_gone_is_one() -> None:
    """Ray still lists a node that was just lost: what is started there never answers."""
    ray = Ray(1, noticed_seconds=30.0)
    ray.remove_node(next(iter(ray.cluster)))
    ray.add_node(1)
    ray.add_node(0, 4)
    ray._fate = cannot_start(lambda actor: actor.kind == "encoder", RequestError("torch sees no GPU here"))
    job = Job(ray)
    with pytest.raises(RequestError, match="torch sees no GPU here"):
        job.run()
    assert job.said("is lost, with 1 encoders") == 1


def test_when_the_good_node_is_lost_and_a_bad_one_is_left_another_is_waited_for() -> None:
    ray = Ray(1)
    good, bad = next(iter(ray.cluster)), ray.add_node(1)
    ray._fate = cannot_start(lambda actor: (actor.kind, actor.node) == ("encoder", bad), RuntimeError("no driver here"))
    job = Job(ray)
    ray.after(20.0, lambda: ray.remove_node(good))
    ray.after(200.0, lambda: ray.add_node(1))
    job.ends_whole()
    assert ray.now() > 200
    assert job.said("1 GPUs; the last ended with: no driver here")


def test_once_encoding_has_begun_it_is_no_refusal_any_more() -> None:
    """All encoders die, and their successors find no model."""
    ray = Ray(2)
    ray._fate = cannot_start(lambda actor: actor.kind == "encoder" and ray.now() > 15, RequestError("model.path"))
    job = Job(ray, parts=20)
    ray.after(15.0, lambda: ray.kill_all("encoder"))
    with pytest.raises(RunFailed, match=r"model\.path"):
        job.run()
    assert job.admitted


def differs(when: Callable[[Actor], bool]) -> Fault:
    return Fault(lambda actor, call: introduced({"device": "other"}) if starts(actor, call) and when(actor) else None)


def test_a_node_that_differs_is_left_out_and_named() -> None:
    ray = Ray(4)
    other = ray.add_node(2)
    ray._fate = fault = Fault(
        lambda actor, call: (
            (6.0, Introduction(sees_output=True, identity={"device": "other"}))
            if starts(actor, call) and (actor.kind, actor.node) == ("encoder", other)
            else (4.0, Introduction(sees_output=True, identity={"device": "x"}))
            if starts(actor, call)
            else None
        )
    )
    job = Job(ray)
    job.ends_whole()
    assert fault.fired[other]
    assert job.said(f"node {other} is left out, it gets no encoder: the encoders differ in device: x, other") == 1
    assert job.engine.fleet.count("encoder", other) == 0 and job.engine.fleet.count("encoder") == 4
    assert not [actor for actor in ray.started if (actor.kind, actor.node) == ("encoder", other) and actor.number > 5]


def test_a_node_that_differs_may_work_where_devices_may_be_mixed() -> None:
    ray = Ray(4)
    other = ray.add_node(2)
    ray._fate = differs(lambda actor: (actor.kind, actor.node) == ("encoder", other))
    job = Job(ray, mixed_devices=True)
    job.ends_whole()
    assert job.engine.fleet.count("encoder") == 6
    assert job.admitted == [{"device": "mixed"}]


@pytest.mark.parametrize(
    "identity", [{"device": "x", "torch": "2.0"}, {"device": "x", "torch": "2.1", "pyarrow": "9"}, {}]
)
def test_what_is_no_matter_of_the_device_may_differ_nowhere(identity: dict[str, object]) -> None:
    """Another version, and one that only one of them states."""
    ray = Ray(4)
    other = ray.add_node(2)
    usual: dict[str, object] = {"device": "x", "torch": "2.1"}
    ray._fate = fault = Fault(
        lambda actor, call: (
            (6.0, Introduction(sees_output=True, identity=identity))
            if starts(actor, call) and (actor.kind, actor.node) == ("encoder", other)
            else introduced(usual)
            if starts(actor, call) and actor.kind == "encoder"
            else None
        )
    )
    job = Job(ray, mixed_devices=len(identity) > 0)
    job.ends_whole()
    assert fault.fired[other]
    assert job.said(f"node {other} is left out, it gets no encoder: the encoders differ in") == 1
    assert job.engine.fleet.count("encoder") == 4


def test_an_encoders_word_about_itself_counts_for_more_than_a_preparers() -> None:
    """It has loaded what the other only reads the version of."""
    ray = Ray(2)
    ray._fate = Fault(
        lambda actor, call: (
            introduced({"torch": f"as the {actor.kind} says", actor.kind: True}) if starts(actor, call) else None
        )
    )
    job = Job(ray)
    job.ends_whole()
    assert job.admitted == [{"torch": "as the encoder says", "encoder": True, "preparer": True}]


def test_killed_for_memory_is_no_attempt() -> None:
    """Of one unit, again and again: by Ray's own monitor, and in its encoder and its preparer alike."""
    fates: Counter[Stage | None] = Counter()

    def tell(actor: Actor, call: Call) -> Fate | None:
        if call.unit is None or call.unit.id != "000003-0004" or fates[call.stage] == 6:
            return None
        fates[call.stage] += 1
        return 0.5, ProcessDied("out of memory", by_world=True)

    ray = Ray(4, fate=tell)
    progress = Job(ray, attempts=1).ends_whole()
    assert fates == {Stage.PREPARE: 6, Stage.ENCODE: 6}
    assert progress.retries >= 12


class Told(Ray):
    """The stand-in, which counts how often each unit was committed."""

    def __init__(self, gpus: int, **options: Any) -> None:
        super().__init__(gpus, **options)
        self.answered: Counter[str] = Counter()

    def wait(self, timeout_seconds: float) -> list[tuple[Call, Any]]:
        found = super().wait(timeout_seconds)
        self.answered.update(call.unit.id for call, result in found if isinstance(result, Committed) and call.unit)
        return found


def test_the_answer_of_an_encoder_that_was_overtaken_is_not_counted_again() -> None:
    """Two units are late at the end. The first is answered by both who try it, while the second goes on."""
    tries: Counter[str] = Counter()

    def tell(actor: Actor, call: Call) -> Fate | None:
        if call.stage is not Stage.ENCODE or call.unit is None or call.unit.id not in slow:
            return None
        tries[call.unit.id] += 1
        record = replace(RECORD, unit=call.unit.id)
        seconds = slow[call.unit.id][tries[call.unit.id] - 1]
        return seconds, Committed(unit=call.unit, record=record, fresh=True)

    slow = {"000000-0003": [120.0, 20.0], "000001-0005": [300.0, 300.0]}
    ray = Told(8, fate=tell)
    job = Job(ray, parts=4)
    job.ends_whole()
    assert tries == dict.fromkeys(slow, 2)
    assert ray.answered["000000-0003"] == 2 and ray.now() > 120


def test_a_node_that_joins_and_differs_is_sent_away() -> None:
    ray = Ray(4)
    job = Job(ray, parts=40)
    ray.after(15.0, lambda: ray.add_node(2))
    first = next(iter(ray.cluster))
    ray._fate = differs(lambda actor: actor.node != first)
    job.ends_whole()
    assert job.said("is left out, it gets no encoder") == 1 and job.said("is left out, it gets no preparer") == 1
    assert job.engine.fleet.count("preparer") == 24


@pytest.mark.parametrize("seconds", [0.0, 10.0], ids=["asked as they come", "asked when all have come"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_what_the_output_cannot_take_is_refused_however_many_nodes_there_are(nodes: int, seconds: float) -> None:
    ray = Ray(8 * nodes)
    job = Job(ray, refuse="output.uri: is another run's: device is a there and b here")
    ray.skip(seconds)
    with pytest.raises(RequestError, match="another run's"):
        job.run()
    assert len(job.admitted) == nodes  # each node was asked: one of them might be right
    assert ray.encoded == 0 and job.said("is left out") == nodes


def test_where_one_node_is_refused_those_that_have_come_elsewhere_are_asked() -> None:
    ray = Ray(4)
    ray.add_node(4)
    job = Job(ray)
    ray.skip(10.0)
    real = job.admit

    def admit(identity: dict[str, object]) -> Any:
        job.refuse = None if job.admitted else "is another run's"
        return real(identity)

    job.admit = admit  # type: ignore[method-assign]
    job.ends_whole()
    assert len(job.admitted) == 2
    assert job.engine.fleet.count("encoder") == 4


def test_where_the_first_node_is_refused_the_next_may_be_another_kind() -> None:
    """The refused one sets no measure for those that come later."""
    ray = Ray(4)
    first, later = next(iter(ray.cluster)), ray.add_node(4)
    said = {first: (4.0, "a"), later: (12.0, "b")}
    ray._fate = Fault(
        lambda actor, call: (
            (said[actor.node][0], Introduction(sees_output=True, identity={"device": said[actor.node][1]}))
            if starts(actor, call) and actor.kind == "encoder"
            else (3.0, Introduction(sees_output=True, identity={}))
            if starts(actor, call)
            else None
        )
    )
    job = Job(ray)
    real = job.admit

    def admit(identity: dict[str, object]) -> Any:
        job.refuse = "is another run's" if identity["device"] == "a" else None
        return real(identity)

    job.admit = admit  # type: ignore[method-assign]
    job.ends_whole()
    assert [identity["device"] for identity in job.admitted] == ["a", "b"]
    assert job.engine.fleet.count("encoder", later) == job.engine.fleet.count("encoder") == 4


def test_a_node_that_does_not_see_the_output_is_left_out() -> None:
    ray = Ray(4)
    blind = ray.add_node(2)
    ray._fate = fault = Fault(
        lambda actor, call: (
            introduced({"device": "x"}, sees=False) if starts(actor, call) and actor.node == blind else None
        )
    )
    job = Job(ray)
    job.ends_whole()
    assert fault.fired[blind] == 14
    for kind in ("encoder", "preparer"):
        assert job.said(f"node {blind} is left out, it gets no {kind}: output.uri is not seen by node {blind}") == 1


def test_where_no_node_sees_the_output_the_run_is_refused() -> None:
    ray = Ray(8)
    ray.add_node(2)
    ray._fate = Fault(lambda actor, call: introduced({"device": "x"}, sees=False) if starts(actor, call) else None)
    with pytest.raises(RequestError, match=r"output\.uri is not seen by node"):
        Job(ray).run()


# Storage, and without encoders


def test_storage_that_is_down_for_minutes_is_waited_for_on_every_node() -> None:
    fault = Fault(
        lambda actor, call: (0.5, OutputBusy("503")) if call.stage is Stage.ENCODE and 10 < ray.now() < 200 else None
    )
    ray = Ray(16, fate=fault)
    job = Job(ray, parts=20)
    progress = job.ends_whole()
    assert fault.fired.total() > 16 and ray.now() > 200
    assert progress.retries == fault.fired.total()
    assert job.said("waiting 32 s with the encoders of node") == 2  # one line a node and pause


def test_what_cannot_be_written_on_one_node_is_written_on_another() -> None:
    ray = Ray(8)
    full = ray.add_node(8)
    ray._fate = fault = Fault(
        lambda actor, call: (
            (0.5, OutputBusy("no space left")) if call.stage is Stage.ENCODE and actor.node == full else None
        )
    )
    Job(ray, parts=40).ends_whole()
    assert fault.fired[full] > 8


def test_only_to_index_there_are_no_encoders() -> None:
    ray = Ray(8)
    job = Job(ray, parts=20, to_index=list(range(20)), encoding=False)
    job.work = Work(parts=20, to_index=list(range(20)), to_cut=[], units_of=lambda part: [])
    progress = job.run()
    assert progress.parts_indexed == 20
    assert not ray.started_by_kind("encoder") and not ray.asked_for


@pytest.mark.parametrize("encoders", ["auto", 2])
def test_on_the_cpu(encoders: Any) -> None:
    ray = Ray(0)
    for _ in range(2):
        ray.add_node(0, 4)
    job = Job(ray, device="cpu", encoders=encoders)
    job.ends_whole()
    assert [job.engine.fleet.count("encoder", name) for name in ray.cluster] == [1, 1]


@pytest.mark.parametrize("encoders", ["auto", 2])
def test_on_the_cpu_what_cannot_start_is_not_tried_for_ever(encoders: Any) -> None:
    ray = Ray(0, fate=cannot_start(lambda actor: actor.kind == "encoder", RuntimeError("no AVX")))
    ray.add_node(0, 4)
    with pytest.raises(RunFailed, match="no AVX"):
        Job(ray, device="cpu", encoders=encoders).run()


class Disorder:
    """Random faults of every kind, and nodes that are lost, cut off for a while, and added."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.count: Counter[str] = Counter()
        noticed = self.chance.choice([1.0, 10.0, 200.0])
        self.ray = Ray(self.chance.choice([2, 4, 16]), fate=self.fate, noticed_seconds=noticed, seed=seed)
        self.ray.add_node(self.chance.choice([0, 8]), self.chance.choice([4, 64]))
        self.ray.after(self.chance.uniform(0, 20), self.change)

    def fate(self, actor: Actor, call: Call) -> Fate | None:
        busy = OutputBusy("503") if call.stage is Stage.ENCODE else SourceBusy("503")
        at_start: list[tuple[str, int, float, Any]] = [
            ("no start", 1, 3.0, ProcessDied("init", RuntimeError("x"))),
            ("stillborn", 4, 3.0, DIED),
        ]
        at_work: list[tuple[str, int, float, Any]] = [
            ("death", 12, 0.5, DIED),
            ("killed", 12, 0.5, ProcessDied("out of memory", by_world=True)),
            ("hangs", 6, math.inf, None),
            ("busy", 30, 0.2, busy),
            ("error", 12, 0.2, RuntimeError("error")),
        ]
        for name, most, seconds, result in at_work if call.stage else at_start:
            if self.count[name] < most and self.chance.random() < 0.01:
                self.count[name] += 1
                return seconds, result
        return None

    def change(self) -> None:
        ray, chance = self.ray, self.chance
        living = [name for name, node in ray.cluster.items() if node.dead_since is None]
        lost = [name for name in ray.cluster if name not in living]
        match chance.randrange(5):
            case 0 | 1 if living:
                self.count["lost"] += 1
                ray.remove_node(chance.choice(living))
            case 2 if lost:
                ray.bring_back(chance.choice(lost))
            case 3:
                ray.add_node(chance.choice([1, 4]), chance.choice([1, 8, 64]))
        if not any(node.facts.gpus for node in ray.cluster.values() if node.dead_since is None):
            ray.after(chance.uniform(1, 100), lambda: ray.add_node(4))
        self.count["changes"] += 1
        if self.count["changes"] < 12:
            ray.after(chance.expovariate(1 / 20), self.change)


def test_whatever_happens_every_unit_is_committed_once() -> None:
    fired: Counter[str] = Counter()
    for seed in range(16):
        disorder = Disorder(seed)
        indexed = disorder.chance.randrange(20)
        job = Job(disorder.ray, parts=20, attempts=15, unit_seconds=60.0, to_index=list(range(indexed)))
        try:
            job.ends_whole()
        except BaseException as error:
            error.add_note(f"seed {seed}: {disorder.count}; {job.lines[-5:]}")
            raise
        fired += disorder.count
    names = ("no start", "stillborn", "death", "killed", "hangs", "busy", "error", "lost")
    assert all(fired[name] for name in names), fired
