"""Files of a source that are not what their names say, cannot be read by a library, or hold what only looks usual.

Catches: `invalid header` of a Git LFS pointer; a process that ends where pyarrow meets an encrypted column; a camera's
thumbnail taken for its photo; a number that JSON can spell and no float64 holds.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_stands, config_for, encoded, make_tar, noise, run_here
from PIL import Image, TiffImagePlugin

from pipeline import rejects
from pipeline.config import Source
from pipeline.errors import DamagedPart, RequestError
from pipeline.index.headers import read_header
from pipeline.rejects import Reject
from pipeline.source.format import Columns
from pipeline.source.formats import format_named
from pipeline.source.json_object import object_of
from pipeline.source.lister import list_source
from pipeline.source.named_image import named_images
from pipeline.source.resolve import resolve_source
from pipeline.source.tar import TarStream, walk

pytestmark = pytest.mark.slow

GOOD = [encoded(noise(60, 60, seed)) for seed in range(3)]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"<!doctype html><html><body>404</body></html>"
CONTENTS = {
    "a Git LFS pointer, .*git lfs pull": LFS,
    "an HTML page": HTML,
    "a gzip file": gzip.compress(b"x" * 100),
    "a zip file": b"PK\3\4" + bytes(2000),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("file", ["a.tar", "a.parquet", "a.arrow", "a.jsonl", "a.json", "a.csv"])
def test_what_a_source_is_instead_is_said(file: str, name: str, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(CONTENTS[name])
    if file == "a.tar":
        with pytest.raises(DamagedPart, match=f"it is {name}"), TarStream(tmp_path / file) as stream:
            list(walk(stream))
        return
    with pytest.raises(RequestError, match=f"it is {name}"):
        run_here(config_for(tmp_path / file, tmp_path / "out", model_path))


NO_LISTS = CONTENTS | {
    "a JPEG image": encoded(noise(30, 30), "JPEG"),
    "a PNG image": encoded(noise(30, 30)),
    "a WebP image": encoded(noise(30, 30), "WEBP"),
    "a tar": bytes(257) + b"ustar" + bytes(800),
    "an error that a store answered with": b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
    "a git-annex pointer": b"/annex/objects/SHA256E-s7--0f3a.txt\n",
    "text in UTF-16: convert it to UTF-8": "1.png\n2.png\n".encode("utf-16"),
    "binary data": b"\1\2\3" * 99,
}


@pytest.mark.parametrize("name", NO_LISTS)
def test_what_a_list_of_paths_is_instead_is_said_whichever_of_them_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(GOOD[0])
    (tmp_path / "a.txt").write_text("1.png\n")
    (tmp_path / "b.txt").write_bytes(NO_LISTS[name])
    place = resolve_source(Source(uri=str(tmp_path / "*.txt")))
    with pytest.raises(RequestError, match=rf"b\.txt is no list of paths; it is {name}"):
        format_named("text").check(list_source(place), Columns(), "*.txt")


@pytest.mark.parametrize(
    "first",
    [
        "BM/1.png",
        "PK\u0301.png",
        "MZ0001.jpg",
        "FORM/a.jpg",
        "ID3.png",
        "{a,b}/1.jpg",
        "[1].jpg",
        "GIF89/a.png",
        "Rar!.jpg",
        "../.git/annex/objects/a.png",
        "a\tb.png",
        "<a>.png",
    ],
)
def test_a_list_of_paths_may_begin_as_other_files_do(first: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{first}\n1.png\n2.png\n")
    place = resolve_source(Source(uri=str(tmp_path / "a.txt")))
    format_named("text").check(list_source(place), Columns(), "a.txt")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.zip", "a.tar.zst", "a.tar.lzma", "a.parquet.xz"])
def test_what_is_packed_is_refused_with_the_way_on(name: str, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"packed")
    with pytest.raises(RequestError, match=r"only \.tar\.gz and \.tgz (are|can be) read"):
        run_here(config_for(tmp_path / "in" / name, tmp_path / "out", model_path))


def test_a_column_that_is_encrypted_is_said_and_ends_no_process(model_path: Path, tmp_path: Path) -> None:
    import pyarrow.parquet.encryption as encryption

    class Keys(encryption.KmsClient):
        def __init__(self, config: object) -> None:
            super().__init__()

        def wrap_key(self, key: bytes, name: str) -> bytes:
            return key

        def unwrap_key(self, key: bytes, name: str) -> bytes:
            return key

    factory = encryption.CryptoFactory(Keys)
    table = pa.table({"image": GOOD})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "c.parquet")
    for name, plaintext in (("a", True), ("b", False)):
        how = encryption.EncryptionConfiguration(
            footer_key="f", column_keys={"k": ["image"]}, plaintext_footer=plaintext
        )
        properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), how)
        path = tmp_path / "in" / f"{name}.parquet"
        with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
            writer.write_table(table)
        with pytest.raises(RequestError, match=rf"{name}\.parquet: cannot be read as parquet: .*encrypted"):
            run_here(config_for(path, tmp_path / "out", model_path))
    config = config_for(tmp_path / "in", tmp_path / "out", model_path, source={"on_damaged": "skip"})
    assert [row["source"] for row in assert_stands(config)] == ["c.parquet"] * 3


def tiff(**tags: Any) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags.items():
        directory[int(number[1:])] = value
        if number == "t330":
            directory.tagtype[330] = 4
    stream = io.BytesIO()
    Image.fromarray(noise(30, 40)).save(stream, "TIFF", tiffinfo=directory)
    return stream.getvalue()


RAWS = {
    "camera raw (DNG)": tiff(t50706=b"\1\4\0\0"),
    "camera raw (NEF)": tiff(t254=1, t271="NIKON CORPORATION", t330=(8,)),
    "camera raw (ARW)": tiff(t254=1, t271="SONY", t330=(8,)),
    "camera raw (CR2)": b"II*\0\x10\0\0\0CR\2\0" + tiff()[12:],
}


@pytest.mark.parametrize("name", RAWS)
def test_a_cameras_raw_photo_in_a_tiff_is_no_thumbnail(name: str) -> None:
    with pytest.raises(Reject, match="camera raw") as caught:
        read_header(RAWS[name])
    assert (caught.value.reason, caught.value.message.partition(";")[0]) == (rejects.UNIDENTIFIED, name)


@pytest.mark.parametrize("tags", [{}, {"t254": 1}, {"t271": "NIKON CORPORATION"}, {"t330": (8,)}])
def test_a_tiff_with_one_of_these_tags_is_a_tiff(tags: dict[str, Any]) -> None:
    assert read_header(tiff(**tags)).format == "TIFF"


@pytest.mark.parametrize(
    ("members", "status"),
    [
        (["b.txt"], rejects.NO_IMAGE),
        (["b.json", "b.cls", "b.npy"], rejects.NO_IMAGE),
        (["b.TXT"], rejects.NO_IMAGE),
        (["b.heic", "b.txt"], rejects.MISSING_IMAGE),
        (["b.svg"], rejects.MISSING_IMAGE),
        (["b.png ", "b.txt"], rejects.MISSING_IMAGE),
    ],
)
def test_a_sample_of_text_alone_is_no_reject(members: list[str], status: str, model_path: Path, tmp_path: Path) -> None:
    some = [("a.png", GOOD[0]), ("a.txt", b"x"), *((name, b"y") for name in members), ("c.png", GOOD[1])]
    source = make_tar(tmp_path / "in" / "a.tar", some)
    rows = assert_stands(config_for(source, tmp_path / "out", model_path, source={"members": "grouped"}))
    assert [(row["key"], row["status"]) for row in rows] == [("a", "ok"), ("b", status), ("c", "ok")]


@pytest.mark.parametrize("text", ["1e400", "-1e999", "[1.5, 2e308]"])
def test_a_number_that_no_float64_holds_is_never_infinite(text: str) -> None:
    with pytest.raises(ValueError, match="is no float64"):
        object_of(f'{{"score": {text}}}'.encode())
    assert object_of(b'{"a": 1e308, "b": -0.0, "c": Infinity}')["a"] == 1e308  # as Python's own JSON spells it


def test_an_object_of_an_array_that_goes_wrong_is_a_reject_of_its_own(model_path: Path, tmp_path: Path) -> None:
    for number, data in enumerate(GOOD):
        (tmp_path / f"{number}.png").write_bytes(data)
    digits = "9" * 5000
    objects = ['{"image": "0.png"}', f'{{"image": "1.png", "n": {digits}}}', '{"image": "1.png", "t": "a\tb"}']
    (tmp_path / "a.json").write_text(f'[{", ".join(objects)}, {{"image": "2.png"}}]')
    rows = assert_stands(config_for(tmp_path / "a.json", tmp_path / "out", model_path))
    assert [row["status"] for row in rows] == ["ok", "missing_image", "missing_image", "ok"]


@pytest.mark.parametrize("data", [GOOD[0], encoded(noise(60, 60), "JPEG"), encoded(noise(60, 60), "WEBP")])
def test_base64_that_stands_for_a_path_says_so(data: bytes, model_path: Path, tmp_path: Path) -> None:
    text = base64.b64encode(data).decode()
    (tmp_path / "0.png").write_bytes(GOOD[0])
    lines = [{"image": "0.png"}, {"image": text}, {"image": f"data:image/any;base64,{text}"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = assert_stands(config_for(tmp_path / "a.jsonl", tmp_path / "out", model_path))
    assert [row["status"] for row in rows] == ["ok", "missing_image", "ok"]
    assert "it looks like base64: write `data:image/any;base64,` before it" in rows[1]["error"]
    assert len(rows[1]["error"]) < 500


@pytest.mark.parametrize(("value", "says"), [([1, 2], "are a list"), ({"a": 1}, "are a dict"), (3, "are a int")])
def test_bytes_that_are_none_are_no_row_without_an_image(value: object, says: str) -> None:
    (found,) = named_images({"bytes": value, "path": None}, "a.parquet", "k", "row 0")
    assert (found.reason, says in found.problem) == (rejects.MISSING_IMAGE, True)


@pytest.mark.parametrize(
    "column",
    [
        pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "image", "any"), pa.array(GOOD)),
        pa.RunEndEncodedArray.from_arrays(pa.array([1, 2, 3], pa.int32()), pa.array(GOOD)),
        pa.array([[{"bytes": data}] for data in GOOD], pa.large_list_view(pa.struct([("bytes", pa.binary_view())]))),
        pa.array([[data] for data in GOOD], pa.list_(pa.dictionary(pa.int8(), pa.binary()))),
    ],
    ids=lambda column: str(column.type)[:30],
)
def test_a_layout_of_arrow_is_read_whatever_it_is(column: pa.Array, model_path: Path, tmp_path: Path) -> None:
    table = pa.table({"image": column})
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    rows = assert_stands(config_for(tmp_path / "a.arrow", tmp_path / "out", model_path))
    assert [row["status"] for row in rows] == ["ok"] * 3
