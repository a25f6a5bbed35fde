"""The kernels for matrix products: each the same function, and chosen by what is known before anything runs."""

from __future__ import annotations

import pytest
import torch
from test_tower import GRIDS, random_patches, relative_rms

import pipeline.tower.linear as linear_module
from pipeline.errors import RequestError
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.linear import aligned, choose_linear, fp8_linear, laid_out, linear_of, openblas_linear, pad_rows
from pipeline.tower.tower import Tower

CPU = torch.device("cpu")
needs_fp8 = pytest.mark.skipif(not linear_module.has_fp8_on_cpu(), reason="an older torch: fp8 by rows on GPUs only")


@pytest.mark.parametrize("kernel", ["torch", "openblas"])
@pytest.mark.parametrize("bias", [True, False])
def test_exact_kernels(kernel: str, bias: bool) -> None:
    x, weight = torch.randn(33, 96), torch.randn(50, 96)
    offset = torch.randn(50) if bias else None
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if offset is None else offset.double())
    ours = linear_of(kernel)(x, laid_out(weight, kernel), offset)
    assert relative_rms(ours, exact) < 1e-6


def test_openblas_uses_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's library would take every core of a machine that another encoder works on."""
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            openblas_linear(torch.randn(4, 8), torch.randn(2, 8))
            assert {library.num_threads for library in linear_module._controller().lib_controllers} == {count}
    finally:
        torch.set_num_threads(before)


def test_the_choice_follows_from_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "cpu_vendor", lambda: "AuthenticAMD")
    assert choose_linear(CPU, torch.float32) == "openblas"
    assert choose_linear(CPU, torch.bfloat16) == "torch"
    assert choose_linear(torch.device("cuda"), torch.float32) == "torch"
    monkeypatch.setattr(linear_module, "cpu_vendor", lambda: "GenuineIntel")
    assert choose_linear(CPU, torch.float32) == "torch"
    monkeypatch.setattr(linear_module, "has_fp8_on_cpu", lambda: True)
    assert choose_linear(CPU, torch.bfloat16, "fp8") == "fp8"
    monkeypatch.setattr(linear_module, "has_fp8_on_cpu", lambda: False)
    with pytest.raises(RequestError, match=r"model\.linear: fp8"):
        choose_linear(CPU, torch.bfloat16, "fp8")


def test_padding_the_mlp_is_exact_algebra() -> None:
    x, gate, up, down = torch.randn(9, 16), torch.randn(23, 16), torch.randn(23, 16), torch.randn(16, 23)

    def mlp(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.silu(x.double() @ gate.double().T) * (x.double() @ up.double().T)) @ down.double().T

    padded = mlp(pad_rows(gate, 32), pad_rows(up, 32), pad_rows(down.T, 32).T)
    assert relative_rms(padded, mlp(gate, up, down)) < 1e-15
    assert aligned(3420, torch.device("cuda")) == 3456
    assert pad_rows(torch.ones(3), 5).tolist() == [1, 1, 1, 0, 0]


@needs_fp8
def test_fp8_is_the_product_of_the_quantized_rows() -> None:
    x, weight, bias = torch.randn(40, 96).bfloat16(), torch.randn(48, 96).bfloat16(), torch.randn(48).bfloat16()
    x[3] = 0
    packed = laid_out(weight, "fp8")
    ours = fp8_linear(x, packed, bias)
    x8 = linear_module.quantize_rows(x)
    exact = (x8.values_NK.double() * x8.scale_N1.double()) @ (packed.values_NK.double() * packed.scale_N1.double()).T
    assert relative_rms(ours, exact + bias.double()) < 4e-3  # one rounding to bfloat16
    assert torch.equal(ours[3], bias)
    full = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    assert 1e-3 < relative_rms(ours, full) < 0.06


@needs_fp8
def test_a_tower_in_fp8_is_near_the_exact_one(checkpoint: Checkpoint) -> None:
    patches = random_patches(GRIDS)
    exact, fp8 = (
        Tower(checkpoint, torch.bfloat16, CPU, linear=setting).forward(patches, plan)
        for setting, plan in (
            (setting, Tower(checkpoint, torch.bfloat16, CPU).plan(GRIDS)) for setting in ("exact", "fp8")
        )
    )
    difference = relative_rms(fp8, exact)
    assert 1e-3 < difference < 0.3


def test_only_float32_is_transposed_on_a_cpu() -> None:
    """torch multiplies by a transposed weight in a narrow dtype through a loop: more than ten times slower."""
    weight = torch.randn(8, 16)
    assert not laid_out(weight, "torch").is_contiguous()
    assert laid_out(weight.bfloat16(), "torch").is_contiguous()
