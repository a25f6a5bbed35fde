"""What a plan says before a run: sampled with an interval, counted exactly, and the same as what is then written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for, encoded, make_tar, noise, run_here, write_config

from pipeline.cli import main
from pipeline.config import parse_config
from pipeline.encode.dtypes import STORED, is_scaled
from pipeline.estimate import estimate_plan as estimate_plan_module
from pipeline.estimate import sampling
from pipeline.estimate.duplicates import Duplicates
from pipeline.estimate.estimate import Case, Rates, Writing, cases_of
from pipeline.estimate.estimate_plan import Sharing, estimate_plan
from pipeline.estimate.extrapolate import extrapolated, student
from pipeline.grid import smart_resize
from pipeline.index.read import hashes_of
from pipeline.output.output_size import SCALED, VALUE_BYTES
from pipeline.run.indexing import make_plan
from pipeline.run.request import check_request
from pipeline.source.format import Columns
from pipeline.source.formats import FORMATS
from pipeline.source.formats.parquet import Parquet
from pipeline.source.named_image import NamedImage

PHOTOS, SEEDS = 260, 40
WRITING = Writing(
    width=8, format="parquet", dtype="float32", row_group_bytes=1 << 20, shard_tokens=500, deduplicate=True
)


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    """Sizes that differ a lot, drawn from a few pictures; every tenth is another one's copy."""
    generator = np.random.default_rng(3)
    kinds = [encoded(noise(int(h), int(w), n)) for n, (h, w) in enumerate(generator.integers(30, 400, (40, 2)))]
    return {f"{number:04d}.png": kinds[int(generator.integers(40))] for number in range(PHOTOS)}


def as_folder(photos: dict[str, bytes], place: Path) -> Path:
    for name, data in photos.items():
        path = place / f"{int(name[:4]) % 7}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place


def as_tars(photos: dict[str, bytes], place: Path) -> Path:
    names = list(photos)
    for number, first in enumerate((0, 30, 160)):  # of sizes that differ
        last = (30, 160, PHOTOS)[number]
        members = [(f"{'long/' * (30 * (number == 1))}{name}", photos[name]) for name in names[first:last]]
        make_tar(place / f"{number}.tar", members)
    return place / "*.tar"


def as_tars_of_pairs(photos: dict[str, bytes], place: Path) -> Path:
    """Of two images a key names, `image_column` chooses one; some keys have none."""
    small = encoded(noise(60, 60, 1))
    for number in range(3):
        members: list[tuple[str, bytes]] = []
        for name, data in list(photos.items())[number::3]:
            key = name.partition(".")[0]
            members += [(f"{key}.image.png", data), (f"{key}.mask.png", small), (f"{key}.txt", b"x" * 700)]
            if int(key) % 9 == 0:
                members.append((f"{key}-none.txt", b"y"))
        make_tar(place / f"{number}.tar", members)
    return place / "*.tar"


def as_gzipped_tars(photos: dict[str, bytes], place: Path) -> Path:
    names = list(photos)
    for number in range(40):
        make_tar(place / f"{number:02d}.tar.gz", [(name, photos[name]) for name in names[number::40]], "w:gz")
    return place / "*.tar.gz"


def as_parquet(photos: dict[str, bytes], place: Path) -> Path:
    place.mkdir(parents=True)
    pq.write_table(pa.table({"image": list(photos.values())}), place / "a.parquet", row_group_size=60)
    return place / "a.parquet"


def as_many_parquet(photos: dict[str, bytes], place: Path) -> Path:
    place.mkdir(parents=True)
    values = list(photos.values())
    for number in range(52):
        some = values[number::52]
        pq.write_table(pa.table({"image": some}), place / f"{number:02d}.parquet", row_group_size=2)
    return place / "*.parquet"


def as_jsonl(photos: dict[str, bytes], place: Path) -> Path:
    as_folder(photos, place)
    lines = [
        json.dumps({"image": f"{int(name[:4]) % 7}/{name}", "text": "x" * (int(name[:4]) % 90)}) for name in photos
    ]
    (place / "a.jsonl").write_text("\n".join(lines))
    return place / "a.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize(
    "door", [as_folder, as_tars, as_tars_of_pairs, as_gzipped_tars, as_parquet, as_many_parquet, as_jsonl]
)
def test_the_whole_lies_in_the_interval_of_a_sample(
    door: Any,
    photos: dict[str, bytes],
    model_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(FORMATS, "parquet", Parquet(footers_read=20))
    source = door(photos, tmp_path / "in")
    config = config_for(source, tmp_path / "out", model_path)
    path = write_config(tmp_path / "c.yaml", config)

    def plan(*words: str) -> dict[str, Any]:
        assert main(["plan", str(path), "--json", *words]) == 0
        return dict(json.loads(capsys.readouterr().out))

    count, words = "160" if door is as_tars_of_pairs else "80", ("--tokens-per-second", "50")
    (by_command,) = plan("--sample", count, "--seed", "3", *words)["budgets"]
    assert not (tmp_path / "out").exists()
    assert by_command["device_hours"]["estimate"] == pytest.approx(by_command["tokens"]["estimate"] / 50 / 3600)
    whole = plan(*words)
    (exact,) = whole["budgets"]
    request = check_request(config)
    case = Case(geometry=request.geometry, writing=WRITING)
    hits, widths = {"tokens": 0, "samples": 0}, []
    for seed in range(SEEDS):
        draws, _ = sampling.draw(request.listed(), int(count), seed, Columns())
        one = extrapolated(draws, [case], [Rates()])
        (budget,) = one["budgets"]
        tokens, samples = budget["tokens"], one["samples"]
        assert seed != 3 or tokens == by_command["tokens"]
        hits["tokens"] += tokens["low"] <= exact["tokens"] <= tokens["high"]
        hits["samples"] += samples["low"] <= exact["samples"] <= samples["high"]
        widths.append((tokens["high"] - tokens["low"]) / exact["tokens"])
        if door is as_tars_of_pairs:
            assert budget["rejects"].keys() <= {"missing_image"}
    # 95 in a hundred: of forty, fewer than 34 would be seen in one of three hundred tests.
    assert min(hits.values()) >= 34
    assert max(widths) < 0.8  # it says something


@pytest.mark.slow
def test_a_sample_of_a_manifest_reads_no_more_images_than_it_needs(
    photos: dict[str, bytes], model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = as_jsonl(photos, tmp_path / "in")
    lines = source.read_text().splitlines()
    source.write_text("\n".join(lines * 100))
    request = check_request(config_for(source, tmp_path / "out", model_path))
    read: list[object] = []
    real = NamedImage.read
    monkeypatch.setattr(NamedImage, "read", lambda image: read.append(image) or real(image))
    draws, _ = sampling.draw(request.listed(), 320, 1, Columns())
    assert 250 < len(read) < 2 * 320
    assert len(read) == draws.samples


@pytest.mark.slow
def test_a_sample_of_everything_is_exact(
    photos: dict[str, bytes], model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(as_folder(photos, tmp_path / "in"), tmp_path / "out", model_path)
    path = write_config(tmp_path / "c.yaml", config)
    assert main(["plan", str(path), "--json", "--sample", "1000"]) == 0
    (sampled,) = json.loads(capsys.readouterr().out)["budgets"]
    assert main(["plan", str(path), "--json"]) == 0
    (exact,) = json.loads(capsys.readouterr().out)["budgets"]
    assert sampled["tokens"] == {name: pytest.approx(exact["tokens"]) for name in ("estimate", "low", "high")}
    assert [sampled[f"tokens_p{percent}"] for percent in (5, 50, 95)] == [
        exact[f"tokens_p{percent}"] for percent in (5, 50, 95)
    ]
    assert [one["images"] for one in sampled["tokens_histogram"]] == [
        pytest.approx(one["images"]) for one in exact["tokens_histogram"]
    ]
    for name in ("share_clamped_max", "share_scaled_up", "tokens_mean"):
        assert sampled[name] == pytest.approx(exact[name])
    assert sampled["language_model_tokens"]["low"] == pytest.approx(exact["language_model_tokens"])
    assert sampled["data_bytes"]["estimate"] == pytest.approx(exact["data_bytes"], rel=0.15)  # units are not full
    assert main(["plan", str(path), "--sample", "50"]) == 0
    assert " to " in capsys.readouterr().out


def planned_and_written(
    path: Path, output: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    from pipeline.config import load_config

    assert main(["plan", str(path), "--json", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    run_here(load_config(str(path), list(words[1::2])))
    assert main(["stats", str(output), "--json"]) == 0
    return said, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_plan_is_what_is_written(
    photos: dict[str, bytes], model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(
        tmp_path / "c.yaml", config_for(as_folder(photos, tmp_path / "in"), tmp_path / "out", model_path)
    )
    plan, wrote = planned_and_written(path, tmp_path / "out", capsys)
    (said,) = plan["budgets"]
    for name in (
        "tokens",
        "samples",
        "units",
        "embedding_bytes",
        "tokens_p5",
        "tokens_p99",
        "tokens_max",
        "tokens_histogram",
        "language_model_tokens",
        "duplicates",
        "duplicate_tokens",
        "duplicates_within_units",
        "duplicate_tokens_within_units",
    ):
        assert said[name] == wrote[name], name
    for name in ("tokens_mean", "share_clamped_min", "share_clamped_max", "share_scaled_up"):
        assert said[name] == pytest.approx(wrote[name]), name
    assert 0 < said["share_clamped_max"] < 1
    assert sum(one["images"] for one in said["tokens_histogram"]) == PHOTOS
    rows = pq.read_table(tmp_path / "out" / "samples").to_pylist()
    first: set[str] = set()
    again = [row for row in rows if row["sha256"] in first or first.add(row["sha256"])]
    assert said["duplicate_tokens"] == sum(row["num_tokens"] for row in again)
    encoded_tokens = sum(
        json.loads(pq.read_metadata(path).metadata[b"visionbake"])["encoded_tokens"]
        for path in (tmp_path / "out" / "samples").iterdir()
    )
    assert said["duplicate_tokens_within_units"] == said["tokens"] - encoded_tokens > 0
    areas = [row["width"] * row["height"] / 1e6 for row in rows]
    for tree in (plan, wrote):
        assert tree["megapixels_p50"] == pytest.approx(float(np.percentile(areas, 50)), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype"), [("parquet", "bfloat16"), ("parquet", "int8"), ("webdataset", "float32"), ("webdataset", "fp8")]
)
def test_the_bytes_of_the_files_are_foreseen(
    kind: str, dtype: str, photos: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of distinct images of a usual size: what stands around the embeddings, and compresses, is only estimated."""
    distinct = {data: name for name, data in photos.items()}
    large = {distinct[data]: data for data in sorted(distinct, key=len)[10:]}
    config = config_for(
        as_folder(large, tmp_path / "in"),
        tmp_path / "out",
        Path("random:tiny"),
        preprocess={"max_pixels": 160_000},
        pack={"max_patches": 4096},
        output={"format": kind, "dtype": dtype, "shard_tokens": 4096, "row_group_bytes": 1 << 20},
    )
    plan, wrote = planned_and_written(write_config(tmp_path / "c.yaml", config), tmp_path / "out", capsys)
    (said,) = plan["budgets"]
    assert said["data_bytes"] == said[f"{kind}_bytes_by_dtype"][dtype]
    assert wrote["data_bytes"] == sum(path.stat().st_size for path in (tmp_path / "out" / "data").iterdir())
    assert said["data_bytes"] == pytest.approx(wrote["data_bytes"], rel=0.01)
    assert said["embedding_bytes"] == wrote["embedding_bytes"]


@pytest.mark.slow
def test_what_rejects_cost_is_all_that_a_plan_has_too_much(
    photos: dict[str, bytes], model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their headers are whole, so that only decoding finds them."""
    folder = as_folder(photos, tmp_path / "in")
    cut = sorted(folder.rglob("*.png"))[::20]
    for path in cut:
        path.write_bytes(path.read_bytes()[:-200])
    config = config_for(folder, tmp_path / "out", model_path, limits={"max_rejected_fraction": 0.5})
    plan, wrote = planned_and_written(write_config(tmp_path / "c.yaml", config), tmp_path / "out", capsys)
    rows = pq.read_table(tmp_path / "out" / "samples").to_pylist()
    lost = [row for row in rows if row["status"] == "truncated"]
    assert len(lost) == len(cut)
    (said,) = plan["budgets"]
    sides = [smart_resize(row["height"], row["width"], 28, 3136, 20_000)[:2] for row in lost]
    tokens = sum(height * width // 784 for height, width in sides)
    assert said["tokens"] - tokens == wrote["tokens"]


@pytest.mark.slow
def test_parts_in_other_processes_give_the_same(
    photos: dict[str, bytes], model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = check_request(config_for(as_tars(photos, tmp_path / "in"), tmp_path / "out", model_path))
    plan, _ = make_plan(request, say=lambda line: None)
    here, source = estimate_plan(plan, cases_of(request.geometry, [10_000, 40_000], WRITING))
    monkeypatch.setattr(estimate_plan_module, "map", None, raising=False)  # it goes another way
    shared = Sharing(parts_at_once=1, runs_worth_processes=2)
    there, other_source = estimate_plan(plan, cases_of(request.geometry, [10_000, 40_000], WRITING), shared)
    assert [one.as_dict(WRITING, Rates()) for one in here] == [one.as_dict(WRITING, Rates()) for one in there]
    assert source.as_dict() == other_source.as_dict()
    assert here[0].tokens < here[1].tokens


def test_many_duplicates_are_counted_by_a_share_of_them() -> None:
    generator = np.random.default_rng(1)
    distinct = generator.integers(1, 2**63, 20_000, np.uint64)
    hashes = generator.choice(distinct, 60_000)
    sides = (hashes % np.uint64(50)).astype(np.int64)
    exact, some = Duplicates(), Duplicates(most=8000)
    for duplicates in (exact, some):
        for first in range(0, 60_000, 1000):
            chosen = slice(first, first + 1000)
            duplicates.add(hashes[chosen], sides[chosen], sides[chosen] + 1)
    assert exact.one_of == 1
    heights, widths, more = exact.again()
    assert more.sum() == 60_000 - len(np.unique(hashes))
    assert (widths == heights + 1).all()
    once = (np.unique(hashes) % np.uint64(50)).astype(np.int64)
    assert (heights * more).sum() == sides.sum() - once.sum()
    assert some.one_of >= 4
    some_heights, _, some_more = some.again()
    assert some_more.sum() == pytest.approx(more.sum(), rel=0.05)
    assert (some_heights * some_more).sum() == pytest.approx((heights * more).sum(), rel=0.05)


def test_one_image_that_stands_everywhere_is_counted_whatever_its_hash() -> None:
    generator = np.random.default_rng(2)
    for frequent in (1, 2, 8, 0xFFFF_FFFF_FFFF_FFFF):
        duplicates = Duplicates(most=4000)
        for _ in range(50):
            hashes = generator.integers(1, 2**63, 500, np.uint64) * np.uint64(2)
            hashes[::5] = frequent
            duplicates.add(hashes, np.full(500, 7), np.full(500, 9))
        assert duplicates.one_of > 1
        heights, _, more = duplicates.again()
        assert more.sum() == 50 * 100 - 1
        assert set(heights.tolist()) == {7}


def test_hashes() -> None:
    text = b"00000000000000ff" + b"0" * 48 + b"abcdef0123456789" + b"f" * 48 + b"0" * 64
    assert hashes_of(text).tolist() == [255, 0xABCDEF0123456789, 1]


def test_costs() -> None:
    """Two terabytes that take a hundred hours of 2 each: keeping them for 100 pays from one and a half epochs on."""
    rates = Rates(tokens_per_second=1000, price_per_hour=2, price_per_terabyte=50)
    assert rates.costs(100 * 3600 * 1000, 2e12) == {
        "device_hours": 100,
        "price": 200,
        "break_even_price_per_terabyte": 100,
        "break_even_epochs": 1.5,
    }
    assert Rates(tokens_per_second=1000).costs(3600 * 1000, 1.0) == {"device_hours": 1}
    assert Rates(price_per_hour=1).costs(3600, 1.0) == {}


def test_sizes_of_values() -> None:
    assert {name: dtype.itemsize for name, dtype in STORED.items()} == VALUE_BYTES
    assert tuple(name for name in STORED if is_scaled(name)) == SCALED


def test_students_t() -> None:
    assert student(31) == pytest.approx(2.0395, abs=2e-4)
    assert student(9) == pytest.approx(2.2622, abs=1e-3)


def test_an_estimate_without_images(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    request = check_request(parse_config(config_for(tmp_path / "in", tmp_path / "out", model_path).model_dump()))
    plan, _ = make_plan(request, say=lambda line: None)
    (one,), source = estimate_plan(plan, cases_of(request.geometry, [20_000], WRITING))
    nothing = one.as_dict(WRITING, Rates(tokens_per_second=10.0, price_per_hour=1.0, price_per_terabyte=1.0))
    assert (nothing["price"], nothing["break_even_price_per_terabyte"]) == (0, 0)
    assert source.as_dict()["megapixels_p50"] == 0
