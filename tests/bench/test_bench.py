"""The benchmark's own arithmetic, and the parts of its GPU measurement that a CPU can run."""

from __future__ import annotations

import pytest
import torch

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
