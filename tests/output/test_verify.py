"""`verify` proves a good output, and finds every damage that is done to one on purpose."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for, make_folder
from PIL import Image

from pipeline.cli import verify as verify_job
from pipeline.errors import OutputError, RequestError
from pipeline.output.shard import METADATA_KEY, ShardRows, embedding_array
from pipeline.output.shard_formats import shard_format
from pipeline.output.verify import Verifier
from pipeline.run.runner import run

pytestmark = pytest.mark.slow

UNIT = "part-000000-0001"
SUFFIX_FORMATS = {".parquet": "parquet", ".tar": "webdataset"}


def make_output(folder: Path, output: Path, model_path: Path, **fields: object) -> Path:
    config = config_for(folder, output, model_path, output=fields)
    assert run(config, say=lambda line: None, report=lambda *_: None).complete
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("folder"), 16)
    (folder / "1" / "broken.jpg").write_bytes(b"\xff\xd8broken")
    return folder


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def good(request: Any, folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(folder, tmp_path_factory.mktemp("good") / "out", model_path, format=request.param)


@pytest.fixture
def output(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "out"))


def data_of(output: Path, unit: str = UNIT) -> Path:
    return next((output / "data").glob(f"{unit}.*"))


def rewrite_samples(
    output: Path, change: Callable[[list[dict[str, Any]], dict[str, Any]], None], unit: str = UNIT
) -> None:
    """A samples shard with other rows or another record, well-formed otherwise."""
    path = output / "samples" / f"{unit}.parquet"
    table = pq.read_table(path)
    rows, record = table.to_pylist(), json.loads(table.schema.metadata[METADATA_KEY])
    change(rows, record)
    schema = table.schema.with_metadata({METADATA_KEY: json.dumps(record)})
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def flip_a_bit_of_an_embedding(output: Path) -> None:
    row = next(row for row in pq.read_table(output / "samples" / f"{UNIT}.parquet").to_pylist() if row["shard"])
    data = bytearray(data_of(output).read_bytes())
    data[row["offset"] + 5] ^= 1
    data_of(output).write_bytes(data)


def cut_a_shard(output: Path) -> None:
    data_of(output).write_bytes(data_of(output).read_bytes()[:-100])


def lose_a_data_shard(output: Path) -> None:
    data_of(output).unlink()


def lose_a_record(output: Path) -> None:
    (output / "samples" / f"{UNIT}.parquet").unlink()


def damage_a_record(output: Path) -> None:
    path = output / "samples" / f"{UNIT}.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def a_record_of_other_types(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: record.update(seconds=[], packs="none"))


def a_record_that_is_a_list(output: Path) -> None:
    path = output / "samples" / f"{UNIT}.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({METADATA_KEY: "[7]"}), path)


def a_samples_shard_of_other_columns(output: Path) -> None:
    path = output / "samples" / f"{UNIT}.parquet"
    pq.write_table(pa.table({"key": [1]}).replace_schema_metadata(pq.read_schema(path).metadata), path)


def exchange_two_data_shards(output: Path) -> None:
    one, other = data_of(output), data_of(output, "part-000000-0000")
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def drop_a_sample(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: rows.pop(1))


def name_a_sample_twice(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: rows[1].update(key=rows[0]["key"]))


def turn_a_reject_into_nothing(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: record.update(rejects={"corrupt": 1}, rows_in=record["rows_in"] + 1))


def move_an_offset(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: rows[0].update(offset=rows[0]["offset"] + 8))


def another_norm(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: rows[0].update(norm_max=rows[0]["norm_max"] * 1.1))


def another_grid(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: rows[0].update(grid_thw=[1, 2, 2]))


def another_source(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: rows[0].update(source="elsewhere"))


def another_sha256(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: rows[0].update(sha256="0" * 64))


def another_reason(output: Path) -> None:
    """Of the broken file, the last of its part; the record agrees."""
    unit = max(path.stem for path in (output / "samples").iterdir())

    def change(rows: list[dict[str, Any]], record: dict[str, Any]) -> None:
        row = next(row for row in rows if row["status"] != "ok")
        record["rejects"] = {"checksum": record["rejects"].pop(row["status"])}
        row["status"] = "checksum"

    rewrite_samples(output, change, unit)


def a_reason_that_is_none(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: rows[0].update(status="lost"))


def other_reasons_in_the_record(output: Path) -> None:
    """As many as there are."""
    unit = max(path.stem for path in (output / "samples").iterdir())
    rewrite_samples(
        output, lambda rows, record: record.update(rejects={"crash": sum(record["rejects"].values())}), unit
    )


def a_record_of_another_run(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: record.update(fingerprint="0" * 64))


def a_record_of_another_unit(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: record.update(unit="000000-0000"))


def more_tokens_in_the_record(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: record.update(tokens=record["tokens"] + 1))


def more_bytes_in_the_record(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: record.update(embedding_bytes=record["embedding_bytes"] + 1))


def fewer_rows_in_the_record(output: Path) -> None:
    rewrite_samples(output, lambda rows, record: record.update(rows_out=record["rows_out"] - 1))


def rewrite_data(output: Path, **columns: Callable[[list[Any]], list[Any]]) -> None:
    """A data shard with other columns, or other metadata, which is what its record says."""
    form = next(one for suffix, one in SUFFIX_FORMATS.items() if data_of(output).suffix == suffix)
    lengths_N = np.array([row["length"] for row in samples_of(output) if row["shard"]], np.int64)
    shards, path = shard_format(form), data_of(output)
    content, rows = shards.read(path, lengths_N), shards.rows(path)
    raw = path.read_bytes()
    pieces = [raw[first : first + length] for first, length in zip(content.offsets_N, lengths_N, strict=True)]
    metadata = content.metadata | {name: change([])[0] for name, change in columns.items() if name in content.metadata}
    values: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    values |= {"scale": [None] * len(rows), "embedding": pieces}
    for name, change in columns.items():
        if name in values:
            values[name] = change(list(values[name]))
    embedding = embedding_array(b"".join(values.pop("embedding")), lengths_N)
    path.unlink()
    shard = shards.write(path, ShardRows(columns=values, embedding=embedding, metadata=metadata), 1 << 20)

    def record_it(rows: list[dict[str, Any]], record: dict[str, Any]) -> None:
        record.update(data_size=shard.size, data_sha256=shard.sha256)
        for row, offset in zip([row for row in rows if row["shard"]], shard.offsets_N.tolist(), strict=True):
            row["offset"] = offset

    rewrite_samples(output, record_it)


def samples_of(output: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(output / "samples" / f"{UNIT}.parquet").to_pylist())


def exchange_two_keys_of_the_data(output: Path) -> None:
    rewrite_data(output, key=lambda keys: [keys[1], keys[0], *keys[2:]])


def data_of_another_run(output: Path) -> None:
    rewrite_data(output, fingerprint=lambda _: ["0" * 64])


def a_token_that_is_not_finite(output: Path) -> None:
    rewrite_data(output, embedding=lambda pieces: [np.float32("inf").tobytes() + pieces[0][4:], *pieces[1:]])


def another_fingerprint(output: Path) -> None:
    tree = json.loads((output / "dataset.json").read_text())
    tree["fingerprint_facts"]["preprocess.max_pixels"] = 7
    (output / "dataset.json").write_text(json.dumps(tree))


def a_stranger(output: Path) -> None:
    shutil.copy(data_of(output), data_of(output).with_name(data_of(output).name.replace("-0001", "-0999")))


def a_stranger_with_the_next_number(output: Path) -> None:
    units = len(list((output / "samples").iterdir()))
    shutil.copy(data_of(output), data_of(output).with_name(data_of(output).name.replace("-0001", f"-{units:04d}")))


def an_incomplete_shard_without_a_record(output: Path) -> None:
    lose_a_record(output)
    cut_a_shard(output)


def wrong_totals(output: Path) -> None:
    tree = json.loads((output / "_SUCCESS").read_text())
    tree["tokens"] += 1
    (output / "_SUCCESS").write_text(json.dumps(tree))


def lose_an_index(output: Path) -> None:
    next((output / "plan" / "index").iterdir()).unlink()


DAMAGES = {
    flip_a_bit_of_an_embedding: "its sha256 is not the recorded one",
    cut_a_shard: "bytes, its record says",
    lose_a_data_shard: "is missing",
    lose_a_record: "is not committed",
    damage_a_record: "not a complete shard",
    a_record_of_other_types: f"{UNIT}.parquet: not a complete shard: its record's seconds is '[]'",
    a_record_that_is_a_list: f"{UNIT}.parquet: not a complete shard: its metadata is no JSON object",
    a_samples_shard_of_other_columns: "unit 000000-0001: ",
    exchange_two_data_shards: "unit 000000-0001: part-000000-0001",
    drop_a_sample: "samples' key are not those of the source's index",
    name_a_sample_twice: "samples' key are not those of the source's index",
    turn_a_reject_into_nothing: "its record says",
    move_an_offset: "not at the recorded offsets",
    another_norm: "was recorded",
    another_grid: "are not 1 tokens of its grid",
    another_source: "samples' source are not those of the source's index",
    another_sha256: "samples' sha256 are not those of the source's index",
    another_reason: "status checksum, where the index says",
    a_reason_that_is_none: "status lost, where the index says ok",
    other_reasons_in_the_record: "its record says {'crash': 1}",
    a_record_of_another_run: "its record is of another unit or another run",
    a_record_of_another_unit: "its record is of another unit or another run",
    more_tokens_in_the_record: "its tokens or bytes are not those of its record",
    more_bytes_in_the_record: "its tokens or bytes are not those of its record",
    fewer_rows_in_the_record: " rows; its record says ",
    exchange_two_keys_of_the_data: "are not those of the accepted samples",
    data_of_another_run: "is of another unit or another run",
    a_token_that_is_not_finite: "its tokens are not finite",
    another_fingerprint: "its fingerprint is not that of its facts",
    a_stranger: "belongs to no unit of the plan",
    a_stranger_with_the_next_number: "belongs to no unit of the plan",
    an_incomplete_shard_without_a_record: "not a complete shard",
    wrong_totals: "_SUCCESS says tokens",
    lose_an_index: "part 0 is not indexed",
}


def test_a_good_output_is_proven(good: Path, folder: Path) -> None:
    report = Verifier(good).verify()
    assert report.proven
    assert (report.samples, report.rows) == (17, 16)
    assert report.units > 2
    assert report.bytes_checked == sum(path.stat().st_size for path in (good / "data").iterdir())


def test_the_columns_are_what_the_images_and_their_tokens_are(good: Path, folder: Path) -> None:
    """By Pillow and NumPy alone: `run` and `verify` take their sums the same way."""
    rows = [row for row in pq.read_table(good / "samples").to_pylist() if row["status"] == "ok"]
    assert len(rows) == 16
    for row in rows:
        with Image.open(folder / row["key"]) as image:
            assert (row["width"], row["height"]) == image.size
        frames, height, width = row["grid_thw"]
        assert (row["resized_width"], row["resized_height"]) == (14 * width, 14 * height)
        assert row["num_patches"] == 4 * row["num_tokens"] == frames * height * width
        raw = (good / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
        norms = np.linalg.norm(np.frombuffer(raw, np.float32).reshape(row["num_tokens"], -1), axis=1)
        assert (row["norm_mean"], row["norm_max"]) == pytest.approx((norms.mean(), norms.max()), rel=1e-5)
    assert any(row["resized_width"] != row["resized_height"] for row in rows)


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found(
    damage: Callable[[Path], None], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(output)
    shutil.rmtree(output / "ledger")  # it tells of some by itself
    assert verify_job.main(arguments(output)) == 1
    problems = [line for line in capsys.readouterr().err.splitlines() if line.startswith("PROBLEM")]
    assert any(DAMAGES[damage] in line for line in problems), problems


def arguments(output: Path, **fields: object) -> Any:
    import argparse

    return argparse.Namespace(
        **{"output": str(output), "sample": None, "json": False, "parts": None, "ray": False, "address": "auto"}
        | fields
    )


def test_an_incomplete_run_is_not_proven_but_not_damaged(output: Path) -> None:
    (output / "_SUCCESS").unlink()
    lose_a_record(output)
    report = Verifier(output).verify()
    assert not report.problems and not report.proven
    assert report.missing == ["unit 000000-0001 is not committed", "_SUCCESS: the run is not complete"]
    assert report.uncommitted == [f"data/{data_of(output).name}"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "fp8"])
def test_dtypes(dtype: str, folder: Path, model_path: Path, tmp_path: Path) -> None:
    assert Verifier(make_output(folder, tmp_path / "out", model_path, dtype=dtype)).verify().proven


def test_samples_are_compared_with_the_reference(good: Path, tmp_path: Path, folder: Path, model_path: Path) -> None:
    compared = verify_job.compare_with_reference(Verifier(good), 5)
    assert len(compared) == 5
    assert all(row["relative_rms"] <= 1e-5 for row in compared)
    # What a wrong tower or wrong preparing would leave: right hashes of wrong tokens.
    output = Path(shutil.copytree(good, tmp_path / "out"))
    verifier = Verifier(output)
    verifier.dataset.config["preprocess"]["max_pixels"] = 10_000
    assert any(row["relative_rms"] > row["limit"] for row in verify_job.compare_with_reference(verifier, 5))


def test_another_s_file_in_a_shards_place_is_named(output: Path) -> None:
    stranger = pa.table({"other": [1]}).replace_schema_metadata({METADATA_KEY: "{}"})
    for path in (output / "data").iterdir():
        path.unlink()
        pq.write_table(stranger, path)
        with pytest.raises(OutputError, match=re.escape(path.name)):
            shard_format(SUFFIX_FORMATS[path.suffix]).read(path, np.array([4]))


def test_other_weights_are_refused(good: Path) -> None:
    verifier = Verifier(good)
    verifier.dataset.fingerprint_facts["tower_sha256"] = "0"
    with pytest.raises(RequestError, match="other weights"):
        verify_job.compare_with_reference(verifier, 1)


def test_what_is_no_output_says_so(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RequestError):
            verify_job.main(arguments(place))
