"""The Ray engine: the actors of a run, kept alive while nodes come and go.

Preparers index parts and prepare units; encoders encode, write and commit. Prepared patches stay in the object store of
the node that made them, and are read there without a copy by an encoder of the same node.

A node is one failure: whatever dies with it counts against nothing. A process that dies alone, hangs, or fails again
and again is replaced where it was; one that cannot start there, or differs from the others, is not tried there again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..config_fields import Cluster
from ..errors import RequestError, RunFailed
from ..output.settings import ShardSettings
from .actors import Introduction
from .admission import Admission, Identity
from .backend import Backend, ProcessDied, WorldFailed
from .calls import Call, PreparedHandle
from .deaths import Death
from .events import Blame, Event, FleetChanged, NodeLost, ProcessLost, Stage, blame_for
from .fleet import KINDS, Fleet, Kind, Process
from .places import Places
from .progress import Listen, Progress
from .sizing import Device, calls_of
from .staff import Reason, Staff, first_line
from .watch import Watch

RESIZE_SECONDS = 5.0
DOUBTFUL_SECONDS = 60.0
OBJECT_STORE_SHARE = 0.4  # of each node's, so that nothing is ever spilled


class RayEngine:
    """Keeps a cluster's actors alive.

    Args:
        probe: a file that shows which nodes see the output, or "".
        say: prints a line for the user.
        encoding: False where only indexing is to be done.

    Raises:
        RequestError: before anything is encoded: no process can go on with this output.
        RunFailed: no process can be kept alive.
    """

    def __init__(
        self,
        backend: Backend,
        cluster: Cluster,
        device: Device,
        *,
        probe: str = "",
        say: Callable[[str], None] = lambda line: None,
        encoding: bool = True,
    ) -> None:
        self._backend, self._probe, self._say, self._encoding = backend, probe, say, encoding
        self.fleet = Fleet()
        self.encoder_seconds = 0.0
        self._device, self._admission = device, Admission(mixed=cluster.mixed_devices)
        self._shards: ShardSettings | None = None
        self._places = Places(cluster, device, encoding=encoding)
        self._staff = Staff(backend, cluster, device, self._places, begin=self._introduce, say=say)
        self._deaths = self._staff.deaths
        self._doubtful: dict[str, float] = {}  # nodes that were lost, and until when it is not asked whether they are
        self._resized = self._counted = backend.now()
        self.listen: Listen = lambda counts: None
        self._watch = Watch(backend)
        self._missed = self._resize()

    def now(self) -> float:
        return self._backend.now()

    @property
    def encoders(self) -> int:
        return self.fleet.count("encoder")

    def submit(self, call: Call) -> None:
        """Hands a call to its process."""
        match call.stage:
            case Stage.INDEX:
                self._submit(call, "index", call.part, call.guarded)
            case Stage.PREPARE:
                call.prepared = PreparedHandle(reference=self._submit(call, "prepare", call.unit, call.guarded))
            case Stage.ENCODE:
                self._submit(call, "encode", call.prepared, self._shards)
            case None:
                self._submit(call, "introduce", self._probe)

    def _submit(self, call: Call, method: str, *arguments: Any) -> Any:
        self._staff.began(call)
        return self._backend.submit(call, method, *arguments)

    def _introduce(self, process: Process) -> None:
        self.fleet.expect(process)
        self.submit(Call(process=process, stage=None))

    def replace(self, process: Process, reason: str) -> list[Event]:
        """Ends a process that hangs or fails again and again, and starts another in its place."""
        if process.gone:
            return []  # another call of it has told
        self._say(f"{self._called(process)} {reason}: it is replaced")
        return self._end(process, WorldFailed(f"its process {reason}"), again="sick")

    def _called(self, process: Process) -> str:
        return f"{process.kind} {process.number} on node {self._places.name(process.node)}"

    def wait(self, timeout_seconds: float) -> list[Event]:
        """Waits for the first answer and takes all that are there. Raises RequestError and RunFailed as __init__."""
        events, self._missed = self._missed, []
        now = self.now()
        if (due := self._deaths.next_due()) is not None:
            timeout_seconds = min(timeout_seconds, max(0.0, due - now))
        for call, result in self._backend.wait(0.0 if events else timeout_seconds):
            if not call.process.gone:
                events += self._answer(call, result)
        now = self.now()
        self.encoder_seconds += (now - self._counted) * self.encoders
        self._counted = now
        while (death := self._deaths.take(now)) is not None:
            events += self._judge(death)
        if now - self._resized >= RESIZE_SECONDS:
            events += self._resize()
        events += self._admit()
        self._say_what_is_awaited()
        self._watch.look(now, self._staff, self.listen)
        return events

    # Nodes

    def _resize(self) -> list[Event]:
        """Looks at the cluster as it is now: loses the nodes that are gone, and starts what others lack."""
        self._resized = self.now()
        events: list[Event] = []
        gone, joined = self._places.update(node for node in self._backend.nodes() if self._is_back(node.id))
        for name in gone:
            events += self._lose(name)
        for node in joined:
            self._say(f"node {node.name} has joined: {node.cpus:g} CPUs, {node.gpus} GPUs")
        for node in self._places.nodes.values():
            self.fleet.see(node.id, int(node.store_bytes * OBJECT_STORE_SHARE), node.name, calls_of(node, self._device))
        for process in self._staff.late():
            self._say(f"{self._called(process)} has not started for long: it is started anew")
            events += self._end(process, WorldFailed("it has not started"))
        self._staff.start_missing()
        return events

    def _is_back(self, node: str) -> bool:
        """Whether a node is one to use: Ray may list one for a while that is gone."""
        if self._doubtful.get(node, 0.0) > self.now():
            return False
        return node not in self._doubtful or self._backend.is_there(node)

    def _lose(self, name: str) -> list[Event]:
        """A node is gone: one loss, however many processes go with it."""
        here = [process for process in self._staff if process.node == name]
        dead = self._deaths.take_node(name)
        kinds = Counter(process.kind for process in [*here, *(death.process for death in dead)])
        node = self._places.forget(name)
        self._say(
            f"node {node.name if node else name} is lost, with {kinds['encoder']} encoders and {kinds['preparer']} "
            "preparers; others do their work"
        )
        error = WorldFailed(f"node {name} is lost")
        events: list[Event] = []
        for process in here:
            events += self._end(process, error)
        for death in dead:
            events += self._failed(death.process, death.calls, error, Blame.WORLD)
        self.fleet.forget(name)
        self._doubtful[name] = self.now() + DOUBTFUL_SECONDS
        if self._shards is None:  # later, another node may come in its place, and is waited for
            for kind in KINDS:
                if self._places.gave_up(kind):
                    self._staff.check_some_are_left(kind)
        return [*events, NodeLost(node=name)]

    # Answers

    def _answer(self, call: Call, result: Any) -> list[Event]:
        process = call.process
        self._staff.answered(call)
        if isinstance(result, ProcessDied):
            return self._died(call, result)
        if call.stage is None:
            if isinstance(result, BaseException):
                return self._cannot_go_on(process, result)
            return self._welcome(process, result)
        if isinstance(result, WorldFailed):
            return [call.failed(result, Blame.WORLD)]
        if isinstance(result, BaseException):
            return [call.failed(result, blame_for(result))]
        return [call.done(result)]

    def _died(self, call: Call, error: ProcessDied) -> list[Event]:
        """A process is dead. Why is judged a moment later: its node may be, too."""
        calls = [call, *self._take_out(call.process)]
        if error.cause is not None:
            return self._cannot_go_on(call.process, error.cause)
        self._deaths.add(call.process, error, calls, self.now())
        return []

    def _judge(self, death: Death) -> list[Event]:
        """Says why a process died, and starts another in its place where its node lives on."""
        process, error = death.process, death.error
        if process.node not in self._places.nodes:
            return self._failed(process, death.calls, error, Blame.WORLD)
        if not self._lives(process.node):
            self._deaths.put_back(death)  # it is one of all that went with its node
            return self._lose(process.node)
        events = self._failed(process, death.calls, error, Blame.WORLD if error.by_world else Blame.PROCESS)
        reason = str(error).splitlines()[0]
        self._say(f"a {process.kind} process died and is replaced on node {self._places.name(process.node)}: {reason}")
        self._start_again(process, "death" if process.ready else "stillborn", error)
        return events

    def _lives(self, node: str) -> bool:
        """Whether a node is still there, by Ray's account and by asking: Ray notices only after seconds."""
        return any(one.id == node for one in self._backend.nodes()) and self._backend.is_there(node)

    def _take_out(self, process: Process) -> list[Call]:
        self.fleet.remove(process)
        return self._staff.take_out(process)

    def _failed(self, process: Process, calls: list[Call], error: BaseException, blame: Blame) -> list[Event]:
        return [*(call.failed(error, blame) for call in calls if call.stage), ProcessLost(process=process)]

    def _end(self, process: Process, error: BaseException, *, again: Reason | None = None) -> list[Event]:
        """Ends a process by no fault of what it was doing; starts another in its place for a reason."""
        events = self._failed(process, self._take_out(process), error, Blame.WORLD)
        if again is not None:
            self._start_again(process, again, error)
        return events

    def _start_again(self, process: Process, reason: Reason, error: BaseException) -> None:
        with self._encoding_has_begun():
            self._staff.start_again(process, reason, error)

    def _cannot_go_on(self, process: Process, error: BaseException) -> list[Event]:
        """A process could not start, or not introduce itself."""
        self._say(f"a {process.kind} cannot start on node {self._places.name(process.node)}: {first_line(error)}")
        return self._end(process, error, again="start")

    def _leave_out(self, process: Process, error: RequestError) -> list[Event]:
        """Starts no process of its kind on its node any more."""
        left_out = self._staff.leave_out(process.kind, process.node, error)
        events = [event for one in left_out for event in self._end(one, error)]
        with self._encoding_has_begun():
            self._staff.check_some_are_left(process.kind)
        return events

    @contextmanager
    def _encoding_has_begun(self) -> Iterator[None]:
        """Once it has, that no process can be kept is no fault of the request."""
        try:
            yield
        except RequestError as error:
            if self._shards is None:
                raise
            raise RunFailed(str(error)) from error

    # Admission

    def begin(self, admit: Callable[[Identity], ShardSettings]) -> None:
        """Nothing is encoded before `admit` has seen what the first encoder is; the others must be the same."""
        self._admission.begin(admit)

    def await_admission(self) -> None:
        """Waits until encoding may begin. Raises as `wait`."""
        missed: list[Event] = []
        while self._shards is None:
            missed += self.wait(1.0)
        self._missed = missed

    def _welcome(self, process: Process, said: Introduction) -> list[Event]:
        if not said.sees_output:
            error = RequestError(
                f"output.uri is not seen by node {self._places.name(process.node)}: on several nodes the output must "
                "be on a file system that all of them share"
            )
            return self._leave_out(process, error)
        try:
            self._admission.meet(process, said.identity)
        except RequestError as error:
            return self._leave_out(process, error)
        if process.kind == "preparer" or self._shards is not None:
            self.fleet.add(process)
        return [FleetChanged(node=process.node)]

    def _admit(self) -> list[Event]:
        """Lets the encoders begin, once, when the first of each kind is there."""
        if self._shards is not None or (encoder := self._admission.ready()) is None:
            return []
        try:
            self._shards = self._admission.admit()
        except RequestError as error:
            self._admission.forget(encoder.node)
            return self._leave_out(encoder, error)
        for process in self._admission.encoders():
            if not process.gone:
                self.fleet.add(process)
        return [FleetChanged()]

    def _say_what_is_awaited(self) -> None:
        missing: list[Kind] = ["encoder"] if self._encoding and not self.encoders else []
        missing += [] if self.fleet.count("preparer") else ["preparer"]
        self._staff.say_awaited(missing)

    def observe(self, progress: Progress, seconds: float) -> None:
        self._backend.observe(progress, seconds, self.encoders)

    def shutdown(self) -> None:
        """Ends the actors."""
        for process in self._staff:
            self._take_out(process)
        self._backend.close()
