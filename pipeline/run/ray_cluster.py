"""Ray cluster: join the one that there is, or start one on this machine."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from ..config_fields import Cluster
from ..errors import RequestError
from ..storage.files import is_on_a_disk
from ..storage.publish import write_text
from ..storage.scratch import Scratch
from .engine_ray import RayEngine
from .ray_backend import RayBackend, nodes_now
from .settings import StageSettings
from .sizing import Device, NodeFacts

REACHABLE_SECONDS = 10.0


def _cluster_that_is_gone() -> str:
    """The address that `auto` would try for a minute in vain: a head node that ended leaves it behind."""
    with suppress(ImportError, AttributeError, OSError):
        from ray._private.utils import read_ray_address

        address = read_ray_address()
        if address:
            try:
                _check_reachable(address)
            except RequestError:
                return str(address)
    return ""


def _check_reachable(address: str) -> None:
    """Raises RequestError at once where nobody listens: ray.init tries for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE_SECONDS).close()
    except OSError as error:
        raise RequestError(f"cluster.address: {address}: no Ray cluster is there: {error}") from error


def connect(address: str, say: Callable[[str], None]) -> bool:
    """Joins the cluster that `address` names; returns whether one had to be started for this run.

    Ray sets signal handlers of its own, which end the process; the command's are put back.
    """
    if ray.is_initialized():
        return False
    try:
        with _own_handlers():
            return _join_or_start(address, say)
    except SystemExit as error:  # Ray's own answer to SIGTERM while it starts
        raise KeyboardInterrupt("while Ray was starting") from error
    except RayError as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"cluster.address: {address}: {reason}") from error


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Puts the command's signal handlers back, in place of those that Ray sets."""
    here = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if here}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _joining() -> Iterator[None]:
    """Keeps SIGTERM waiting while Ray joins a cluster: its compiled handler would print a stack, and may abort.

    Not while it starts one, whose processes would inherit that.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with _own_handlers():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _join_or_start(address: str, say: Callable[[str], None]) -> bool:
    options: dict[str, Any] = {"logging_level": "warning"}
    if address == "auto" and not os.environ.get("RAY_ADDRESS"):
        try:
            if gone := _cluster_that_is_gone():
                say(f"the Ray cluster that was last at {gone} is gone")
                raise ConnectionError(gone)
            with _joining():
                ray.init(address="auto", **options)
            return False
        except ConnectionError:
            say("no running Ray cluster: starting one on this machine (some 20 s)")
            if os.environ.get("RAY_AUTH_MODE", "token") != "token":  # Ray turns it on by itself where nothing is said
                say("RAY_AUTH_MODE is not token: whoever reaches this machine's ports can run code on it")
            ray.init(address="local", include_dashboard=False, **options)
            return True
    where = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    _check_reachable(where)
    try:
        with _joining():
            ray.init(address=None if address == "auto" else address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RequestError(f"cluster.address: {address}: {str(error).splitlines()[0]}{_token_hint()}") from error
    return False


def _token_hint() -> str:
    """Says what to try where somebody listens and does not let us in: Ray says why on its own, in lines of its own."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return "; if it says InvalidAuthToken, that cluster has another token than ~/.ray/auth_token here"
    return "; a cluster that asks for a token, as `ray start` does where there is one, takes RAY_AUTH_MODE=token"


def start_on_ray(
    settings: StageSettings, cluster: Cluster, scratch: Scratch, say: Callable[[str], None], *, encoding: bool = True
) -> RayEngine:
    """Joins or starts a cluster, and starts a run's processes on it.

    Args:
        scratch: of the run; a file in it shows which nodes see the output.
        say: prints a line for the user.
        encoding: False where only indexing is to be done.

    Raises:
        RequestError: the cluster cannot be joined, or has no device that is wanted.
    """
    probe = ""
    if is_on_a_disk(settings.output):
        probe = str(scratch.path("probe"))
        write_text(Path(probe), settings.nonce)
    started = connect(cluster.address, say)
    try:
        nodes = nodes_now()
        device = device_of(cluster.device, nodes, started=started) if encoding else "cpu"
        if device == "cuda" and not cluster.mixed_devices:
            check_alike(nodes)
        backend = RayBackend(settings, device, owns_cluster=started)
        return RayEngine(backend, cluster, device, probe=probe, say=say, encoding=encoding)
    except BaseException:  # an interruption too must not leave a cluster behind
        if started:
            ray.shutdown()
        raise


def device_of(wanted: str, nodes: list[NodeFacts], *, started: bool) -> Device:
    """The device to encode on: never the CPU without a word where a GPU may be meant.

    Args:
        started: whether the run has started this cluster, on this machine.

    Raises:
        RequestError: there is none of that kind.
    """
    has_gpu = any(node.gpus for node in nodes)
    if wanted == "cuda" and started and not has_gpu:
        raise RequestError("cluster.device: cuda: Ray sees no GPU here; cluster.device: cpu encodes on the CPU")
    if wanted == "auto" and not has_gpu and not started:
        raise RequestError(
            "cluster.device: auto: the cluster has no GPU at the moment. cluster.device: cuda waits for one, and asks "
            "the autoscaler; cluster.device: cpu encodes on CPUs"
        )
    if wanted == "cpu" or (wanted == "auto" and not has_gpu):
        return "cpu"
    return "cuda"


def check_alike(nodes: list[NodeFacts]) -> None:
    """Raises RequestError: the GPUs that are there by now are of different models."""
    models = {model: node.name for node in nodes if node.gpus for model in node.accelerators}
    if len(models) > 1:
        found = ", ".join(f"{model} on {name}" for model, name in sorted(models.items()))
        raise RequestError(
            f"the encoders would differ in device: {found}; bits would depend on which of them encodes an image. "
            "cluster.mixed_devices: true accepts that"
        )
