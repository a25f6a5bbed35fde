"""The Triton kernels in Triton's interpreter, on a CPU. Run by test_fused.py, with TRITON_INTERPRET=1 from the start.

Conversions between floats are torch's here: the interpreter's own truncate to bfloat16 where a GPU rounds, and lose a
carry on their way to e4m3 (127.9 becomes 64).
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from test_families import SMALL
from test_tower import FP32_TOLERANCE, error_of, random_patches, relative_rms
from triton.runtime import interpreter

from jobs.bench.peers import pixel_values
from pipeline.tower import fused
from pipeline.tower import linear as linear_module
from pipeline.tower import tower as tower_module
from pipeline.tower.block import NORM_EPS, NormWeights, activate, normalize, rotate
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.families.family import Activation
from pipeline.tower.linear import Fp8Rows, has_fp8_on_cpu, quantize_rows
from pipeline.tower.pack_plan import Grid
from pipeline.tower.random_tower import write_random_checkpoint
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.tower.tower import Tower

DTYPES = [torch.float32, torch.bfloat16]
OF_TRITON = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
ROWS, WIDTH, HEADS = 7, 160, 2
GRIDS: list[Grid] = [(1, 2, 2), (1, 2, 10)]  # few rows: each is a program that Python interprets


def close(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """Within one rounding of a narrow dtype, a few of the fp32 that is computed in."""
    step = torch.finfo(ours.dtype).eps * (8 if ours.dtype == torch.float32 else 1.01)
    assert float((ours.double() - exact.double()).abs().max()) <= step * float(exact.abs().max())


def converted(data: np.ndarray, before: tl.dtype, after: tl.dtype, rounding: object) -> np.ndarray:
    """Rounded to the nearest, ties to even, as a GPU does."""
    bits = {8: torch.uint8, 16: torch.int16, 32: torch.int32}
    source = torch.from_numpy(np.ascontiguousarray(data)).view(OF_TRITON[before])
    return source.to(OF_TRITON[after]).view(bits[after.primitive_bitwidth]).numpy()


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(interpreter, "_convert_float", converted)


def same(ours: Fp8Rows, eager: Fp8Rows) -> None:
    """To the bit; a NaN is one in both."""
    assert torch.equal(ours.scale_N1.nan_to_num(-1.0), eager.scale_N1.nan_to_num(-1.0))
    assert torch.equal(ours.values_NK.float().nan_to_num(-1.0), eager.values_NK.float().nan_to_num(-1.0))


def with_odd_rows(*shape: int) -> torch.Tensor:
    """Rows of many sizes, one of zeros, one with a NaN, and one with an infinity."""
    x = torch.randn(*shape) * torch.tensor([1.0, 1e-4, 1e4, 0.0, 1.0, 1.0, 30.0])[:, None]
    x[4, 3], x[5, 7] = float("nan"), float("inf")
    x[6, :9] = torch.linspace(-448, 448, 9)
    return x


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantized_rows_are_the_eager_ones(dtype: torch.dtype) -> None:
    """What makes the operand of a product in fp8 quantizes what it would have written, to the bit."""
    x = with_odd_rows(ROWS, WIDTH).to(dtype)
    same(fused.quantize(x), quantize_rows(x))
    weight = torch.randn(WIDTH).to(dtype)
    for bias in (None, torch.randn(WIDTH).to(dtype)):
        norm, y = NormWeights(weight, bias), torch.randn(ROWS, WIDTH).to(dtype)
        stream, other = x.clone(), x.clone()
        quantized = fused.add_norm(stream, y, norm, NORM_EPS, True)
        same(quantized, quantize_rows(fused.add_norm(other, y, norm, NORM_EPS)))
        assert torch.equal(stream.nan_to_num(1.0), other.nan_to_num(1.0))
    activation: Activation
    for activation in ("silu_gated", "quick_gelu", "gelu_tanh"):
        inner = (with_odd_rows(ROWS, 2 * 48) / 30).to(dtype)
        same(fused.activate_fp8(inner, activation), quantize_rows(fused.activate(inner.clone(), activation)))


@pytest.mark.skipif(not has_fp8_on_cpu(), reason="an older torch: fp8 by rows on GPUs only")
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_a_tower_in_fp8_takes_its_operands_from_the_kernels(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No eager step makes an operand, and the tokens are those of the eager steps but for bfloat16's roundings."""
    config = replace(SMALL[model_type], depth=2)
    if config.streams:
        config = replace(config, deepstack_blocks=(0,))
    write_random_checkpoint(tmp_path, config)
    tower = Tower(Checkpoint(str(tmp_path)), torch.bfloat16, torch.device("cpu"), linear="fp8")
    patches = random_patches(GRIDS, 3 * config.patch_size**2)
    monkeypatch.setattr(tower, "chunk_rows", 1 << 30)
    eager = tower.forward(patches, tower.plan(GRIDS))
    monkeypatch.setattr(tower, "fused", True)
    made: list[int] = []
    monkeypatch.setattr(linear_module, "quantize_rows", lambda x: made.append(len(x)) or quantize_rows(x))
    ours = tower.forward(patches, tower.plan(GRIDS))
    assert made == []
    assert relative_rms(ours, eager) < 0.05


def test_the_qkv_product_does_not_outlive_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a fifth of what a pack takes at its most, which is within the MLP."""
    write_random_checkpoint(tmp_path, replace(SMALL["qwen2_5_vl"], depth=2))
    tower = Tower(Checkpoint(str(tmp_path)), torch.float32, torch.device("cpu"))
    monkeypatch.setattr(tower, "fused", True)
    monkeypatch.setattr(tower, "chunk_rows", 1 << 30)
    turn, activate = fused.rotate_, fused.activate
    products: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def turned(qkv: torch.Tensor, *rest: Any) -> None:
        products.append(weakref.ref(qkv.untyped_storage()))
        turn(qkv, *rest)

    def activated(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        gc.collect()  # the interpreter makes rings of what it is given
        alive.append(sum(product() is not None for product in products))
        return activate(x, *rest)

    monkeypatch.setattr(fused, "rotate_", turned)
    monkeypatch.setattr(fused, "activate", activated)
    tower.forward(random_patches(GRIDS), tower.plan(GRIDS))
    assert alive == [0, 0]


@pytest.mark.parametrize("layer", [False, True])
def test_a_norm_of_a_stream_that_lacks_something(layer: bool) -> None:
    x, offset = torch.randn(ROWS, WIDTH).bfloat16(), torch.randn(WIDTH)
    norm = NormWeights(torch.randn(WIDTH).bfloat16(), torch.randn(WIDTH).bfloat16() if layer else None)
    exact = normalize(
        x.double() + offset.double(), NormWeights(*(None if one is None else one.double() for one in norm))
    )
    stream = x.clone()
    close(fused.add_norm(stream, None, norm, NORM_EPS, False, offset), exact)
    assert torch.equal(stream, x)


@pytest.mark.parametrize("by_product", [False, True])
@pytest.mark.parametrize(("model_type", "frames"), [("qwen2_5_vl", 1), ("qwen2_vl", 1), ("qwen3_vl", 2)])
def test_the_fused_tower_is_the_same_function(
    model_type: str, frames: int, by_product: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole forward of a GPU, with dense attention in place of varlen; the last block's stream among the others.

    The residual stream is added to by products, or by norms.
    """
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
    if by_product:
        monkeypatch.setattr(tower, "_lacks", tower_module._sums_of_biases(tower.blocks))
        monkeypatch.setattr(tower, "_linear", torch.nn.functional.linear)
    calls: list[int] = []
    activate = fused.activate
    monkeypatch.setattr(fused, "activate", lambda x, kind: calls.append(len(x)) or activate(x, kind))
    ours = tower.forward(patches, tower.plan(GRIDS))
    assert len(calls) == tower.config.depth
    exact = run_reference(reference, pixels, GRIDS)
    for one, other in zip(ours.split(config.out_width, 1), exact.split(config.out_width, 1), strict=True):
        assert error_of(one, other) <= FP32_TOLERANCE
    assert error_of(tower.forward(patches, tower.plan(GRIDS), "pre_merger"), before) <= FP32_TOLERANCE
