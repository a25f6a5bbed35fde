"""The benchmark's own arithmetic, and the parts of its GPU measurement that a CPU can run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stand_in_gpu import eager_kernels, stand_in_gpu

from jobs.bench import gpu as bench_gpu
from jobs.bench import mixes, peers_helped
from jobs.bench.peers import pixel_values
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.pack_plan import Grid
from pipeline.tower.random_tower import SIZES
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.tower.tower import Tower

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tower(checkpoint: Checkpoint) -> Tower:
    return Tower(checkpoint, torch.float32, CPU)


def test_useful_work_is_the_papers_sum(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the published dimensions, a patch: 1.260 GF of linear layers, 0.022 merger, 0.009 windows, 20 480 · N full."""
    monkeypatch.setattr(tower, "config", SIZES["7b"])
    monkeypatch.setattr(tower, "patch_weight_still", torch.empty(1280, 588))
    for grid, teraflops in (((1, 42, 58), 3.28), ((1, 72, 72), 7.26)):
        assert mixes.useful_flops([grid], tower) / 1e12 == pytest.approx(teraflops, rel=0.005)
    patches = 72 * 72
    assert mixes.window_pairs((1, 72, 72), tower) == patches * 64


def test_mixes_are_what_they_are_called() -> None:
    found = mixes.mixes()
    patches = {name: [mixes.patches_of(pack) for pack in packs] for name, packs in found.items()}
    assert all(0.75 * 32_768 < count <= 32_768 for count in patches["A"] + patches["B"])
    assert patches["C"][0] == 65_536
    assert 0.85 < sum(patches["C"][1:]) / patches["C"][0] <= 1
    assert len(set(found["A"][0])) > 5


def test_the_helped_reference_gets_what_it_would_compute(checkpoint: Checkpoint, tower: Tower) -> None:
    """Arguments that the reference ignored or took for others would make it slow or wrong, and our ratio with it."""
    grids: list[Grid] = [(1, 6, 10), (1, 22, 14)]
    reference = reference_tower(checkpoint, torch.float32, CPU)
    patches = torch.randint(0, 256, (mixes.patches_of(grids), 588), dtype=torch.uint8)
    pixels = pixel_values(tower, patches)
    given = peers_helped._precomputed(reference, grids, CPU)
    with torch.inference_mode():
        helped = reference(pixels, torch.tensor(grids), **given).pooler_output
    assert torch.equal(helped, run_reference(reference, pixels, grids))
    given["window_index"] = given["window_index"].flip(0)
    with torch.inference_mode():
        assert not torch.equal(reference(pixels, torch.tensor(grids), **given).pooler_output, helped)


def test_units_and_bits_run(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    small: list[Grid] = [(1, 6, 10), (1, 8, 8), (1, 4, 6)]
    monkeypatch.setattr(bench_gpu, "mixes", lambda: {"A": [small]})
    monkeypatch.setattr(bench_gpu, "log_normal_grids", lambda *_: small)
    monkeypatch.setattr(bench_gpu, "IDLE_UNITS", 4)
    assert bench_gpu._bits(tower)["same_pack_twice"]
    results = bench_gpu._units(tower)
    assert results["units"] == 4
    assert results["tokens_per_second"] > 0


# On a stand-in for a GPU


@pytest.fixture
def on_gpu(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tower]:
    """A tower on a stand-in, and mixes so small that a CPU can run them."""
    small: list[Grid] = [(1, 6, 10), (1, 8, 8), (1, 4, 6)]
    kinds = {"A": [small, small[:2]], "B": [[(1, 8, 8)] * 3], "C": [[(1, 16, 16)], small]}
    for module in (bench_gpu, mixes):
        monkeypatch.setattr(module, "mixes", lambda: kinds)
        monkeypatch.setattr(module, "log_normal_grids", lambda *_: small)
    for name, value in {"IDLE_UNITS": 3, "LARGE": (1, 16, 16)}.items():
        monkeypatch.setattr(bench_gpu, name, value)
    monkeypatch.setitem(mixes.MATRIX_SIDE, "cuda", 64)
    monkeypatch.setattr(torch, "compile", lambda *a, **b: a[0])
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *a, **b: None)
    profile, activity = torch.profiler.profile, torch.profiler.ProfilerActivity.CPU
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: profile(activities=[activity]))
    with stand_in_gpu():
        eager_kernels(monkeypatch)
        yield Tower(checkpoint, torch.bfloat16, torch.device("cuda"), compile_blocks=True)


def test_the_whole_benchmark_runs_and_says_what_failed(
    on_gpu: Tower, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_gpu, "Checkpoint", lambda model: checkpoint)
    monkeypatch.setattr(bench_gpu, "_first_token", lambda *a: 1 / 0)
    file = tmp_path / "results.json"
    arguments = argparse.Namespace(model="random:tiny", dtype=None, repeats=1, json=str(file))
    results = bench_gpu.bench_gpu(arguments)
    assert json.loads(file.read_text())["encoder"] == json.loads(json.dumps(results))
    failed = {name for name, value in results.items() if str(value).startswith("FAILED")}
    assert failed == {"first_token_seconds"}
    for name in "ABC":
        row = results["mixes"][name]
        assert row["ratio"] > 0 and row["ratio_to_helped"] > 0
        assert row["matrix_tflops_of_50_in_a_row"] > 0
    assert results["mixes"]["helped_graphs_expected"] == 2 * 4  # packs of 4 sizes
    assert results["mixes"]["problems"].keys() == {"helped_graphs"}  # nothing is compiled here
    assert results["parity"]["ours_relative_rms"] < 0.1
    assert torch.backends.cudnn.allow_tf32 is False
    assert results["units"]["units"] == 3


@pytest.mark.parametrize("when", ["made", "first", "later"])
def test_a_peer_that_raises_costs_its_own_figures_only(
    when: str, on_gpu: Tower, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def broken(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if when != "later" or len(calls) > 3:
            raise RuntimeError("no kernel for this")
        return torch.zeros(1)

    if when == "made":
        monkeypatch.setattr(bench_gpu, "reference_tower", broken)
    else:
        monkeypatch.setattr(bench_gpu, "run_reference", broken)
    results = bench_gpu._mixes(checkpoint, on_gpu, 1)
    assert all(results[name]["ours_seconds"] > 0 for name in "ABC")
    assert not any("ratio" in results[name] for name in "ABC")
    assert "no kernel for this" in str(results["problems"])
    if when != "later":
        assert all(results[name]["ratio_to_helped"] > 0 for name in "ABC")


def test_the_helped_reference_embeds_by_a_matrix_product(
    on_gpu: Tower, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How fast its Conv3d is would be cuDNN's choice."""
    monkeypatch.setattr(torch.nn.Conv3d, "forward", lambda *a: 1 / 0)
    pixels = pixel_values(on_gpu, torch.zeros(64, 588, dtype=torch.uint8))
    run = peers_helped.helped_reference(checkpoint, torch.float32, torch.device("cuda"))
    assert torch.isfinite(run(pixels, [(1, 8, 8)])).all()


def test_dynamo_compiles_every_shape_and_says_how_many() -> None:
    """Of itself it compiles 8, and then runs what it is given, without a word."""
    peers_helped.let_every_shape_be_compiled()
    before = peers_helped.compiled_graphs()
    compiled = torch._dynamo.optimize("eager", dynamic=False)(lambda x: x + 1)
    for size in range(2, 14):
        compiled(torch.zeros(size))
    assert peers_helped.compiled_graphs() - before == 12
