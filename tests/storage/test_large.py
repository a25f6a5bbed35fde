"""Large local files. Catches: a film that is read into memory, and one that changes while it is read."""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import clip_of
from conftest import config_for, end_of, fork, make_folder, run_here

from pipeline.errors import ReaderLost
from pipeline.index.video_header import read_video_header
from pipeline.prepare.guard import GuardedReader, ImageReader
from pipeline.storage.held import HELD_BYTES, large_file
from pipeline.storage.large import sha256_of

pytestmark = pytest.mark.slow

FILM_BYTES = 256 << 20
PREPROCESS: dict[str, object] = {"max_pixels": 20_000, "video": {"fps": 2.0, "max_pixels": 20_000}}


def film(path: Path, size: int) -> Path:
    """A clip with so many bytes of nothing behind it, which take no room on the disk: an atom that is left alone."""
    data = clip_of("h264.mp4")
    path.write_bytes(data + (size - len(data)).to_bytes(4, "big") + b"free")
    os.truncate(path, size)
    return path


@pytest.mark.parametrize("guarded", [False, True])
def test_a_file_that_is_left_where_it_lies_is_as_one_in_memory(guarded: bool, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 1 << 20)
    source = large_file(str(path), 1000)
    assert source is not None and len(source) == 1 << 20
    assert sha256_of(source) == hashlib.sha256(path.read_bytes()).hexdigest()
    reader = GuardedReader(5.0) if guarded else ImageReader()
    header = reader.video_header("a", source)
    assert header.pts_N.tolist() == read_video_header(path.read_bytes()).pts_N.tolist()
    found: list[np.ndarray] = []
    expected: list[np.ndarray] = []
    for data, frames in ((source, found), (path.read_bytes(), expected)):
        reader.frames("a", data, header, np.array([3, 20]), lambda index, pixels, to=frames: to.append(pixels.copy()))
    assert len(found) == 2 and all(map(np.array_equal, found, expected))
    reader.close()


@pytest.mark.parametrize("guarded", [False, True])
def test_a_file_that_changes_is_lost_and_no_reject(guarded: bool, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 1 << 20)
    source = large_file(str(path), 1000)
    assert source is not None
    os.utime(path, (1, 1))
    reader = GuardedReader(5.0) if guarded else ImageReader()
    with pytest.raises(ReaderLost, match=r"a\.mp4 changes while it is read"):
        reader.video_header("a", source)
    path.unlink()
    with pytest.raises(ReaderLost, match=r"a\.mp4: cannot be read"):
        reader.video_header("a", source)
    reader.close()


def test_a_file_that_changes_while_it_is_open_is_lost(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 1 << 20)
    source = large_file(str(path), 1000)
    assert source is not None

    def read() -> None:
        with source.opened() as stream:
            assert len(stream.read(10)) == 10
            os.utime(path, (1, 1))

    with pytest.raises(ReaderLost, match="changes while it is read"):
        read()


def test_what_is_small_or_gone_is_not_left(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 1 << 20)
    assert large_file(str(path)) is None and large_file("s3://bucket/a.mp4", 0) is None
    with pytest.raises(FileNotFoundError):
        large_file(str(tmp_path / "none"))


def as_folder(folder: Path) -> Path:
    film(make_folder(folder, 1) / "a.mp4", FILM_BYTES)
    return folder


def as_rows(folder: Path) -> Path:
    folder.mkdir()
    film(folder / "a.mp4", FILM_BYTES)
    pq.write_table(pa.table({"video": ["a.mp4", "a.mp4"], "start": [0.0, 1.0]}), folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("write", [as_folder, as_rows])
def test_a_film_is_not_held_in_memory(write, model_path: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """In a process that starts as this one is, and grows by less than half of the film."""
    config = config_for(write(tmp_path / "in"), tmp_path / "out", model_path, preprocess=PREPROCESS)

    def run() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert run_here(config).complete
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert grown < FILM_BYTES // 2, f"{grown >> 20} MiB"
        return 0

    assert end_of(fork(run)) == 0
    rows = [row for path in (tmp_path / "out" / "samples").iterdir() for row in pq.read_table(path).to_pylist()]
    assert {row["status"] for row in rows} == {"ok"} and len(rows) == 2
    assert HELD_BYTES < FILM_BYTES
