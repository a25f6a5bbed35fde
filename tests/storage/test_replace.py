"""Only the very file that was looked at is replaced, wherever it lies."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import fsspec
import moto.s3.models
import pytest
import s3fs
from s3_server import BUCKET, S3Server

from pipeline.errors import OutputBusy, OutputError
from pipeline.storage import remote_publish
from pipeline.storage.files import AnyPath
from pipeline.storage.remote import RemotePath
from pipeline.storage.replace import replace_same, snapshot
from pipeline.storage.scratch import Scratch

pytestmark = pytest.mark.slow

SIZES = {"one": 100, "many": 5000}


@pytest.fixture(params=["local", "one", "many"])
def final(
    request: pytest.FixtureRequest, s3: S3Server, asked_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AnyPath:
    """A name in an output: of a local file, of an object of one part, and of several."""
    monkeypatch.setattr(remote_publish, "UPLOAD_PART_BYTES", 2000)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    if request.param == "local":
        (tmp_path / "out").mkdir()
        return tmp_path / "out" / "a"
    return RemotePath(f"s3://{BUCKET}/out/{request.param}")


def put(path: AnyPath, data: bytes) -> None:
    """A new file under the name, as every publication makes one."""
    if isinstance(path, RemotePath):
        fsspec.filesystem("s3").pipe_file(path.uri, data)
    else:
        path.unlink(missing_ok=True)
        path.write_bytes(data)


def source_of(path: AnyPath, folder: Path, letter: str) -> tuple[Path, bytes]:
    data = letter.encode() * SIZES.get(path.name, 100)
    (folder / f"source-{letter}").write_bytes(data)
    return folder / f"source-{letter}", data


def uploads() -> list[Any]:
    return list(s3fs.S3FileSystem(use_listings_cache=False).list_multipart_uploads(BUCKET))


def test_the_file_that_was_looked_at_is_replaced(final: AnyPath, tmp_path: Path) -> None:
    put(final, b"damaged")
    source, data = source_of(final, tmp_path, "a")
    with Scratch(final.parent) as scratch, snapshot(final, scratch) as old:
        assert old.path.read_bytes() == b"damaged"
        assert replace_same(source, final, old)
    assert final.read_bytes() == data
    assert not source.exists()
    assert not uploads()


def test_another_one_stands(final: AnyPath, tmp_path: Path) -> None:
    """Replaced meanwhile by the same bytes as well, locally, where a file is known by itself."""
    put(final, b"damaged")
    source, _ = source_of(final, tmp_path, "a")
    with Scratch(final.parent) as scratch, snapshot(final, scratch) as old:
        put(final, b"whole")
        assert not replace_same(source, final, old)
        assert old.path.read_bytes() == b"damaged"
    assert final.read_bytes() == b"whole"
    assert source.exists()
    assert not uploads()


def test_none_is_there_any_more(final: AnyPath, tmp_path: Path) -> None:
    put(final, b"damaged")
    source, _ = source_of(final, tmp_path, "a")
    with Scratch(final.parent) as scratch:
        with snapshot(final, scratch) as old:
            final.unlink()
            assert not replace_same(source, final, old)
        with pytest.raises(FileNotFoundError), snapshot(final, scratch):
            pass
    assert source.exists()


def test_of_many_at_once_one_replaces(final: AnyPath, tmp_path: Path) -> None:
    put(final, b"damaged")
    sources = [source_of(final, tmp_path, letter) for letter in "abcdef"]
    looked = threading.Barrier(len(sources))
    results: list[bool] = []

    def work(source: Path) -> None:
        with Scratch(final.parent, "nonce") as scratch, snapshot(final, scratch) as old:
            looked.wait(20)
            try:
                results.append(replace_same(source, final, old))
            except OutputBusy:  # another's was just ending
                results.append(False)

    threads = [threading.Thread(target=work, args=(source,)) for source, _ in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False] * 5 + [True]
    assert final.read_bytes() in [data for _, data in sources]


@pytest.mark.parametrize("name", ["one", "many"])
def test_what_stores_answer(
    name: str, s3: S3Server, asked_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_publish, "UPLOAD_PART_BYTES", 2000)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    final = RemotePath(f"s3://{BUCKET}/out/{name}")
    put(final, b"damaged")
    source, data = source_of(final, tmp_path, "a")
    with Scratch(final.parent) as scratch, snapshot(final, scratch) as old:
        faults = 0
        for fault, kind in (("503", OutputBusy), ("409", OutputBusy), ("403", OutputError), ("cut", OutputBusy)):
            s3.fault = lambda asked, fault=fault: fault if asked.conditional else None
            with pytest.raises(OutputError) as raised:
                replace_same(source, final, old)
            assert type(raised.value) is kind
            s3.fault = lambda asked: None
            assert final.read_bytes() == b"damaged"
            assert s3.counts.faults > faults
            faults = s3.counts.faults
        assert not uploads()
        s3.fault = lambda asked: "501" if asked.conditional else None  # it knows no condition
        assert replace_same(source, final, old)
    assert s3.counts.faults == faults + 1
    assert final.read_bytes() == data
    assert not uploads()


def test_an_answer_that_never_arrives(s3: S3Server, tmp_path: Path) -> None:
    """It is done, and asked for again: what stands then is another one, which the next look finds to be ours."""
    s3fs.S3FileSystem.clear_instance_cache()
    final = RemotePath(f"s3://{BUCKET}/out/one")
    put(final, b"damaged")
    source, data = source_of(final, tmp_path, "a")
    with Scratch(final.parent) as scratch, snapshot(final, scratch) as old:
        s3.fault = lambda asked: "lost" if asked.conditional and not s3.counts.faults else None
        assert not replace_same(source, final, old)
    assert s3.counts.faults == 1
    assert final.read_bytes() == data


class Google:
    """As much of gcsfs as is asked: an object of a generation, deleted under a condition."""

    def __init__(self) -> None:
        self.generation, self.calls = "7", [("", "")]

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def info(self, path: str) -> dict[str, object]:
        return {"generation": self.generation, "size": 7}

    def call(self, method: str, path: str, *words: str, **options: str) -> None:
        self.calls.append((method, options["ifGenerationMatch"]))
        if options["ifGenerationMatch"] != self.generation:
            error = OSError("conditionNotMet")
            error.code = 412  # type: ignore[attr-defined]
            raise error
        self.generation = ""


def test_on_google_it_is_deleted_under_a_condition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Then its name is free, and published as a new one; the second who saw the damage deletes nothing."""
    client = Google()
    monkeypatch.setattr(remote_publish, "client_of", lambda uri: (client, uri.removeprefix("gs://")))
    version = remote_publish.version_of("gs://bucket/a")
    assert not remote_publish.replace_same(tmp_path / "unread", "gs://bucket/a", version)
    assert client.generation == ""
    client.generation = "8"  # somebody publishes
    assert not remote_publish.replace_same(tmp_path / "unread", "gs://bucket/a", version)
    assert (client.generation, client.calls[1:]) == ("8", [("DELETE", "7"), ("DELETE", "7")])
