"""The Triton kernels in Triton's interpreter, on a CPU. Run by test_fused.py, with TRITON_INTERPRET=1 from the start.

Float16 stands for the narrow dtypes: the interpreter truncates to bfloat16 where a GPU rounds.
"""

from __future__ import annotations

import pytest
import torch
from test_tower import FP32_TOLERANCE, error_of, random_patches

from jobs.bench.peers import pixel_values
from pipeline.tower import fused
from pipeline.tower.block import RMS_NORM_EPS, rms_norm, rotate
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.pack_plan import Grid
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.tower.tower import Tower

DTYPES = [torch.float32, torch.float16]
ROWS, WIDTH, HEADS = 7, 160, 2
GRIDS: list[Grid] = [(1, 2, 2), (1, 2, 10)]  # few rows: each is a program that Python interprets


def close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """Within one rounding of a narrow dtype, a few of the fp32 that is computed in."""
    step = torch.finfo(ours.dtype).eps * (8 if ours.dtype == torch.float32 else 1.01)
    assert float((ours.double() - exact.double()).abs().max()) <= step * float(exact.abs().max())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype: torch.dtype) -> None:
    x, y, weight = torch.randn(ROWS, WIDTH).to(dtype), torch.randn(ROWS, WIDTH).to(dtype), torch.randn(WIDTH).to(dtype)
    stream = x.clone()
    close(fused.add_rms_norm(stream, y, weight, RMS_NORM_EPS), rms_norm((x + y).double(), weight.double()))
    assert torch.equal(stream, x + y)
    close(fused.add_rms_norm(stream, None, weight, RMS_NORM_EPS), rms_norm((x + y).double(), weight.double()))
    assert torch.equal(stream, x + y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_in_place(dtype: torch.dtype) -> None:
    qkv = torch.randn(ROWS, 3 * WIDTH).to(dtype)
    cos, sin = torch.randn(ROWS, WIDTH // HEADS // 2), torch.randn(ROWS, WIDTH // HEADS // 2)
    expected = rotate(qkv.view(ROWS, 3, HEADS, -1)[:, :2], cos, sin)
    turned = qkv.clone()
    fused.rotate_(turned, cos, sin, HEADS)
    close(turned.view(ROWS, 3, HEADS, -1)[:, :2], expected)
    assert torch.equal(turned[:, 2 * WIDTH :], qkv[:, 2 * WIDTH :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, fused.SILU_BLOCK, fused.SILU_BLOCK + 32])
def test_silu_mul(dtype: torch.dtype, width: int) -> None:
    gate_up = torch.randn(ROWS, 2 * width).to(dtype) * 3
    gate, up = gate_up.double().chunk(2, -1)
    close(fused.silu_mul(gate_up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize(dtype: torch.dtype) -> None:
    patches = torch.randint(0, 256, (ROWS, 588), dtype=torch.uint8)
    mean, std = torch.tensor([122.7, 116.7, 104.1]), torch.tensor([68.5, 66.6, 70.3])
    values = fused.normalize(patches, mean, std, 592, dtype)
    expected = ((patches.float().view(ROWS, 3, -1) - mean[:, None]) / std[:, None]).flatten(1)
    assert torch.equal(values[:, :588], expected.to(dtype))
    assert not values[:, 588:].any()


@pytest.mark.parametrize("channels", [588, 1176])
def test_the_fused_tower_is_the_same_function(
    channels: int, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole forward of a GPU, with dense attention in place of varlen."""
    tower = Tower(checkpoint, torch.float32, torch.device("cpu"))
    reference = reference_tower(checkpoint, torch.float32, torch.device("cpu"))
    patches = random_patches(GRIDS, channels)
    if channels == 588:
        pixels = pixel_values(tower, patches)
    else:
        pixels = ((patches.float().view(-1, 3, 392) - tower.mean[:, None]) / tower.std[:, None]).flatten(1)
    monkeypatch.setattr(tower, "chunk_rows", 1 << 30)
    monkeypatch.setattr(tower, "fused", True)
    calls: list[int] = []
    silu_mul = fused.silu_mul
    monkeypatch.setattr(fused, "silu_mul", lambda x: calls.append(len(x)) or silu_mul(x))
    ours = tower.forward(patches, tower.plan(GRIDS))
    assert len(calls) == tower.config.depth
    assert error_of(ours, run_reference(reference, pixels, GRIDS)) <= FP32_TOLERANCE
