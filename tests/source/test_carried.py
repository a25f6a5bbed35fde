"""Carried columns: types from all of the source, and values that come back equal. Catches: a value that is changed."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import io
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for, encoded, make_tar, noise, rows_of, run_here
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import OutputError, RequestError, SourceError
from pipeline.output.carried import check_carried
from pipeline.source import row_cursor
from pipeline.source.carried_types import schema_of_records, schema_of_tables
from pipeline.source.carried_values import carried_of_rows, carried_of_table, fit, same
from pipeline.source.row_cursor import RowCursor
from pipeline.source.sample import IndexedSample

pytestmark = pytest.mark.slow

BROKEN = "\ud800"


def meaning(value: Any) -> Any:
    """A value so that only what is equal compares equal: numbers exactly, no number a truth value, absent as null."""
    if isinstance(value, bool):
        return ("truth", value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int | float | decimal.Decimal):
        return Fraction(value)
    if isinstance(value, str) and BROKEN in value:
        return None
    if isinstance(value, list):
        return [meaning(one) for one in value]
    if isinstance(value, dict):
        return {name: found for name, one in value.items() if (found := meaning(one)) is not None}
    return value


def broken_in(value: Any) -> int:
    if isinstance(value, dict | list):
        return sum(map(broken_in, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and BROKEN in value


def written_and_read(table: pa.Table) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return pq.read_table(stream).to_pylist()


ints = st.integers(-(1 << 53), 1 << 53)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.just(BROKEN + "x")
alike = {
    "integers": st.integers(-(1 << 63), (1 << 63) - 1),
    "large integers": st.integers(0, (1 << 64) - 1),
    "numbers": ints | st.floats(),
    "texts": texts,
    "truths": st.booleans(),
    "lists": st.lists(st.none() | ints | st.floats(), max_size=3),
    "objects": st.fixed_dictionaries({"a": st.none() | ints}, optional={"b": texts, "c": st.lists(texts, max_size=2)}),
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from("abc"), some, max_size=3),
    max_leaves=6,
)


def records(values: list[Any]) -> Iterator[Any]:
    return (({"v": value}, lambda number=number: f"line {number}") for number, value in enumerate(values, 1))


def assert_stored(values: list[Any], schema: pa.Schema) -> None:
    carried = carried_of_rows([{"v": value} for value in values], schema, "here")
    assert [meaning(row["v"]) for row in written_and_read(carried.table)] == [meaning(value) for value in values]
    assert sum(carried.nulled.values()) == sum(map(broken_in, values))


@pytest.mark.parametrize("kind", alike)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_values_of_one_kind_are_stored_as_they_are(kind: str, data: Any) -> None:
    values = data.draw(st.lists(st.none() | alike[kind], max_size=6))
    assert_stored(values, schema_of_records(records([None, *values]), ["v"]))


@settings(max_examples=200, deadline=None)
@given(st.lists(anything, min_size=1, max_size=5), st.randoms())
def test_whatever_drifts_is_stored_as_it_is_or_refused(values: list[Any], random: Any) -> None:
    """And what was decided from one file never stores another's values as something else."""
    try:
        schema = schema_of_records(records(values), ["v"])
    except RequestError:
        return
    assert_stored(values, schema)
    other = random.choices([*values, 0.5, 1 << 60, "text", [None], {"d": 1}, True], k=3)
    with suppress(SourceError):
        assert_stored(other, schema)


MOMENTS = [datetime.datetime(1969, 1, 1, 3), None, datetime.datetime(2026, 2, 3, 4, 5, 6)]
COLUMNS = [
    *(pa.array([1, None, 100], kind) for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.int64(), pa.uint64())),
    pa.array([(1 << 53) + 1, None], pa.int64()),
    pa.array([0.1, None, math.nan], pa.float32()),
    pa.array([0.1, None, math.inf], pa.float64()),
    *(pa.array(["a", None, "ß"], kind) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    pa.array(["x", None, "x"]).dictionary_encode(),
    *(pa.array([b"a\xff", None], kind) for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2))),
    *(pa.array([[1, None], None, []], kind) for kind in (pa.list_(pa.int8()), pa.list_view(pa.int64()))),
    pa.array([[1.5], None, [None]], pa.large_list(pa.float32())),
    *(pa.array([[1, 2], None, [3, 4]], kind) for kind in (pa.list_(pa.int16(), 2), pa.list_(pa.int64(), 2))),
    pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
    pa.array([{"b": "y", "c": [0.5]}, None]),
    pa.array([[{"a": 1}], None, [None]]),
    *(pa.array(MOMENTS, pa.timestamp(unit)) for unit in ("s", "us")),
    pa.array(MOMENTS, pa.timestamp("ms", "UTC")),
    pa.array([decimal.Decimal("1.25"), None], pa.decimal128(5, 2)),
    pa.array([decimal.Decimal("1.2"), None], pa.decimal128(9, 1)),
    pa.array([True, None]),
    pa.array([datetime.date(2026, 1, 1), None]),
    pa.nulls(2),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(range(len(COLUMNS))), min_size=1, max_size=3), st.booleans())
def test_files_whose_types_drift_are_carried_as_they_are_or_refused(numbers: list[int], lacking: bool) -> None:
    tables = [pa.table({"v": COLUMNS[number]}) for number in numbers]
    if lacking:
        tables.append(pa.table({"w": [1, 2]}))
    files = [(f"{number}.parquet", table.schema) for number, table in enumerate(tables)]

    def column(path: str, name: str) -> Iterator[pa.Array]:
        yield from tables[int(path.partition(".")[0])].column(name).chunks

    refused = False
    try:
        schema = schema_of_tables(files, ["v"], column)
    except RequestError:
        refused = True
    if refused:
        assert len(set(numbers)) > 1
        return
    for table in tables:
        carried = carried_of_table(table, len(table), schema, "here")
        expected = table.column("v").to_pylist() if "v" in table.column_names else [None] * len(table)
        assert carried.table.schema == schema
        assert [meaning(row["v"]) for row in written_and_read(carried.table)] == list(map(meaning, expected))


def test_text_that_is_none_in_a_file_becomes_null_wherever_it_stands() -> None:
    raw = pa.array([b"a", b"\xff", b"c"]).cast(pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    inside = pa.StructArray.from_arrays([broken], names=["t"])
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3], pa.int32()), broken)
    table = pa.table({"t": broken, "s": inside, "l": lists})
    carried = carried_of_table(table, 3, table.schema, "here")
    assert carried.table.to_pylist() == [
        {"t": "a", "s": {"t": "a"}, "l": ["a", None]},
        {"t": None, "s": {"t": None}, "l": []},
        {"t": "c", "s": {"t": "c"}, "l": ["c"]},
    ]
    assert carried.nulled == {"t": 1, "s": 1, "l": 1}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, 2, "x"], r"v is an integer in line 1 and text in line 3"),
        ([True, None, 1], r"v is true or false in line 1 and an integer in line 3"),
        ([{"a": {"b": 1}}, {"a": {"b": "x"}}], r"v\.a\.b is an integer in line 1 and text in line 2"),
        ([[1], ["x"]], r"v\[\] is an integer in line 1 and text in line 2"),
        ([0.5, (1 << 53) + 1], r"a fraction in line 1 and an integer that is no float64 in line 2"),
        ([1 << 64], r"one of more in line 1"),
        ([{}, None], r"v is struct<>, which Parquet cannot hold"),
    ],
)
def test_what_has_no_one_type_is_refused_with_both_places(values: list[Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        schema_of_records(records(values), ["v"])


def test_a_name_that_never_occurs_is_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"no field 'captoin'; it has caption, v \(did you mean 'caption'\?\)"):
        schema_of_records([({"caption": "x", "v": 1}, str)], ["captoin"])
    with pytest.raises(RequestError, match=r"no column 'captoin'; it has caption \(did you mean 'caption'\?\)"):
        schema_of_tables([("a", pa.schema([("caption", pa.string())]))], ["captoin"], lambda *_: iter(()))


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz"])
def test_a_member_that_nothing_has_is_refused_with_those_that_there_are(
    kind: str, photos: Path, model_path: Path, tmp_path: Path
) -> None:
    source = photos
    (photos / "0.txt").write_text("x")
    if kind != "folder":
        members = [("0.png", (photos / "0.png").read_bytes()), ("0.TXT", b"x")]
        source = make_tar(tmp_path / f"a.{kind}", members, "w:gz" if kind == "tar.gz" else "w")
    with pytest.raises(RequestError, match=r"ends in 'txtt'; they end in .*txt.*did you mean 'txt'"):
        run_here(config_for(source, tmp_path / "out", model_path, source={"carry": ["txtt"]}))
    assert not (tmp_path / "out").exists()
    assert run_here(config_for(source, tmp_path / "out", model_path, source={"carry": ["txt"]})).complete
    assert rows_of(tmp_path / "out")[0]["txt"] == "x"


def test_a_caption_that_can_never_be_read_becomes_null(photos: Path, model_path: Path, tmp_path: Path) -> None:
    (photos / "0.txt").write_text("x")
    (photos / "1.txt").symlink_to("1.txt")
    summary = run_here(config_for(photos, tmp_path / "out", model_path, source={"carry": ["txt"]}))
    assert (summary.complete, summary.totals.nulled) == (True, {"txt": 1})
    assert [row["txt"] for row in rows_of(tmp_path / "out")] == ["x", None, None]


def test_integers_and_fractions_in_two_files_are_looked_at() -> None:
    """Only where their schemas do not tell: an int64 may be no float64."""
    read: list[str] = []
    kinds = {"a": pa.int64(), "b": pa.float64(), "c": pa.int32()}

    def column(path: str, name: str) -> Iterator[pa.Array]:
        read.append(path)
        yield pa.array([1, biggest], pa.int64())

    files = [(path, pa.schema([("v", kind)])) for path, kind in kinds.items()]
    biggest = 1 << 53
    assert schema_of_tables(files, ["v"], column).field("v").type == pa.float64()
    assert read == ["a"]
    biggest += 1
    with pytest.raises(RequestError, match="not all values of a are exact"):
        schema_of_tables(files, ["v"], column)


# Whole runs.


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.png").write_bytes(encoded(noise(60, 60, number)))
    return tmp_path / "in"


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text(
        "".join(json.dumps({"image": f"{number % 3}.png", **line}) + "\n" for number, line in enumerate(lines))
    )
    return path


def test_a_late_fraction_widens_and_what_is_no_text_is_counted(photos: Path, model_path: Path, tmp_path: Path) -> None:
    lines = [{"v": number, "t": "x", "o": {"a": 1}} for number in range(1005)]
    lines += [{"v": 0.5, "t": BROKEN, "o": {"a": None, "late": "y"}}]
    source = write_lines(photos / "lines.jsonl", lines)
    config = config_for(
        source, tmp_path / "out", model_path, source={"carry": ["v", "t", "o"]}, output={"shard_tokens": 9999}
    )
    summary = run_here(config)
    assert summary.complete
    assert summary.totals.nulled == {"t": 1}
    rows = rows_of(tmp_path / "out")
    assert [row["v"] for row in rows] == [*range(1005), 0.5]
    assert (rows[-1]["t"], rows[-1]["o"], rows[0]["o"]) == (None, {"a": None, "late": "y"}, {"a": 1, "late": None})
    assert run_here(config).this_run.units == 0


def test_what_does_not_agree_is_refused_before_anything_is_written(
    photos: Path, model_path: Path, tmp_path: Path
) -> None:
    source = write_lines(photos / "lines.jsonl", [{"v": 1}] * 1200 + [{"v": "one"}])
    with pytest.raises(RequestError, match=r"v is an integer in line 1 of .*lines\.jsonl and text in line 1201 of"):
        run_here(config_for(source, tmp_path / "out", model_path, source={"carry": ["v"]}))
    assert not (tmp_path / "out").exists()


def test_what_is_added_later_has_the_types_that_are_there(photos: Path, model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    image = (photos / "0.png").read_bytes()
    pq.write_table(pa.table({"image": [image], "v": pa.array([1], pa.int64())}), folder / "a.parquet")
    config = config_for(folder, tmp_path / "out", model_path, source={"carry": ["v"], "format": "parquet"})
    assert run_here(config).complete
    pq.write_table(pa.table({"image": [image]}), folder / "b.parquet")
    pq.write_table(pa.table({"image": [image], "v": pa.array([7], pa.int8())}), folder / "c.parquet")
    assert run_here(config).complete
    assert [row["v"] for row in rows_of(tmp_path / "out")] == [1, None, 7]
    pq.write_table(pa.table({"image": [image], "v": [0.5]}), folder / "d.parquet")
    with pytest.raises(RequestError, match="v is int64 there, with them it would be double"):
        run_here(config)
    assert len(rows_of(tmp_path / "out")) == 3


def test_webdataset_carries_what_its_json_holds(photos: Path, model_path: Path, tmp_path: Path) -> None:
    image = (photos / "0.png").read_bytes()
    table = pa.table({"image": [image], "when": pa.array([MOMENTS[0]]), "n": [{"a": [1.5]}]})
    pq.write_table(table, tmp_path / "a.parquet")
    for carry, says in ((["n"], ""), (["when"], r"when is timestamp\[us\], which the JSON of a WebDataset shard")):
        config = config_for(
            tmp_path / "a.parquet",
            tmp_path / f"out-{carry[0]}",
            model_path,
            source={"carry": carry},
            output={"format": "webdataset"},
        )
        if says:
            with pytest.raises(RequestError, match=says):
                run_here(config)
        else:
            assert run_here(config).complete


def test_a_shard_that_was_written_is_read_again(tmp_path: Path) -> None:
    """And holds what it was given, numbers that are none included."""
    given = pa.table({"n": [1.5, math.nan, None], "t": ["a", None, "b"], "l": [[1], None, []]})
    pq.write_table(given, tmp_path / "a.parquet")
    check_carried(tmp_path / "a.parquet", given)
    for name, values in (("n", [1.5, math.nan, 0.0]), ("t", ["a", "", "b"]), ("l", [[1], [], []])):
        other = given.set_column(given.column_names.index(name), name, pa.array(values, given.column(name).type))
        with pytest.raises(OutputError, match=f"what is carried as {name} does not come back"):
            check_carried(tmp_path / "a.parquet", other)


# Parquet as it is written.


def layouts(images: list[bytes]) -> dict[str, pa.Array]:
    paths = pa.array([None] * len(images), pa.string())
    plain = pa.array(images, pa.binary())
    return {
        "view": pa.array(images, pa.binary_view()),
        "large": pa.array(images, pa.large_binary()),
        "categories": plain.dictionary_encode(),
        "struct of views": pa.StructArray.from_arrays([plain.cast(pa.binary_view()), paths], names=["bytes", "path"]),
        "list view": pa.array([[one] for one in images], pa.list_view(pa.binary())),
        "large list": pa.array([[one] for one in images], pa.large_list(pa.large_binary())),
        "fixed list": pa.array([[one] for one in images], pa.list_(pa.binary(), 1)),
        "list of structs": pa.array([[{"bytes": one, "path": None}] for one in images]),
    }


IMAGES = [encoded(noise(60, 60 + 10 * number, number)) for number in range(6)]


@pytest.mark.parametrize("layout", layouts(IMAGES))
@pytest.mark.parametrize("piecewise", [False, True])
def test_a_layout_is_read_whatever_it_is(
    layout: str, piecewise: bool, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if piecewise:
        monkeypatch.setattr(row_cursor, "LARGE_BYTES", 1)
        monkeypatch.setattr(row_cursor, "BATCH_BYTES", 1)
    table = pa.table({"image": layouts(IMAGES)[layout], "n": range(6)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=6 if "views" in layout else 4)
    config = config_for(tmp_path / "a.parquet", tmp_path / "out", model_path, source={"carry": ["n"]})
    summary = run_here(config)
    assert (summary.complete, summary.totals.rows, summary.totals.rejected) == (True, 6, 0)
    assert [row["sha256"] for row in rows_of(tmp_path / "out")] == [hashlib.sha256(one).hexdigest() for one in IMAGES]
    assert [row["n"] for row in rows_of(tmp_path / "out")] == list(range(6))


def rows(*numbers: int) -> list[IndexedSample]:
    return [IndexedSample(key=str(number), source="a", offset=number) for number in numbers]


def test_a_group_is_read_once_for_all_units_that_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cursor, "MOST_ROWS", 10)
    pq.write_table(pa.table({"n": np.arange(100)}), tmp_path / "a.parquet", row_group_size=60)
    opened: list[list[int]] = []
    real = row_cursor.Batches

    def counted(path: str, groups: list[int], names: list[str]) -> Any:
        opened.append(groups)
        return real(path, groups, names)

    monkeypatch.setattr(row_cursor, "Batches", counted)
    cursor = RowCursor(str(tmp_path / "a.parquet"), ["n", "absent"])
    for some in ((0, 3, 3, 17), (18, 59), (59, 60), (61, 99)):
        assert cursor.take(rows(*some)).to_pydict() == {"n": list(some)}
    assert opened == [[0], [1]]
    assert cursor.take(rows(5, 70)).to_pydict() == {"n": [5, 70]}  # what lies behind is read again
    assert opened == [[0], [1], [0], [1]]
    with pytest.raises(SourceError, match="it has no row 100"):
        cursor.take(rows(100))


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array([0.5, 0.1]), pa.float32()),
        (pa.array([[0.5], [0.1]]), pa.list_(pa.float32())),
        (pa.array([{"a": 0.1}]), pa.struct([("a", pa.float32())])),
    ],
)
def test_a_value_that_would_not_come_back_equal_is_refused(array: pa.Array, kind: pa.DataType) -> None:
    with pytest.raises(SourceError, match="not every value of double is one of float"):
        fit(array, kind, "a.parquet: carried x")


@pytest.mark.parametrize("wide", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)])
def test_lists_stay_null_or_empty_as_they_are(wide: pa.DataType) -> None:
    values = [[1, 2], None, [3, 4], None] + ([] if pa.types.is_fixed_size_list(wide) else [[], [5]])
    narrow = pa.list_(pa.int32(), 2) if pa.types.is_fixed_size_list(wide) else pa.list_(pa.int32())
    assert fit(pa.array(values, narrow), wide, "")[0].to_pylist() == values


def test_what_is_equal_when_it_comes_back() -> None:
    equal = [(1, 1.0), (True, True), (float("nan"), float("nan")), ({"a": None}, {}), ([1], [1.0]), ("1", "1")]
    other = [(1, True), (False, 0), ([True], [1]), ("1", 1), ({"a": 0}, {}), ([1], [1, 1]), (float("nan"), 0.0)]
    assert all(same(*pair) and same(*reversed(pair)) for pair in equal)
    assert not any(same(*pair) or same(*reversed(pair)) for pair in other)
