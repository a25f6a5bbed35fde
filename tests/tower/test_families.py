"""Every model type against transformers' own tower of that type, each stream by itself.

That the comparisons see mistakes is what `tests/mutants/tower.yaml` is for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_tower import FP32_TOLERANCE, GRIDS, error_of, random_patches, relative_rms

import pipeline.tower.block as block_module
import pipeline.tower.pack_plan as plan_module
import pipeline.tower.positions as positions_module
from jobs.bench.peers import pixel_values
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.config import TowerConfig
from pipeline.tower.families import MODEL_TYPES
from pipeline.tower.pack_plan import Grid
from pipeline.tower.random_tower import SIZES, write_random_checkpoint
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.tower.tower import Tower

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# The smallest towers of each type that have heads as wide as the published ones, 80 or 72, and two of them.
SMALL: dict[str, TowerConfig] = {
    model_type: replace(SIZES[f"{model_type}_tiny"], out_width=48) for model_type in MODEL_TYPES
}
ALIKE = ("qwen2_vl", "qwen3_vl", "qwen3_5")  # those that differ from one another, and from Qwen2.5-VL


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    @cache
    def made(model_type: str) -> Checkpoint:
        folder = tmp_path_factory.mktemp(model_type)
        write_random_checkpoint(folder, SMALL[model_type], shard_bytes=400_000)
        return Checkpoint(str(folder))

    return made


@pytest.fixture(scope="session")
def reference_of(checkpoint_of: Callable[[str], Checkpoint]) -> Callable[[str], Any]:
    return cache(lambda model_type: reference_tower(checkpoint_of(model_type), torch.float32, CPU))


def patches_of(config: TowerConfig, grids: list[Grid], frames: int = 1) -> torch.Tensor:
    return random_patches(grids, channels=frames * 3 * config.patch_size**2)


def errors(tower: Tower, reference: Any, grids: list[Grid]) -> list[float]:
    """Of each stream, as a part of its own largest value."""
    patches = patches_of(tower.config, grids)
    ours = tower.forward(patches, tower.plan(grids))
    exact = run_reference(reference, pixel_values(tower, patches), grids)
    assert ours.shape == exact.shape == (len(patches) // 4, tower.config.width_of("merged"))
    width = tower.config.stream_width("merged")
    return [error_of(*streams) for streams in zip(ours.split(width, 1), exact.split(width, 1), strict=True)]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_fp32_parity_of_each_stream(
    model_type: str, checkpoint_of: Callable[[str], Checkpoint], reference_of: Callable[[str], Any]
) -> None:
    checkpoint = checkpoint_of(model_type)
    assert checkpoint.config == SMALL[model_type]
    assert checkpoint.config.streams == (3 if model_type in ("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe") else 0)
    tower = Tower(checkpoint, torch.float32, CPU)
    found = errors(tower, reference_of(model_type), GRIDS)
    assert len(found) == 1 + checkpoint.config.streams
    assert max(found) <= FP32_TOLERANCE


@pytest.mark.parametrize("model_type", ALIKE)
def test_packs_of_many_shapes(
    model_type: str, checkpoint_of: Callable[[str], Checkpoint], reference_of: Callable[[str], Any]
) -> None:
    """Chunks that cut through frames, equal frames, one image alone, and a grid larger than the learned positions."""
    tower = Tower(checkpoint_of(model_type), torch.float32, CPU)
    tower.chunk_rows = 100
    for grids in ([(1, 12, 16)] * 5, [(1, 22, 14)], [(1, 2, 2)], [(1, 2, 120), (1, 6, 10), (1, 60, 2)]):
        assert max(errors(tower, reference_of(model_type), grids)) <= FP32_TOLERANCE


@pytest.mark.parametrize("model_type", ALIKE)
def test_frames_of_a_video(
    model_type: str, checkpoint_of: Callable[[str], Checkpoint], reference_of: Callable[[str], Any]
) -> None:
    """Two-frame patches; no attention across frames; and a video is a list of independent frames."""
    tower = Tower(checkpoint_of(model_type), torch.float32, CPU)
    config, grids = tower.config, [(3, 12, 8), (1, 12, 8), (2, 2, 4)]
    patches = patches_of(config, grids, frames=2)
    ours = tower.forward(patches, tower.plan(grids))
    values = (patches.float().view(len(patches), 3, -1) - tower.mean[:, None]) / tower.std[:, None]
    exact = run_reference(reference_of(model_type), values.flatten(1), grids)
    for one, other in zip(ours.split(config.out_width, 1), exact.split(config.out_width, 1), strict=True):
        assert error_of(one, other) <= FP32_TOLERANCE
    apart = [(1, 12, 8)] * 4 + [(1, 2, 4)] * 2
    assert torch.equal(ours, tower.forward(patches, tower.plan(apart)))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ALIKE)
def test_bf16_is_no_further_from_exact_than_the_reference(
    model_type: str, checkpoint_of: Callable[[str], Checkpoint], reference_of: Callable[[str], Any]
) -> None:
    checkpoint = checkpoint_of(model_type)
    tower, half = Tower(checkpoint, torch.float32, CPU), Tower(checkpoint, torch.bfloat16, CPU)
    patches = patches_of(tower.config, GRIDS)
    exact = run_reference(reference_of(model_type), pixel_values(tower, patches), GRIDS)
    ours = half.forward(patches, half.plan(GRIDS))
    reference = reference_tower(checkpoint, torch.bfloat16, CPU)
    theirs = run_reference(reference, pixel_values(tower, patches).bfloat16(), GRIDS)
    assert ours.dtype == torch.bfloat16
    for streams in zip(*(x.split(tower.config.out_width, 1) for x in (ours, theirs, exact)), strict=True):
        one, other, truth = streams
        assert relative_rms(one, truth) <= 1.05 * relative_rms(other, truth)


@pytest.mark.parametrize("model_type", ALIKE)
def test_in_bf16_a_still_is_a_pair_of_equal_frames(
    model_type: str, checkpoint_of: Callable[[str], Checkpoint], reference_of: Callable[[str], Any]
) -> None:
    """To the bit, and as near to fp32 as the reference: a sum of the two frames' weights would be rounded again."""
    half = Tower(checkpoint_of(model_type), torch.bfloat16, CPU)
    patches = patches_of(half.config, [(1, 12, 16)])
    planes = patches.view(len(patches), 3, 1, -1)
    ours = half.embed(patches)
    assert torch.equal(ours, half.embed(planes.expand(-1, -1, 2, -1).flatten(1)))
    values = pixel_values(half, patches)
    exact = reference_of(model_type).patch_embed(values)
    theirs = reference_tower(checkpoint_of(model_type), torch.bfloat16, CPU).patch_embed(values.bfloat16())
    assert relative_rms(ours, exact) <= 1.02 * relative_rms(theirs, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learned_positions_have_the_references_bits(dtype: torch.dtype) -> None:
    """Summed in fp32 and rounded once: a comparison of whole towers would hardly show it in bfloat16."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    config = SMALL["qwen3_5"]
    table = torch.nn.Embedding(config.positions, 32).to(dtype).requires_grad_(False)
    for grids in ([(1, 2, 2), (2, 6, 10)], [(1, 70, 94)], [(1, 2, 120), (1, 48, 48)]):
        plan = plan_module.plan_pack(grids, config, "varlen", CPU)
        assert plan.learned is not None
        indices, weights = get_vision_interpolation_indices_and_weights(
            torch.tensor(grids), num_grid_per_side=48, align_corners=True, spatial_merge_size=2
        )
        expected = (table(indices) * weights[:, :, None]).sum(1).to(dtype)
        assert torch.equal(positions_module.learned_positions(table.weight, plan.learned), expected)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu_tanh"])
def test_norm_and_activation_in_bfloat16(activation: str) -> None:
    """LayerNorm with the reference's bits; an activation no further from exact."""
    from transformers.activations import ACT2FN

    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16() for shape in ((300, 72), (72,), (72,)))
    norm = torch.nn.LayerNorm(72, eps=1e-6).bfloat16()
    norm.weight.data, norm.bias.data = weight, bias
    assert torch.equal(block_module.normalize(x, block_module.NormWeights(weight, bias)), norm(x))
    reference = ACT2FN[{"quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}[activation]]
    exact = reference(x.double())
    ours = block_module.activate(x.clone(), activation)
    assert relative_rms(ours, exact) <= 1.05 * relative_rms(reference(x), exact)


def test_before_the_merger_each_stream_is_what_its_merger_takes(
    checkpoint_of: Callable[[str], Checkpoint], reference_of: Callable[[str], Any]
) -> None:
    """A trainer that runs the reference's own mergers on the stored rows gets the reference's tokens."""
    tower, reference = Tower(checkpoint_of("qwen3_vl"), torch.float32, CPU), reference_of("qwen3_vl")
    patches = patches_of(tower.config, GRIDS)
    rows = tower.forward(patches, tower.plan(GRIDS), "pre_merger")
    assert rows.shape == (len(patches) // 4, tower.config.width_of("pre_merger"))
    mergers = [reference.merger, *reference.deepstack_merger_list]
    streams = rows.split(tower.config.stream_width("pre_merger"), 1)
    merged = [merger(stream.reshape(-1, tower.config.width)) for merger, stream in zip(mergers, streams, strict=True)]
    exact = run_reference(reference, pixel_values(tower, patches), GRIDS)
    for one, other in zip(merged, exact.split(tower.config.out_width, 1), strict=True):
        assert error_of(one, other) <= FP32_TOLERANCE


def test_without_further_streams_the_main_one_keeps_its_bits(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    whole = checkpoint_of("qwen3_vl")
    main = Checkpoint(whole.path, deepstack=False)
    assert (main.config.streams, main.config.width_of("merged")) == (0, whole.config.out_width)
    assert not any("deepstack" in name for name, _ in main.stored_tensors())
    assert main.sha256() != whole.sha256()
    patches = patches_of(whole.config, GRIDS)
    rows = [
        tower.forward(patches, tower.plan(GRIDS)) for tower in (Tower(one, torch.float32, CPU) for one in (whole, main))
    ]
    assert torch.equal(rows[0][:, : whole.config.out_width], rows[1])
    exact = run_reference(
        reference_tower(main, torch.float32, CPU), pixel_values(Tower(main, torch.float32, CPU), patches), GRIDS
    )
    assert error_of(rows[1], exact) <= FP32_TOLERANCE


def test_neighbours_do_not_leak(checkpoint_of: Callable[[str], Checkpoint]) -> None:
    grids = [(1, 6, 10), (1, 2, 2), (1, 6, 10), (1, 8, 4)]
    for model_type in ("qwen2_vl", "qwen3_vl"):
        tower = Tower(checkpoint_of(model_type), torch.float32, CPU)
        plan, patches = tower.plan(grids), patches_of(tower.config, grids)
        before = tower.forward(patches, plan)
        assert torch.equal(before, tower.forward(patches, plan))
        starts = np.concatenate([[0], np.cumsum([t * h * w for t, h, w in grids])])
        for image in range(len(grids)):
            changed = patches.clone()
            rows = slice(starts[image], starts[image + 1])
            changed[rows] = 255 - changed[rows]
            differs = (before != tower.forward(changed, plan)).any(-1)
            tokens = slice(starts[image] // 4, starts[image + 1] // 4)
            assert differs[tokens].all()
            differs[tokens] = False
            assert not differs.any()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ALIKE)
def test_compiled_blocks_are_the_same_function(
    model_type: str,
    checkpoint_of: Callable[[str], Checkpoint],
    reference_of: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One graph for packs of all sizes. No code is made of it: of Qwen2.5-VL's there is, in `test_tower`."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    tower = Tower(checkpoint_of(model_type), torch.float32, CPU, compile_blocks=True)
    assert max(errors(tower, reference_of(model_type), GRIDS)) <= FP32_TOLERANCE
    with torch._dynamo.config.patch(error_on_recompile=True):
        for grids in (GRIDS[:3], [(1, 12, 16)] * 9):
            assert max(errors(tower, reference_of(model_type), grids)) <= FP32_TOLERANCE


REAL = {
    "qwen2_vl": replace(SIZES["qwen2_vl_7b"], depth=2),
    "qwen3_vl": replace(SIZES["qwen3_vl_8b"], depth=2, deepstack_blocks=(0,)),
    "qwen3_5": replace(SIZES["qwen3_5_9b"], depth=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ALIKE)
def test_parity_at_the_real_dimensions(model_type: str, tmp_path: Path) -> None:
    """Two blocks; `test_parity_at_the_real_dimensions_of_all_blocks` has all of them."""
    compare_at(REAL[model_type], tmp_path, [(1, 6, 10), (1, 2, 4)])


@pytest.mark.chaos
@pytest.mark.parametrize("size", ["qwen2_vl_7b", "qwen3_vl_2b", "qwen3_vl_8b", "qwen3_5_9b"])
def test_parity_at_the_real_dimensions_of_all_blocks(size: str, tmp_path: Path) -> None:
    compare_at(SIZES[size], tmp_path, [(1, 6, 10), (1, 10, 18), (1, 2, 4)])


def compare_at(config: TowerConfig, folder: Path, grids: list[Grid]) -> None:
    write_random_checkpoint(folder, config)
    checkpoint = Checkpoint(str(folder))
    tower = Tower(checkpoint, torch.float32, CPU)
    found = errors(tower, reference_tower(checkpoint, torch.float32, CPU), grids)
    print(config.model_type, config.depth, [f"{error:.2e}" for error in found])
    assert max(found) <= FP32_TOLERANCE
