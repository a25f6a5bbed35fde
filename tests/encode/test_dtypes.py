"""How tokens are stored, against plain arithmetic. Catches: a value that is truncated, wraps, or becomes finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.encode.dtypes import STORED, overflows, restore, store

HALF_MAX = 65504.0


def tokens() -> torch.Tensor:
    """Of very different sizes, one of zeros, one whose largest value is negative."""
    values = (
        torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.linspace(-6, 6, 50)[:, None]
    )
    values[7] = 0
    values[9, 3] = -values[9].abs().max() * 3
    return values


def test_int8_is_each_tokens_nearest_step() -> None:
    exact = tokens().double().numpy()
    stored, scale = store(tokens(), "int8")
    assert stored.dtype == torch.int8
    steps = np.abs(exact).max(-1, keepdims=True) / 127
    steps[7] = 1
    assert scale.numpy()[steps[:, 0] != 1] == pytest.approx(steps[steps[:, 0] != 1], rel=1e-6)
    nearest = np.rint(exact / steps)
    assert np.abs(nearest).max(-1).tolist() == [127 if number != 7 else 0 for number in range(50)]
    ties = np.abs(exact / steps - np.trunc(exact / steps)) == pytest.approx(0.5, abs=1e-4)
    assert np.array_equal(stored.numpy()[~ties], nearest[~ties])
    assert np.abs(restore(stored, scale).double().numpy() - exact).max() <= 0.5001 * steps.max()


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_scaled_token_is_met_to_a_step_whatever_its_size(name: str) -> None:
    exact = tokens()
    stored, scale = store(exact, name)
    full = {"int8": 127, "fp8": 448}[name]
    assert stored.float().abs().amax(-1).tolist() == [full if number != 7 else 0 for number in range(50)]
    restored = restore(stored, scale)
    largest = exact.abs().amax(-1)
    error = (restored - exact).abs().amax(-1) / largest.clamp_min(1e-30)
    assert float(error.max()) < (0.5001 / 127 if name == "int8" else 16.01 / 448)
    assert not restored[7].any()
    place = exact.abs().argmax(-1, keepdim=True)
    assert torch.allclose(restored.gather(1, place), exact.gather(1, place), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float16_is_clamped_and_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    values = torch.tensor([[1.0, -2.5, 65472.0, 0], [70_000, -70_000, 3e38, 1], [float("inf"), float("-inf"), 1, 1]])
    values = torch.cat([values, torch.tensor([[float("nan"), 1, 80_000, 1]])]).to(dtype)
    stored, scale = store(values, "float16")
    assert scale is None
    assert stored.dtype == torch.float16
    assert stored[1].tolist() == [HALF_MAX, -HALF_MAX, HALF_MAX, 1]
    assert torch.isfinite(stored).all(-1).tolist() == [True, True, False, False]
    assert stored[2].tolist() == [float("inf"), float("-inf"), 1, 1]
    assert torch.isnan(stored[3, 0])
    # What is not finite is a reject, and does not fail its unit.
    assert overflows(values).tolist() == [0 if dtype == torch.float32 else int(float(values[0, 2]) > HALF_MAX), 3, 0, 1]


def test_float16s_largest_value_does_not_overflow() -> None:
    assert overflows(torch.tensor([[HALF_MAX, -HALF_MAX], [65_505.0, -1]])).tolist() == [0, 1]


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_a_float_is_rounded_once(name: str) -> None:
    exact = tokens().clamp(-60_000, 60_000)
    stored, scale = store(exact, name)
    assert scale is None
    assert torch.equal(stored, exact.to(STORED[name]))
    assert torch.equal(restore(stored, scale), stored.float())
