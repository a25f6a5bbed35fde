"""The GPU's kernels where there is no GPU: interpreted, and compiled for the GPUs that they are meant for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.tower import fused
from pipeline.tower.block import NORM_EPS, NormWeights, activate, normalize, rotate
from pipeline.tower.tower import aligned_values

ADD_NORM = "x_ptr:* y_ptr:* weight_ptr:* bias_ptr:* out_ptr:* width:i32 eps:fp32"
ROTATE = "qkv_ptr:* cos_ptr:*fp32 sin_ptr:*fp32 row_stride:i32 vectors:i32 half:i32"
KERNELS = {
    "add_rms_norm": (fused._add_norm, ADD_NORM, {"ADD": True, "LAYER": False, "BLOCK": 2048}),
    "add_layer_norm": (fused._add_norm, ADD_NORM, {"ADD": True, "LAYER": True, "BLOCK": 2048}),
    # Half a head: 40 and 36 values go by 64, 32 by 32.
    "rotate": (fused._rotate, ROTATE, {"VECTORS": 32, "HALF": 64}),
    "rotate_of_head_64": (fused._rotate, ROTATE, {"VECTORS": 32, "HALF": 32}),
    "quick_gelu": (fused._gelu, "x_ptr:* width:i32", {"TANH": False, "BLOCK": fused.ACTIVATION_BLOCK}),
    "tanh_gelu": (fused._gelu, "x_ptr:* width:i32", {"TANH": True, "BLOCK": fused.ACTIVATION_BLOCK}),
    "silu_mul": (fused._silu_mul, "gate_up_ptr:* out_ptr:* width:i32", {"BLOCK": fused.ACTIVATION_BLOCK}),
    "normalize": (
        fused._normalize,
        "patches_ptr:*u8 mean_ptr:*fp32 std_ptr:*fp32 out_ptr:* values:i32 channel_values:i32 padded:i32",
        {"BLOCK": 1024},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", list(KERNELS))
def test_kernels_compile_to_machine_code(name: str, dtype: str, capability: int) -> None:
    """The interpreter takes Python that the compiler refuses; spilled registers would be traffic nobody counted."""
    kernel, parameters, constants = KERNELS[name]
    types = dict(parameter.split(":") for parameter in parameters.split())
    signature = {key: f"*{dtype}" if kind == "*" else kind for key, kind in types.items()}
    source = ASTSource(
        fn=kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(kernel.arg_names.index(key),): value for key, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert compiled.asm["cubin"]
    assert ".local" not in compiled.asm["ptx"]


@pytest.mark.slow
def test_kernels_interpreted() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    tests = Path(__file__).with_name("fused_interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-v", str(tests)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("width", "inner", "values"), [(1280, 5120, 588), (1152, 4352, 768), (1024, 4096, 768)])
def test_kernels_on_a_gpu(dtype: torch.dtype, width: int, inner: int, values: int) -> None:
    """At the real dimensions, against the same steps in float64."""
    rows, heads = 1000, 16

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    def close(ours: torch.Tensor, exact: torch.Tensor) -> None:
        step = torch.finfo(ours.dtype).eps * (16 if ours.dtype == torch.float32 else 1.01)
        assert float((ours.double() - exact.double()).abs().max()) <= step * float(exact.abs().max())

    torch.manual_seed(0)
    x, y, weight = random(rows, width), random(rows, width), random(width)
    for bias in (None, random(width)):
        stream, norm = x.clone(), NormWeights(weight, bias)
        normed = fused.add_norm(stream, y, norm, NORM_EPS)
        assert torch.equal(stream, x + y)
        close(
            normed, normalize((x + y).double(), NormWeights(weight.double(), None if bias is None else bias.double()))
        )
        assert torch.equal(normed[:10], fused.add_norm(stream[:10].clone(), None, norm, NORM_EPS))
    qkv = random(rows, 3 * width)
    cos, sin = (torch.randn(rows, width // heads // 2, device="cuda") for _ in range(2))
    turned = qkv.clone()
    fused.rotate_(turned, cos, sin, heads)
    close(turned.view(rows, 3, heads, -1)[:, :2], rotate(qkv.view(rows, 3, heads, -1)[:, :2], cos, sin))
    assert torch.equal(turned[:, 2 * width :], qkv[:, 2 * width :])
    for activation in ("silu_gated", "quick_gelu", "gelu_tanh"):
        inner_PI = random(rows, 2 * inner)
        exact = activate(inner_PI.double(), activation)
        close(fused.activate(inner_PI, activation), exact)
    patches = torch.randint(0, 256, (rows, values), dtype=torch.uint8, device="cuda")
    mean, std = torch.tensor([122.7, 116.7, 104.1]).cuda(), torch.tensor([68.5, 66.6, 70.3]).cuda()
    expected = ((patches.float().view(rows, 3, -1) - mean[:, None]) / std[:, None]).flatten(1).to(dtype)
    padded = aligned_values(values)
    normalized = fused.normalize(patches, mean, std, padded, dtype)
    assert torch.equal(normalized[:, :values], expected)
    assert not normalized[:, values:].any()
