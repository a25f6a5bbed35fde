"""Keys are unique over a file, whatever its parts. Catches: a key twice `ok`, a repeat that depends on who indexed."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encoded, noise

from pipeline.config import Source
from pipeline.index.write import index_samples
from pipeline.source import keys as keys_module
from pipeline.source import manifest as manifests
from pipeline.source.format import Columns
from pipeline.source.formats import FORMATS
from pipeline.source.formats.parquet import Parquet
from pipeline.source.keys import digests_in, key_digest, repeats_by_part
from pipeline.source.lister import list_source
from pipeline.source.plan import Plan
from pipeline.source.resolve import resolve_source
from pipeline.storage.scratch import Scratch

PICTURE = encoded(noise(30, 30))
# Of rows, three a part: what stands in them, and what is right.
ROWS = ["a", "b", "a", "b", "c", "d", "a", "", "e", "c", "c", "f"]
STATUSES = [*["ok", "ok", "duplicate_key", "duplicate_key", "ok", "ok", "duplicate_key", "missing_image", "ok"]]
STATUSES += ["duplicate_key", "duplicate_key", "ok"]


def statuses(uri: Path, output: Path, order: list[int] | None = None, **fields: str) -> list[tuple[str, str]]:
    """Key and status of every sample, in order, having indexed the parts in some order."""
    source = Source(uri=str(uri), **fields)
    plan = Plan(output)
    with Scratch(output) as scratch:
        plan.update(source, list_source(resolve_source(source)), scratch)
    assert plan.num_parts > 1
    columns = Columns(image=source.image_column, key=source.key_column)
    found = {
        part: [(sample.key, sample.status) for sample in index_samples(plan.part(part), columns)]
        for part in order or range(plan.num_parts)
    }
    return [one for part in range(plan.num_parts) for one in found[part]]


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manifests, "RECORDS_PER_PART", 3)
    (tmp_path / "1.png").write_bytes(PICTURE)
    return tmp_path / "m.jsonl"


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_key_of_another_part_of_a_manifest_is_a_duplicate(manifest: Path, tmp_path: Path) -> None:
    write_lines(manifest, [{"id": key, "image": "1.png"} for key in ROWS])
    found = statuses(manifest, tmp_path / "out", key_column="id")
    assert [status for _, status in found] == STATUSES
    assert [key for key, _ in found] == [key or "m.jsonl:7" for key in ROWS]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_order_in_which_parts_are_indexed_changes_nothing(
    order: tuple[int, ...], manifest: Path, tmp_path: Path
) -> None:
    write_lines(manifest, [{"id": key, "image": "1.png"} for key in ROWS])
    found = statuses(manifest, tmp_path / "out", list(order), key_column="id")
    assert [status for _, status in found] == STATUSES


def test_keys_of_lists_numbers_and_row_numbers_meet_as_what_they_are_written_as(manifest: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "image": ["1.png", "1.png"]},  # a/0, a/1
        {"id": 7, "image": "1.png"},
        {"image": "1.png"},  # its key is made of its number
        {"id": "a/1", "image": "1.png"},
        {"id": "7", "image": "1.png"},
        {"id": "m.jsonl:2", "image": "1.png"},
        {"id": "a", "image": ["1.png", "1.png", "1.png"]},  # a/2 is new
    ]
    found = statuses(write_lines(manifest, rows), tmp_path / "out", key_column="id")
    assert [key for key, status in found if status == "ok"] == ["a/0", "a/1", "7", "a/2"]
    assert Counter(status for _, status in found)["duplicate_key"] == 5


LAYOUTS: dict[str, tuple[pa.DataType, object, bool]] = {
    "bytes": (pa.binary(), PICTURE, False),
    "struct": (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"bytes": PICTURE, "path": None}, False),
    "path": (pa.string(), "1.png", False),
    "list-of-bytes": (pa.list_(pa.binary()), [PICTURE, PICTURE], True),
    "list-of-structs": (
        pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        [{"bytes": PICTURE, "path": None}, {"bytes": None, "path": "1.png"}],
        True,
    ),
    "large-list-of-paths": (pa.large_list(pa.string()), ["1.png", "1.png"], True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_key_of_another_part_of_a_parquet_file_is_a_duplicate(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "parquet", Parquet(rows_per_part=3))
    (tmp_path / "1.png").write_bytes(PICTURE)
    kind, value, is_list = LAYOUTS[layout]
    table = pa.table({"image": pa.array([value] * len(ROWS), kind), "id": ROWS})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    found = statuses(tmp_path / "a.parquet", tmp_path / "out", key_column="id")
    expected = [status for key, status in zip(ROWS, STATUSES, strict=True) for _ in range(2 if is_list and key else 1)]
    assert [status for _, status in found] == expected


def test_equal_keys_of_two_files_are_two_samples(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.png").write_bytes(PICTURE)
    for name in ("a.jsonl", "b.jsonl"):
        write_lines(tmp_path / "in" / name, [{"id": str(row % 4), "image": "1.png"} for row in range(5)])
    found = statuses(tmp_path / "in" / "*.jsonl", tmp_path / "out", key_column="id")
    assert Counter(status for _, status in found) == {"ok": 8, "duplicate_key": 2}


def test_keys_of_row_numbers_are_not_read(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FORMATS["jsonl"], "keys", None)
    write_lines(manifest, [{"image": "1.png"}] * 7)
    assert [status for _, status in statuses(manifest, tmp_path / "out")] == ["ok"] * 7


def test_a_format_that_says_no_more_has_its_keys_read_the_slow_way(manifest: Path, tmp_path: Path) -> None:
    write_lines(manifest, [{"id": key, "image": "1.png"} for key in ROWS])
    place = resolve_source(Source(uri=str(manifest)))
    spans = FORMATS["jsonl"].spans(place, next(iter(list_source(place))))
    columns = Columns(key="id")
    for span in spans:
        slow = super(type(FORMATS["jsonl"]), FORMATS["jsonl"]).keys(place, span, columns)
        assert list(slow) == list(FORMATS["jsonl"].keys(place, span, columns))


def test_many_keys_are_found_in_buckets_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "SPOOLED_BYTES", 1)
    monkeypatch.setattr(keys_module, "KEYS_AT_ONCE", 100)
    parts = [[f"{number * step}" for number in range(1000)] for step in (1, 3, 7, 3)]
    seen: set[str] = set()
    for keys, repeated in zip(parts, repeats_by_part(parts), strict=True):
        assert digests_in(repeated) == {key_digest(key) for key in keys if key in seen}
        seen.update(keys)


def test_digests_that_differ_in_one_half_alone_are_two_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a part repeats of itself is its own to tell."""
    made = {"a": bytes(15) + b"1", "b": bytes(15) + b"2", "c": b"1" + bytes(15), "d": b"2" + bytes(15)}
    monkeypatch.setattr(keys_module, "key_digest", made.__getitem__)
    assert repeats_by_part([["a", "c", "a"], ["b", "d"], ["a"]]) == [b"", b"", made["a"]]


def test_rows_without_a_key_are_numbered_over_the_whole_file(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another row has such a number as its key."""
    write_lines(manifest, [{"image": "1.png"}] * 8)
    assert statuses(manifest, tmp_path / "out") == [(f"m.jsonl:{row}", "ok") for row in range(8)]
    monkeypatch.setitem(FORMATS, "parquet", Parquet(rows_per_part=3))
    ids = ["a", "a.parquet:4", "b", "c", None, "d", "e", None]
    pq.write_table(pa.table({"image": [PICTURE] * 8, "id": ids}), tmp_path / "a.parquet", row_group_size=3)
    found = statuses(tmp_path / "a.parquet", tmp_path / "table", key_column="id")
    assert found == [(key or f"a.parquet:{row}", "duplicate_key" if row == 4 else "ok") for row, key in enumerate(ids)]
