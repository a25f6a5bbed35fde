"""The Ray engine: prepare and encode stages as actors.

Preparers index parts and prepare units; encoders encode, write and commit. Prepared patches stay in the object store of
the node that made them, and are read there without a copy by an encoder of the same node.

No combination of CPUs can deadlock: where fewer are free than there are processes, the processes ask for none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from ..config import Cluster
from ..errors import RequestError, RunFailed
from ..index.units import Unit
from ..output.settings import ShardSettings
from ..storage.files import is_on_a_disk
from ..storage.publish import write_text
from ..storage.scratch import Scratch
from .actors import EncodeActor, PrepareActor
from .calls import Call, PreparedHandle, Process
from .driver import Progress
from .events import Blame, Event, Stage, blame_for
from .metrics_ray import Metrics
from .ray_cluster import connect
from .settings import StageSettings
from .sizing import CALLS_PER_ENCODER, ClusterFacts, sizing_of

MAX_DEATHS_IN_A_ROW = 20
# Of Ray's message when its memory monitor ends a process. (Its message for any death speaks of memory.)
MEMORY_MONITOR_WORDS = "running low on memory"
START_MESSAGE_SECONDS = 15.0
OBJECT_STORE_SHARE = 0.4


def _last_line(error: BaseException) -> str:
    """Returns what a Ray error says was raised in the other process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class RayEngine:
    """Joins or starts a cluster and keeps its actors alive.

    Args:
        scratch: of the run; a file in it shows which nodes see the output.
        say: prints a line for the user.

    Raises:
        RequestError: the cluster cannot be joined, a node does not see the output, or the processes differ in
            versions or devices.
        RunFailed: processes die as soon as they are started.
    """

    def __init__(
        self,
        settings: StageSettings,
        cluster: Cluster,
        scratch: Scratch,
        say: Callable[[str], None],
        *,
        encoding: bool = True,
    ) -> None:
        self._settings, self._cluster, self._say = settings, cluster, say
        self._admit: Callable[[list[dict[str, object]]], ShardSettings] | None = None
        self._shards: ShardSettings | None = None
        self._said = time.monotonic()
        self._processes: list[Process] = []
        self._calls: dict[Any, Call] = {}
        self._identities: dict[str, list[dict[str, object]]] = {"encoder": [], "preparer": []}
        self._deaths_in_a_row = 0
        self._metrics: Metrics | None = None
        self._probe = ""
        if is_on_a_disk(settings.output):
            self._probe = str(scratch.path("probe"))
            write_text(Path(self._probe), settings.nonce)
        self._started_cluster = connect(cluster.address, say)
        try:
            self._size(encoding)
            for number in range(self.encoders):
                self._add("encoder", number)
            for number in range(self._preparers):
                self._add("preparer", number)
        except BaseException:  # an interruption too must not leave actors behind
            self.shutdown()
            raise

    def _size(self, encoding: bool) -> None:
        """Decides how many processes of each kind there are, and what each asks of Ray."""
        cluster = ClusterFacts(
            resources=ray.cluster_resources(),
            free_cpus=ray.available_resources().get("CPU", 0.0),
            largest_node_cpus=max((n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]), default=1.0),
        )
        sizing = sizing_of(self._cluster, cluster, self._settings.threads, encoding=encoding)
        self.encoders, self._preparers, self._options = sizing.encoders, sizing.preparers, sizing.options
        self._object_store_bytes = int(cluster.resources.get("object_store_memory", 1 << 30))

    def in_flight_bytes(self) -> int:
        """A share of the object stores, so that nothing is ever spilled."""
        return int(self._object_store_bytes * OBJECT_STORE_SHARE)

    def _add(self, kind: Literal["preparer", "encoder"], number: int) -> None:
        stage = EncodeActor if kind == "encoder" else PrepareActor
        options = self._options[kind]
        known = {"number": number} if kind == "encoder" else {}
        handle: Any = ray.remote(stage).options(**options).remote(self._settings, **known)
        process = Process(kind=kind, number=number, handle=handle)
        self._processes.append(process)
        self._calls[handle.introduce.remote(self._probe)] = Call(process=process, stage=None)

    def begin(self, admit: Callable[[list[dict[str, object]]], ShardSettings]) -> None:
        """Nothing is encoded before every encoder is there, and `admit` has seen what they are."""
        self._admit = admit

    def _count(self, kind: str) -> int:
        return sum(process.ready for process in self._processes if process.kind == kind)

    def _admit_encoders(self) -> None:
        """Raises RequestError: they, or the nodes, differ in what decides bits, or `admit` does."""
        if self._shards is not None or self._admit is None or not self._identities["preparer"]:
            return
        if self._count("encoder") < self.encoders:
            return
        first, *others = self._identities["preparer"]
        if any(other != first for other in others):
            raise RequestError(f"the cluster's nodes differ in what decides bits: {first} and {others}")
        self._shards = self._admit([identity | first for identity in self._identities["encoder"]])

    def _say_what_is_awaited(self) -> None:
        kind = "encoder" if self._count("encoder") < self.encoders else "preparer"
        waits = kind == "encoder" or not self._count("preparer")
        if not waits or time.monotonic() - self._said < START_MESSAGE_SECONDS:
            return
        self._said = time.monotonic()
        free = ray.available_resources()
        self._say(
            f"waiting for {kind}s to start: each asks for {self._options[kind]}; free are "
            f"{free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
        )

    def free_preparers(self) -> int:
        return sum(process.ready and not process.calls for process in self._processes if process.kind == "preparer")

    def free_encoders(self) -> int:
        if self._shards is None:
            return 0
        return sum(
            CALLS_PER_ENCODER - process.calls
            for process in self._processes
            if process.kind == "encoder" and process.ready
        )

    def index(self, part: int, guarded: bool) -> None:
        process = self._idle("preparer", "")
        self._call(process.handle.index.remote(part, guarded), Call(process=process, stage=Stage.INDEX, part=part))

    def prepare(self, unit: Unit, guarded: bool) -> None:
        hungry = min(
            (process for process in self._processes if process.kind == "encoder"), key=lambda process: process.calls
        )
        process = self._idle("preparer", hungry.node)
        summary, reference = process.handle.prepare.options(num_returns=2).remote(unit, guarded)
        handle = PreparedHandle(reference=reference, node=process.node)
        self._call(summary, Call(process=process, stage=Stage.PREPARE, part=unit.part, unit=unit, prepared=handle))

    def encode(self, unit: Unit, handle: PreparedHandle) -> None:
        process = self._idle("encoder", handle.node)
        call = Call(process=process, stage=Stage.ENCODE, part=unit.part, unit=unit, prepared=handle)
        self._call(process.handle.encode.remote(handle.reference, self._shards), call)

    def _idle(self, kind: str, node: str) -> Process:
        """The least busy ready process of a kind; among equals one on the given node."""
        ready = [process for process in self._processes if process.kind == kind and process.ready]
        return min(ready, key=lambda process: (process.calls, process.node != node))

    def _call(self, reference: Any, call: Call) -> None:
        call.process.calls += 1
        self._calls[reference] = call

    def wait(self, timeout_seconds: float) -> list[Event]:
        """Waits for the first answer and takes all that are there. Raises RequestError and RunFailed as __init__."""
        if not self._calls:
            return []
        references = list(self._calls)
        done, _ = ray.wait(references, num_returns=1, timeout=timeout_seconds, fetch_local=False)
        if done:
            done, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        events: list[Event] = []
        for reference in done:
            call = self._calls.pop(reference, None)
            if call is not None:
                event = self._answer(reference, call)
                if event is not None:
                    events.append(event)
        self._admit_encoders()
        self._say_what_is_awaited()
        return events

    def _answer(self, reference: Any, call: Call) -> Event | None:
        """Takes a call's answer; None where a process has introduced itself, or died before it could."""
        if call.stage is not None:
            call.process.calls -= 1
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BaseException) else error
            if call.stage is None:
                raise cause from None
            return call.failed(cause, Blame.WORLD if isinstance(cause, ObjectLostError) else blame_for(cause))
        except RayActorError as error:
            blame = self._replace_dead(call.process, error)
            return None if call.stage is None else call.failed(error, blame)
        except RayError as error:
            if call.stage is None:
                raise RunFailed(f"a process could not be started: {error}") from error
            return call.failed(error, Blame.WORLD)
        if call.stage is None:
            self._welcome(call.process, *result)
            return None
        self._deaths_in_a_row = 0
        return call.done(result)

    def _welcome(self, process: Process, node: str, sees_probe: bool, identity: dict[str, object]) -> None:
        if not sees_probe:
            kind = RunFailed if self._shards is not None else RequestError
            raise kind(
                f"output.uri: {self._settings.output} is not seen by node {node}: on several nodes the output must be "
                "on a file system that all of them share"
            )
        process.node, process.ready = node, True
        known = self._identities[process.kind]
        if self._shards is not None and not self._cluster.mixed_devices and identity not in known:
            raise RunFailed(f"a {process.kind} that was started again differs: {identity}, before {known[0]}")
        known.append(identity)

    def _replace_dead(self, process: Process, error: RayActorError) -> Blame:
        """Starts another process in a dead one's place; says whose fault the death was."""
        if process not in self._processes:
            return self._blame(process, error)  # another call of the same process has reported it
        if getattr(error, "actor_init_failed", False):
            raise RunFailed(f"a {process.kind} process cannot start: {_last_line(error)}") from error
        self._processes.remove(process)
        ray.kill(process.handle)  # an actor that is only unavailable must not go on beside its successor
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > MAX_DEATHS_IN_A_ROW:
            raise RunFailed(f"{MAX_DEATHS_IN_A_ROW} processes died in a row, the last: {error}")
        self._say(f"a {process.kind} process died and is replaced: {str(error).splitlines()[0]}")
        self._add(process.kind, process.number)
        return self._blame(process, error)

    def _blame(self, process: Process, error: RayActorError) -> Blame:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        from_outside = (
            isinstance(error, ActorUnavailableError)
            or getattr(error, "preempted", False)
            or MEMORY_MONITOR_WORDS in str(error)
        )
        return Blame.WORLD if process.node not in alive or from_outside else Blame.PROCESS

    def observe(self, progress: Progress, seconds: float) -> None:
        """Passes the progress on to Ray's metrics."""
        if self._metrics is None:
            self._metrics = Metrics(self._settings.output)
        self._metrics.observe(progress, seconds, self.encoders)

    def shutdown(self) -> None:
        """Ends the actors, and the cluster if it was started for this run."""
        for process in self._processes:
            ray.kill(process.handle)
        self._processes, self._calls = [], {}
        if self._started_cluster:
            ray.shutdown()
