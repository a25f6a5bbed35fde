"""`format: auto`: what lies there decides, and is said; a real mixture is refused, each choice a line to type."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encoded, make_tar, noise

from pipeline.config import Source, parse_config
from pipeline.errors import RequestError
from pipeline.source import kinds
from pipeline.source.lister import list_source
from pipeline.source.resolve import resolve_source

PICTURE = encoded(noise(30, 30))


def lay(folder: Path, *names: str) -> Path:
    """Makes files of these names, each of the kind that its name says."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".tar"):
            make_tar(path, [("a.png", PICTURE)])
        elif name.endswith((".parquet", ".pq")):
            pq.write_table(pa.table({"image": [PICTURE]}), path)
        elif name.endswith(".arrow"):
            with pa.ipc.new_stream(path, pa.schema([("image", pa.binary())])) as writer:
                writer.write_table(pa.table({"image": [PICTURE]}))
        elif name.endswith("array.json"):
            path.write_text(json.dumps([{"image": "a.png"}], indent=1))
        elif name.endswith((".json", ".jsonl")):
            path.write_text('{"image": "a.png"}\n')
        elif name.endswith((".csv", ".tsv")):
            path.write_text("image\na.png\n")
        else:
            path.write_bytes(PICTURE)
    return folder


LAYOUTS: list[tuple[tuple[str, ...], str, tuple[str, ...]]] = [
    (("a.png", "b/c.JPG"), "folder", ("a.png", "b/c.JPG")),
    (("a.png", "metadata.jsonl", "notes.txt"), "folder", ("a.png",)),  # Hugging Face's imagefolder
    (("images/a.png", "train.array.json"), "folder", ("images/a.png",)),  # LLaVA's
    (("0.tar", "deeper/1.TAR"), "webdataset", ("0.tar", "deeper/1.TAR")),
    # img2dataset's three forms
    (("00000.tar", "00000.parquet", "00000_stats.json"), "webdataset", ("00000.tar",)),
    (("00000/1.jpg", "00000/1.txt", "00000.parquet", "00000_stats.json"), "folder", ("00000/1.jpg",)),
    (("00000.parquet", "00000_stats.json"), "parquet", ("00000.parquet",)),
    (("data/train-0.parquet", "README.md", "dataset_infos.json"), "parquet", ("data/train-0.parquet",)),
    (("part-0.parquet", "_SUCCESS", "_delta_log/0.json", "_delta_log/1.parquet"), "parquet", ("part-0.parquet",)),
    (("year=1/a.pq", "year=2/a.pq", "_metadata.parquet"), "parquet", ("year=1/a.pq", "year=2/a.pq")),
    (("data-0.arrow", "dataset_info.json", "state.json"), "arrow", ("data-0.arrow",)),
    (
        ("train/data-0.arrow", "test/data-0.arrow", "dataset_dict.json"),
        "arrow",
        ("test/data-0.arrow", "train/data-0.arrow"),
    ),
    (("a.jsonl", "b.ndjson"), "jsonl", ("a.jsonl", "b.ndjson")),
    (("a.array.json", "settings.json"), "json", ("a.array.json",)),
    (("a.csv", "b.tsv", "readme.txt"), "csv", ("a.csv", "b.tsv")),
    ((".hidden.png", "__MACOSX/a.png", ".ipynb_checkpoints/b.png", "a.csv"), "csv", ("a.csv",)),
]


@pytest.mark.parametrize(("names", "kind", "taken"), LAYOUTS)
def test_a_folder_is_what_lies_in_it(names: tuple[str, ...], kind: str, taken: tuple[str, ...], tmp_path: Path) -> None:
    place = resolve_source(Source(uri=str(lay(tmp_path / "in", *names))))
    assert place.format == kind
    assert [file.path for file in list_source(place)] == list(taken)
    assert place.decided.startswith(f"source.format: auto took {kind}: ") or (kind == "folder" and not place.decided)
    assert "\n" not in place.decided


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("a.png", "b.parquet"), ("folder", "parquet")),
        (("a.png", "b.tar"), ("folder", "webdataset")),
        (("0.tar", "1.parquet"), ("webdataset", "parquet")),
        (("a.png", "0.tar", "1.parquet", "2.arrow"), ("folder", "webdataset", "parquet", "arrow")),
        (("a.jsonl", "b.csv"), ("jsonl", "csv")),
        (("a.jsonl", "b.array.json"), ("jsonl", "json")),
    ],
)
def test_a_mixture_is_refused_with_each_choice_as_a_line(
    names: tuple[str, ...], chosen: tuple[str, ...], tmp_path: Path
) -> None:
    folder = lay(tmp_path / "in", *names)
    with pytest.raises(RequestError) as caught:
        resolve_source(Source(uri=str(folder)))
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"source.uri: {folder} holds 1 ")
    typed = [line.split()[1] for line in lines]
    assert typed == [f"source.format={kind}" for kind in chosen]
    for choice in typed:
        tree = {"source": {"uri": str(folder), "format": choice.partition("=")[2]}}
        config = parse_config(tree | {"model": {"path": "m"}, "output": {"uri": "o"}})
        assert [file.path for file in list_source(resolve_source(config.source))]


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("settings.json",), ("_delta_log/0.json",), (".a.png",)])
def test_a_folder_of_nothing_is_one_of_no_image(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    place = resolve_source(Source(uri=str(lay(tmp_path / "in", *names))))
    assert (place.format, place.decided) == ("folder", "")
    assert list_source(place).count == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"),
        ("a.PQ", "parquet"),
        ("a.arrow", "arrow"),
        ("a.ndjson", "jsonl"),
        ("a.json", "jsonl"),  # an object a line
        ("an-array.json", "json"),
        ("a.tsv", "csv"),
        ("a.txt", "text"),
        ("a.lst", "text"),
        ("a.tar", "webdataset"),
        ("*.parquet", "parquet"),
        ("*.json", "jsonl"),
        ("an-*.json", "json"),
        ("{a,b}.csv", "csv"),
    ],
)
def test_a_file_is_what_its_name_or_its_first_character_says(name: str, kind: str, tmp_path: Path) -> None:
    lay(tmp_path, "a.parquet", "a.json", "an-array.json", "a.csv", "b.csv", name.replace("*", "an-array"))
    place = resolve_source(Source(uri=str(tmp_path / name)))
    assert place.format == kind
    assert list_source(place).count


def test_more_names_than_are_looked_at_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "NAMES_LOOKED_AT", 3)
    folder = lay(tmp_path / "in", *(f"{number}.parquet" for number in range(5)), "z.txt")
    assert "holds 3+ Parquet files" in resolve_source(Source(uri=str(folder))).decided
    # The tar that a table stands beside may come after what was looked at.
    folder = lay(tmp_path / "too", "0.tar", "1.tar", "2.parquet", "2.tar")
    assert resolve_source(Source(uri=str(folder))).format == "webdataset"
