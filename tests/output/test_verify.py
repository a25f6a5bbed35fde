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

from pipeline.cli import verify as verify_job
from pipeline.errors import OutputError, RequestError
from pipeline.output.shard import METADATA_KEY
from pipeline.output.shard_formats import shard_format
from pipeline.output.verify import Verifier
from pipeline.run.runner import run

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


def another_fingerprint(output: Path) -> None:
    tree = json.loads((output / "dataset.json").read_text())
    tree["fingerprint_facts"]["preprocess.max_pixels"] = 7
    (output / "dataset.json").write_text(json.dumps(tree))


def a_stranger(output: Path) -> None:
    shutil.copy(data_of(output), data_of(output).with_name(data_of(output).name.replace("-0001", "-0999")))


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
    another_fingerprint: "its fingerprint is not that of its facts",
    a_stranger: "belongs to no unit of the plan",
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


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found(
    damage: Callable[[Path], None], output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(output)
    report = Verifier(output).verify()
    assert not report.proven
    assert any(DAMAGES[damage] in line for line in report.problems), report.problems
    assert verify_job.main(arguments(output)) == 1
    assert "PROBLEM" in capsys.readouterr().err


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
    assert not report.problems
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
