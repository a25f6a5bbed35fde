"""What is looked for. Catches: a source that loses its videos, and one of images that is taken for more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encoded, make_tar, noise

from pipeline.config_fields import Source
from pipeline.source.format import Columns
from pipeline.source.formats import format_named
from pipeline.source.lister import list_source
from pipeline.source.media import BOTH, suffixes_of
from pipeline.source.resolve import resolve_source

PICTURE = encoded(noise(60, 60))


def decided(uri: Path, **columns: str) -> tuple[str, str]:
    from dataclasses import replace

    listing = list_source(replace(resolve_source(Source(uri=str(uri))), media=BOTH))
    rule = format_named(listing.place.format).media_rule(listing, Columns(media=BOTH, **columns))
    return rule.media, rule.why


@pytest.mark.parametrize(
    ("names", "media"),
    [(["a.png"], "image"), (["a.png", "b.MP4"], "auto"), (["a/b.webm"], "auto"), (["a.gif", "b.txt"], "image")],
)
def test_a_folder_is_what_its_names_say(names: list[str], media: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert decided(tmp_path) == (media, "")


@pytest.mark.parametrize(
    ("tars", "media"),
    [
        ([["a.png", "b.png"]], "image"),
        ([["a.mp4", "a.json"]], "auto"),
        ([["a.png"], ["b.png"], ["c.mkv"]], "auto"),
        ([["a.png", "a.mp4"]], "image"),
    ],
)
def test_tars_are_what_the_first_names_of_some_say(tars: list[list[str]], media: str, tmp_path: Path) -> None:
    for number, names in enumerate(tars):
        make_tar(tmp_path / f"{number}.tar", [(name, PICTURE) for name in names])
    found, why = decided(tmp_path)
    assert found == media
    assert ("a.mp4 stands beside an image of its key" in why) == (tars == [["a.png", "a.mp4"]])


ROWS: list[tuple[list[dict[str, Any]], str]] = [
    ([{"image": "a.png"}], "image"),
    ([{"image": None, "video": None}, {"image": None, "video": "a.mp4"}], "auto"),
    ([{"image": "a.png", "video": "an id"}], "image"),
    ([{"image": "a.png", "video": ["x.mov", "y.mov"]}], "auto"),
    ([{"image": "a.png"}, {"image": "b.mkv"}], "auto"),
    ([{"image": "a.png", "video": ""}], "image"),
]


@pytest.mark.parametrize(("rows", "media"), ROWS)
def test_rows_are_what_their_columns_hold(rows: list[dict[str, Any]], media: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert decided(tmp_path / "a.jsonl")[0] == decided(tmp_path / "a.parquet")[0] == media


def test_bytes_in_a_column_of_videos_are_videos(tmp_path: Path) -> None:
    pq.write_table(pa.table({"clip": pa.array([None, b"x"])}), tmp_path / "a.parquet")
    assert decided(tmp_path / "a.parquet", video="clip")[0] == "auto"
    assert decided(tmp_path / "a.parquet")[0] == "image"


def test_a_gif_is_a_video_where_nothing_else_is_looked_for() -> None:
    assert ".gif" in suffixes_of("video") and ".png" not in suffixes_of("video")
    assert len(suffixes_of(BOTH)) == len(set(suffixes_of(BOTH)))
