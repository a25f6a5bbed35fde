"""The commit record as JSON. Catches: a field lost on the way, and a damaged record that is taken for a whole one."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench.driver import RECORD
from pipeline.errors import OutputError
from pipeline.output.metadata import METADATA_KEY
from pipeline.output.record import CommitRecord, read_record


def test_a_record_comes_back_as_it_was() -> None:
    record = replace(RECORD, rejects={"corrupt": 2}, encoder=3, encoded_at=7.5, errors={"int8": {"relative_rms": 0.01}})
    tree = json.loads(json.dumps(record.to_json()))
    assert tree["int8"] == {"relative_rms": 0.01}
    assert CommitRecord.from_json(tree) == record


@pytest.mark.parametrize("name", ["rows_in", "tokens", "data_size", "data_sha256", "fingerprint", "rejects"])
def test_a_record_that_lacks_a_field_is_none(name: str) -> None:
    tree = RECORD.to_json()
    del tree[name]
    with pytest.raises(ValueError, match=f"lacks {name}"):
        CommitRecord.from_json(tree)


def test_a_record_of_an_earlier_version_is_read() -> None:
    earlier = RECORD.to_json()
    for name in ("overflows", "nulled", "packs", "adopted", "encoder", "encoded_at", "reject_errors"):
        del earlier[name]
    record = CommitRecord.from_json(earlier)
    assert (record.overflows, record.packs, record.adopted, record.encoded_at) == (0, [], False, 0.0)


COUNTS = [
    *("rows_in", "rows_out", "tokens", "encoded_tokens", "embedding_bytes", "data_size", "halvings", "overflows"),
    "no_image",
]
WRONG: dict[str, list[object]] = {
    **{key: ["7", None, 7.5, True, -1, 1 << 63, [7]] for key in [*COUNTS, "schema_version", "encoder"]},
    **{key: [7, None, ["a"], {}] for key in ["unit", "data_sha256", "fingerprint", "device"]},
    "rejects": [None, 7, "corrupt", [], {"corrupt": "2"}, {"corrupt": None}, {"corrupt": -1}],
    "nulled": [None, 7, "txt", [], {"txt": "2"}, {"txt": -1}],
    "reject_examples": [None, 7, [], {"corrupt": "key"}, {"corrupt": [7]}, {"corrupt": None}],
    "reject_errors": [None, 7, [], {"corrupt": ["x"]}, {"corrupt": None}],
    "seconds": [None, 7.5, [], {"encode": "1"}, {"encode": None}, {"encode": math.nan}, {"encode": -1.0}],
    "packs": [None, 7, {}, "77", ["7"], [7.5], [True]],
    "adopted": [None, 0, "false"],
    "statistics": [None, 7, [], "none"],
    "encoded_at": [None, "now", math.nan, math.inf, -1.0, True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_field_that_is_something_else_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        CommitRecord.from_json(RECORD.to_json() | {name: value})


def test_every_field_is_held_to_its_type() -> None:
    assert {*WRONG, "errors"} == {one.name for one in fields(CommitRecord)}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"7",
        b"null",
        b'"text"',
        b"[]",
        b'[["rows_in", 1]]',
        b"\xff\xfe",
        b"[" * 100000,
        b"9" * 5000,
        json.dumps(RECORD.to_json() | {"packs": None}).encode(),
        json.dumps({"rows_in": 1}).encode(),
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_whatever_stands_in_a_footer_the_error_names_the_file(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "part-000000-0000.parquet"
    pq.write_table(pa.table({"key": ["a"]}).replace_schema_metadata({METADATA_KEY: text}), path)
    with pytest.raises(OutputError, match=r"part-000000-0000\.parquet: not a complete shard: .*"):
        read_record(path)


@pytest.mark.parametrize("kind", ["cut", "flipped"])
def test_a_damaged_file_is_named_or_read(kind: str, tmp_path: Path) -> None:
    """Every byte of a footer in turn: never another error than the one that names the file."""
    path = tmp_path / "part-000000-0000.parquet"
    text = json.dumps(RECORD.to_json())
    pq.write_table(pa.table({"key": ["a"]}).replace_schema_metadata({METADATA_KEY: text}), path)
    whole = path.read_bytes()
    refused = 0
    for place in range(4, len(whole)):
        path.write_bytes(whole[:place] if kind == "cut" else damaged_at(whole, place))
        try:
            read_record(path)
        except OutputError as error:
            refused += path.name in str(error)
    assert refused > len(whole) // 10


def damaged_at(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x15]) + data[place + 1 :]
