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

from jobs.cli import main
from jobs.plan import estimate
from pipeline.config import parse_config
from pipeline.estimate import Duplicates
from pipeline.index import hashes_of
from pipeline.request import check_request
from pipeline.runner import make_plan
from pipeline.sampling import student

PHOTOS = 260


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


def as_gzipped_tars(photos: dict[str, bytes], place: Path) -> Path:
    names = list(photos)
    for number in range(40):
        make_tar(place / f"{number:02d}.tar.gz", [(name, photos[name]) for name in names[number::40]], "w:gz")
    return place / "*.tar.gz"


def as_parquet(photos: dict[str, bytes], place: Path) -> Path:
    place.mkdir(parents=True)
    pq.write_table(pa.table({"image": list(photos.values())}), place / "a.parquet", row_group_size=60)
    return place / "a.parquet"


def as_jsonl(photos: dict[str, bytes], place: Path) -> Path:
    as_folder(photos, place)
    lines = [
        json.dumps({"image": f"{int(name[:4]) % 7}/{name}", "text": "x" * (int(name[:4]) % 90)}) for name in photos
    ]
    (place / "a.jsonl").write_text("\n".join(lines))
    return place / "a.jsonl"


@pytest.mark.parametrize("door", [as_folder, as_tars, as_gzipped_tars, as_parquet, as_jsonl])
def test_the_whole_lies_in_the_interval_of_a_sample(
    door: Any, photos: dict[str, bytes], model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = door(photos, tmp_path / "in")
    path = write_config(tmp_path / "c.yaml", config_for(source, tmp_path / "out", model_path))

    def plan(*words: str) -> dict[str, Any]:
        assert main(["plan", str(path), "--json", *words]) == 0
        return dict(json.loads(capsys.readouterr().out))

    hits = {"tokens": 0, "samples": 0}
    widths = []
    sampled = [plan("--sample", "80", "--seed", str(seed), "--tokens-per-second", "50") for seed in range(10)]
    assert not (tmp_path / "out").exists()
    whole = plan("--tokens-per-second", "50")
    (exact,) = whole["budgets"]
    for one in sampled:
        (budget,) = one["budgets"]
        tokens, samples = budget["tokens"], one["samples"]
        hits["tokens"] += tokens["low"] <= exact["tokens"] <= tokens["high"]
        hits["samples"] += samples["low"] <= exact["samples"] <= samples["high"]
        widths.append((tokens["high"] - tokens["low"]) / exact["tokens"])
        assert budget["device_hours"]["estimate"] == pytest.approx(tokens["estimate"] / 50 / 3600)
    assert hits["tokens"] >= 9
    assert hits["samples"] >= 9
    assert max(widths) < 0.8  # it says something


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
    assert main(["plan", str(path), "--sample", "50"]) == 0
    assert " to " in capsys.readouterr().out


def test_a_plan_is_what_is_written(
    photos: dict[str, bytes], model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(as_folder(photos, tmp_path / "in"), tmp_path / "out", model_path)
    path = write_config(tmp_path / "c.yaml", config)
    assert main(["plan", str(path), "--json", "--max-pixels", "20000,40000"]) == 0
    plan = json.loads(capsys.readouterr().out)
    said = plan["budgets"][0]
    run_here(config)
    assert main(["stats", str(tmp_path / "out"), "--json"]) == 0
    wrote = json.loads(capsys.readouterr().out)
    for name in ("tokens", "samples", "units", "embedding_bytes", "tokens_p5", "tokens_p99", "tokens_max",
                 "language_model_tokens", "duplicates"):  # fmt: skip
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
    assert said["bytes_by_dtype"]["float32"] == said["embedding_bytes"]
    areas = [row["width"] * row["height"] / 1e6 for row in rows]
    assert plan["megapixels_p50"] == pytest.approx(float(np.percentile(areas, 50)), rel=0.05)


def test_many_duplicates_are_counted_by_a_share_of_them() -> None:
    generator = np.random.default_rng(1)
    distinct = generator.integers(1, 2**63, 20_000, np.uint64)
    hashes = generator.choice(distinct, 60_000)
    tokens = (hashes % np.uint64(50)).astype(np.int64)
    exact, some = Duplicates(1), Duplicates(1, most=8000)
    for duplicates in (exact, some):
        for first in range(0, 60_000, 1000):
            duplicates.add(hashes[first : first + 1000], [tokens[first : first + 1000]])
    assert exact.one_of == 1
    assert exact.totals()[0] == 60_000 - len(np.unique(hashes))
    assert some.one_of == 8
    assert some.totals()[0] == pytest.approx(exact.totals()[0], rel=0.05)
    assert some.totals()[1][0] == pytest.approx(exact.totals()[1][0], rel=0.05)


def test_hashes() -> None:
    text = np.frombuffer(b"00000000000000ff" + b"0" * 48 + b"abcdef0123456789" + b"f" * 48, np.uint8)
    assert hashes_of(text.reshape(2, 64)).tolist() == [255, 0xABCDEF0123456789]


def test_students_t() -> None:
    assert student(31) == pytest.approx(2.0395, abs=2e-4)
    assert student(9) == pytest.approx(2.2622, abs=1e-3)


def test_an_estimate_without_images(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    request = check_request(parse_config(config_for(tmp_path / "in", tmp_path / "out", model_path).model_dump()))
    plan, _ = make_plan(request, say=lambda line: None)
    (one,), source = estimate(request, plan, [20_000])
    nothing = one.as_dict({"float32": 4}, "float32", 10.0, 1.0)
    assert (nothing["price"], nothing["break_even_price_per_terabyte"]) == (0, 0)
    assert source.as_dict()["megapixels_p50"] == 0
