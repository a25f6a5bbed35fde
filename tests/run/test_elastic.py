"""A real cluster with made-up GPUs that grows, shrinks and breaks. Catches: a run that stops, idles, or loses a row.

One cluster for all; its head has no CPU. Nodes are added and lost as each test needs them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import REPOSITORY, assert_whole, config_for, connected, files_of, keys_of, run_here
from made_up import Holder, OnMadeUpGpu

from pipeline.config import Config
from pipeline.errors import RequestError
from pipeline.run import engine_ray, ray_backend, staff
from pipeline.run.runner import run
from pipeline.run.summary import Summary

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.own_cluster]
STORE_BYTES = 80 << 20


class Nodes:
    """The nodes of a test, lost when it ends."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._here: list[Any] = []

    def add(self, gpus: int = 1, cpus: int = 2) -> Any:
        node = self._cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE_BYTES)
        self._here.append(node)
        return node

    def lose(self, node: Any, *, gracefully: bool = False) -> None:
        self._here.remove(node)
        self._cluster.remove_node(node, allow_graceful=gracefully)

    def lose_all(self) -> None:
        for node in list(self._here):
            self.lose(node)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES})
    try:
        yield cluster
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def nodes(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setattr(ray_backend, "EncodeActor", OnMadeUpGpu)
    monkeypatch.setattr(staff, "MESSAGE_SECONDS", 1.0)
    monkeypatch.setattr(engine_ray, "RESIZE_SECONDS", 1.0)
    nodes = Nodes(cluster)
    nodes.address = cluster.address  # type: ignore[attr-defined]
    try:
        yield nodes
    finally:
        nodes.lose_all()


def joined(nodes: Nodes, **environment: str) -> Any:
    paths = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    return connected({"RAY_ADDRESS": nodes.address}, PYTHONPATH=paths, **environment)  # type: ignore[attr-defined]


def on_gpus(source: Path, output: Path, model: Path, /, **sections: dict[str, object]) -> Config:
    cluster = {"engine": "ray"} | sections.pop("cluster", {})
    limits = {"max_rejected_fraction": 0.9, "attempts": 1} | sections.pop("limits", {})
    return config_for(source, output, model, cluster=cluster, limits=limits, **sections)


class Running:
    """A run in a thread, and what it says."""

    def __init__(self, config: Config) -> None:
        self.lines: list[str] = []
        self._results: list[Summary | BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(config,), daemon=True)
        self._thread.start()

    def _run(self, config: Config) -> None:
        try:
            self._results.append(run(config, say=self.lines.append, report=lambda *_: None))
        except BaseException as error:  # noqa: BLE001 - raised again where it is asked for
            self._results.append(error)

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not what():
            assert not self._results, (self._results, self.lines)
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.05)

    def summary(self) -> Summary:
        self._thread.join(timeout=200)
        assert self._results, self.lines
        if isinstance(self._results[0], BaseException):
            raise AssertionError(self.lines) from self._results[0]
        return self._results[0]


def count(folder: Path) -> int:
    return len(list(folder.glob("*.parquet"))) if folder.is_dir() else 0


def assert_right(summary: Summary, output: Path, source: Path, undisturbed: Path) -> None:
    assert summary.complete
    assert_whole(output, keys_of(source))
    assert files_of(output / "data") == files_of(undisturbed / "data")


def test_no_gpu_at_the_start_and_one_that_joins(
    nodes: Nodes, source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with joined(nodes):
        with pytest.raises(RequestError, match=r"no GPU at the moment.*cuda waits.*cpu encodes on CPUs"):
            run_here(on_gpus(source, output, model_path))
        assert not (output / "data").exists()
        running = Running(on_gpus(source, output, model_path, cluster={"device": "cuda"}))
        running.until(lambda: running.said("waiting for encoders"))
        nodes.add()
        assert_right(running.summary(), output, source, undisturbed)
    assert running.said("has joined")
    assert running.said("the autoscaler was asked")


def test_a_gpu_that_torch_cannot_use_is_refused_by_its_reason(
    nodes: Nodes, source: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder itself on a made-up GPU: never the CPU instead, and exit 2 from another process's error."""
    monkeypatch.undo()
    nodes.add()
    with joined(nodes), pytest.raises(RequestError, match=r"cluster\.device: cuda: torch .* sees no GPU here"):
        run_here(on_gpus(source, tmp_path / "out", model_path))
    assert not (tmp_path / "out" / "data").exists()


def test_the_last_of_two_gpus_is_held_by_another_job(
    nodes: Nodes, source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    output = tmp_path / "out"
    node = nodes.add(gpus=2)
    with joined(nodes):
        here = NodeAffinitySchedulingStrategy(node_id=node.node_id, soft=False)
        holder: Any = ray.remote(num_gpus=1, num_cpus=0, scheduling_strategy=here)(Holder).remote()
        assert ray.get(holder.holds.remote())
        assert_right(run_here(on_gpus(source, output, model_path)), output, source, undisturbed)
        ray.kill(holder)


def test_a_node_is_lost_at_work_and_another_is_added(
    nodes: Nodes, source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """However many processes die with it: it is one loss, and no attempt, of which each unit has one."""
    output = tmp_path / "out"
    lost = nodes.add(gpus=2, cpus=4)
    with joined(nodes, MADE_UP_SECONDS="0.7"):
        running = Running(on_gpus(source, output, model_path))
        running.until(lambda: count(output / "samples") >= 1)
        nodes.lose(lost)
        running.until(lambda: running.said("is lost, with 2 encoders"))
        nodes.add(gpus=1)
        summary = running.summary()
    assert_right(summary, output, source, undisturbed)
    assert summary.retries > 0
    assert running.said("has joined")


def test_an_encoder_that_hangs_is_replaced(
    nodes: Nodes, source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output, marker = tmp_path / "out", tmp_path / "fired"
    nodes.add()
    with joined(nodes, VISIONBAKE_FAULT=f"before_encode:sleep=600@{marker}"):
        limits = {"unit_seconds": 12.0, "attempts": 2}  # a process that only loads torch has time for that
        running = Running(on_gpus(source, output, model_path, limits=limits))
        summary = running.summary()
    assert marker.exists()
    assert_right(summary, output, source, undisturbed)
    assert running.said("has not answered for")


def test_an_encoder_that_always_fails_is_left_out(
    nodes: Nodes, source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output, marker = tmp_path / "out", tmp_path / "fired"
    nodes.add(gpus=2)
    with joined(nodes, MADE_UP_BAD_GPU="0", MADE_UP_MARKER=str(marker), MADE_UP_SECONDS="0.5"):
        running = Running(on_gpus(source, output, model_path, limits={"attempts": 3}))
        summary = running.summary()
    assert marker.exists()
    assert_right(summary, output, source, undisturbed)
    assert running.said("CUDA error")


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", ["starting", "working", "draining"])
def test_a_node_with_28_processes_is_killed(
    when: str, nodes: Nodes, source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    lost = nodes.add(gpus=4, cpus=28)
    nodes.add(gpus=1)
    with joined(nodes, MADE_UP_SECONDS="3"):
        running = Running(on_gpus(source, output, model_path))
        if when == "starting":
            running.until(lambda: (output / "_tmp").exists())
            time.sleep(3)
        else:
            running.until(lambda: count(output / "samples") >= 1)
        nodes.lose(lost, gracefully=when == "draining")
        summary = running.summary()
    assert_right(summary, output, source, undisturbed)
    assert running.said("is lost, with 4 encoders and 24 preparers"), "\n".join(running.lines)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_storage_that_answers_503_for_a_minute(
    nodes: Nodes, s3: Any, source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """And a quarter: longer than the clients try by themselves. Every request fails, on both nodes."""
    began: list[float] = []

    def fault(request: Any) -> str | None:
        if "/samples/" in request.key and request.method == "PUT" and not began:
            began.append(time.monotonic() + 1)
        return "503" if began and 0 < time.monotonic() - began[0] < 75 else None

    s3.fault = fault
    nodes.add()
    nodes.add()
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with joined(nodes, MADE_UP_SECONDS="1", **variables):
        running = Running(on_gpus(source, tmp_path, model_path, output={"uri": "s3://bucket/out"}))
        running.until(lambda: bool(began))
        summary = running.summary()
    s3.fault = lambda request: None
    assert s3.counts.faults
    assert running.said("waiting")
    assert summary.complete
    files = fsspec.filesystem("s3", use_listings_cache=False)
    files.get("bucket/out/", str(tmp_path / "fetched"), recursive=True)
    assert_right(summary, tmp_path / "fetched", source, undisturbed)
