"""The Triton kernels in Triton's interpreter, on a CPU. Run by test_fused.py, with TRITON_INTERPRET=1 from the start.

Float16 stands for the narrow dtypes: the interpreter truncates to bfloat16 where a GPU rounds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_families import SMALL
from test_tower import FP32_TOLERANCE, error_of, random_patches

from jobs.bench.peers import pixel_values
from pipeline.tower import fused
from pipeline.tower.block import NORM_EPS, NormWeights, activate, normalize, rotate
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.families.family import Activation
from pipeline.tower.pack_plan import Grid
from pipeline.tower.random_tower import write_random_checkpoint
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.tower.tower import Tower

DTYPES = [torch.float32, torch.float16]
ROWS, WIDTH, HEADS = 7, 160, 2
GRIDS: list[Grid] = [(1, 2, 2), (1, 4, 6)]  # few rows: each is a program that Python interprets


def close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """Within one rounding of a narrow dtype, a few of the fp32 that is computed in."""
    step = torch.finfo(ours.dtype).eps * (8 if ours.dtype == torch.float32 else 1.01)
    assert float((ours.double() - exact.double()).abs().max()) <= step * float(exact.abs().max())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", [False, True])
def test_add_norm(dtype: torch.dtype, layer: bool) -> None:
    """Values far from zero, whose mean a LayerNorm takes away first."""
    x, y = torch.randn(ROWS, WIDTH).to(dtype) + 4, torch.randn(ROWS, WIDTH).to(dtype)
    weight, bias = torch.randn(WIDTH).to(dtype), torch.randn(WIDTH).to(dtype) if layer else None
    exact = normalize((x + y).double(), NormWeights(weight.double(), None if bias is None else bias.double()))
    stream = x.clone()
    close(fused.add_norm(stream, y, NormWeights(weight, bias), NORM_EPS), exact)
    assert torch.equal(stream, x + y)
    close(fused.add_norm(stream, None, NormWeights(weight, bias), NORM_EPS), exact)
    assert torch.equal(stream, x + y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head", [64, 72, 80])
def test_rotary_in_place(dtype: torch.dtype, head: int) -> None:
    width = HEADS * head
    qkv = torch.randn(ROWS, 3 * width).to(dtype)
    cos, sin = torch.randn(ROWS, head // 2), torch.randn(ROWS, head // 2)
    expected = rotate(qkv.view(ROWS, 3, HEADS, -1)[:, :2], cos, sin)
    turned = qkv.clone()
    fused.rotate_(turned, cos, sin, HEADS)
    close(turned.view(ROWS, 3, HEADS, -1)[:, :2], expected)
    assert torch.equal(turned[:, 2 * width :], qkv[:, 2 * width :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, fused.ACTIVATION_BLOCK + 32])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu_tanh"])
def test_gelu_in_place(dtype: torch.dtype, width: int, activation: Activation) -> None:
    """Values so large that its exponential overflows among them."""
    x = torch.randn(ROWS, width).to(dtype) * 3
    x[0, :4] = torch.tensor([300.0, -300.0, 0.0, -60.0])
    exact = activate(x.double(), activation)
    close(fused.activate(x, activation), exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, fused.ACTIVATION_BLOCK, fused.ACTIVATION_BLOCK + 32])
def test_silu_mul(dtype: torch.dtype, width: int) -> None:
    gate_up = torch.randn(ROWS, 2 * width).to(dtype) * 3
    gate, up = gate_up.double().chunk(2, -1)
    close(fused.silu_mul(gate_up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "padded"), [(588, 592), (768, 768), (1536, 1536)])
def test_normalize(dtype: torch.dtype, count: int, padded: int) -> None:
    patches = torch.randint(0, 256, (ROWS, count), dtype=torch.uint8)
    mean, std = torch.tensor([122.7, 116.7, 104.1]), torch.tensor([68.5, 66.6, 70.3])
    values = fused.normalize(patches, mean, std, padded, dtype)
    expected = ((patches.float().view(ROWS, 3, -1) - mean[:, None]) / std[:, None]).flatten(1)
    assert torch.equal(values[:, :count], expected.to(dtype))
    assert not values[:, count:].any()


@pytest.mark.parametrize(("model_type", "frames"), [("qwen2_5_vl", 1), ("qwen2_vl", 1), ("qwen3_vl", 2)])
def test_the_fused_tower_is_the_same_function(
    model_type: str, frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole forward of a GPU, with dense attention in place of varlen; the last block's stream among the others."""
    config = replace(SMALL[model_type], depth=3)
    if config.streams:
        config = replace(config, deepstack_blocks=(0, 2))
    write_random_checkpoint(tmp_path, config)
    checkpoint = Checkpoint(str(tmp_path))
    tower = Tower(checkpoint, torch.float32, torch.device("cpu"))
    reference = reference_tower(checkpoint, torch.float32, torch.device("cpu"))
    patches = random_patches(GRIDS, frames * 3 * config.patch_size**2)
    values = ((patches.float().view(len(patches), 3, -1) - tower.mean[:, None]) / tower.std[:, None]).flatten(1)
    pixels = pixel_values(tower, patches) if frames == 1 else values
    monkeypatch.setattr(tower, "chunk_rows", 1 << 30)
    before = tower.forward(patches, tower.plan(GRIDS), "pre_merger")
    monkeypatch.setattr(tower, "fused", True)
    calls: list[int] = []
    activate = fused.activate
    monkeypatch.setattr(fused, "activate", lambda x, kind: calls.append(len(x)) or activate(x, kind))
    ours = tower.forward(patches, tower.plan(GRIDS))
    assert len(calls) == tower.config.depth
    exact = run_reference(reference, pixels, GRIDS)
    for one, other in zip(ours.split(config.out_width, 1), exact.split(config.out_width, 1), strict=True):
        assert error_of(one, other) <= FP32_TOLERANCE
    assert error_of(tower.forward(patches, tower.plan(GRIDS), "pre_merger"), before) <= FP32_TOLERANCE
