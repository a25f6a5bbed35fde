"""Which device is encoded on. Catches: the CPU without a word where a GPU may be meant."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RequestError
from pipeline.run.ray_cluster import check_alike, device_of
from pipeline.run.sizing import NodeFacts
from pipeline.tower.device import choose_device


def node(name: str, gpus: int, *models: str) -> NodeFacts:
    return NodeFacts(
        id=name, name=name, cpus=8, free_cpus=8, gpus=gpus, free_gpus=gpus, store_bytes=1, accelerators=models
    )


CPUS, GPUS = [node("a", 0), node("b", 0)], [node("a", 0), node("b", 2, "H100")]


@pytest.mark.parametrize(
    ("wanted", "nodes", "started", "device"),
    [
        ("auto", GPUS, False, "cuda"),
        ("auto", GPUS, True, "cuda"),
        ("auto", CPUS, True, "cpu"),  # this machine has none
        ("cuda", GPUS, False, "cuda"),
        ("cuda", CPUS, False, "cuda"),  # waits for one
        ("cuda", [], False, "cuda"),
        ("cpu", GPUS, False, "cpu"),
        ("cpu", CPUS, True, "cpu"),
    ],
)
def test_a_cluster_decides_what_auto_means(wanted: str, nodes: list[NodeFacts], started: bool, device: str) -> None:
    assert device_of(wanted, nodes, started=started) == device


@pytest.mark.parametrize("nodes", [CPUS, []])
def test_a_joined_cluster_without_a_gpu_at_the_moment_is_refused_with_both_ways_on(nodes: list[NodeFacts]) -> None:
    with pytest.raises(RequestError, match="no GPU at the moment") as error:
        device_of("auto", nodes, started=False)
    assert "cluster.device: cuda waits" in str(error.value) and "cluster.device: cpu encodes" in str(error.value)


def test_a_gpu_is_not_waited_for_in_vain_on_this_machine() -> None:
    with pytest.raises(RequestError, match=r"cluster\.device: cuda: Ray sees no GPU here"):
        device_of("cuda", CPUS, started=True)


def test_gpus_of_two_models_are_refused() -> None:
    check_alike([*GPUS, node("c", 1, "H100"), node("d", 0, "A100")])  # of a node that gives no GPU to anybody
    check_alike([])
    with pytest.raises(RequestError, match=r"A100 on c, H100 on b.*mixed_devices"):
        check_alike([*GPUS, node("c", 1, "A100")])


@pytest.mark.parametrize("there", [True, False])
def test_a_process_takes_what_is_asked_for_or_refuses(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device() == choose_device("auto") == torch.device("cuda" if there else "cpu")
    if there:
        assert choose_device("cuda") == torch.device("cuda")
    else:
        with pytest.raises(RequestError, match=r"cluster\.device: cuda: torch .* sees no GPU here"):
            choose_device("cuda")
