"""The tower against transformers' own, with peaked attention, and a proof that the comparison sees mistakes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

import pipeline.grid as grid_module
import pipeline.tower.attention as attention_module
import pipeline.tower.block as block_module
import pipeline.tower.merger as merger_module
import pipeline.tower.pack_plan as plan_module
import pipeline.tower.tower as tower_module
from jobs.bench.peers import pixel_values
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.pack_plan import Grid
from pipeline.tower.random_tower import SIZES, write_random_checkpoint
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.tower.tower import Tower

CPU = torch.device("cpu")
# Odd multiples of a merged token, smaller than a window, exactly one, very long, equal ones, and many.
GRIDS: list[Grid] = [(1, 2, 2), (1, 6, 10), (1, 8, 8), (1, 2, 90), (1, 22, 14), (1, 22, 14), (1, 34, 26), (1, 4, 6)]
FP32_TOLERANCE = 1e-5


def random_patches(grids: list[Grid], channels: int = 588, seed: int = 0) -> torch.Tensor:
    """Smooth values, so that the tower sees something like an image and not noise alone."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(t * h * w for t, h, w in grids)
    base = torch.randint(0, 256, (count, 1), generator=generator)
    return (base + torch.randint(-40, 40, (count, channels), generator=generator)).clamp(0, 255).to(torch.uint8)


def error_of(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest error as a part of the largest reference value."""
    return float((ours.double() - reference.double()).abs().max() / reference.double().abs().max())


def relative_rms(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> object:
    return reference_tower(checkpoint, torch.float32, CPU)


@pytest.fixture(scope="module")
def tower(checkpoint: Checkpoint) -> Tower:
    return Tower(checkpoint, torch.float32, CPU)


def compare(tower: Tower, reference: object, grids: list[Grid]) -> float:
    patches = random_patches(grids)
    ours = tower.forward(patches, tower.plan(grids))
    return error_of(ours, run_reference(reference, pixel_values(tower, patches), grids))


def test_attention_is_peaked_enough_to_show_mistakes(tower: Tower) -> None:
    grids = [(1, 22, 14)]
    patches = random_patches(grids)
    plan = tower.plan(grids)
    x = tower.embed(patches)
    block = tower.blocks[0]
    q, k, _ = block_module.queries_keys_values(x, block, (plan.cos_PE, plan.sin_PE), tower.kind)
    weights = torch.softmax(q.transpose(0, 1) @ k.permute(1, 2, 0) * TINY.head_dim**-0.5, -1)
    assert float(weights.max(-1).values.mean()) > 10 / weights.shape[-1]


@pytest.mark.parametrize("grids", [GRIDS, *[[grid] for grid in GRIDS[:5]], [(1, 12, 16)] * 9])
def test_fp32_parity(tower: Tower, reference: object, grids: list[Grid]) -> None:
    assert compare(tower, reference, grids) <= FP32_TOLERANCE


def test_rows_in_chunks_are_the_same_function(tower: Tower, reference: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in (64, 200, 100_000):
        monkeypatch.setattr(tower, "chunk_rows", rows)
        assert compare(tower, reference, GRIDS) <= FP32_TOLERANCE


@pytest.mark.parametrize("grids", [[(2, 6, 10)], [(3, 12, 8), (1, 12, 8), (2, 2, 4)]])
def test_frames_of_a_video(tower: Tower, reference: object, grids: list[Grid]) -> None:
    """Two-frame patches, the unfolded weight, and no attention across frames."""
    patches = random_patches(grids, channels=1176)
    ours = tower.forward(patches, tower.plan(grids))
    values = (patches.float().view(-1, 3, 392) - tower.mean[:, None]) / tower.std[:, None]
    assert error_of(ours, run_reference(reference, values.flatten(1), grids)) <= FP32_TOLERANCE


@pytest.mark.slow
def test_bf16_is_no_further_from_exact_than_the_reference(checkpoint: Checkpoint, tower: Tower) -> None:
    patches = random_patches(GRIDS)
    exact = tower.forward(patches, tower.plan(GRIDS))
    ours_tower = Tower(checkpoint, torch.bfloat16, CPU)
    ours = ours_tower.forward(patches, ours_tower.plan(GRIDS))
    theirs = run_reference(
        reference_tower(checkpoint, torch.bfloat16, CPU), pixel_values(tower, patches).bfloat16(), GRIDS
    )
    assert ours.dtype == torch.bfloat16
    assert relative_rms(ours, exact) <= 1.05 * relative_rms(theirs, exact)


def test_norm_and_rotary_in_bfloat16_have_the_references_bits() -> None:
    """Computed in fp32 and rounded where the reference rounds: the comparison of whole towers would not show it."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm, apply_rotary_pos_emb_vision

    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((300, 64), (64,)))
    norm = Qwen2_5_VLRMSNorm(64, eps=1e-6).bfloat16()
    norm.weight.data = weight
    assert torch.equal(block_module.rms_norm(x, weight), norm(x))
    tiny = x * 1e-3  # mean squares as small as epsilon
    assert torch.equal(block_module.rms_norm(tiny, weight), norm(tiny))
    queries_keys = torch.randn(300, 2, 2, 32, generator=generator).bfloat16()
    angles = torch.rand(300, 16, generator=generator) * 40
    turned = block_module.rotate(queries_keys, angles.cos(), angles.sin())
    whole = torch.cat([angles, angles], -1)
    expected = apply_rotary_pos_emb_vision(queries_keys[:, 0], queries_keys[:, 1], whole.cos(), whole.sin())
    assert torch.equal(turned, torch.stack(expected, 1))


def swap_height_and_width(monkeypatch: pytest.MonkeyPatch, tower: Tower) -> None:
    def swapped(*arguments: object) -> object:
        layout = grid_module.grid_layout(*arguments)
        return replace(layout, positions_P2=layout.positions_P2[:, ::-1])

    monkeypatch.setattr(plan_module, "grid_layout", swapped)


def shift_the_windows(monkeypatch: pytest.MonkeyPatch, tower: Tower) -> None:
    def shifted(*arguments: object) -> object:
        layout = grid_module.grid_layout(*arguments)
        return replace(layout, window_order_M=np.roll(layout.window_order_M, 1))

    monkeypatch.setattr(plan_module, "grid_layout", shifted)


def merge_two_frames(monkeypatch: pytest.MonkeyPatch, tower: Tower) -> None:
    gathered = plan_module._runs_gathered

    def merged(lengths: np.ndarray, *rest: object) -> object:
        return gathered(np.concatenate([[lengths[0] + lengths[1]], lengths[2:]]), *rest)

    monkeypatch.setattr(plan_module, "_runs_gathered", merged)


def drop_a_bias(monkeypatch: pytest.MonkeyPatch, tower: Tower) -> None:
    block = tower.blocks[2]
    changed = block._replace(proj_bias=torch.zeros_like(block.proj_bias))
    monkeypatch.setattr(tower, "blocks", [*tower.blocks[:2], changed, *tower.blocks[3:]])
    if tower.residual_by_product:  # there the norms add it
        monkeypatch.setattr(tower, "_lacks", tower_module._sums_of_biases(tower.blocks))


def use_tanh_gelu(monkeypatch: pytest.MonkeyPatch, tower: Tower) -> None:
    class Functional:
        """torch.nn.functional for our module alone: the reference calls gelu too."""

        def __getattr__(self, name: str) -> object:
            if name == "gelu":
                return lambda x: torch.nn.functional.gelu(x, approximate="tanh")
            return getattr(torch.nn.functional, name)

    monkeypatch.setattr(merger_module, "functional", Functional())


def use_the_checkpoints_epsilon(monkeypatch: pytest.MonkeyPatch, tower: Tower) -> None:
    monkeypatch.setattr(block_module, "NORM_EPS", 1e-4)


def attend_fully_one_block_early(monkeypatch: pytest.MonkeyPatch, tower: Tower) -> None:
    monkeypatch.setattr(tower, "config", replace(tower.config, full_attention_blocks=(0, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    [
        swap_height_and_width,
        shift_the_windows,
        merge_two_frames,
        drop_a_bias,
        use_tanh_gelu,
        use_the_checkpoints_epsilon,
        attend_fully_one_block_early,
    ],
)
def test_the_comparison_sees_mistakes(
    mistake: Callable[[pytest.MonkeyPatch, Tower], None], checkpoint: Checkpoint, reference: object
) -> None:
    tower = Tower(checkpoint, torch.float32, CPU)
    with pytest.MonkeyPatch.context() as monkeypatch:
        mistake(monkeypatch, tower)
        wrong = compare(tower, reference, GRIDS)
    assert wrong > 5 * FP32_TOLERANCE
    assert compare(tower, reference, GRIDS) <= FP32_TOLERANCE


def test_neighbours_do_not_leak(tower: Tower) -> None:
    plan = tower.plan(GRIDS)
    patches = random_patches(GRIDS)
    before = tower.forward(patches, plan)
    starts = np.concatenate([[0], np.cumsum([t * h * w for t, h, w in GRIDS])])
    for image in range(len(GRIDS)):
        changed = patches.clone()
        changed[starts[image] : starts[image + 1]] = random_patches([GRIDS[image]], seed=9)
        after = tower.forward(changed, plan)
        tokens = slice(starts[image] // 4, starts[image + 1] // 4)
        differs = (before != after).any(-1)
        assert differs[tokens].all()
        differs[tokens] = False
        assert not differs.any()


def test_the_same_pack_gives_the_same_bits(tower: Tower) -> None:
    patches = random_patches(GRIDS)
    plan = tower.plan(GRIDS)
    assert torch.equal(tower.forward(patches, plan), tower.forward(patches, plan))


def test_varlen_segments_are_the_references(checkpoint: Checkpoint) -> None:
    """The layout that a GPU gets, checked on a CPU by attending segment by segment."""
    from transformers.vision_utils import get_vision_cu_seqlens, get_vision_window_index

    grids = [*GRIDS, (2, 6, 10)]
    plan = plan_module.plan_pack(grids, checkpoint.config, "varlen", CPU)
    order, cu_windows = get_vision_window_index(
        torch.tensor(grids), spatial_merge_size=2, window_size=112, patch_size=14
    )
    assert plan.order_M.tolist() == order.tolist()
    assert plan.chunks[0].windows.cu_seqlens.tolist() == torch.unique_consecutive(cu_windows).tolist()
    assert plan.frames.cu_seqlens.tolist() == get_vision_cu_seqlens(torch.tensor(grids)).tolist()
    assert plan.frames.max_length == 34 * 26


def test_varlen_layout_gives_the_same_tokens(tower: Tower, reference: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The varlen path end to end, with the kernel itself replaced by one dense call a segment."""

    def segment_by_segment(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: object) -> torch.Tensor:
        ends = segments.cu_seqlens.tolist()
        pieces = []
        for first, last in itertools.pairwise(ends):
            one = [x[first:last].transpose(0, 1)[None] for x in (q, k, v)]
            pieces.append(torch.nn.functional.scaled_dot_product_attention(*one)[0].transpose(0, 1).flatten(1))
        return torch.cat(pieces)

    monkeypatch.setattr(attention_module, "_attend_varlen", segment_by_segment)
    monkeypatch.setattr(tower, "kernel", "varlen")
    assert compare(tower, reference, GRIDS) <= FP32_TOLERANCE


@pytest.mark.slow
def test_compiled_blocks_are_the_same_function(checkpoint: Checkpoint, reference: object) -> None:
    """In one graph each (`fullgraph`), and compiled once for packs and blocks of all sizes."""
    torch._dynamo.reset()
    tower = Tower(checkpoint, torch.float32, CPU, compile_blocks=True)
    assert compare(tower, reference, GRIDS) <= FP32_TOLERANCE
    with torch._dynamo.config.patch(error_on_recompile=True):
        for grids in (GRIDS[:3], [(1, 12, 16)] * 9, [(1, 34, 26)]):
            assert compare(tower, reference, grids) <= FP32_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "full"), [(4, (3,)), pytest.param(32, (), marks=pytest.mark.chaos)])
def test_parity_at_the_real_dimensions_of_7b(depth: int, full: tuple[int, ...], tmp_path: Path) -> None:
    """With four of its blocks, one of them full; with all of them in `make chaos`."""
    real = SIZES["7b"]
    full = full or real.full_attention_blocks
    write_random_checkpoint(tmp_path, replace(real, depth=depth, full_attention_blocks=full))
    checkpoint = Checkpoint(str(tmp_path))
    grids: list[Grid] = [(1, 6, 10), (1, 10, 18), (1, 2, 4)]
    patches = random_patches(grids)
    tower = Tower(checkpoint, torch.float32, CPU)
    pixels = pixel_values(tower, patches)
    exact = tower.forward(patches, tower.plan(grids))
    assert exact.shape == (62, 3584)
    assert error_of(exact, run_reference(reference_tower(checkpoint, torch.float32, CPU), pixels, grids)) <= 1e-5
    # bf16 matrix products of a CPU without AMX are very slow: a smaller pack.
    grids = [(1, 4, 6), (1, 2, 4)]
    patches = random_patches(grids)
    exact = tower.forward(patches, tower.plan(grids))
    pixels = pixel_values(tower, patches).bfloat16()
    del tower
    half = Tower(checkpoint, torch.bfloat16, CPU)
    ours = half.forward(patches, half.plan(grids))
    del half
    theirs = run_reference(reference_tower(checkpoint, torch.bfloat16, CPU), pixels, grids)
    assert relative_rms(ours, exact) <= 1.05 * relative_rms(theirs, exact)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parity_on_a_gpu(checkpoint: Checkpoint, tower: Tower, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    patches = random_patches(GRIDS)
    exact = tower.forward(patches, tower.plan(GRIDS))
    gpu = Tower(checkpoint, dtype, device)
    assert gpu.kernel == ("varlen" if dtype == torch.bfloat16 else "dense")
    ours = gpu.forward(patches.to(device), gpu.plan(GRIDS)).cpu()
    if dtype == torch.float32:
        assert error_of(ours, exact) <= FP32_TOLERANCE
    else:
        reference = reference_tower(checkpoint, dtype, device)
        theirs = run_reference(reference, pixel_values(gpu, patches.to(device)).to(dtype), GRIDS).cpu()
        assert relative_rms(ours, exact) <= 1.05 * relative_rms(theirs, exact)
