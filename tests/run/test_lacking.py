"""What one file of several lacks, or has otherwise: its rows are rejects that say so, and its neighbours are whole.

Catches: a part that fails on every run because one file has no such column; images counted as rows without one.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from conftest import assert_stands, config_for, encoded, noise, run_here, run_in_a_fork

from pipeline.errors import RequestError
from pipeline.output.shard_formats import shard_format
from pipeline.output.verify import Verifier
from pipeline.source.formats import FORMATS
from pipeline.source.formats.parquet import Parquet

pytestmark = pytest.mark.slow

GOOD = [encoded(noise(60, 60, seed)) for seed in range(3)]


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))


def write_arrow(path: Path, columns: dict[str, Any]) -> None:
    pyarrow.feather.write_feather(pa.table(columns), str(path.with_suffix(".arrow")))


WRITE: list[Callable[[Path, dict[str, Any]], None]] = [write_parquet, write_arrow]
OTHERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no such column": ({"caption": ["x", "y"]}, "missing_image", "b.* has no column 'image'; it has caption"),
    "numbers": ({"image": [1, 2]}, "missing_image", "image of b.* is int64; needed are bytes, a struct"),
    "truth values": ({"image": [True, False]}, "missing_image", "image of b.* is bool"),
    "moments": ({"image": pa.array([1, 2], pa.timestamp("ns"))}, "missing_image", r"image of b.* is timestamp\[ns\]"),
    "numbers in lists": ({"image": [[1], [2, 3]]}, "missing_image", "image of b.* is list"),
    "structs of something else": ({"image": [{"url": "u"}, {"url": "v"}]}, "missing_image", "is struct<url: string>"),
    "text that is no path": ({"image": ["none", "n/a"]}, "missing_image", "there is no file .*none"),
    "nulls alone": ({"image": pa.nulls(2)}, "no_image", "row 0 names no image"),
    "structs of nulls": ({"image": [{"bytes": None, "path": None}] * 2}, "no_image", "row 0 names no image"),
}


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize("name", OTHERS)
def test_rows_whose_file_has_another_image_column_say_so(
    name: str, write: Callable[[Path, dict[str, Any]], None], model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    columns, status, says = OTHERS[name]
    write(tmp_path / "in" / "a", {"image": GOOD})
    write(tmp_path / "in" / "b", columns)
    rows = assert_stands(config_for(tmp_path / "in", tmp_path / "out", model_path))
    assert [row["status"] for row in rows] == ["ok"] * 3 + [status] * 2
    assert pa.compute.match_substring_regex(pa.array([rows[3]["error"]]), says)[0].as_py(), rows[3]["error"]


@pytest.mark.parametrize("write", WRITE)
def test_nor_need_the_first_file_have_it(
    write: Callable[[Path, dict[str, Any]], None], model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a", {"caption": ["x"], "k": [1]})
    write(tmp_path / "in" / "b", {"image": GOOD[:2], "k": ["x", "y"]})
    write(tmp_path / "in" / "c", {"image": GOOD[:2]})
    config = config_for(tmp_path / "in", tmp_path / "out", model_path, source={"key_column": "k", "carry": ["caption"]})
    rows = assert_stands(config)
    assert [row["status"] for row in rows] == ["missing_image", "ok", "ok", "ok", "ok"]
    assert [row["key"].partition(".")[0] for row in rows] == ["1", "x", "y", "c", "c"]  # else file:row, as of a null
    assert [row["caption"] for row in rows] == ["x", None, None, None, None]


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"picture": GOOD[:1]}, r"no file of .* has a column 'image'; they have pictures, picture"),
        ({"image": [3]}, r"source\.image_column: image of .*b\..* is int64; needed are"),
    ],
)
def test_a_column_that_no_file_has_is_refused(
    second: dict[str, Any],
    says: str,
    write: Callable[[Path, dict[str, Any]], None],
    model_path: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a", {"pictures": GOOD[:1]})
    write(tmp_path / "in" / "b", second)
    with pytest.raises(RequestError, match=says):
        run_here(config_for(tmp_path / "in", tmp_path / "out", model_path))
    assert not (tmp_path / "out").exists()


def test_columns_of_one_name_are_refused_or_rejects(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_parquet(tmp_path / "in" / "a", {"image": GOOD, "n": [1, 2, 3]})
    twice = pa.Table.from_arrays([pa.array(GOOD), pa.array([1, 2, 3]), pa.array([4, 5, 6])], names=["image", "n", "n"])
    pq.write_table(twice, tmp_path / "in" / "b.parquet")
    config = config_for(tmp_path / "in", tmp_path / "out", model_path, source={"carry": ["n"]})
    with pytest.raises(RequestError, match=r"source\.carry: .*b\.parquet has 2 columns 'n'"):
        run_here(config)
    pq.write_table(twice.rename_columns(["image", "image", "n"]), tmp_path / "in" / "b.parquet")
    rows = assert_stands(config)
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["missing_image"] * 3
    assert "b.parquet has 2 columns 'image'" in rows[3]["error"]


def test_a_file_that_comes_later_may_lack_it_too(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_parquet(tmp_path / "in" / "a", {"image": GOOD, "n": [1, 2, 3]})
    config = config_for(tmp_path / "in", tmp_path / "out", model_path, source={"carry": ["n"]})
    assert len(assert_stands(config)) == 3
    write_parquet(tmp_path / "in" / "b", {"n": [4, 5]})
    rows = assert_stands(config)
    assert [(row["status"], row["n"]) for row in rows[3:]] == [("missing_image", 4), ("missing_image", 5)]


def test_files_without_rows_are_files_without_samples(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_parquet(tmp_path / "in" / "b", {"image": GOOD})
    empty = pa.table({"image": pa.array([], pa.binary())})
    pq.write_table(empty, tmp_path / "in" / "a.parquet")
    pq.ParquetWriter(tmp_path / "in" / "c.parquet", empty.schema).close()  # no row group at all
    assert len(assert_stands(config_for(tmp_path / "in", tmp_path / "out", model_path))) == 3


def test_keys_over_parts_of_a_file_that_lacks_its_images(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What planning reads of a file's keys agrees with what the index makes of its rows."""
    monkeypatch.setitem(FORMATS, "parquet", Parquet(rows_per_part=2))
    (tmp_path / "in").mkdir()
    write_parquet(tmp_path / "in" / "a", {"image": GOOD, "k": ["x", "y", "z"]})
    for name, columns in {"b": {}, "c": {"image": [[1, 2]] * 4}}.items():
        table = pa.table({"k": ["x", "y", "x", "w"], **columns})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet", row_group_size=2)
    rows = assert_stands(config_for(tmp_path / "in", tmp_path / "out", model_path, source={"key_column": "k"}))
    assert [row["status"] for row in rows[3:]] == [
        "missing_image",
        "missing_image",
        "duplicate_key",
        "missing_image",
    ] * 2


@pytest.mark.parametrize(
    ("image", "status", "says"),
    [
        (3, "missing_image", "its image is a int, not a path"),
        ({"url": "https://example.org/a.jpg", "detail": "low"}, "missing_image", "has url, detail, and neither bytes"),
        ({}, "no_image", "names no image"),
        ({"bytes": None, "path": None}, "no_image", "names no image"),
        ({"path": 3}, "missing_image", "its image is a int, not a path"),
    ],
)
def test_a_line_with_another_kind_of_image_says_so(
    image: object, status: str, says: str, model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes(GOOD[0])
    lines = [{"image": "0.png"}, {"image": image}, {"image": ["0.png"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = assert_stands(config_for(tmp_path / "a.jsonl", tmp_path / "out", model_path))
    assert [row["status"] for row in rows] == ["ok", status, "ok"]
    assert says in rows[1]["error"]


def test_rows_of_a_csv_file_whose_header_lacks_it_say_so(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(GOOD[0])
    (tmp_path / "in" / "a.csv").write_text("image,caption\n0.png,x\n")
    (tmp_path / "in" / "b.csv").write_text("img,caption\n0.png,y\n")
    config = config_for(tmp_path / "in" / "*.csv", tmp_path / "out", model_path, source={"carry": ["caption"]})
    rows = assert_stands(config)
    assert [(row["status"], row["caption"]) for row in rows] == [("ok", "x"), ("missing_image", "y")]
    assert "b.csv has no column 'image'; it has img, caption" in rows[1]["error"]


@pytest.mark.parametrize("manifest", ["a.jsonl", "a.json"])
def test_a_field_that_is_written_twice_is_no_field(manifest: str, model_path: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(GOOD[number])
    objects = ['{"image": "0.png"}', '{"image": "1.png", "image": "2.png"}', '{"image": "2.png", "image": "2.png"}']
    text = "\n".join(objects) if manifest == "a.jsonl" else f"[{', '.join(objects)}]"
    (tmp_path / manifest).write_text(text)
    rows = assert_stands(config_for(tmp_path / manifest, tmp_path / "out", model_path))
    assert [row["status"] for row in rows] == ["ok", "missing_image", "ok"]
    assert "it has the field 'image' twice, with different values" in rows[1]["error"]


def damaged_files(folder: Path, name: str) -> int:
    """Writes a whole file and damaged ones; returns how many images stand whole before the damages."""
    for number, data in enumerate(GOOD):
        (folder / f"{number}.png").write_bytes(data)
    if name == "parquet":
        write_parquet(folder / "b", {"image": GOOD})
        whole = (folder / "b.parquet").read_bytes()
        for file, data in {
            "a": b"",
            "c": whole[: len(whole) // 2],
            "d": b"<html>",
            "e": whole[:-8] + b"\0" * 8,
        }.items():
            (folder / f"{file}.parquet").write_bytes(data)
        return 0
    if name == "arrow":
        write_arrow(folder / "a", {"image": GOOD})
        pyarrow.feather.write_feather(pa.table({"image": GOOD}), str(folder / "b.arrow"), chunksize=1)
        whole = (folder / "b.arrow").read_bytes()
        (folder / "b.arrow").write_bytes(whole[: len(whole) // 2])
        (folder / "c.arrow").write_bytes(whole[:100])
        return 1
    (folder / "a.json").write_text(json.dumps([{"image": f"{number}.png"} for number in range(3)]))
    (folder / "b.json").write_text('[{"image": "0.png"}, {"image": "1.png"}, {"image": ')
    (folder / "c.json").write_text('[{"image": "0.png"} nothing of the kind]')
    return 3


@pytest.mark.parametrize("name", ["parquet", "arrow", "json"])
def test_files_that_break_off_are_refused_skipped_or_salvaged(name: str, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    whole_before = damaged_files(tmp_path / "in", name)
    uri = tmp_path / "in" / f"*.{name}"
    with pytest.raises(RequestError, match=rf"cannot be read as {name}: .*set source\.on_damaged: skip"):
        run_here(config_for(uri, tmp_path / "out", model_path))
    for on_damaged, more in (("skip", 0), ("salvage", whole_before)):
        output = tmp_path / on_damaged
        rows = assert_stands(config_for(uri, output, model_path, source={"on_damaged": on_damaged}))
        assert [row["status"] for row in rows] == ["ok"] * (3 + more)
        skipped = Verifier(output).verify().skipped
        assert len(skipped) == {"parquet": 4, "arrow": 2, "json": 2}[name]
        if on_damaged == "salvage":
            assert all("salvaged" in line for line in skipped), skipped


@pytest.mark.parametrize("output_format", ["parquet", "webdataset"])
def test_a_shard_with_other_carried_values_is_not_adopted(output_format: str, model_path: Path, tmp_path: Path) -> None:
    """A caption that was mended between a death and the next run, whose shard was published without its record."""
    (tmp_path / "in").mkdir()
    for number, data in enumerate(GOOD):
        (tmp_path / "in" / f"{number}.png").write_bytes(data)
        (tmp_path / "in" / f"{number}.txt").write_text(f"caption {number}")
    source = {"carry": ["txt"]}
    config = config_for(tmp_path / "in", tmp_path / "out", model_path, source=source, output={"format": output_format})
    marker = tmp_path / "fired"
    assert run_in_a_fork(config, VISIONBAKE_FAULT=f"after_data_publish:kill@{marker}") == -signal.SIGKILL
    assert marker.exists()
    assert len(list((tmp_path / "out" / "data").iterdir())) == 1
    assert not (tmp_path / "out" / "samples").exists() or not list((tmp_path / "out" / "samples").iterdir())
    (tmp_path / "in" / "1.txt").write_text("mended")
    rows = assert_stands(config)
    assert [row["txt"] for row in rows] == ["caption 0", "mended", "caption 2"]
    (shard,) = (tmp_path / "out" / "data").iterdir()
    stored = shard_format(output_format).rows(shard)
    assert [row["txt"] for row in stored] in (
        ["caption 0", "mended", "caption 2"],
        [b"caption 0", b"mended", b"caption 2"],
    )
