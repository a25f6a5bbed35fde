"""Arrow files: the same batches as pyarrow's own readers give, of what is whole; what is cut is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pytest
from conftest import encoded, noise
from test_manifests import Read

from pipeline.errors import RequestError
from pipeline.source.arrow_file import ArrowFile
from pipeline.source.formats import FORMATS
from pipeline.source.formats.arrow import Arrow
from pipeline.source.lister import list_source
from pipeline.source.resolve import resolve_source

PICTURE = encoded(noise(30, 30))
TABLE = pa.table(
    {
        "id": [f"k{number}" for number in range(10)],
        "image": [{"bytes": PICTURE, "path": None}] * 8 + [None, {"bytes": None, "path": None}],
        "label": pa.array(["cat", "dog"] * 5).dictionary_encode(),
        "boxes": [[[1.5, number]] for number in range(10)],
    }
)


def write_stream(path: Path, table: pa.Table, **options: Any) -> Path:
    with pa.ipc.new_stream(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


def write_file(path: Path, table: pa.Table, **options: Any) -> Path:
    with pa.ipc.new_file(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


@pytest.mark.parametrize("write", [write_stream, write_file])
@pytest.mark.parametrize("columns", [["id", "image", "boxes"], ["id", "label", "image"]])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_batches_are_those_of_pyarrow(write: Any, columns: list[str], compression: str | None, tmp_path: Path) -> None:
    table = TABLE.select(columns)
    path = write(tmp_path / "a.arrow", table, compression=compression)
    with ArrowFile(str(path)) as file:
        assert file.schema == table.schema
        assert [batch.rows for batch in file.batches] == [4, 4, 2]
        backwards = [file.batch(number) for number in (2, 1, 0)]
    assert pa.Table.from_batches(backwards[::-1]).to_pylist() == table.to_pylist()


def test_an_empty_table_has_no_batches(tmp_path: Path) -> None:
    with ArrowFile(str(write_stream(tmp_path / "a.arrow", TABLE.slice(0, 0)))) as file:
        assert sum(batch.rows for batch in file.batches) == 0
    assert Read(tmp_path / "a.arrow").samples == []


@pytest.mark.parametrize("write", [write_stream, write_file])
def test_a_file_that_is_cut_or_damaged_is_refused_or_read_as_it_is(write: Any, tmp_path: Path) -> None:
    whole = write(tmp_path / "a.arrow", TABLE.select(["id", "boxes"])).read_bytes()
    with pa.ipc.open_stream(whole) if write is write_stream else pa.ipc.open_file(whole) as reader:
        rows = reader.read_all().num_rows
    cut = tmp_path / "cut.arrow"
    refused = 0
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        try:
            with ArrowFile(str(cut)) as file:
                assert sum(batch.rows for batch in file.batches) <= rows
                refused += bool(file.damage)
        except (pa.ArrowException, OSError):
            refused += 1
    assert refused > 100
    for place in range(0, len(whole), 5):
        cut.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            with ArrowFile(str(cut)) as file:
                for number in range(len(file.batches)):
                    file.batch(number)
        except (pa.ArrowException, OSError):
            refused += 1


@pytest.mark.parametrize("text", [b"", b"ARROW1", b"PAR1 nothing of the kind", b"\xff" * 100])
def test_what_is_no_arrow_file_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(text)
    with pytest.raises(RequestError, match=r"a\.arrow: cannot be read as arrow"):
        Read(tmp_path / "a.arrow")


def test_rows_are_samples_of_their_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "arrow", Arrow(rows_per_part=4))
    read = Read(write_stream(tmp_path / "a.arrow", TABLE), carry=("label", "boxes"), key_column="id")
    assert len(read.parts) == 3
    assert read.keys == TABLE.column("id").to_pylist()
    assert read.statuses == [*["ok"] * 8, "no_image", "no_image"]
    assert [sample.group for sample in read.samples] == [0] * 4 + [1] * 4 + [2] * 2
    assert read.bytes_again() == [*[PICTURE] * 8, None, None]
    assert read.carried() == TABLE.select(["label", "boxes"]).to_pylist()


def test_only_the_files_of_a_saved_data_set_are_its_own(tmp_path: Path) -> None:
    for name in ("data-0.arrow", "old.arrow", "cache-1.arrow"):
        write_stream(tmp_path / name, TABLE)
    (tmp_path / "deeper").mkdir()
    write_stream(tmp_path / "deeper" / "cache-2.arrow", TABLE)
    write_stream(tmp_path / "deeper" / "some.arrow", TABLE)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    listing = list_source(resolve_source(Read(tmp_path).source))
    assert [file.path for file in listing] == ["data-0.arrow", "deeper/some.arrow"]
    assert listing.ignored == {".arrow (no data)": 3, ".json": 1}
    (tmp_path / "state.json").write_text("{}")
    assert len({sample.source for sample in Read(tmp_path).samples}) == 3


def test_columns_and_urls_are_checked_as_those_of_parquet(tmp_path: Path) -> None:
    path = write_stream(tmp_path / "a.arrow", TABLE)
    with pytest.raises(RequestError, match=r"source\.image_column: .*no column 'picture'; it has id, image, label"):
        Read(path, image_column="picture")
    with pytest.raises(RequestError, match=r"boxes of .* is list"):
        Read(path, image_column="boxes")
    with pytest.raises(RequestError, match=r"source\.carry: .* no column 'lable'.*did you mean 'label'"):
        Read(path, carry=("lable",))
    pyarrow.feather.write_feather(pa.table({"image": ["https://example.org/a.jpg"] * 3}), tmp_path / "u.feather")
    with pytest.raises(RequestError, match=r"holds URLs.*img2dataset"):
        Read(tmp_path / "u.feather")
