"""The GPU's kernels where there is no GPU: interpreted, and compiled for the GPUs that they are meant for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pipeline.tower import fused
from pipeline.tower.block import NORM_EPS, NormWeights, activate, normalize, rotate
from pipeline.tower.linear import FP8_CAPABILITY, Fp8Rows, quantize_rows
from pipeline.tower.tower import aligned_values

LOCAL = ".local"  # memory of a thread's own, in PTX: spilled registers, traffic that nobody has counted
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.\w+)*?(?:\.v(\d))?\.[bfsu](\d+)\s")


class NoGpu:
    """The GPU that kernels are compiled for, where there is none."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled_instead_of_launched(capability: int) -> Iterator[list[Any]]:
    """What is launched is compiled, with what a launch says of its arguments: types, alignment, constants."""
    kernels: list[Any] = []

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **named: kernels.append(kernel.run(*arguments, grid=grid, warmup=True, **named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", NoGpu(capability))
        patch.setattr(JITFunction, "__getitem__", launcher)
        yield kernels


def accesses(ptx: str) -> dict[str, Counter[int]]:
    """How often a thread loads and stores how many bytes at once."""
    found: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for kind, vector, bits in ACCESS.findall(ptx):
        found[kind][int(vector or 1) * int(bits) // 8] += 1
    return found


# Of each family: width, heads, width of the MLP (padded), its activation, values of a patch.
FAMILIES = {
    "qwen2_5_vl": (1280, 16, 3456, "silu_gated", (588, 1176)),
    "qwen2_vl": (1280, 16, 5120, "quick_gelu", (588, 1176)),
    "qwen3_vl_2b": (1024, 16, 4096, "gelu_tanh", (768, 1536)),
    "qwen3_vl_8b": (1152, 16, 4352, "gelu_tanh", (768, 1536)),
}


def launches(family: str, dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], int, int]]:
    """Each kernel at a family's real widths, and the fewest bytes that a load and a store of many values may have.

    Twelve pixels of 588 go by 4, four numbers of half a head of 36 in bfloat16 by 8; all else by 16.
    """
    width, heads, inner, activation, values = FAMILIES[family]
    gated, half = activation == "silu_gated", width // heads // 2
    rows = 3

    def made(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(*shape, dtype=kind)

    x, y, qkv = made(rows, width), made(rows, width), made(rows, 3 * width)
    norm = NormWeights(made(width), None if family == "qwen2_5_vl" else made(width))
    cos, sin = (made(rows, half, kind=torch.float32) for _ in range(2))
    up, lacks = made(rows, inner * (1 + gated)), made(width, kind=torch.float32)
    of_pair = 16 if half % 8 == 0 or dtype == torch.float32 else 8
    calls: dict[str, tuple[Callable[[], object], int, int]] = {
        "norm": (lambda: fused.add_norm(x, None, norm, NORM_EPS), 16, 16),
        "add_norm": (lambda: fused.add_norm(x, y, norm, NORM_EPS), 16, 16),
        "norm of what lacks biases": (lambda: fused.add_norm(x, None, norm, NORM_EPS, False, lacks), 16, 16),
        "rotate": (lambda: fused.rotate_(qkv, cos, sin, heads), of_pair, of_pair),
        "activate": (lambda: fused.activate(up, activation), 16, 16),
    }
    means = [torch.zeros(3) for _ in range(2)]
    for count in values:
        patches, padded = made(rows, count, kind=torch.uint8), aligned_values(count)
        calls[f"normalize {count}"] = lambda p=patches, n=padded: fused.normalize(p, *means, n, dtype), 4, 16
    if dtype == torch.bfloat16:  # e4m3 is a byte
        calls["add_norm in fp8"] = lambda: fused.add_norm(x, y, norm, NORM_EPS, True), 16, 8
        calls["activate in fp8"] = lambda: fused.activate_fp8(up, activation), 16, 8
        calls["quantize"] = lambda: fused.quantize(x), 16, 8
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "family", "dtype"),
    [
        *((90, family, dtype) for family in FAMILIES for dtype in (torch.bfloat16, torch.float32)),
        *((80, family, dtype) for family in ("qwen2_5_vl", "qwen3_vl_8b") for dtype in (torch.bfloat16, torch.float32)),
        (89, "qwen2_5_vl", torch.bfloat16),
        (89, "qwen3_vl_8b", torch.bfloat16),
    ],
)
def test_kernels_compile_to_machine_code_with_vectors_and_without_spills(
    family: str, dtype: torch.dtype, capability: int
) -> None:
    """The interpreter takes Python that the compiler refuses; single values are no way through memory."""
    for name, (launch, loads, stores) in launches(family, dtype).items():
        in_fp8 = "fp8" in name or name == "quantize"
        if in_fp8 and capability < 10 * FP8_CAPABILITY[0] + FP8_CAPABILITY[1]:
            continue
        with compiled_instead_of_launched(capability) as kernels:
            launch()
        (kernel,) = kernels
        assert kernel.asm["cubin"]
        assert LOCAL not in kernel.asm["ptx"], name
        found = accesses(kernel.asm["ptx"])
        assert found["ld"] and min(found["ld"]) >= loads, (name, found)
        scale = Counter({4: 1} if in_fp8 else {})  # one number of a row
        assert found["st"] - scale and min(found["st"] - scale) >= stores, (name, found)
        if in_fp8:
            assert re.search(r"cvt\.rn\.satfinite\.e4m3x2\.f(32|16x2)", kernel.asm["ptx"]), name


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


@pytest.mark.slow
def test_what_only_a_gpu_can_show_runs_on_a_stand_in() -> None:
    """A test that never runs is wrong without a word: one compared images that were not the same."""
    folder = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder.parent), str(folder.parent.parent)])}
    chosen = "neighbours or units_come_back or planted_mistakes"
    words = [sys.executable, "-m", "pytest", "-p", "on_stand_in_gpu", "-m", "cuda", "-k", chosen, "-v", "--durations=5"]
    done = subprocess.run([*words, str(folder / "test_gpu.py")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "3 passed" in done.stdout


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("width", "inner", "values"), [(1280, 5120, 588), (1152, 4352, 768), (1024, 4096, 768)])
def test_kernels_on_a_gpu(dtype: torch.dtype, width: int, inner: int, values: int) -> None:
    """At the real dimensions, against the same steps in float64."""
    rows, heads = 1000, 16
    # Below 9.0 a value goes to e4m3 by way of float16, which rounds twice.
    fp8 = dtype == torch.bfloat16 and torch.cuda.get_device_capability() >= (9, 0)

    def same_on_the_cpu(ours: object, rows: torch.Tensor) -> None:
        """A GPU's own eager division by a number is a product with its inverse: a bit away now and then."""
        assert isinstance(ours, Fp8Rows)
        eager = quantize_rows(rows.cpu())
        assert torch.equal(ours.scale_N1.cpu(), eager.scale_N1)
        assert torch.equal(ours.values_NK.cpu().view(torch.uint8), eager.values_NK.view(torch.uint8))

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
        quantized = fused.activate_fp8(inner_PI, activation) if fp8 else None
        activated = fused.activate(inner_PI, activation)
        close(activated, exact)
        if quantized is not None:
            same_on_the_cpu(quantized, activated)
    if fp8:
        same_on_the_cpu(fused.quantize(x), x)
        stream = x.clone()
        norm = NormWeights(weight, None)
        same_on_the_cpu(fused.add_norm(stream, y, norm, NORM_EPS, True), fused.add_norm(stream, None, norm, NORM_EPS))
    patches = torch.randint(0, 256, (rows, values), dtype=torch.uint8, device="cuda")
    mean, std = torch.tensor([122.7, 116.7, 104.1]).cuda(), torch.tensor([68.5, 66.6, 70.3]).cuda()
    expected = ((patches.float().view(rows, 3, -1) - mean[:, None]) / std[:, None]).flatten(1).to(dtype)
    padded = aligned_values(values)
    normalized = fused.normalize(patches, mean, std, padded, dtype)
    assert torch.equal(normalized[:, :values], expected)
    assert not normalized[:, values:].any()
