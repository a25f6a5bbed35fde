"""Clips in the index. Catches: a time that does not come back, an index of images that is read as something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from clips import clip_of

from pipeline.config import Video
from pipeline.grid import Geometry
from pipeline.index.header_reader import PlainReader
from pipeline.index.read import read_index_arrays, read_index_rows
from pipeline.index.units import cut_units
from pipeline.index.video_facts import header_of, pack, plan_of, times_of_clip, unpack
from pipeline.index.video_header import read_video_header
from pipeline.index.video_rules import resolve_sampling
from pipeline.index.write import INDEX_SCHEMA, ByteFacts, IndexedFacts
from pipeline.rejects import Reject
from pipeline.source.sample import IndexedSample, VideoFacts

GEOMETRY = Geometry(
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=3136,
    max_pixels=20_000,
    max_image_pixels=1_000_000,
    video=resolve_sampling(Video(fps=2.0), "qwen2_5_vl", 14, 2),
)


@pytest.mark.parametrize("values", [[], [0], [-512, 0, 512, 99_999_999_999], list(range(0, 9000, 3))])
def test_packed_numbers_come_back(values: list[int]) -> None:
    assert unpack(pack(np.array(values, np.int64))).tolist() == values


@pytest.mark.parametrize("name", ["h264.mp4", "uneven.mp4", "turned.mp4", "mpeg4.avi", "edited.mp4"])
def test_a_header_comes_back_from_the_index(name: str) -> None:
    header = read_video_header(clip_of(name))
    sample = ByteFacts(PlainReader())(IndexedSample(key="a", source="a", video=VideoFacts()), clip_of(name))
    found = header_of(sample)
    assert found.pts_N.tolist() == header.pts_N.tolist() and found.entries_K.tolist() == header.entries_K.tolist()
    empty = np.empty(0, np.int64)
    assert replace(found, pts_N=empty, entries_K=empty) == replace(header, pts_N=empty, entries_K=empty)
    assert sample.video is not None and np.array_equal(times_of_clip(sample.video), header.times())


def test_several_questions_about_a_file_demux_it_once() -> None:
    class Counting(PlainReader):
        asked = 0

        def video_header(self, key, source):  # type: ignore[no-untyped-def]
            self.asked += 1
            return super().video_header(key, source)

    reader = Counting()
    facts = ByteFacts(reader)
    for name in ("h264.mp4", "h264.mp4", "cut.mkv", "cut.mkv", "h264.mp4"):
        facts(IndexedSample(key="a", source="a", video=VideoFacts()), clip_of(name))
    assert reader.asked == 2 and facts.videos == 5


@pytest.mark.parametrize(
    ("span", "says"),
    [({"start": 7.0}, "begins at 7 s"), ({"start": 1.0, "end": 0.5}, "ends at 0.5 s"), ({"end": -1.0}, "ends at -1 s")],
)
def test_a_span_that_is_not_in_its_file_is_a_reject(span: dict[str, float], says: str) -> None:
    sample = ByteFacts(PlainReader())(IndexedSample(key="a", source="a", video=VideoFacts(**span)), clip_of("h264.mp4"))
    assert sample.video is not None
    with pytest.raises(Reject, match=says) as raised:
        plan_of(sample.video, 64, 48, GEOMETRY)
    assert raised.value.reason == "missing_image"


def written(path: Path, samples: list[IndexedSample], *, earlier: bool = False) -> Path:
    from dataclasses import asdict

    import pyarrow as pa

    facts = ByteFacts(PlainReader())
    facts.videos = sum(sample.video is not None for sample in samples)
    schema = INDEX_SCHEMA.with_metadata(facts.metadata(IndexedFacts()))
    table = pa.Table.from_pylist([asdict(sample) for sample in samples], schema)
    pq.write_table(table.drop_columns("video") if earlier else table, path)
    return path


def test_an_index_of_an_earlier_version_is_one_of_images(tmp_path: Path) -> None:
    image = IndexedSample(key="a", source="a", width=60, height=60, length=10, format="PNG", sha256="0" * 64)
    for earlier in (True, False):
        path = written(tmp_path / f"{earlier}.parquet", [image], earlier=earlier)
        assert read_index_rows(path, 0, 1) == [image] and not read_index_arrays(path).clips
        assert "videos" not in json.loads(pq.read_metadata(path).metadata[b"visionbake.index"])


def test_units_know_the_tokens_of_clips(tmp_path: Path) -> None:
    facts = ByteFacts(PlainReader())
    image = IndexedSample(key="a", source="a", width=56, height=56, length=10, format="PNG", sha256="0" * 64)
    clip = facts(IndexedSample(key="b", source="b", video=VideoFacts()), clip_of("h264.mp4"))
    assert clip.video is not None
    lost = replace(clip, key="c", video=replace(clip.video, start=9.0))
    broken = facts(IndexedSample(key="d", source="d", video=VideoFacts()), clip_of("cut.mkv"))
    index = read_index_arrays(written(tmp_path / "a.parquet", [image, clip, lost, broken]))
    (unit,) = cut_units(0, index, GEOMETRY, 1000)
    plan = plan_of(clip.video, 64, 48, GEOMETRY)
    assert (unit.count, unit.clip_patches, unit.patches) == (4, plan.patches, plan.patches + 16)
    assert unit.tokens == unit.patches // 4 and unit.frame_patches == 16 + 2 * plan.patches
    assert [one.tokens for one in cut_units(0, index, GEOMETRY, 4)] == [4, plan.patches // 4, 0]
