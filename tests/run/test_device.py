"""Which device is encoded on. Catches: the CPU without a word where a GPU may be meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import assert_whole, config_for, keys_of, make_folder, run_here

from pipeline.errors import RequestError
from pipeline.output.info import read_dataset
from pipeline.run.ray_cluster import check_alike, device_of
from pipeline.run.sizing import NodeFacts
from pipeline.tower.device import choose_device, choose_dtype


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


@pytest.mark.parametrize(
    ("amx", "avx512", "capability", "cpu", "cuda"),
    [
        (False, False, (7, 5), torch.float32, torch.float32),
        (True, False, (8, 0), torch.bfloat16, torch.bfloat16),
        (False, True, (9, 0), torch.bfloat16, torch.bfloat16),
    ],
)
def test_auto_takes_bfloat16_where_it_is_fast(
    amx: bool, avx512: bool, capability: tuple[int, int], cpu: object, cuda: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", torch.device("cpu")) is cpu
    assert choose_dtype("auto", torch.device("cuda")) is cuda
    assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert choose_dtype("float32", torch.device("cuda")) is torch.float32


def test_what_auto_came_to_is_written_down_and_held_to(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = make_folder(tmp_path / "in", 2), tmp_path / "out"
    fields = {"model": {"path": str(model_path), "dtype": "auto"}}
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert run_here(config_for(source, output, model_path, **fields)).complete
    info = read_dataset(output)
    assert info.config["model"]["dtype"] == info.fingerprint_facts["model.dtype"] == "float32"
    assert_whole(output, keys_of(source))
    (source / "new.png").write_bytes((source / "0" / "0000.png").read_bytes())
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with pytest.raises(RequestError, match=r"model\.dtype is 'float32' there and 'bfloat16' here"):
        run_here(config_for(source, output, model_path, **fields))
    assert run_here(config_for(source, output, model_path)).complete  # named, it goes on
