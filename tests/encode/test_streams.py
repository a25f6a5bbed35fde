"""Further streams in a unit's tokens. Catches: one stream's scale, norms, overflow or NaN taken for another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STREAMED, STREAMED_PIXELS, noise

from pipeline import rejects
from pipeline.encode.dtypes import norms_of, overflows, restore, scale_bytes, scale_of, split_streams, store
from pipeline.encode.encoded import EncodedUnit
from pipeline.encode.fp8_error import Fp8Error
from pipeline.encode.pack import Size, pack_images
from pipeline.encode.unit import UnitEncoder
from pipeline.errors import EncodeError
from pipeline.index.units import Unit
from pipeline.prepare.patches import patches_of_pixels
from pipeline.prepare.unit import PreparedSample, PreparedUnit
from pipeline.source.sample import IndexedSample
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.config import TowerConfig
from pipeline.tower.geometry import geometry_of
from pipeline.tower.tower import Tower

WIDTH, STREAMS = STREAMED.out_width, STREAMED.streams
SIZES = [(90, 120), (200, 60), (70, 70)]


@pytest.fixture(scope="module")
def tower(streamed_path: Path) -> Tower:
    return Tower(Checkpoint(str(streamed_path)), torch.float32, torch.device("cpu"))


def prepared_unit(config: TowerConfig, sizes: list[tuple[int, int]] = SIZES) -> PreparedUnit:
    geometry = geometry_of(config, **STREAMED_PIXELS, max_image_pixels=1_000_000)
    made = [patches_of_pixels(noise(*size, number), geometry) for number, size in enumerate(sizes)]
    samples = tuple(
        PreparedSample(facts=IndexedSample(key=f"k{image}", source="s"), status=rejects.OK, image=image)
        for image in range(len(sizes))
    )
    patches_PC = np.concatenate([patches for patches, _ in made])
    unit = Unit(part=0, number=0, first=0, count=len(samples), tokens=len(patches_PC) // 4, patches=len(patches_PC))
    return PreparedUnit(unit=unit, samples=samples, grids=tuple(grid for _, grid in made), patches_PC=patches_PC)


def encoded(tower: Tower, dtype: str = "float32", **options: object) -> EncodedUnit:
    encoder = UnitEncoder(tower, **{"max_patches": 10_000, "stored_dtype": dtype} | options)
    return encoder.encode(prepared_unit(tower.config))


def changed(tower: Tower, monkeypatch: pytest.MonkeyPatch, column: int, value: float) -> None:
    """From now on the last token of the second image, alone or among others, has a value in one column."""
    real = tower.forward_in_window_order
    prepared = prepared_unit(tower.config)
    sizes = [t * h * w for t, h, w in prepared.grids]
    mark = torch.from_numpy(prepared.patches_PC[sizes[0] + sizes[1] - 4 : sizes[0] + sizes[1]].copy())

    def spoiled(patches_PC: torch.Tensor, plan: object, *rest: object) -> torch.Tensor:
        rows = real(patches_PC, plan, *rest).clone()
        (token,) = [at for at in range(len(patches_PC) // 4) if torch.equal(patches_PC[4 * at : 4 * at + 4], mark)] or [
            -1
        ]
        rows[plan.order_M == token, column] = value
        return rows

    monkeypatch.setattr(tower, "forward_in_window_order", spoiled)


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_each_token_has_a_scale_for_each_stream(dtype: str) -> None:
    """Streams differ in size by orders of magnitude: with one scale the small ones would be stored as zeros."""
    sizes = torch.tensor([1.0, 1e-4, 1e4])
    exact = torch.randn(20, 3, 16, generator=torch.Generator().manual_seed(0)) * sizes[:, None]
    stored, scale = store(exact.flatten(1), dtype, 2)
    assert scale.shape == (20, 3)
    restored = split_streams(restore(stored, scale), 2)
    away = (restored - exact).norm(dim=(0, 2)) / exact.norm(dim=(0, 2))
    assert float(away.max()) < (0.01 if dtype == "int8" else 0.04)
    raw = scale.numpy().astype("<f4").tobytes()
    assert len(raw) == scale_bytes(20, 2) and torch.equal(scale_of(raw, 2), scale)
    alone, own = store(exact[:, 1].contiguous(), dtype)
    assert torch.equal(split_streams(stored.float(), 2)[:, 1], alone.float())
    assert torch.equal(scale[:, 1:2], own)


def test_rows_are_the_main_stream_and_the_further_ones(tower: Tower, streamed_path: Path) -> None:
    unit = encoded(tower)
    assert unit.tokens_MO.shape == (unit.ends_N[-1], WIDTH * (1 + STREAMS))
    main = Tower(Checkpoint(str(streamed_path), deepstack=False), torch.float32, torch.device("cpu"))
    assert main.config.width_of("merged") == WIDTH
    assert torch.equal(encoded(main).tokens_MO, unit.tokens_MO[:, :WIDTH])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_norms_are_of_the_main_stream(dtype: str, tower: Tower) -> None:
    unit = encoded(tower, dtype)
    scale = None if unit.scale_MS is None else torch.from_numpy(unit.scale_MS)
    main = split_streams(restore(unit.tokens_MO, scale), STREAMS)[:, 0].double().norm(dim=-1).numpy()
    for image, (start, end) in enumerate(zip([0, *unit.ends_N], unit.ends_N, strict=False)):
        assert unit.norm_mean_N[image] == pytest.approx(main[start:end].mean(), rel=1e-6)
        assert unit.norm_max_N[image] == pytest.approx(main[start:end].max(), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "fp8"])
@pytest.mark.parametrize("stream", range(1 + STREAMS))
def test_a_value_that_is_not_finite_rejects_its_image_whatever_its_stream(
    stream: int, dtype: str, tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(tower, monkeypatch, stream * WIDTH + 3, float("nan"))
    unit = encoded(tower, dtype)
    assert unit.finite_N.tolist() == [True, False, True]


def test_overflows_are_of_all_streams(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(tower, monkeypatch, STREAMS * WIDTH + 3, 70_000.0)
    with pytest.raises(EncodeError, match="1 values over float16's range in k1;"):
        encoded(tower, "float16")
    unit = encoded(tower, "float16", on_overflow="clamp")
    assert unit.overflows == 1 and float(unit.tokens_MO.max()) == 65_504
    assert int(overflows(torch.tensor([[1.0, 70_000, 1, -70_000]])).sum()) == 2


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_the_error_of_storing_is_that_of_the_worst_stream(dtype: str, tower: Tower) -> None:
    exact, plain = encoded(tower), encoded(tower, dtype)
    by_stream = plain.errors["storage_relative_rms_by_stream"]
    assert len(by_stream) == 1 + STREAMS and plain.errors["storage_relative_rms"] == max(by_stream)
    restored = split_streams(restore(plain.tokens_MO, torch.from_numpy(plain.scale_MS)), STREAMS)
    wide = split_streams(exact.tokens_MO, STREAMS)
    assert by_stream == pytest.approx(((restored - wide).norm(dim=(0, 2)) / wide.norm(dim=(0, 2))).tolist(), rel=1e-3)
    assert torch.allclose(norms_of(exact.tokens_MO, STREAMS), wide.norm(dim=-1), rtol=1e-6)


def test_what_fp8_products_cost_is_said_of_each_stream(tower: Tower) -> None:
    """Towers of another dtype stand for fp8, which few CPUs have: what is measured is the distance of two towers."""
    low = Tower(tower.checkpoint, torch.bfloat16, torch.device("cpu"))
    prepared = prepared_unit(tower.config)
    patches_PC = torch.from_numpy(prepared.patches_PC[: prepared.grids[0][1] * prepared.grids[0][2]])
    told = Fp8Error(low, "merged").measure(patches_PC, prepared.grids[0])
    assert told["bfloat16"]["relative_rms"] == 0
    by_stream = told["float32"]["relative_rms_by_stream"]
    assert len(by_stream) == 1 + STREAMS and told["float32"]["relative_rms"] == max(by_stream)
    assert 0.9 < told["float32"]["cosine_min"] <= told["float32"]["cosine_mean"] <= 1
    ours, exact = (
        split_streams(encoded(one).tokens_MO.double(), STREAMS)[: len(patches_PC) // 4] for one in (low, tower)
    )
    assert by_stream == pytest.approx(((ours - exact).norm(dim=(0, 2)) / exact.norm(dim=(0, 2))).tolist(), rel=0.5)


def test_packs_are_balanced_by_the_familys_own_cost(tower: Tower) -> None:
    """Where every block attends to the whole frame, a frame's attention weighs more than where four in 32 do."""
    prepared = prepared_unit(tower.config, [(96, 192), *[(64, 64)] * 8])
    unit = UnitEncoder(tower, max_patches=120, stored_dtype="float32").encode(prepared)
    sizes = [t * h * w for t, h, w in prepared.grids]
    assert sizes == [72, *[16] * 8]
    by_default = pack_images([Size(patches=size, frame_patches=size) for size in sizes], 120)
    assert [sum(sizes[image] for image in pack) for pack in by_default] == [104, 96]
    assert unit.packs == (88, 112)
