"""Publishing and scratch. Catches: a file replaced in a race, a store that heeds no condition, scratch that is gone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import moto.s3.models
import pytest
import s3fs
from s3_server import BUCKET, Request, S3Server

from pipeline.errors import OutputError
from pipeline.storage import publish as publish_module
from pipeline.storage import remote, remote_publish, remote_read
from pipeline.storage.files import names_in
from pipeline.storage.publish import publish_new, publish_over, write_text
from pipeline.storage.remote import RemotePath
from pipeline.storage.replace import replace_same, snapshot
from pipeline.storage.scratch import Scratch

pytestmark = pytest.mark.slow

FINAL = RemotePath(f"s3://{BUCKET}/out/a")


def written(folder: Path, data: bytes = b"ours") -> Path:
    path = folder / "scratch"
    path.write_bytes(data)
    return path


def put(data: bytes, key: str = "out/a") -> None:
    s3fs.S3FileSystem().pipe_file(f"{BUCKET}/{key}", data)


@pytest.mark.parametrize("at", ["before", "link", "replace", "rename"])
def test_a_file_that_appears_at_the_last_moment_is_not_replaced(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks first whether it is there, and renames then, replaces it."""
    final, appeared = tmp_path / "out" / "a", []
    final.parent.mkdir()

    def appear(target: Path) -> None:
        if target == final and not final.exists():
            final.write_bytes(b"another's")
            appeared.append(at)

    def point(name: str) -> None:
        if at == "before":
            appear(final)

    def late(call: Callable[..., None]) -> Callable[..., None]:
        def appearing(source: Any, target: Any, **options: Any) -> None:
            appear(Path(target))
            call(source, target, **options)

        return appearing

    monkeypatch.setattr(publish_module, "fault_point", point)
    if at != "before":
        monkeypatch.setattr(os, at, late(getattr(os, at)))
    scratch = written(tmp_path)
    published = publish_new(scratch, final)
    assert published is not bool(appeared)
    assert final.read_bytes() == (b"another's" if appeared else b"ours")
    assert scratch.exists() is not published
    assert appeared or at != "before"


def test_what_is_written_over_is_whole_and_outlives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, bytes]] = []
    final = tmp_path / "a.json"
    final.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append((os.fstat(number).st_ino, final.read_bytes())))
    write_text(tmp_path / "fresh", "new")
    publish_over(tmp_path / "fresh", final)
    assert final.read_text() == "new"
    assert flushed == [(final.stat().st_ino, b"old"), (tmp_path.stat().st_ino, b"new")]


@pytest.mark.parametrize("size", [4, 5000], ids=["one", "many"])
def test_an_object_that_appears_at_the_last_moment_is_not_replaced(
    size: int, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was asked whether it is there: in one part, and in several."""
    monkeypatch.setattr(remote_publish, "UPLOAD_PART_BYTES", 2000)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    appeared: list[str] = []

    def appear(request: Request) -> None:
        if request.method != "HEAD" and (request.completes or size < 2000) and not appeared:
            appeared.append(request.method)
            put(b"another's")

    s3.fault = appear
    scratch = written(tmp_path, b"x" * size)
    assert not publish_new(scratch, FINAL)
    assert appeared == ["POST" if size > 2000 else "PUT"]
    assert FINAL.read_bytes() == b"another's"
    assert scratch.exists()
    assert not s3fs.S3FileSystem(use_listings_cache=False).list_multipart_uploads(BUCKET)


@pytest.mark.parametrize("answer", ["409", "501", "lost"])
def test_a_store_that_answers_a_condition_otherwise(
    answer: str, s3: S3Server, asked_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conflict that ends, a condition that it does not know, an answer that never arrives."""
    monkeypatch.setattr("pipeline.storage.remote_publish.time.sleep", lambda seconds: None)
    later = {"409": None, "501": "501", "lost": "cut"}[answer]  # of what the client asks again by itself
    s3.fault = lambda asked: (later if s3.counts.faults else answer) if asked.conditional else None
    # What was lost is there: whoever published looks at what stands there, and finds its own.
    assert publish_new(written(tmp_path), FINAL) is (answer != "lost")
    assert s3.counts.faults >= 1
    assert FINAL.read_bytes() == b"ours"
    assert not publish_new(written(tmp_path, b"other"), FINAL)  # by the look before, where there is no condition
    assert FINAL.read_bytes() == b"ours"


def test_what_is_refused_is_not_published_elsewise(s3: S3Server, asked_once: None, tmp_path: Path) -> None:
    s3.fault = lambda asked: "403" if asked.method == "PUT" else None
    with pytest.raises(OutputError, match="cannot publish s3://bucket/out/a"):
        publish_new(written(tmp_path), FINAL)
    assert s3.counts.faults == 1
    assert not FINAL.exists()


def test_an_object_that_changes_under_its_copy_is_not_taken_for_the_one_that_was_looked_at(
    s3: S3Server, tmp_path: Path
) -> None:
    """As long as the one before; it comes after the last byte of the copy."""
    put(b"damaged")
    changed: list[str] = []

    def change(request: Request) -> None:
        if request.method == "HEAD" and s3.counts.requests["GET", "out/a"] and not changed:
            changed.append(request.key)
            put(b"another")

    s3.fault = change
    with Scratch(FINAL.parent) as scratch, snapshot(FINAL, scratch) as old:
        assert old.path.read_bytes() == b"damaged"
        assert changed
        assert not replace_same(written(tmp_path), FINAL, old)
    assert FINAL.read_bytes() == b"another"


def test_a_store_without_whole_objects_shows_no_half_and_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    final = RemotePath("memory://out/a")
    move, seen = type(memory).mv, []

    def moving(self: Any, first: str, second: str, **options: Any) -> None:
        seen.append((final.exists(), [name for name in memory.find("/out") if name.endswith(".unfinished")]))
        if len(seen) == 2:
            raise OSError(5, "made by the test")
        move(self, first, second, **options)

    monkeypatch.setattr(type(memory), "mv", moving)
    try:
        assert publish_new(written(tmp_path), final)
        assert seen[0] == (False, ["/out/_scratch.unfinished"])
        with pytest.raises(OutputError, match="cannot publish memory://out/b"):
            publish_new(written(tmp_path), RemotePath("memory://out/b"))
        assert memory.find("/out") == ["/out/a"]
        assert not publish_new(written(tmp_path, b"other"), final)
        publish_over(written(tmp_path, b"other"), final)
        assert final.read_bytes() == b"other"
    finally:
        memory.rm("/", recursive=True)


def test_only_scratch_of_its_own_or_older_than_a_day_is_removed(tmp_path: Path) -> None:
    """Another driver may be at work in the same output, and write nothing new for long."""
    hour = 3600
    for name, age in (("just-now", 0), ("an-hour", hour), ("almost-a-day", 23.9 * hour), ("a-day", 24.1 * hour)):
        folder = tmp_path / "_tmp" / name
        folder.mkdir(parents=True)
        (folder / "half-a-shard").write_bytes(b"x")
        os.utime(folder, (time.time() - age,) * 2)
    with Scratch(tmp_path) as scratch:
        write_text(scratch.path("a"), "mine")
    assert {path.name for path in (tmp_path / "_tmp").iterdir()} == {"just-now", "an-hour", "almost-a-day"}


def test_an_output_that_vanishes_under_a_run_is_not_made_again(tmp_path: Path) -> None:
    """Its disk may be gone: what was written then would lie on another."""
    output = tmp_path / "out"
    scratch = Scratch(output)
    scratch.path("a")
    worker = Scratch(output, scratch.nonce)
    worker.path("b")
    output.rename(tmp_path / "gone")
    for one in (scratch, worker):
        with pytest.raises(OutputError, match="out has vanished"):
            one.path("c")
    assert not output.exists()


def test_ranges_are_read_in_pieces_that_join(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RANGE_BYTES", 7)
    monkeypatch.setattr(remote_read, "RANGE_BYTES", 7)
    monkeypatch.setattr(remote_read, "TAIL_BYTES", 10)
    monkeypatch.setattr(remote_read.read_tail, "__defaults__", (10,))
    data = bytes(range(100))
    put(data)
    etag = remote.state_of(FINAL.uri)[2]
    for first, last in ((0, 100), (3, 10), (3, 17), (3, 18), (50, 51), (9, 9)):
        assert remote.read(FINAL.uri, first, last) == data[first:last]
        if first < last:
            assert remote_read.read_if_match(FINAL.uri, etag, first, last) == data[first:last]
    tail = remote_read.TailFile(FINAL.uri)
    for first, last in ((90, 100), (95, 99), (80, 85), (99, 100)):
        tail.seek(first)
        assert tail.read(last - first) == data[first:last]


def test_names_of_folders_below_are_none_of_a_folders(s3: S3Server) -> None:
    for key in ("out/samples/part-0", "out/samples/below/part-1", "out/samples-of-another/part-2", "out/part-3"):
        put(b"x", key)
    assert list(names_in(RemotePath(f"s3://{BUCKET}/out/samples"), "part-")) == ["part-0"]
    assert sorted(names_in(RemotePath(f"s3://{BUCKET}/out/samples"))) == ["part-0"]
