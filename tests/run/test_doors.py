"""Every source format: equal images give equal embeddings, broken rows are rejects, columns are carried."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import config_for, embeddings, encoded, make_tar, noise, run_here, stamp
from doors import DOORS, Door, as_folder, as_json, as_saved, as_table_folder, as_tar, fields_of, rows_of
from hub_server import REPOSITORY as HUB_REPOSITORY
from hub_server import HubServer

import pipeline.source.formats.webdataset as webdataset_module
from pipeline.errors import RequestError, RunFailed
from pipeline.output.verify import Verifier
from pipeline.source.formats import FORMATS
from pipeline.source.formats.parquet import Parquet

if TYPE_CHECKING:
    from pipeline.config import Config

pytestmark = pytest.mark.slow

# Four units of forty photos of six tokens. Bits depend on which images share a pack, and so a unit.
OF_PHOTOS: dict[str, dict[str, object]] = {"output": {"shard_tokens": 60}, "pack": {"max_patches": 400}}


def samples(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "samples").to_pylist()


@pytest.fixture(scope="module")
def photos() -> dict[str, bytes]:
    """Forty of them, each of six tokens: ten are a unit, wherever their files begin and end."""
    sizes = [(number, 50 + number % 8, 76 + number % 12) for number in range(40)]
    return {f"{number:03d}.png": encoded(noise(height, width, number)) for number, height, width in sizes}


@pytest.fixture(scope="module")
def photo_folder(photos: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photos")
    for name, data in photos.items():
        (place / name).write_bytes(data)
    return place


@pytest.fixture(scope="module")
def tokens(photo_folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    output = tmp_path_factory.mktemp("tokens") / "out"
    assert run_here(config_for(photo_folder, output, model_path, **OF_PHOTOS)).complete
    assert len(embeddings(output)) == 40
    return embeddings(output)


def assert_same_embeddings(config: Config, output: Path, tokens: list[bytes]) -> None:
    """A run gives these, `verify` proves it, and a second run changes nothing."""
    said: list[str] = []
    from pipeline.run.runner import run

    summary = run(config, say=said.append, report=lambda *_: None)
    assert summary.complete
    assert (summary.totals.units, summary.totals.samples, summary.totals.rows) == (4, 40, 40)
    assert embeddings(output) == tokens
    before = {path: stamp(path) for path in (output / "data").iterdir()}
    assert run_here(config).this_run.units == 0
    assert before == {path: stamp(path) for path in (output / "data").iterdir()}
    assert Verifier(output).verify().proven


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_every_door_gives_the_same_embeddings(
    door: Door,
    photos: dict[str, bytes],
    photo_folder: Path,
    tokens: list[bytes],
    model_path: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    source = door(photos, photo_folder, tmp_path / "in")
    output = tmp_path / "out"
    assert_same_embeddings(config_for(source, output, model_path, source=fields_of(door), **OF_PHOTOS), output, tokens)
    rows = [(row["key"], row.get("caption")) for row in samples(output)]
    assert rows == rows_of(door, photos)
    stored = pq.read_table(output / "data").to_pylist()
    assert [(row["key"], row.get("caption")) for row in stored] == rows


@pytest.mark.slow
@pytest.mark.parametrize("door", [as_folder, as_table_folder, as_json, as_saved, as_tar])
def test_the_hub_is_a_door_too(
    door: Door,
    photos: dict[str, bytes],
    photo_folder: Path,
    tokens: list[bytes],
    model_path: Path,
    tmp_path: Path,
    hub: Callable[[Path], HubServer],
) -> None:
    """Through the Hub's own client; what it is asked for is files, and ranges of them."""
    (tmp_path / "in").mkdir()
    source = door(photos, photo_folder, tmp_path / "in")
    server = hub(tmp_path / "in")
    below = source.relative_to(tmp_path / "in").as_posix().strip(".")
    uri = f"hf://datasets/{HUB_REPOSITORY}/{below}".rstrip("/")
    output = tmp_path / "out"
    assert_same_embeddings(config_for(uri, output, model_path, source=fields_of(door), **OF_PHOTOS), output, tokens)
    assert any("/resolve/main/" in asked for asked in server.asked)


def test_nulls_and_broken_rows_are_rejects(images: dict[str, bytes], model_path: Path, tmp_path: Path) -> None:
    good = list(images.values())
    cells = [good[0], None, b"", b"not an image", good[1], good[2][:-60]]
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": cells, "n": range(6)}), source, row_group_size=2)
    output = tmp_path / "out"
    summary = run_here(config_for(source, output, model_path, source={"carry": ["n"]}))
    rows = samples(output)
    assert [row["status"] for row in rows] == ["ok", "no_image", "truncated", "unidentified", "ok", "truncated"]
    assert [row["key"] for row in rows] == [f"a.parquet:{number}" for number in range(6)]
    assert [row["n"] for row in rows] == list(range(6))
    assert pq.read_table(output / "samples").schema.field("n").type == pa.int64()
    assert "row 1 names no image" in rows[1]["error"]
    totals = summary.totals
    assert (totals.samples, totals.rows, totals.rejected, totals.no_image) == (6, 2, 3, 1)


def test_bad_lines_are_rejects_that_name_their_number(
    images: dict[str, bytes], folder: Path, model_path: Path, tmp_path: Path
) -> None:
    path = str(folder / "000.png")
    lines = [
        json.dumps({"image": path, "tags": ["x", "y"], "size": 3}),
        "{not json",
        json.dumps({"picture": path}),
        json.dumps({"image": "https://example.org/a.jpg"}),
        json.dumps({"image": str(tmp_path / "nothing.jpg")}),
        "",
        json.dumps({"image": [path, 7]}),
        "[1, 2]",
        json.dumps({"image": {"path": path}, "tags": None}),
        "[" * 100_000,
    ]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines) + "\n")
    output = tmp_path / "out"
    assert run_here(config_for(source, output, model_path, source={"carry": ["tags", "size"]})).complete
    rows = {row["key"]: row for row in samples(output)}
    assert {key: row["status"] for key, row in rows.items()} == {
        "a.jsonl:0": "ok",
        "a.jsonl:1": "missing_image",
        "a.jsonl:2": "no_image",
        "a.jsonl:3": "missing_image",
        "a.jsonl:4": "missing_image",
        "a.jsonl:6/0": "ok",
        "a.jsonl:6/1": "missing_image",
        "a.jsonl:7": "missing_image",
        "a.jsonl:8": "ok",
        "a.jsonl:9": "missing_image",
    }
    assert "line 2 is not a JSON object" in rows["a.jsonl:1"]["error"]
    assert "fetches nothing from hosts" in rows["a.jsonl:3"]["error"]
    assert rows["a.jsonl:0"]["tags"] == ["x", "y"]
    assert rows["a.jsonl:0"]["size"] == 3
    assert rows["a.jsonl:8"]["tags"] is None


def test_keys_that_repeat_are_rejects(images: dict[str, bytes], model_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": list(images.values())[:3], "id": [5, 6, 5]}), source)
    run_here(config_for(source, tmp_path / "out", model_path, source={"key_column": "id"}))
    assert [(row["key"], row["status"]) for row in samples(tmp_path / "out")] == [
        ("5", "ok"),
        ("6", "ok"),
        ("5", "duplicate_key"),
    ]


def test_an_image_file_that_vanishes_is_a_failure_and_one_that_changes_a_checksum(
    images: dict[str, bytes], model_path: Path, tmp_path: Path
) -> None:
    from pipeline.cli import plan as plan_job
    from pipeline.run.indexing import make_plan
    from pipeline.run.request import check_request

    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(images["000.png"])
    source = tmp_path / "m.jsonl"
    source.write_text('{"image": "a.png"}\n{"image": "b.png"}\n')
    config = config_for(source, tmp_path / "out", model_path, pack={"deduplicate": False}, limits={"attempts": 1})
    make_plan(check_request(config), say=lambda line: None)
    assert plan_job
    (tmp_path / "b.png").unlink()
    summary = run_here(config)
    assert not summary.complete
    assert "b.png" in summary.problems[0]
    (tmp_path / "b.png").write_bytes(images["001.png"])
    summary = run_here(config)
    assert summary.complete
    assert [row["status"] for row in samples(tmp_path / "out")] == ["ok", "checksum"]


def test_parts_and_units_of_parquet_fall_on_row_groups(
    images: dict[str, bytes], model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "parquet", Parquet(rows_per_part=6))
    source = tmp_path / "a.parquet"
    cells = [encoded(np.zeros((56, 56, 3), np.uint8) + number) for number in range(16)]  # 4 tokens each
    pq.write_table(pa.table({"image": cells}), source, row_group_size=3)
    run_here(config_for(source, tmp_path / "out", model_path, output={"shard_tokens": 20}))  # 5 would fit
    units = {path.stem: pq.read_metadata(path).num_rows for path in sorted((tmp_path / "out" / "samples").iterdir())}
    assert units == {
        "part-000000-0000": 3,
        "part-000000-0001": 3,
        "part-000001-0000": 3,
        "part-000001-0001": 3,
        "part-000002-0000": 4,
    }
    assert [row["key"] for row in samples(tmp_path / "out")] == [f"a.parquet:{number}" for number in range(16)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"image_column": "picture"}, "source.image_column: .*a.parquet has no column 'picture'; it has image, id"),
        ({"key_column": "name"}, "source.key_column: .*no column 'name'"),
        ({"image_column": "id"}, "source.image_column: id of .* is int64"),
        ({"carry": ["nothing"]}, "source.carry: .* no column 'nothing'"),
        ({"carry": ["sha256"]}, "source.carry: sha256 is a column of the output"),
        ({"carry": ["id", "id"]}, "source.carry: id stands there twice"),
    ],
)
def test_wrong_columns_are_refused_before_anything_is_written(
    fields: dict[str, object], says: str, images: dict[str, bytes], model_path: Path, tmp_path: Path
) -> None:
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": list(images.values())[:2], "id": [1, 2]}), source)
    with pytest.raises(RequestError, match=says):
        run_here(config_for(source, tmp_path / "out", model_path, source=fields))
    assert not (tmp_path / "out").exists()


def test_not_parquet_names_the_file(tmp_path: Path, model_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(RequestError, match=r"a\.parquet: cannot be read as parquet"):
        run_here(config_for(tmp_path / "a.parquet", tmp_path / "out", model_path))


def test_tar_members_are_carried_whole(images: dict[str, bytes], model_path: Path, tmp_path: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.arange(3))
    source = make_tar(
        tmp_path / "a.tar",
        [
            ("a.json", b'{"x": 1}'),
            ("a.png", images["000.png"]),
            ("a.npy", array.getvalue()),
            ("b.png", b"broken"),
            ("b.json", b"{}"),
            ("c.png", images["001.png"]),
            ("d.png", images["002.png"]),
            ("d.json", b"[2]"),
        ],
    )
    run_here(config_for(source, tmp_path / "out", model_path, source={"carry": ["json", "npy"]}))
    carried = {"a": ('{"x": 1}', array.getvalue()), "b": ("{}", None), "c": (None, None), "d": ("[2]", None)}
    rows = samples(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "unidentified", "ok", "ok"]
    assert {row["key"]: (row["json"], row["npy"]) for row in rows} == carried
    data = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [(row["key"], row["json"], row["npy"]) for row in data] == [(key, *carried[key]) for key in "acd"]


@pytest.mark.slow
def test_a_tar_is_read_in_one_range_with_what_is_carried(
    images: dict[str, bytes], model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gzip stream would else be decompressed once more for every unit. Members far away are sought by themselves."""
    members = [("late.txt", b"far before")]
    for name, data in images.items():
        members += [(name, data), (name.replace(".png", ".txt"), f"of {name}".encode())]
    members += [("filler.bin", bytes(5000)), ("late.png", images["000.png"]), ("000.cls", b"far behind")]
    source = make_tar(tmp_path / "a.tar.gz", members, "w:gz")
    opened: list[Path] = []
    stream = webdataset_module.TarStream

    class Counted(stream):  # type: ignore[misc, valid-type]
        def __init__(self, path: Path) -> None:
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(webdataset_module, "TarStream", Counted)
    run_here(config_for(source, tmp_path / "near", model_path, source={"carry": ["txt"]}))
    rows = {row["key"]: row["txt"] for row in samples(tmp_path / "near")}
    assert rows.pop("filler") is None  # a reject: there is no image
    assert rows == {name.removesuffix(".png"): f"of {name}" for name in images} | {"late": "far before"}
    units = len(list((tmp_path / "near" / "samples").iterdir()))
    assert units > 4
    assert len(opened) <= 3  # for the names that there are, to read, and one step back: the last text stands first
    monkeypatch.setitem(FORMATS, "webdataset", webdataset_module.WebDataset(beside_bytes=100))
    run_here(config_for(source, tmp_path / "far", model_path, source={"carry": ["txt", "cls"]}))
    found = {row["key"]: (row["txt"], row["cls"]) for row in samples(tmp_path / "far")}
    assert found["late"] == ("far before", None)
    assert found["000"] == ("of 000.png", "far behind")


@pytest.mark.slow
def test_files_beside_an_image_are_carried(images: dict[str, bytes], model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "deeper"
    folder.mkdir(parents=True)
    for name, data in list(images.items())[:3]:
        (folder / name).write_bytes(data)
    (folder / "000.txt").write_text("ein Fuß")
    (folder / "002.txt").write_text("")
    (folder / "001.npy").write_bytes(b"\xff\xfe")
    config = config_for(tmp_path / "in", tmp_path / "out", model_path, source={"carry": ["txt", "npy"]})
    assert run_here(config).complete
    assert [(row["txt"], row["npy"]) for row in samples(tmp_path / "out")] == [
        ("ein Fuß", None),
        (None, b"\xff\xfe"),
        ("", None),
    ]
    (folder / "001.txt").write_bytes(b"\xff")
    config = config_for(tmp_path / "in", tmp_path / "bad", model_path, source={"carry": ["txt"]})
    summary = run_here(config)
    assert summary.complete
    assert summary.totals.nulled == {"txt": 1}
    assert [row["txt"] for row in samples(tmp_path / "bad")] == ["ein Fuß", None, ""]


@pytest.mark.slow
def test_a_line_or_row_that_cannot_be_stored_is_a_reject_of_its_own(model_path: Path, tmp_path: Path) -> None:
    """Not of its part: thousands of lines go with it."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded(noise(30, 30, 1)))
    lines = [
        {"id": "good", "image": "a.png"},
        {"id": "base64", "image": "iVBORw0KGgo" * 600},
        {"id": "\ud800", "image": "a.png"},
        {"id": "half", "image": "\ud800.png"},
        {"id": "last", "image": "a.png"},
    ]
    (folder / "m.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    config = config_for(folder / "m.jsonl", tmp_path / "out", model_path, source={"key_column": "id"})
    assert run_here(config).complete
    rows = samples(tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "missing_image", "missing_image", "missing_image", "ok"]
    assert "line 3" in rows[2]["error"]
    assert "line 4" in rows[3]["error"]

    text = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe"))
    image = encoded(noise(30, 30, 1))
    pq.write_table(pa.table({"id": text, "image": [image, image]}), folder / "p.parquet")
    config = config_for(folder / "p.parquet", tmp_path / "out2", model_path, source={"key_column": "id"})
    assert run_here(config).complete
    rows = samples(tmp_path / "out2")
    assert [(row["key"], row["status"]) for row in rows] == [("a", "ok"), ("p.parquet:1", "missing_image")]
    assert "row 1: its key is not valid UTF-8" in rows[1]["error"]

    pq.write_table(pa.table({"id": [b"k1", b"\xff"], "image": [image, image]}), folder / "b.parquet")
    config = config_for(folder / "b.parquet", tmp_path / "out3", model_path, source={"key_column": "id"})
    assert run_here(config).complete
    assert [row["key"] for row in samples(tmp_path / "out3")] == ["k1", "ff"]


def text_only(count: int, folder: Path, images: int) -> Path:
    """A manifest of a mixed data set: lines with an image, and lines without."""
    lines = [{"id": number, "image": f"{number % 14:03d}.png" if number < images else None} for number in range(count)]
    (folder / "mixed.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder / "mixed.jsonl"


def test_rows_without_an_image_are_no_rejects(images: dict[str, bytes], model_path: Path, tmp_path: Path) -> None:
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    source, output = text_only(40, tmp_path, 6), tmp_path / "out"
    config = config_for(source, output, model_path, limits={"max_rejected_fraction": 0.0}, source={"carry": ["id"]})
    totals = run_here(config).totals
    assert (totals.samples, totals.rows, totals.rejected, totals.no_image) == (40, 6, 0, 34)
    rows = samples(output)
    assert [row["status"] for row in rows] == ["ok"] * 6 + ["no_image"] * 34
    assert [row["id"] for row in rows] == list(range(40))
    assert {row["shard"] for row in rows[6:]} == {None}
    success = json.loads((output / "_SUCCESS").read_text())
    assert (success["samples"], success["rows"], success["rejected"], success["no_image"]) == (40, 6, 0, 34)
    assert "| without an image | 34 |" in (output / "README.md").read_text()
    report = Verifier(output).verify()
    assert report.proven, report
    assert (report.samples, report.rows, report.no_image) == (40, 6, 34)
    assert run_here(config).this_run.units == 0


def test_the_share_of_rejects_is_one_of_images(images: dict[str, bytes], model_path: Path, tmp_path: Path) -> None:
    """Nine of ten lines are text: three broken images of six are half of them, not a twentieth of the lines."""
    for number, (name, data) in enumerate(images.items()):
        (tmp_path / name).write_bytes(data if number > 2 else b"broken")
    source = text_only(60, tmp_path, 6)
    with pytest.raises(RunFailed, match=r"3 of 6 samples are rejects.*54 without an image aside"):
        run_here(config_for(source, tmp_path / "out", model_path, limits={"max_rejected_fraction": 0.4}))
    config = config_for(source, tmp_path / "out", model_path, limits={"max_rejected_fraction": 0.5})
    assert run_here(config).totals.no_image == 54
    assert Verifier(tmp_path / "out").verify().proven


@pytest.mark.parametrize("status", ["ok", "missing_image", "duplicate_key"])
def test_verify_finds_a_sample_that_is_said_to_have_no_image(
    status: str, images: dict[str, bytes], model_path: Path, tmp_path: Path
) -> None:
    """And one of which the opposite is said: samples = rows + rejects + no_image, by every shard and in total."""
    (tmp_path / "000.png").write_bytes(images["000.png"])
    (tmp_path / "m.jsonl").write_text('{"image": "000.png"}\n{}\n{"image": "nothing.png"}\n')
    output = tmp_path / "out"
    run_here(config_for(tmp_path / "m.jsonl", output, model_path))
    (shard,) = (output / "samples").iterdir()
    table = pq.read_table(shard)
    found = table.column("status").to_pylist()
    assert found == ["ok", "no_image", "missing_image"]
    place = table.schema.get_field_index("status")
    changed = [status if one == "no_image" else one for one in found]
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(changed)), shard)
    assert not Verifier(output).verify().proven


def test_an_output_of_before_there_was_no_image_is_proven(
    images: dict[str, bytes], model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "000.png").write_bytes(images["000.png"])
    run_here(config_for(tmp_path / "in", tmp_path / "out", model_path))
    path = tmp_path / "out" / "_SUCCESS"
    tree = json.loads(path.read_text())
    assert tree.pop("no_image") == 0
    path.write_text(json.dumps(tree))
    assert Verifier(tmp_path / "out").verify().proven
