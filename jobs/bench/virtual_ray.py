"""A stand-in for Ray in virtual time: a `Backend` for the real engine, whose actors do nothing but take time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.bench.driver import RECORD
from pipeline.output.committed import Committed
from pipeline.run.actors import Introduction
from pipeline.run.backend import ProcessDied, WorldFailed
from pipeline.run.calls import Call, PreparedHandle
from pipeline.run.events import Stage
from pipeline.run.fleet import Kind
from pipeline.run.progress import Progress
from pipeline.run.sizing import NodeFacts, Options

GPUS_PER_NODE = 8
CPUS_PER_GPU = 8
STORE_BYTES = 64 << 30
WRITE_SECONDS = 0.3
# Ray's own CPU time of the driver's process for one call and its answer, measured on its main thread.
RAY_SECONDS = 250e-6
DIES_AFTER_SECONDS = 0.05  # a call of a process that is gone
NOTICED_SECONDS = 10.0  # until Ray lists a lost node no more


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The things that go wrong.

    Attributes:
        node_seconds: mean time between losses of a node, over the whole cluster; 0: none is lost.
        back_seconds: until a lost node is replaced.
        slow_share: of nodes that take three times as long.
        bad_gpus: encoders that fail every call at once.
    """

    node_seconds: float = 0.0
    back_seconds: float = 120.0
    slow_share: float = 0.0
    bad_gpus: int = 0


@dataclass(kw_only=True, eq=False)
class Actor:
    """An actor that does nothing but take time."""

    kind: Kind
    number: int
    node: str
    gpu: int = -1
    dead: bool = False
    free_at: float = 0.0  # when its device, or its core, has done what it was given
    calls: dict[Call, None] = field(default_factory=dict)
    seconds: deque[float] = field(default_factory=deque)  # of encoding, of each call that it has not answered


@dataclass(kw_only=True)
class Node:
    """A made-up node."""

    facts: NodeFacts
    slow: bool = False
    dead_since: float | None = None
    gpus: set[int] = field(default_factory=set)  # that nobody holds
    bad: set[int] = field(default_factory=set)


Fate = tuple[float, Any]  # after how many seconds a call is answered by what; math.inf: never


class VirtualRay:
    """A `Backend` whose actors answer in virtual time. `busy_seconds`: of encoders, encoding.

    Args:
        fate: what becomes of a call by an actor where it is not what is usual; `ProcessDied` ends the actor.
        noticed_seconds: until Ray lists a lost node no more.
    """

    def __init__(
        self,
        gpus: int,
        *,
        prepare_seconds: float = 5.0,
        encode_seconds: float = 1.0,
        faults: Faults | None = None,
        cpus_per_gpu: int = CPUS_PER_GPU,
        seed: int = 1,
        ray_seconds: float = RAY_SECONDS,
        fate: Callable[[Actor, Call], Fate | None] = lambda actor, call: None,
        noticed_seconds: float = NOTICED_SECONDS,
    ) -> None:
        self._fate, self._noticed_seconds = fate, noticed_seconds
        self._actors: dict[Actor, None] = {}
        self.started: list[Actor] = []
        self.asked_for: list[tuple[str, int]] = []
        self._random = random.Random(seed)
        self._seconds = {Stage.PREPARE: prepare_seconds, Stage.ENCODE: encode_seconds, Stage.INDEX: encode_seconds}
        self._faults, self._cpus_per_gpu, self._ray_seconds = faults or Faults(), cpus_per_gpu, ray_seconds
        self._skipped = self._clock = 0.0
        self.own_seconds = 0.0  # this stand-in's CPU time, which is nobody's
        self._began = time.process_time()
        self._heap: list[tuple[float, int, Call | None, Any]] = []
        self._count = itertools.count()
        self.cluster: dict[str, Node] = {}
        self.busy_seconds, self.gpu_seconds, self.local, self.encoded, self.failed = 0.0, 0.0, 0, 0, 0
        self.calls, self.lost_nodes = 0, 0
        self._counted = 0.0
        for number in range(-(-gpus // GPUS_PER_NODE)):
            self.add_node(min(GPUS_PER_NODE, gpus - GPUS_PER_NODE * number))
        for node in self._random.sample(list(self.cluster.values()), int(self._faults.slow_share * len(self.cluster))):
            node.slow = True
        for node in itertools.islice(self.cluster.values(), self._faults.bad_gpus):
            node.bad.add(0)
        if self._faults.node_seconds:
            self._push(self._random.expovariate(1 / self._faults.node_seconds), None, self._lose_one)

    # Nodes

    def add_node(self, gpus: int = GPUS_PER_NODE, cpus: float | None = None, *, slow: bool = False) -> str:
        """Adds a node now; returns its name."""
        name = f"n{next(self._count)}"
        cpus = gpus * self._cpus_per_gpu if cpus is None else cpus
        facts = NodeFacts(
            id=name, name=name, cpus=cpus, free_cpus=cpus, gpus=gpus, free_gpus=gpus, store_bytes=STORE_BYTES
        )
        self.cluster[name] = Node(facts=facts, gpus=set(range(gpus)), slow=slow)
        return name

    def remove_node(self, name: str) -> None:
        """Loses a node with all its processes; Ray notices later."""
        self._account()
        self.cluster[name].dead_since = self.now()
        self.lost_nodes += 1
        for actor in [actor for actor in self._actors if actor.node == name]:
            self._die(actor, ProcessDied("the worker died"))

    def bring_back(self, name: str) -> None:
        """The node that was lost was only cut off; its processes are gone."""
        self._account()
        self.cluster[name].dead_since = None

    def kill_all(self, kind: Kind) -> None:
        """Ends all processes of a kind, by themselves as it seems."""
        for actor in [actor for actor in self._actors if actor.kind == kind]:
            self._die(actor, ProcessDied("the worker died"))

    def _lose_one(self) -> None:
        living = [name for name, node in self.cluster.items() if node.dead_since is None]
        if len(living) > 1:
            name = self._random.choice(living)
            gpus = self.cluster[name].facts.gpus
            self.remove_node(name)
            self._push(self.now() + self._faults.back_seconds, None, lambda: self._add_again(gpus))
        self._push(self.now() + self._random.expovariate(1 / self._faults.node_seconds), None, self._lose_one)

    def _add_again(self, gpus: int) -> None:
        self._account()
        self.add_node(gpus)

    def _account(self) -> None:
        """Adds up the time of GPUs that are there."""
        now = self.now()
        living = sum(node.facts.gpus for node in self.cluster.values() if node.dead_since is None)
        self.gpu_seconds += (now - self._counted) * living
        self._counted = now

    def start_counting(self) -> None:
        """From now on: the processes are there."""
        self._counted, self.gpu_seconds, self.busy_seconds = self.now(), 0.0, 0.0

    def stop_counting(self) -> None:
        self._account()

    # Backend

    def now(self) -> float:
        """The virtual clock: what was waited for, and the driver's own CPU time up to its last call of this."""
        return self._clock

    def _read_clock(self) -> float:
        """Moves the clock by the CPU time that the driver has used; returns the CPU time now."""
        cpu = time.process_time()
        self._clock = cpu - self._began + self._skipped - self.own_seconds
        return cpu

    def _skip(self, seconds: float) -> None:
        self._skipped += seconds
        self._clock += seconds

    def nodes(self) -> list[NodeFacts]:
        now = self.now()
        return [
            node.facts
            for node in self.cluster.values()
            if node.dead_since is None or now - node.dead_since < self._noticed_seconds
        ]

    def is_there(self, node: str) -> bool:
        return self.cluster[node].dead_since is None

    def start(self, kind: Kind, number: int, node: str, options: Options) -> Any:
        actor = Actor(kind=kind, number=number, node=node)
        if options.get("num_gpus"):
            free = self.cluster[node].gpus
            actor.gpu = free.pop() if free else -1
        self._actors[actor] = None
        self.started.append(actor)
        return actor

    def submit(self, call: Call, method: str, *arguments: Any) -> Any:
        began = self._read_clock()
        result = self._submit(call)
        self.own_seconds += time.process_time() - began
        return result

    def _submit(self, call: Call) -> Any:
        actor: Actor = call.process.handle
        self.calls += 1
        self._skip(self._ray_seconds)
        if actor.dead or self.cluster[actor.node].dead_since is not None:
            self._push(self.now() + DIES_AFTER_SECONDS, call, ProcessDied("the worker died"))
            return None
        actor.calls[call] = None
        if (fate := self._fate(actor, call)) is not None:
            self._meet(actor, call, *fate)
            return actor.node
        if call.stage is None:
            start = 5.0 * self._random.uniform(0.8, 1.2)
            self._push(self.now() + start, call, Introduction(sees_output=True, identity={"device": "x"}))
            return None
        if call.stage is Stage.ENCODE:
            self._encode(actor, call)
            return None
        self._push(self._time(actor, call.stage), call, None)
        return actor.node

    def _meet(self, actor: Actor, call: Call, seconds: float, result: Any) -> None:
        """Answers a call as told."""
        if isinstance(result, ProcessDied):
            self.after(seconds, lambda: self._die(actor, result))
        elif seconds < math.inf:
            self._push(self.now() + seconds, call, result)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Does something later."""
        self._push(self.now() + seconds, None, action)

    def skip(self, seconds: float) -> None:
        """Lets time pass in which nobody asks for answers."""
        self._skipped += seconds

    def _time(self, actor: Actor, stage: Stage) -> float:
        """When an actor will have done a call of a stage, one after the other."""
        node = self.cluster[actor.node]
        seconds = self._seconds[stage] * self._random.uniform(0.7, 1.3) * (3.0 if node.slow else 1.0)
        began = max(self.now(), actor.free_at)
        actor.free_at = began + seconds
        if stage is Stage.ENCODE:
            actor.seconds.append(seconds)
        return actor.free_at

    def _encode(self, actor: Actor, call: Call) -> None:
        handle, unit = call.prepared, call.unit
        assert isinstance(handle, PreparedHandle) and unit is not None
        patches = self.cluster.get(handle.reference)
        if patches is None or patches.dead_since is not None:
            self._push(self.now() + 0.01, call, WorldFailed("its patches are lost"))
            return
        if actor.gpu in self.cluster[actor.node].bad:
            self.failed += 1
            self._push(self.now() + 0.05, call, RuntimeError("CUDA error: unspecified launch failure"))
            return
        self.encoded += 1
        self.local += handle.reference == actor.node
        committed = Committed(unit=unit, record=replace(RECORD, unit=unit.id), fresh=True)
        self._push(self._time(actor, Stage.ENCODE) + WRITE_SECONDS, call, committed)

    def wait(self, timeout_seconds: float) -> list[tuple[Call, Any]]:
        """Goes on to the first answer, and takes all that are there."""
        began = self._read_clock()
        found = self._wait(timeout_seconds)
        self.own_seconds += time.process_time() - began
        return found

    def _wait(self, timeout_seconds: float) -> list[tuple[Call, Any]]:
        until = self.now() + timeout_seconds
        found: list[tuple[Call, Any]] = []
        while not found:
            if self._heap and self._heap[0][0] > self.now():
                self._skip(max(0.0, min(self._heap[0][0], until) - self.now()))
            elif not self._heap:
                self._skip(max(0.0, until - self.now()))
            while self._heap and self._heap[0][0] <= self.now():
                _, _, call, result = heapq.heappop(self._heap)
                if call is None:
                    result()
                elif not call.process.handle.dead or isinstance(result, ProcessDied):
                    actor = call.process.handle
                    actor.calls.pop(call, None)
                    if isinstance(result, Committed) and actor.seconds:  # else its fate was told
                        self.busy_seconds += actor.seconds.popleft()
                    found.append((call, result))
            if self.now() >= until:
                break
        return found

    def watch(self, handle: Any, tell: Callable[[dict[str, int]], None]) -> None:
        """No images are encoded here."""

    def kill(self, handle: Any) -> None:
        self._die(handle, None)

    def _die(self, actor: Actor, error: ProcessDied | None) -> None:
        if actor.dead:
            return
        actor.dead = True
        self._actors.pop(actor, None)
        if actor.gpu >= 0:
            self.cluster[actor.node].gpus.add(actor.gpu)
        for call in list(actor.calls) if error is not None else []:
            self._push(self.now() + DIES_AFTER_SECONDS, call, error)

    def ask_for(self, kind: str, count: int) -> None:
        self.asked_for.append((kind, count))

    def observe(self, progress: Progress, seconds: float, encoders: int) -> None:
        """Nobody asks for metrics."""

    def close(self) -> None:
        """Nothing is to be given back."""

    def _push(self, at: float, call: Call | None, what: Any) -> None:
        heapq.heappush(self._heap, (at, next(self._count), call, what))
