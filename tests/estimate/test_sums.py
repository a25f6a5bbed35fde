"""The numbers of a plan and of `stats`, against plain arithmetic over the images themselves.

Both come from the same sums, so that comparing one with the other would not see a mistake in them.
"""

from __future__ import annotations

import io
import math
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import config_for, encoded, make_tar, noise, run_here
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as reference_resize

from pipeline import rejects
from pipeline.config import parse_config
from pipeline.estimate import estimate_plan as estimate_plan_module
from pipeline.estimate import written as written_module
from pipeline.estimate.duplicates import Duplicates, repeated
from pipeline.estimate.estimate import Case, Rates, Writing, branches_of, cases_of, tokens_of_sizes
from pipeline.estimate.estimate_plan import estimate_plan
from pipeline.estimate.extrapolate import extrapolated, interval, student
from pipeline.estimate.histograms import LogHistogram, bins_of
from pipeline.estimate.sampling import Headers
from pipeline.estimate.written import EqualImages, Written, read_written
from pipeline.grid import Geometry
from pipeline.output.info import read_dataset
from pipeline.output.ledger import CommittedUnits, folded_parts
from pipeline.run.indexing import make_plan
from pipeline.run.request import check_request
from pipeline.source.drawing import Draw, Drawn, Draws
from pipeline.source.formats import FORMATS
from pipeline.source.formats.folder import Folder
from pipeline.source.plan import Plan

GEOMETRY = Geometry(
    patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=3136, max_pixels=20_000, max_image_pixels=90_000
)
SHARD_TOKENS, FILES_PER_PART = 40, 9


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Many sizes; twins within a unit, across units and across parts; rejects of every kind that a header shows."""
    sizes = [(30, 40), (60, 90), (140, 150), (200, 60), (300, 300), (112, 112), (45, 280)]
    kinds = [encoded(noise(*size, number)) for number, size in enumerate(sizes)]
    kinds += [encoded(noise(300, 301, 8)), encoded(noise(2, 401, 9)), b"no image"]
    order = [0, 1, 1, 2, 7, 7, 1, 3, 9, 9, 4, 5, 8, 6, 0, 0, 2, 8, 3, 1, 6, 6, 5]
    return {f"{number:02d}.png": kinds[kind] for number, kind in enumerate(order)}


@dataclass(frozen=True)
class Plain:
    """A file as plain code sees it: why it is a reject or "", its size, and its tokens."""

    data: bytes
    status: str
    height: int
    width: int
    tokens: int


def plain(data: bytes, max_pixels: int) -> Plain:
    try:
        width, height = Image.open(io.BytesIO(data)).size
    except OSError:
        return Plain(data, rejects.UNIDENTIFIED, 0, 0, 0)
    if width * height > GEOMETRY.max_image_pixels:
        return Plain(data, rejects.TOO_MANY_PIXELS, height, width, 0)
    if max(height, width) > 200 * min(height, width):
        return Plain(data, rejects.ASPECT_RATIO, height, width, 0)
    rows, columns = reference_resize(height, width, 28, GEOMETRY.min_pixels, max_pixels)
    return Plain(data, "", height, width, rows * columns // 784)


def units_of(images: list[Plain]) -> list[list[Plain]]:
    """Runs of one part's files that have at most SHARD_TOKENS."""
    units: list[list[Plain]] = []
    for first in range(0, len(images), FILES_PER_PART):
        units.append([])
        for image in images[first : first + FILES_PER_PART]:
            if units[-1] and sum(one.tokens for one in units[-1]) + image.tokens > SHARD_TOKENS:
                units.append([])
            units[-1].append(image)
    return units


def repeats(images: Iterable[Plain]) -> tuple[int, int]:
    """How many have the bytes of one before them, and their tokens."""
    seen: set[bytes] = set()
    again = [one for one in images if one.tokens and (one.data in seen or seen.add(one.data))]
    return len(again), sum(one.tokens for one in again)


def expected(images: list[Plain], max_pixels: int, width: int) -> dict[str, Any]:
    units, good = units_of(images), [one for one in images if not one.status]
    tokens = sorted(one.tokens for one in good)
    rounded = [round(one.height / 28) * round(one.width / 28) * 784 for one in good]
    within = [repeats(unit) for unit in units]
    return {
        "max_pixels": max_pixels,
        "samples": len(images),
        "units": len(units),
        "rejects": dict(sorted(Counter(one.status for one in images if one.status).items())),
        "tokens": sum(tokens),
        "tokens_mean": pytest.approx(sum(tokens) / len(tokens)),
        **{f"tokens_p{p}": tokens[math.ceil(len(tokens) * p / 100) - 1] for p in (5, 50, 95, 99)},
        "tokens_max": tokens[-1],
        "language_model_tokens": sum(tokens) + 2 * len(tokens),
        "share_clamped_min": pytest.approx(sum(area < GEOMETRY.min_pixels for area in rounded) / len(good)),
        "share_clamped_max": pytest.approx(sum(area > max_pixels for area in rounded) / len(good)),
        "share_scaled_up": pytest.approx(sum(one.tokens * 784 > one.height * one.width for one in good) / len(good)),
        "duplicates": repeats(images)[0],
        "duplicate_tokens": repeats(images)[1],
        "duplicates_within_units": sum(count for count, _ in within),
        "duplicate_tokens_within_units": sum(tokens for _, tokens in within),
        "embedding_bytes": sum(tokens) * width * 4,
    }


@pytest.fixture(scope="module")
def folder(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sums") / "in"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def config_of(folder: Path, output: Path, model_path: Path, **pack: object) -> Any:
    return config_for(
        folder,
        output,
        model_path,
        output={"shard_tokens": SHARD_TOKENS},
        limits={"max_image_pixels": GEOMETRY.max_image_pixels},
        pack=pack,
    )


def test_a_plan_is_what_plain_code_counts(
    files: dict[str, bytes], folder: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For two budgets at once: each with its own tokens, units and duplicates."""
    monkeypatch.setitem(FORMATS, "folder", Folder(files_per_part=FILES_PER_PART))
    monkeypatch.setattr(estimate_plan_module, "PARTS_AT_ONCE", 2)
    request = check_request(config_of(folder, tmp_path / "out", model_path))
    plan, _ = make_plan(request, say=lambda line: None)
    assert plan.num_parts == 3
    writing = Writing.of(request.config, 48)
    budgets = [20_000, 9000]
    estimates, source = estimate_plan(plan, cases_of(request.geometry, budgets, writing))
    for max_pixels, one in zip(budgets, estimates, strict=True):
        images = [plain(data, max_pixels) for data in files.values()]
        wanted = expected(images, max_pixels, 48)
        said = one.as_dict(writing, Rates(tokens_per_second=10.0))
        assert {name: said[name] for name in wanted} == wanted
        assert min(wanted[name] for name in wanted if "duplicate" in name) > 0
        histogram = {bar["from"]: bar["images"] for bar in said["tokens_histogram"]}
        counts = Counter(image.tokens for image in images if image.tokens)
        wide = int(said["tokens_histogram"][0]["to"])
        assert histogram == {
            first: sum(counts[first + more] for more in range(wide))
            for first in range(0, wanted["tokens_max"] + 1, wide)
        }
        encoded_tokens = wanted["tokens"] - wanted["duplicate_tokens_within_units"]
        assert said["device_hours"] == pytest.approx(encoded_tokens / 10 / 3600)
    alone, _ = estimate_plan(plan, cases_of(request.geometry, budgets, replace(writing, deduplicate=False)))
    assert (alone[0].unit_duplicates, alone[0].unit_duplicate_tokens) == (0, 0)
    assert alone[0].duplicates == estimates[0].duplicates
    # By a header alone: also of those whose size is a reject.
    sizes = [(one.height, one.width) for one in (plain(data, 20_000) for data in files.values()) if one.height]
    facts = source.as_dict()
    for p in (5, 50, 95, 99):
        areas, ratios = [h * w / 1e6 for h, w in sizes], [max(size) / min(size) for size in sizes]
        for name, values in (("megapixels", areas), ("aspect_ratio", ratios)):
            assert facts[f"{name}_p{p}"] == pytest.approx(
                float(np.percentile(values, p, method="inverted_cdf")), rel=0.004
            )


def test_a_reject_is_no_copy_not_the_first_one_either(model_path: Path, tmp_path: Path) -> None:
    """The bytes of a used key, then of a key of their own: they are encoded, and save nothing."""
    one, other = encoded(noise(60, 90, 1)), encoded(noise(90, 60, 2))
    source = make_tar(tmp_path / "a.tar", [("x.png", one), ("x.png", other), ("y.png", other)])
    config = config_for(source, tmp_path / "out", model_path)
    request = check_request(config)
    plan, _ = make_plan(request, say=lambda line: None)
    (estimate,), _ = estimate_plan(plan, cases_of(request.geometry, [20_000], Writing.of(request.config, 48)))
    assert estimate.rejects == {rejects.DUPLICATE_KEY: 1}
    assert (estimate.images, estimate.duplicates, estimate.unit_duplicates) == (2, 0, 0)


@pytest.fixture(scope="module")
def output(folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("written") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "folder", Folder(files_per_part=FILES_PER_PART))
        assert run_here(config_of(folder, output, model_path)).complete
    return output


def written_of(output: Path, files: ExitStack) -> Written:
    return read_written(output, CommittedUnits(output, Plan(output).num_parts), folded_parts(output), files)


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("folded", [True, False])
def test_what_is_written_is_what_plain_code_counts(
    folded: bool,
    at_once: int,
    files: dict[str, bytes],
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read from the ledger or from footers, however many units and images are counted at a time."""
    monkeypatch.setattr(written_module, "IMAGES_AT_ONCE", at_once)
    monkeypatch.setattr(written_module, "TABLES_AT_ONCE", at_once)
    ignored = shutil.ignore_patterns(*([] if folded else ["ledger", "_SUCCESS"]))
    copy = Path(shutil.copytree(output, tmp_path / "out", ignore=ignored))
    assert bool(folded_parts(copy)) is folded
    config = parse_config(read_dataset(copy).config)
    with ExitStack() as opened:
        written = written_of(copy, opened)
        estimate = written.estimate(config)
        alone = written.estimate(
            config.model_copy(update={"pack": config.pack.model_copy(update={"deduplicate": False})})
        )
    images = [plain(data, 20_000) for data in files.values()]
    wanted = expected(images, 20_000, 48)
    said = estimate.as_dict(Writing.of(config, 48), Rates())
    assert {name: said[name] for name in wanted} == wanted
    assert (alone.unit_duplicates, alone.unit_duplicate_tokens) == (0, 0)
    rows = [row for row in pq.read_table(copy / "samples").to_pylist() if row["status"] == "ok"]
    assert sum(row["num_tokens"] for row in rows) == wanted["tokens"]
    mean, largest = written.norms()
    assert mean == pytest.approx(sum(row["norm_mean"] for row in rows) / len(rows), rel=1e-6)
    assert largest == pytest.approx(max(row["norm_max"] for row in rows), rel=1e-6)
    assert largest > 1.01 * mean
    areas = [row["height"] * row["width"] / 1e6 for row in rows]
    wanted_area = float(np.percentile(areas, 50, method="inverted_cdf"))
    assert written.sizes.as_dict()["megapixels_p50"] == pytest.approx(wanted_area, rel=0.004)


@pytest.mark.parametrize("pieces", [1, 40])
def test_equal_images_are_found_wherever_they_lie(pieces: int) -> None:
    generator = np.random.default_rng(5)
    distinct = generator.integers(1, 2**64, 3000, np.uint64)
    hash_N = generator.choice(distinct, 8000)
    tokens_N = (hash_N % np.uint64(97)).astype(np.int32)  # equal bytes have equal tokens
    with ExitStack() as files:
        equal = EqualImages(files)
        for hashes, tokens in zip(np.array_split(hash_N, pieces), np.array_split(tokens_N, pieces), strict=True):
            equal.add(hashes, tokens)
        found = equal.again()
    counts = Counter(hash_N.tolist())
    again = {value: count - 1 for value, count in counts.items() if count > 1}
    assert found == (sum(again.values()), sum(count * (value % 97) for value, count in again.items()))


def test_the_samples_that_stand_there_more_than_once() -> None:
    hash_N = np.array([5, 9, 5, 7, 9, 5, 1], np.uint64)
    assert repeated(hash_N).tolist() == [0, 2, 5, 1, 4]
    assert repeated(hash_N[:0]).tolist() == []


def test_no_image_is_no_duplicate() -> None:
    """A hash of 0 is a reject, however many there are; what a full table must halve keeps its counts."""
    duplicates = Duplicates(most=64)
    hash_N = np.array([0, 0, 0, 3, 3, 4], np.uint64)
    duplicates.add(hash_N, np.arange(6), np.arange(6) + 10)
    heights, widths, more = duplicates.again()
    assert (heights.tolist(), widths.tolist(), more.tolist()) == ([3], [13], [1])


def test_sizes_at_their_exact_limits() -> None:
    height_N, width_N = np.array([300, 300, 28, 896, 56]), np.array([300, 301, 5600, 1120, 56])
    geometry = replace(GEOMETRY, max_pixels=896 * 1120, min_pixels=56 * 56, max_image_pixels=896 * 1120)
    assert tokens_of_sizes(height_N, width_N, geometry).tolist() == [121, 121, 200, 1280, 4]
    assert tokens_of_sizes(height_N, width_N, GEOMETRY)[:2].tolist() == [25, 0]
    pixels_N = tokens_of_sizes(height_N, width_N, geometry) * 784
    branches = branches_of(height_N, width_N, pixels_N, geometry)
    assert not branches["clamped_max"].any()
    assert not branches["clamped_min"].any()
    assert branches["scaled_up"].tolist() == [True, True, False, False, False]
    less = replace(geometry, max_pixels=896 * 1120 - 1, min_pixels=56 * 56 + 1)
    branches = branches_of(height_N, width_N, pixels_N, less)
    assert branches["clamped_max"].tolist() == [False, False, False, True, False]
    assert branches["clamped_min"].tolist() == [False, False, False, False, True]


def test_a_percentile_of_a_histogram_by_logarithm() -> None:
    values = np.exp(np.random.default_rng(0).uniform(0, 20, 4000))
    histogram = LogHistogram()
    histogram.add(values[:1000])
    histogram.add(values[1000:2500], np.full(1500, 2))
    histogram.add(values[2500:])
    whole = np.concatenate([values, values[1000:2500]])
    for percent in (5, 50, 95, 99):
        exact = float(np.percentile(whole, percent, method="inverted_cdf"))
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.004)


def test_bars_hold_every_image_once() -> None:
    images_T = np.arange(100)
    bars = bins_of(images_T, 12)
    assert sum(bar["images"] for bar in bars) == images_T.sum()
    assert [(bar["from"], bar["to"]) for bar in bars] == [(first, first + 9) for first in range(0, 100, 9)]
    assert bars[1]["images"] == sum(range(9, 18))


def draws_of(weights: list[float], sizes: list[list[tuple[int, int]]], unseen: float) -> Draws:
    """Height and width of each sample of each draw; 0×0 is no image."""
    return Draws(
        draws=tuple(
            Draw(
                weight=weight,
                samples=tuple(
                    Drawn(status=rejects.OK if height else rejects.CORRUPT, width=width, height=height)
                    for height, width in some
                ),
            )
            for weight, some in zip(weights, sizes, strict=True)
        ),
        files=9,
        unseen=unseen,
    )


def test_an_interval_is_students_around_the_mean_of_the_draws() -> None:
    draws = draws_of([2.0, 5.0, 1.0], [[(28, 28)] * 2, [(28, 28)] * 3, [(28, 28)]], 0.25)
    totals = [2.0 * (1 + 2), 5.0 * (3 + 4 + 5), 1.0 * 6]
    found = interval(draws, np.array([1, 2, 3, 4, 5, 6]))
    deviation = 4.303 * np.std(totals, ddof=1) / 3**0.5
    assert found.estimate == pytest.approx(sum(totals) / 3)
    assert found.high == pytest.approx(sum(totals) / 3 + deviation * 0.25**0.5)
    assert found.low == 0  # never fewer than none
    most = interval(replace(draws, unseen=0.01), np.array([1, 2, 3, 4, 5, 6]))
    assert most.low == pytest.approx(sum(totals) / 3 - deviation * 0.1)
    seen = interval(replace(draws, unseen=0.0), np.array([1, 2, 3, 4, 5, 6]))
    assert seen.low == seen.estimate == seen.high == found.estimate
    assert [student(freedom) for freedom in (1, 2, 5)] == [12.706, 4.303, 2.571]
    assert student(6) == pytest.approx(2.447, abs=2e-3)


def test_draws_are_extrapolated_by_their_weights() -> None:
    """One of ten times the weight says ten times as much; a reject counts as a sample and as no image."""
    sizes = [[(112, 140), (300, 301), (0, 0)], [(56, 56), (2, 401)]]
    draws = draws_of([10.0, 1.0], sizes, 0.5)
    writing = Writing(
        width=8, format="parquet", dtype="bfloat16", row_group_bytes=1 << 20, shard_tokens=500, deduplicate=True
    )
    rates = Rates(tokens_per_second=2.0, price_per_hour=3.0)
    said = extrapolated(draws, [Case(geometry=GEOMETRY, writing=writing)], [rates])
    assert (said["sampled"], said["files"]) == (5, 9)
    assert said["samples"]["estimate"] == (10 * 3 + 1 * 2) / 2
    (budget,) = said["budgets"]
    tokens = (10 * 20 + 1 * 4) / 2
    assert budget["tokens"]["estimate"] == tokens
    assert budget["images"]["estimate"] == (10 + 1) / 2
    assert budget["tokens_mean"] == tokens / 5.5
    assert budget["language_model_tokens"]["estimate"] == tokens + 2 * 5.5
    assert budget["embedding_bytes"]["estimate"] == tokens * 8 * 2
    assert budget["rejects"] == {rejects.CORRUPT: 5.0, rejects.TOO_MANY_PIXELS: 5.0, rejects.ASPECT_RATIO: 0.5}
    assert [budget[f"tokens_p{p}"] for p in (5, 50, 95, 99)] == [4, 20, 20, 20]
    assert said["megapixels_p50"] == pytest.approx(112 * 140 / 1e6)
    assert said["aspect_ratio_p99"] == 200.5
    assert budget["share_clamped_max"] == 0
    assert sum(bar["images"] for bar in budget["tokens_histogram"]) == pytest.approx(5.5)
    assert budget["device_hours"]["estimate"] == pytest.approx(tokens / 2 / 3600)
    assert budget["price"]["high"] == pytest.approx(budget["tokens"]["high"] / 2 / 3600 * 3)
    assert budget["tokens"]["low"] < tokens < budget["tokens"]["high"]


def test_a_drawn_image_is_what_its_header_says(files: dict[str, bytes]) -> None:
    headers = Headers()
    assert headers.drawn(None) == Drawn(status=rejects.MISSING_IMAGE)
    assert headers.drawn(b"no image") == Drawn(status=rejects.UNIDENTIFIED)
    assert headers.drawn(files["01.png"]) == Drawn(status=rejects.OK, width=90, height=60)
