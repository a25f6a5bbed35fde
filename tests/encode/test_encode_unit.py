"""A unit's forward passes. Catches: threads of another setting, an error that a reject spoils, a twin's row."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import noise

from pipeline import rejects
from pipeline.encode.dtypes import restore
from pipeline.encode.unit import EncodedUnit, UnitEncoder
from pipeline.grid import Geometry
from pipeline.index.units import Unit
from pipeline.output.commit import commit_unit
from pipeline.output.layout import data_path, samples_path
from pipeline.output.settings import ShardSettings
from pipeline.prepare.patches import patches_of_pixels
from pipeline.prepare.unit import PreparedSample, PreparedUnit
from pipeline.source.sample import IndexedSample
from pipeline.storage.scratch import Scratch
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.pack_plan import PackPlan
from pipeline.tower.tower import Tower

GEOMETRY = Geometry(
    patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=3136, max_pixels=20_000, max_image_pixels=1_000_000
)
SIZES = [(60, 90), (200, 60), (90, 60)]


@pytest.fixture(scope="module")
def tower(checkpoint: Checkpoint) -> Tower:
    return Tower(checkpoint, torch.float32, torch.device("cpu"))


def prepared_unit(images: list[int]) -> PreparedUnit:
    """Samples of which the i-th shows the distinct image images[i]."""
    made = [patches_of_pixels(noise(*size, number), GEOMETRY) for number, size in enumerate(SIZES)]
    samples = tuple(
        PreparedSample(
            facts=IndexedSample(key=f"k{index}", source="s.tar", sha256=f"{image:064d}", width=1, height=1),
            status=rejects.OK,
            image=image,
            clamped="none",
        )
        for index, image in enumerate(images)
    )
    patches_PC = np.concatenate([patches for patches, _ in made])
    unit = Unit(part=0, number=0, first=0, count=len(images), tokens=len(patches_PC) // 4, patches=len(patches_PC))
    return PreparedUnit(unit=unit, samples=samples, grids=tuple(grid for _, grid in made), patches_PC=patches_PC)


def spoil(tower: Tower, image: int, prepared: PreparedUnit, value: float, patch: pytest.MonkeyPatch) -> list[int]:
    """From now on an image's last token holds a value, in whatever pack it is. Returns the packs that are encoded."""
    real, calls = tower.forward_in_window_order, []
    starts = np.cumsum([0] + [t * h * w for t, h, w in prepared.grids])
    mark = torch.from_numpy(prepared.patches_PC[starts[image] : starts[image] + 4].copy())
    count = int(starts[image + 1] - starts[image])

    def spoiled(patches_PC: torch.Tensor, plan: PackPlan, *rest: object) -> torch.Tensor:
        calls.append(len(patches_PC))
        tokens = real(patches_PC, plan, *rest).clone()
        for start in range(0, len(patches_PC), 4):
            if torch.equal(patches_PC[start : start + 4], mark):
                tokens[plan.order_M == (start + count) // 4 - 1, 3] = value
        return tokens

    patch.setattr(tower, "forward_in_window_order", spoiled)
    return calls


def encoded(tower: Tower, prepared: PreparedUnit, dtype: str = "float32", **options: object) -> EncodedUnit:
    return UnitEncoder(tower, **{"max_patches": 10_000, "stored_dtype": dtype} | options).encode(prepared)


def test_the_threads_are_those_that_were_set_in_whatever_thread_it_is_called(
    tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They decide bits, and are a property of the calling thread; the second forward of a bad image too."""
    prepared = prepared_unit([0, 1, 2])
    spoil(tower, 1, prepared, float("nan"), monkeypatch)
    inner, seen = tower.forward_in_window_order, []

    def watched(*arguments: object) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        torch.set_num_threads(1)  # as another unit's thread would
        return inner(*arguments)

    monkeypatch.setattr(tower, "forward_in_window_order", watched)
    thread = threading.Thread(target=lambda: encoded(tower, prepared, threads=2))
    try:
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(1)
    assert seen == [2, 2]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_norms_are_of_the_tokens_as_stored(dtype: str, tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_unit([0, 1, 2])
    spoil(tower, 1, prepared, 200_000.0, monkeypatch)
    unit = encoded(tower, prepared, dtype, on_overflow="clamp")
    scale = None if unit.scale_MS is None else torch.from_numpy(unit.scale_MS)
    norms = restore(unit.tokens_MO, scale).double().norm(dim=-1).numpy()
    for image, (start, end) in enumerate(zip([0, *unit.ends_N], unit.ends_N, strict=False)):
        assert unit.norm_mean_N[image] == pytest.approx(norms[start:end].mean(), rel=1e-6)
        assert unit.norm_max_N[image] == pytest.approx(norms[start:end].max(), rel=1e-6)
    assert unit.overflows == (1 if dtype == "float16" else 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_a_reject_in_float16_and_no_overflow(
    value: float, tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clamped, an infinite value would be stored as a number; counted as over the range, it would fail its unit."""
    prepared = prepared_unit([0, 1, 2])
    calls = spoil(tower, 1, prepared, value, monkeypatch)
    unit = encoded(tower, prepared, "float16", on_overflow="fail")
    assert len(calls) == 2
    assert (unit.finite_N.tolist(), unit.overflows) == ([True, False, True], 0)


def test_the_error_of_storing_is_of_the_finite_images(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_unit([0, 1, 2])
    exact = encoded(tower, prepared)
    spoil(tower, 1, prepared, float("nan"), monkeypatch)
    unit = encoded(tower, prepared, "int8")
    assert unit.finite_N.tolist() == [True, False, True]
    rows = np.r_[0 : unit.ends_N[0], unit.ends_N[1] : unit.ends_N[2]]
    wide = exact.tokens_MO.double().numpy()[rows]
    restored = unit.tokens_MO.double().numpy()[rows] * unit.scale_MS[rows].astype(np.float64)
    error = np.sqrt(((restored - wide) ** 2).sum() / (wide**2).sum())
    assert unit.errors["storage_relative_rms"] == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("images", [[0, 1, 0, 1, 2], [1, 0, 2, 1, 0], [1, 0, 1, 2, 2]])
def test_a_twin_of_a_non_finite_image_is_a_reject_and_takes_no_other_row(
    images: list[int], tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_unit(images)
    exact = encoded(tower, prepared)
    spoil(tower, 1, prepared, float("nan"), monkeypatch)
    settings = ShardSettings(
        fingerprint="f" * 64,
        tower_sha256="t",
        stage="merged",
        dtype="float32",
        hidden_size=48,
        merge_size=2,
        row_group_bytes=4000,
        device="cpu",
    )
    with Scratch(tmp_path) as scratch:
        commit_unit(prepared, encoded(tower, prepared), tmp_path, scratch, settings)
    rows = pq.read_table(samples_path(tmp_path, prepared.unit.id)).to_pylist()
    assert [row["status"] for row in rows] == ["non_finite" if image == 1 else "ok" for image in images]
    data = pq.read_table(data_path(tmp_path, prepared.unit.id)).to_pylist()
    wanted = [(f"k{index}", image) for index, image in enumerate(images) if image != 1]
    starts = [0, *exact.ends_N.tolist()]
    assert [row["key"] for row in data] == [key for key, _ in wanted]
    for row, (_, image) in zip(data, wanted, strict=True):
        assert row["embedding"] == exact.tokens_MO[starts[image] : starts[image + 1]].numpy().tobytes()
