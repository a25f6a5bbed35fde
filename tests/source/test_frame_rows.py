"""Cells of videos. Catches: frames taken for videos, a value that fails a part, and one that is guessed at."""

from __future__ import annotations

import base64
import json
import math
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import clip_of
from conftest import encoded, noise

from pipeline.config_fields import Source
from pipeline.errors import RequestError
from pipeline.index.header_reader import PlainReader
from pipeline.index.write import index_samples
from pipeline.source.format import Columns
from pipeline.source.formats import format_named
from pipeline.source.frame_bytes import join_frames, split_frames
from pipeline.source.lister import list_source
from pipeline.source.media import BOTH
from pipeline.source.named_image import NamedImage, listed
from pipeline.source.named_media import Cells, are_frames, media_rule_of, named_media
from pipeline.source.part import Part
from pipeline.source.resolve import resolve_source

STILL = encoded(noise(28, 28))
INLINE = "data:image/png;base64," + base64.b64encode(STILL).decode()


def named(**cells: Any) -> list[NamedImage]:
    return list(named_media(Cells(**{"image": None} | cells), BOTH, "/there/list.jsonl", "key", "line 1"))


@pytest.mark.parametrize(
    ("value", "frames"),
    [
        (["a.jpg", "b.jpg"], True),
        (["a.MP4", "b.mov"], False),
        (["a.gif", "b.gif"], False),
        ([{"bytes": STILL, "path": None}], True),
        ([{"bytes": None, "path": "x/a.PNG"}], True),
        ([{"bytes": clip_of("one.mp4"), "path": "a.mp4"}], False),
        ([clip_of("one.mp4"), STILL], True),
        ([INLINE], True),
        ([None, b"rubbish", "a.webp"], True),
        (["a", "b"], False),
        ([None, 3, {"x": 1}], False),
        ([["a.jpg"]], False),
        ("a.jpg", False),
        ([], False),
    ],
)
def test_a_list_is_one_video_if_it_lists_images(value: Any, frames: bool) -> None:
    assert are_frames(value) is frames


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
def test_every_image_that_is_decoded_begins_like_one(kind: str) -> None:
    assert are_frames([encoded(noise(28, 28), kind)])


def test_lists_in_a_list_are_videos_of_their_own() -> None:
    found = named(video=[["a.jpg", "b.jpg"], "c.mp4", [], ["d.jpg", None]], fps=[1.0, None, 2.0, 2.0])
    assert [(one.key, one.item) for one in found] == [(f"key/{number}", number) for number in range(4)]
    assert [one.reason if one.problem else "" for one in found] == ["", "", "no_image", "missing_image"]
    assert [frame.path for frame in found[0].frames] == ["/there/a.jpg", "/there/b.jpg"]
    assert found[0].video is not None and (found[0].video.fps, found[0].video.is_frames) == (1.0, True)
    assert found[1].path == "/there/c.mp4" and found[1].video is not None and found[1].video.fps is None
    assert "frame 1 names no image" in found[3].problem


def test_text_that_is_a_list_in_json_is_one() -> None:
    (one,) = named(video='["a.jpg", "b.jpg"]', times="[0.5, 1]")
    assert one.video is not None and (len(one.frames), one.video.times) == (2, [0.5, 1.0])
    for text in ("[1].mp4", "[a.mp4]", "[" * 100_000 + "]" * 100_000, '{"a": 1}'):
        assert listed(text) == text
    assert media_rule_of([Cells(None, '["a.jpg"]')]).media == media_rule_of([Cells(None, [["a.jpg"]])]).media == BOTH
    assert media_rule_of([Cells(None, "a.jpg")]).media == media_rule_of([Cells(None, ["a", "b"])]).media == "image"


NO_NUMBERS = [math.nan, math.inf, "soon", True, 10**400, [1.0], {"a": 1}, timedelta(1), b"\xff", object()]


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize("name", ["start", "end", "fps", "times"])
def test_what_is_no_time_is_a_reject_that_says_so(name: str, value: Any) -> None:
    video = ["a.jpg", "b.jpg"] if name in ("fps", "times") else "a.mp4"
    (one,) = named(video=video, **{name: value})
    assert one.reason == "missing_image" and "line 1: its " in one.problem and name in one.problem
    assert " at 0x" not in one.problem and not one.frames


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({"fps": 0}, "its fps is 0, not frames a second"),
        ({"fps": -1.5}, "its fps is -1.5, not frames a second"),
        ({"times": [1.0]}, "one for each of its 2 frames, not 1 of them"),
        ({"times": [1.0, 0.5]}, "seconds from 0 on, in order"),
        ({"times": [-1.0, 0.5]}, "seconds from 0 on, in order"),
        ({"times": [None, 0.5]}, "seconds from 0 on, in order"),
        ({"times": [math.nan, 0.5]}, "its times is 'nan', not seconds"),
        ({"start": 0.0}, "its start and end are those of a file"),
    ],
)
def test_times_that_frames_cannot_have_are_refused(beside: dict[str, Any], says: str) -> None:
    (one,) = named(video=["a.jpg", "b.jpg"], **beside)
    assert one.reason == "missing_image" and says in one.problem


@pytest.mark.parametrize("value", ["2.5", 2.5, Decimal("2.5")])
def test_what_is_a_number_is_one(value: Any) -> None:
    (span,), (frames,) = named(video="a.mp4", start=value), named(video=["a.jpg"], fps=value)
    assert span.video is not None and frames.video is not None and span.video.start == frames.video.fps == 2.5


def test_columns_that_files_do_not_have_mean_nothing_to_them() -> None:
    (one,) = named(video="a.mp4", fps="29.97 (NTSC)", times="noon")
    assert not one.problem and one.video is not None and one.video.fps is None


def test_frames_are_joined_and_split() -> None:
    for frames in ([b"a", b"", b"bcd"], [STILL], []):
        assert list(split_frames(join_frames(frames))) == frames


def part_of(path: Path) -> Part:
    listing = list_source(resolve_source(Source(uri=str(path))))
    (file,) = listing
    source_format = format_named(listing.place.format)
    (span,) = source_format.spans(listing.place, file)
    return Part(number=0, format=listing.place.format, root=listing.place.root, files=(span,))


def test_columns_beside_a_video_may_be_of_any_type(tmp_path: Path) -> None:
    """Also two of one name, and text that is none: none of it fails the part."""
    (tmp_path / "a.mp4").write_bytes(clip_of("one.mp4"))
    text = pa.array([b"\xff\xfe"]).cast(pa.binary()).view(pa.string())
    for number, columns in enumerate(
        (
            {"start": pa.array([[1.0]])},
            {"start": text},
            {"end": pa.array([timedelta(1)])},
            {"fps": text, "times": pa.array([{"a": 1}])},
        )
    ):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"video": ["a.mp4"]} | columns), path)
        (sample,) = index_samples(part_of(path), Columns(media=BOTH), PlainReader())
        assert sample.status == ("ok" if "fps" in columns else "missing_image"), columns
    twice = pa.Table.from_arrays([pa.array(["a.mp4"]), pa.array([0.0]), pa.array([1.0])], ["video", "start", "start"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    assert next(index_samples(part_of(tmp_path / "twice.parquet"), Columns(media=BOTH), PlainReader())).status == "ok"


def test_a_list_of_numbers_is_no_column_of_videos(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video": [[[1, 2]]], "image": [[["a.jpg"]]]}), tmp_path / "a.parquet")
    listing = list_source(resolve_source(Source(uri=str(tmp_path / "a.parquet"))))
    for columns, name in ((Columns(media=BOTH), "video"), (Columns(), "image")):
        with pytest.raises(RequestError, match=rf"source\.{name}_column: {name} of .* is list"):
            format_named("parquet").check(listing, columns, "a.parquet")


def test_an_index_of_frames_has_the_facts_of_each(tmp_path: Path) -> None:
    for name, side in (("a.png", 28), ("b.jpg", 28), ("c.png", 56), ("d.png", 56)):
        (tmp_path / name).write_bytes(encoded(noise(28, side), "JPEG" if name == "b.jpg" else "PNG"))
    rows = [
        {"video": ["a.png", "b.jpg", "c.png", "d.png"], "times": [0, 1, 1.5, 4]},
        {"video": ["a.png", "a.png"], "fps": 8},
        {"video": ["a.png", "none.png"]},
        {"video": ["a.png"], "times": [3]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    several, rated, missing, one = index_samples(part_of(tmp_path / "a.jsonl"), Columns(media=BOTH), PlainReader())
    assert several.video is not None and rated.video is not None and one.video is not None
    assert (several.format, several.width, several.height) == ("frames", 28, 28)
    assert (several.video.codec, several.video.frames, several.video.sizes) == ("JPEG+PNG", 4, [[2, 56, 28]])
    assert (several.video.fps, several.video.duration) == (0.75, 4 + 1 / 0.75)
    assert (rated.video.fps, rated.video.duration, rated.video.sizes) == (8, 0.25, None)
    assert (missing.status, missing.video is not None) == ("missing_image", True)
    assert missing.error == f"frame 1: there is no file {tmp_path / 'none.png'}"
    assert (one.status, one.video.fps, one.video.duration) == ("ok", None, None)
    data = (tmp_path / "a.png").read_bytes()
    assert rated.length == len(join_frames([data, data])) == 2 * (len(data) + 8)
