"""Ray backend: actors of Ray, pinned to their nodes. Answers come in a queue: a wait costs what there is to take."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    OwnerDiedError,
    RayActorError,
    RayError,
    RaySystemError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .actors import EncodeActor, PrepareActor
from .backend import ProcessDied, WorldFailed
from .calls import Call, PreparedHandle
from .events import Stage
from .fleet import Kind
from .metrics_ray import Metrics
from .progress import Progress
from .settings import StageSettings
from .sizing import Device, NodeFacts, Options

# Of Ray's message when its memory monitor ends a process. (Its message for any death speaks of memory.)
MEMORY_MONITOR_WORDS = "running low on memory"
REACHABLE_SECONDS = 1.0
WATCH = "watch"  # calls that are answered beside an encoder's work
ACCELERATOR = "accelerator_type:"


def nodes_now(places: dict[str, tuple[str, int]] | None = None) -> list[NodeFacts]:
    """The nodes of the cluster that this process has joined.

    Args:
        places: takes the address of each node's manager.
    """
    free = available_resources_per_node()
    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        name, total = node["NodeID"], node["Resources"]
        if places is not None:
            places[name] = (node["NodeManagerAddress"], node["NodeManagerPort"])
        found.append(
            NodeFacts(
                id=name,
                name=f"{node['NodeManagerAddress']} ({name[:8]})",
                cpus=total.get("CPU", 0.0),
                free_cpus=free.get(name, {}).get("CPU", 0.0),
                gpus=int(total.get("GPU", 0)),
                free_gpus=int(free.get(name, {}).get("GPU", 0)),
                store_bytes=int(total.get("object_store_memory", 0)),
                memory_bytes=int(total.get("memory", 0)),
                accelerators=tuple(one.removeprefix(ACCELERATOR) for one in total if one.startswith(ACCELERATOR)),
            )
        )
    return found


class RayBackend:
    """Starts actors on the cluster that this process has joined.

    Args:
        owns_cluster: it was started for this run, and ends with it.
    """

    def __init__(self, settings: StageSettings, device: Device, *, owns_cluster: bool) -> None:
        self._settings, self._device, self._owns_cluster = settings, device, owns_cluster
        self._answers: queue.SimpleQueue[tuple[Call, Future[Any]]] = queue.SimpleQueue()
        self._places: dict[str, tuple[str, int]] = {}  # of each node's manager
        self._asked: tuple[str, int] = ("", 0)
        self._metrics: Metrics | None = None

    def now(self) -> float:
        return time.monotonic()

    def nodes(self) -> list[NodeFacts]:
        """The nodes that live, by Ray's own account: one that has just died may still be among them."""
        return nodes_now(self._places)

    def is_there(self, node: str) -> bool:
        """Whether a node's manager still takes connections: Ray notices a lost node only after seconds."""
        if node not in self._places:
            return False
        try:
            socket.create_connection(self._places[node], timeout=REACHABLE_SECONDS).close()
        except OSError:
            return False
        return True

    def start(self, kind: Kind, number: int, node: str, options: Options) -> Any:
        pinned = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        asked: dict[str, Any] = dict(options)
        if "max_concurrency" in asked:
            asked["max_concurrency"] = int(asked["max_concurrency"])
        if kind == "encoder":
            made = ray.remote(concurrency_groups={WATCH: 1})(EncodeActor)
            actor: Any = made.options(scheduling_strategy=pinned, **asked)
            return actor.remote(self._settings, number, self._device, asked["max_concurrency"])
        actor = ray.remote(PrepareActor).options(scheduling_strategy=pinned, **asked)
        return actor.remote(self._settings)

    def submit(self, call: Call, method: str, *arguments: Any) -> Any:
        """Calls a method; returns what holds the patches of a unit that is prepared."""
        remote = getattr(call.process.handle, method)
        reference = None
        if call.stage is Stage.PREPARE:
            answer, reference = remote.options(num_returns=2).remote(*arguments)
        else:
            answer = remote.remote(*(one.reference if isinstance(one, PreparedHandle) else one for one in arguments))
        answer.future().add_done_callback(lambda future: self._answers.put((call, future)))
        return reference

    def wait(self, timeout_seconds: float) -> list[tuple[Call, Any]]:
        """The answers that are there, having waited for the first."""
        found: list[tuple[Call, Any]] = []
        try:
            call, future = self._answers.get(timeout=timeout_seconds) if timeout_seconds else self._answers.get_nowait()
            while True:
                error = future.exception()
                found.append((call, future.result() if error is None else _translated(error)))
                call, future = self._answers.get_nowait()
        except queue.Empty:
            return found

    def watch(self, handle: Any, tell: Callable[[dict[str, int]], None]) -> None:
        """Asks an encoder how far it is with its units; `tell` is called by another thread, if it answers."""

        def answered(future: Future[Any]) -> None:
            if future.exception() is None:
                tell(future.result())

        with suppress(RayError):
            handle.under_way.options(concurrency_group=WATCH).remote().future().add_done_callback(answered)

    def kill(self, handle: Any) -> None:
        with suppress(RayError, ValueError):
            ray.kill(handle)

    def ask_for(self, kind: str, count: int) -> None:
        """Asks the autoscaler for so many GPUs or CPUs; of a cluster without one nothing comes of it."""
        if self._asked == (kind, count):
            return
        self._asked = (kind, count)
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[{kind: 1}] * count)

    def observe(self, progress: Progress, seconds: float, encoders: int) -> None:
        """Passes the progress on to Ray's metrics."""
        if self._metrics is None:
            self._metrics = Metrics(self._settings.output)
        self._metrics.observe(progress, seconds, encoders)

    def close(self) -> None:
        """Takes back what the autoscaler was asked for; ends the cluster if it was started for this run."""
        if self._asked[1]:
            with suppress(RayError, RuntimeError):
                self.ask_for("", 0)
        if self._owns_cluster:
            ray.shutdown()


def _translated(error: BaseException) -> BaseException:
    """Turns what Ray raises into what an engine knows."""
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, BaseException) else error
        return WorldFailed(str(cause)) if isinstance(cause, ObjectLostError | OwnerDiedError) else cause
    if isinstance(error, RayActorError):
        outside = (
            isinstance(error, ActorUnavailableError)
            or getattr(error, "preempted", False)
            or MEMORY_MONITOR_WORDS in str(error)
        )
        failed = getattr(error, "actor_init_failed", False)
        return ProcessDied(str(error), _cause_of_start(error) if failed else None, by_world=outside)
    if isinstance(error, ObjectLostError | OwnerDiedError | RaySystemError):
        return WorldFailed(_last_line(error))
    return ProcessDied(str(error) or type(error).__name__, by_world=True)  # ended by the memory monitor, unplaceable


def _cause_of_start(error: BaseException) -> BaseException:
    cause = getattr(error, "cause", None)
    inner = getattr(cause, "cause", None)
    return inner if isinstance(inner, BaseException) else RuntimeError(_last_line(error))


def _last_line(error: BaseException) -> str:
    """Says what was raised in the other process, by a Ray error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
