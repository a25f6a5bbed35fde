"""Manifests of every syntax: every record a row, a reject or no image, found again by its first byte."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pytest
from conftest import encoded, noise

from pipeline.config import Source
from pipeline.errors import RequestError
from pipeline.estimate.sampling import draw
from pipeline.index.write import index_samples
from pipeline.source import manifest as manifests
from pipeline.source import manifest_file
from pipeline.source.carry import carried_schema
from pipeline.source.format import Columns
from pipeline.source.formats import csv_rows, format_named, json_array
from pipeline.source.lister import list_source
from pipeline.source.part import Part
from pipeline.source.plan import spans_of_file
from pipeline.source.resolve import resolve_source
from pipeline.source.sample import IndexedSample

PICTURE = encoded(noise(30, 30))
VALUE = "data:image/png;base64," + base64.b64encode(PICTURE).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "1.png").write_bytes(PICTURE)
    return tmp_path


class Read:
    """A source that was checked, cut into parts, and indexed."""

    def __init__(self, uri: Path, carry: tuple[str, ...] = (), **fields: Any) -> None:
        source = Source(uri=str(uri), **fields)
        place = resolve_source(source)
        listing = list_source(place)
        self.source, self.place = source, place
        self.format = format_named(place.format)
        self.columns = Columns(image=source.image_column, key=source.key_column)
        self.format.check(listing, self.columns, source.uri)
        spans = [span for file in listing for span in spans_of_file(place, file, source.on_damaged)]
        self.parts = [
            Part(number=number, format=place.format, root=place.root, files=(span,))
            for number, span in enumerate(spans)
        ]
        self.by_part = [list(index_samples(part, self.columns)) for part in self.parts]
        self.samples: list[IndexedSample] = [sample for samples in self.by_part for sample in samples]
        self.schema = carried_schema(carry, listing)

    @property
    def statuses(self) -> list[str]:
        return [sample.status for sample in self.samples]

    @property
    def keys(self) -> list[str]:
        return [sample.key for sample in self.samples]

    def bytes_again(self) -> list[bytes | None]:
        """As preparing reads them: in another process, and long after."""
        reader = self.format.reader(self.columns)
        return [
            data
            for part, samples in zip(self.parts, self.by_part, strict=True)
            for data in reader.read(part, samples).encoded
        ]

    def carried(self) -> list[dict[str, Any]]:
        reader = self.format.reader(self.columns)
        return [
            row
            for part, samples in zip(self.parts, self.by_part, strict=True)
            for row in reader.carried(part, samples, self.schema, [{}] * len(samples)).table.to_pylist()
        ]


# Text that looks like the syntax around it.
ODD = ['a "quote", a \\ and a ]', "two\nlines\r\nand {a: [1]}", "ünï©ödé 図", "", "tab\tand ; and |", "[", "}", "'"]


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def write_one_line(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"\xef\xbb\xbf \r\n" + json.dumps(rows, separators=(",", ":")).encode())
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",", newline: str = "\r\n") -> Path:
    import csv

    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, lineterminator=newline)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_semicolons(path: Path, rows: list[dict[str, Any]]) -> Path:
    return write_csv(path, rows, ";", "\n")


WRITERS: list[tuple[str, Callable[[Path, list[dict[str, Any]]], Path]]] = [
    ("m.json", write_json),
    ("m.json", write_one_line),
    ("m.jsonl", write_jsonl),
    ("m.json", write_jsonl),  # many a .json file has an object a line
    ("m.csv", write_csv),
    ("m.csv", write_semicolons),
    ("m.tsv", lambda path, rows: write_csv(path, rows, "\t")),
]


@pytest.mark.parametrize("part_records", [3, 1000])
@pytest.mark.parametrize("bytes_at_once", [5, 1 << 18])
@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_every_record_is_found_again_with_what_it_holds(
    name: str,
    write: Callable[[Path, list[dict[str, Any]]], Path],
    bytes_at_once: int,
    part_records: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_array, "BYTES_AT_ONCE", bytes_at_once)
    monkeypatch.setattr(manifests, "RECORDS_PER_PART", part_records)
    monkeypatch.setattr(manifest_file, "SKIPPED_BYTES", 100)
    rows = [{"note": text, "id": f"k{number}", "image": "1.png"} for number, text in enumerate(ODD * 2)]
    rows[5]["image"], rows[9]["image"] = VALUE, ""
    read = Read(write(folder / name, rows), carry=("note", "id"), key_column="id")
    assert read.keys == [row["id"] for row in rows]
    assert read.statuses == ["no_image" if row["image"] == "" else "ok" for row in rows]
    assert read.bytes_again() == [None if row["image"] == "" else PICTURE for row in rows]
    assert read.carried() == [{"note": row["note"], "id": row["id"]} for row in rows]
    assert (len(read.parts) > 3) == (part_records == 3)


def test_a_text_list_is_a_path_a_line(folder: Path) -> None:
    (folder / "with space, and comma.png").write_bytes(PICTURE)
    lines = [b"1.png", b"", b"with space, and comma.png\r", b"nothing.png", b"\xff.png", VALUE.encode(), b"1.png "]
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    read = Read(folder / "list.txt")
    assert read.statuses == ["ok", "ok", "missing_image", "missing_image", "ok", "missing_image"]
    assert read.keys == [f"list.txt:{row}" for row in (0, 2, 3, 4, 5, 6)]
    assert "line 5 is not valid UTF-8" in str(read.samples[3].error)
    assert read.bytes_again()[:2] == [PICTURE, PICTURE]
    with pytest.raises(RequestError, match=r"source\.carry: caption: a list of paths has no columns"):
        Read(folder / "list.txt", carry=("caption",))


@pytest.mark.parametrize(
    "value",
    [
        VALUE,
        VALUE.replace("image/png;", "image;"),
        VALUE.replace("image/png", ""),
        "DATA:image/png;charset=utf-8;BASE64," + VALUE.partition(",")[2].rstrip("="),
        VALUE.replace("+", "-").replace("/", "_").replace("data:image_png", "data:image/png"),
        VALUE[:60] + "\n" + VALUE[60:],
        VALUE.replace("+", "%2B").replace("=", "%3D"),
        {"bytes": VALUE.partition(",")[2], "path": None},
        {"bytes": None, "path": VALUE},
        [VALUE],
    ],
)
def test_the_spellings_of_bytes_in_text_are_one_image(value: object, folder: Path) -> None:
    (folder / "m.jsonl").write_text(json.dumps({"image": value}) + "\n")
    read = Read(folder / "m.jsonl")
    assert read.statuses == ["ok"]
    assert read.bytes_again() == [PICTURE]


@pytest.mark.parametrize("value", ["data:image/png;base64,@@@@", VALUE[:-3], {"bytes": "no base64!"}])
def test_text_that_does_not_decode_is_corrupt(value: object, folder: Path) -> None:
    (folder / "m.jsonl").write_text(json.dumps({"image": value}) + '\n{"image": "1.png"}\n')
    read = Read(folder / "m.jsonl")
    assert read.statuses[0] in ("corrupt", "truncated")
    assert read.statuses[1] == "ok"


@pytest.mark.parametrize("value", [None, "", [], {}, {"path": None}, {"bytes": None, "path": ""}])
def test_a_record_that_names_no_image_is_no_reject(value: object, folder: Path) -> None:
    rows = [{"image": "1.png", "id": "a"}, {"image": value, "id": "t"}, {"id": "u"}, {"image": value, "id": "t"}]
    read = Read(write_json(folder / "m.json", rows), carry=("id",), key_column="id")
    assert read.statuses == ["ok", "no_image", "no_image", "no_image"]
    assert read.keys == ["a", "t", "u", "t"]
    assert [row["id"] for row in read.carried()] == ["a", "t", "u", "t"]


def test_a_json_array_keeps_what_is_no_object_as_a_reject(folder: Path) -> None:
    (folder / "m.json").write_text('[{"image": "1.png"}, 7, "x", [1], null, {"image": "1.png"}]')
    read = Read(folder / "m.json")
    assert read.statuses == ["ok", *["missing_image"] * 4, "ok"]
    assert "record 2 is not a JSON object: it is a int" in str(read.samples[1].error)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"image": "1.png"}, {"image": ', "m.json: cannot be read as json: the object at byte 21"),
        ('[{"image": "1.png"}', "m.json: cannot be read as json: the array is not closed"),
        ('[{"image": "1.png"} x]', "m.json: cannot be read as json: the object at byte 20"),
        ("[" * 100_000, "m.json: cannot be read as json: the object at byte 1 is nested too deep"),
    ],
)
def test_an_array_that_goes_wrong_is_refused_by_its_byte(text: str, says: str, folder: Path) -> None:
    (folder / "m.json").write_text(text)
    with pytest.raises(RequestError, match=says):
        Read(folder / "m.json")


def test_one_object_is_no_array(folder: Path) -> None:
    (folder / "coco.json").write_text('{\n "images": [],\n "annotations": []}')
    with pytest.raises(RequestError, match="no array of objects but an object"):
        Read(folder / "coco.json", format="json")
    (folder / "coco.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(RequestError, match=r"no line of .* has a field 'image'; they have images, annotations"):
        Read(folder / "coco.json")


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_that_is_said_to_be_lines_is_refused_with_its_name(indent: int | None, folder: Path) -> None:
    (folder / "m.json").write_text(json.dumps([{"image": "1.png"}], indent=indent))
    with pytest.raises(RequestError, match=r"one JSON array, not an object a line; set source\.format to json"):
        Read(folder / "m.json", format="jsonl")


def test_rows_that_do_not_fit_their_header_are_rejects(folder: Path) -> None:
    (folder / "m.csv").write_text('id,image\na,1.png\nb\nc,1.png,more\n\nd,1.png\n"e","1.png"\n')
    read = Read(folder / "m.csv", carry=("id",), key_column="id")
    assert read.statuses == ["ok", "missing_image", "missing_image", "ok", "ok"]
    assert "record 3 has 3 fields where the header has 2" in str(read.samples[2].error)
    assert [row["id"] for row in read.carried()] == ["a", None, None, "d", "e"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('image,note\n1.png,"never closed\n1.png,x\n', "cannot be read as csv: the record at byte 11"),
        ('image,note\n1.png,"closed" too early\n', "cannot be read as csv: the record at byte 11"),
        ("image,image\n1.png,2.png\n", "its header names image more than once"),
    ],
)
def test_a_csv_file_whose_values_cannot_be_told_apart_is_refused(text: str, says: str, folder: Path) -> None:
    (folder / "m.csv").write_text(text)
    with pytest.raises(RequestError, match=says):
        Read(folder / "m.csv")


def test_a_field_may_be_larger_than_the_csv_module_likes(folder: Path) -> None:
    assert len(VALUE) < 131_072 < csv_rows.LARGEST_FIELD_BYTES
    (folder / "m.csv").write_text(f'image,note\n"{VALUE}",{"x" * 200_000}\n')
    assert Read(folder / "m.csv").statuses == ["ok"]
    (folder / "m.csv").write_text(f"image,note\n{VALUE},x\n")
    with pytest.raises(RequestError, match=r"no record of .* can be read: record 1 has 3 fields where"):
        Read(folder / "m.csv")


def test_what_is_no_utf8_is_no_path(folder: Path) -> None:
    (folder / "m.csv").write_bytes(b"image,note\n1.png,caf\xe9\ncaf\xe9.png,x\n")
    read = Read(folder / "m.csv")
    assert read.statuses == ["ok", "missing_image"]
    assert "not valid UTF-8" in str(read.samples[1].error)


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_column_that_no_record_has_is_refused_with_those_that_there_are(
    name: str, write: Callable[[Path, list[dict[str, Any]]], Path], folder: Path
) -> None:
    path = write(folder / name, [{"id": "a", "images": "1.png"}, {"id": "b", "images": "1.png"}])
    with pytest.raises(RequestError, match=r"source\.image_column: no .* 'image'; they have id, images .*'images'"):
        Read(path)
    with pytest.raises(RequestError, match=r"source\.key_column: no .* 'name'; they have id, images"):
        Read(path, image_column="images", key_column="name")


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_a_column_that_no_file_of_several_has_is_refused_with_those_of_all(
    name: str, write: Callable[[Path, list[dict[str, Any]]], Path], folder: Path
) -> None:
    (folder / "in").mkdir()
    for number, fields in enumerate([{"id": "a", "img": "1.png"}, {"id": "b", "pic": "../1.png"}, {"caption": "c"}]):
        write(folder / "in" / f"{number}-{name}", [fields] * 2)
    uri = folder / "in" / f"*{Path(name).suffix}"
    with pytest.raises(
        RequestError, match=r"source\.image_column: no .* of .*\*\..* 'image'; they have id, img, pic, cap"
    ):
        Read(uri)
    with pytest.raises(RequestError, match=r"source\.key_column: no .* 'name'; they have id, img, pic, caption"):
        Read(uri, image_column="pic", key_column="name")
    assert "ok" in Read(uri, image_column="pic").statuses


def test_a_column_that_only_the_last_record_has_is_one(folder: Path) -> None:
    rows = [{"text": str(number)} for number in range(50)]
    read = Read(write_jsonl(folder / "m.jsonl", [*rows, {"image": "1.png"}]))
    assert read.statuses == [*["no_image"] * 50, "ok"]


URLS = ["https://example.org/a.jpg", "http://u:p@example.org/b.jpg", "ftp://example.org/c.jpg"]


@pytest.mark.parametrize(("name", "write"), WRITERS)
def test_urls_alone_are_refused_with_what_fetches_them(
    name: str, write: Callable[[Path, list[dict[str, Any]]], Path], folder: Path
) -> None:
    path = write(folder / name, [{"image": url} for url in URLS])
    with pytest.raises(RequestError, match=r"image of .* holds URLs: https://example.org.*img2dataset"):
        Read(path)
    path = write(folder / name, [{"image": url} for url in [*URLS, "1.png"]])
    read = Read(path)
    assert read.statuses == [*["missing_image"] * 3, "ok"]
    assert "img2dataset" in str(read.samples[0].error)
    assert "u:p" not in str(read.samples[1].error)


@pytest.mark.parametrize(("name", "write"), [*WRITERS, ("list.txt", None), ("a.arrow", None)])
def test_an_estimate_of_a_manifest_is_of_all_its_records(name: str, write: Any, folder: Path) -> None:
    """Each draw's samples stand for the source's: on average there are as many as there are."""
    rows = [{"note": "x" * (number % 7), "image": "1.png" if number % 4 else ""} for number in range(200)]
    if write is not None:
        write(folder / name, rows)
    elif name == "list.txt":
        (folder / name).write_text("1.png\n" * 200)
    else:
        table = pa.table({"image": [PICTURE if row["image"] else None for row in rows]})
        pa.feather.write_feather(table, folder / name, chunksize=50)
    read = Read(folder / name)
    draws, _ = draw(list_source(read.place), 400, seed=1, columns=Columns())
    total = sum(one.weight * len(one.samples) for one in draws.draws) / len(draws.draws)
    assert total == pytest.approx(200, rel=0.15)
    assert {one.status for each in draws.draws for one in each.samples} <= {"ok", "no_image"}


def test_the_images_of_a_list_are_read_again_each_with_its_records_values(folder: Path) -> None:
    """In the first record, too, where a mistake shifts all that follow."""
    other = encoded(noise(30, 40))
    inline = "data:image/png;base64," + base64.b64encode(other).decode()
    rows: list[dict[str, Any]] = [
        {"image": [VALUE, inline, "1.png"], "id": "a", "note": "of a"},
        {"image": inline, "id": "b", "note": "of b"},
        {"image": ["1.png", inline], "id": "c", "note": None},
        {"image": "1.png", "id": "d", "note": "of d"},
    ]
    read = Read(write_jsonl(folder / "m.jsonl", rows), carry=("note",), key_column="id")
    assert read.keys == ["a/0", "a/1", "a/2", "b", "c/0", "c/1", "d"]
    assert read.bytes_again() == [PICTURE, other, PICTURE, other, PICTURE, other, PICTURE]
    assert [row["note"] for row in read.carried()] == ["of a", "of a", "of a", "of b", None, None, "of d"]


def test_a_key_that_can_be_none_is_a_reject(folder: Path) -> None:
    rows = [{"image": "1.png", "id": key} for key in ("a", "", None, 7, 0.5, ["b"])] + [{"image": None, "id": ""}]
    read = Read(write_json(folder / "m.json", rows), key_column="id")
    bad = "missing_image"
    assert read.statuses == ["ok", bad, bad, "ok", bad, bad, "no_image"]
    assert read.keys == ["a", "m.json:1", "m.json:2", "7", "m.json:4", "m.json:5", "m.json:6"]
    assert "record 2: its 'id' is empty" in str(read.samples[1].error)
