"""On which device each step runs where there are several: Triton launches on the current one, torch on the tensor's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stand_in_gpu import StandInGpu, stand_in_gpu
from test_tower import GRIDS, random_patches

from pipeline.encode.unit import UnitEncoder
from pipeline.index.units import Unit
from pipeline.prepare.unit import PreparedSample, PreparedUnit
from pipeline.source.sample import IndexedSample
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.pack_plan import Grid
from pipeline.tower.tower import Tower

SECOND = torch.device("cuda:1")


def unit_of(grids: list[Grid]) -> PreparedUnit:
    patches = random_patches(grids).numpy()
    samples = tuple(
        PreparedSample(facts=IndexedSample(key=f"k{image}", source=""), status="ok", image=image, clamped="none")
        for image in range(len(grids))
    )
    unit = Unit(part=0, number=0, first=0, count=len(grids), tokens=len(patches) // 4, patches=len(patches))
    return PreparedUnit(unit=unit, samples=samples, grids=tuple(grids), patches_PC=patches)


def watched(tower: Tower, gpu: StandInGpu, patch: pytest.MonkeyPatch) -> None:
    """The steps of a forward tell on which device they are launched."""
    for name in ("plan", "_blocks", "_blocks_fused"):
        real = getattr(tower, name)

        def told(*arguments: Any, real: Any = real, name: str = name) -> Any:
            gpu.note(name)
            return real(*arguments)

        patch.setattr(tower, name, told)


@pytest.mark.parametrize("entry", ["forward", "forward_in_window_order"])
def test_a_forward_runs_on_its_towers_device(
    entry: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in_gpu() as gpu:
        tower = Tower(checkpoint, torch.float32, SECOND)
        watched(tower, gpu, monkeypatch)
        getattr(tower, entry)(random_patches(GRIDS), tower.plan(GRIDS))
        assert {device for what, device, *_ in gpu.used if what == "_blocks"} == {1}
        assert gpu.device == 0  # as it was


def test_a_unit_is_encoded_on_its_towers_device(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffers, queues and marks as well: what is not the tower's own is launched there too."""
    with stand_in_gpu() as gpu:
        tower = Tower(checkpoint, torch.float32, SECOND)
        watched(tower, gpu, monkeypatch)
        encoder = UnitEncoder(tower, max_patches=10_000, stored_dtype="int8")
        for owner, name in ((encoder, "_state"), (encoder, "_forward")):
            real = getattr(owner, name)
            monkeypatch.setattr(owner, name, lambda *a, real=real, name=name: (gpu.note(name), real(*a))[1])
        encoder.encode(unit_of(GRIDS))
        assert {what for what, *_ in gpu.used} == {"plan", "_blocks", "_state", "_forward"}
        assert {device for _, device, *_ in gpu.used} == {1}
        assert gpu.device == 0


def test_on_a_cpu_no_device_is_asked_for(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(device: object) -> None:
        raise AssertionError("torch.cuda.device was called")

    monkeypatch.setattr(torch.cuda, "device", refused)
    tower = Tower(checkpoint, torch.float32, torch.device("cpu"))
    assert len(UnitEncoder(tower, max_patches=10_000, stored_dtype="float32").encode(unit_of(GRIDS)).tokens_MO)
