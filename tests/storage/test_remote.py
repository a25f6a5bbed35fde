"""Object storage: the same bytes through every door, and what S3's faults do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.retryhandler
import fsspec
import moto.s3.models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import torch
from conftest import (
    IMAGES,
    REPOSITORY,
    command,
    config_for,
    connected,
    embeddings,
    encoded,
    make_tar,
    run_here,
    run_in_a_fork,
    write_config,
)
from doors import as_bytes, as_csv, as_json, as_jsonl, as_lists, as_paths, as_tar, fields_of
from s3_server import BUCKET, Request, S3Server

from pipeline.cli import main
from pipeline.config import Source
from pipeline.errors import OutputError, RequestError
from pipeline.output.verify import Verifier
from pipeline.read.reader import EmbeddingDataset
from pipeline.run import patience
from pipeline.run.indexing import make_plan
from pipeline.run.request import check_request
from pipeline.run.runner import run
from pipeline.source.lister import list_files, list_source
from pipeline.source.part import SourcePlace
from pipeline.source.resolve import resolve_source
from pipeline.storage import remote, remote_list, remote_publish, remote_read
from pipeline.storage.remote import RemotePath

if TYPE_CHECKING:
    from pipeline.config import Config

pytestmark = pytest.mark.slow

URI = f"s3://{BUCKET}"


def s3_files() -> Any:
    return fsspec.filesystem("s3", use_listings_cache=False)


def fetched(uri: str, place: Path) -> Path:
    """A copy of an output, to be looked at with local tools."""
    s3_files().get(uri.removeprefix("s3://"), str(place), recursive=True)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("door", [as_bytes, as_paths, as_lists, as_jsonl, as_tar, as_csv, as_json])
def test_every_door_in_object_storage_gives_the_same_embeddings(
    door: Any,
    images: dict[str, bytes],
    source: str,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    made = door(images, RemotePath(source), tmp_path / "in")
    s3_files().put(f"{tmp_path / 'in'}/", f"{BUCKET}/in/", recursive=True)
    uri = f"{URI}/in{str(made).removeprefix(str(tmp_path / 'in'))}"
    summary = run_here(config_for(uri, tmp_path / "out", model_path, source=fields_of(door)))
    assert summary.complete
    assert summary.totals.units > 3
    assert embeddings(tmp_path / "out") == expected


@pytest.mark.slow
def test_from_object_storage_to_object_storage(
    source: str, expected: list[bytes], model_path: Path, tmp_path: Path
) -> None:
    config = s3_config(source, model_path)
    summary = run_here(config)
    assert summary.complete
    assert summary.totals.units > 3
    output = fetched(f"{URI}/out", tmp_path / "out")
    assert embeddings(output) == expected
    states = {name: info["ETag"] for name, info in s3_files().find(f"{BUCKET}/out/data", detail=True).items()}
    assert run_here(config).this_run.units == 0
    assert states == {name: info["ETag"] for name, info in s3_files().find(f"{BUCKET}/out/data", detail=True).items()}
    assert not s3_files().list_multipart_uploads(BUCKET)


@pytest.fixture
def source(s3: S3Server, folder: Path) -> str:
    s3_files().put(f"{folder}/", f"{BUCKET}/photos/", recursive=True)
    s3.reset()
    return f"{URI}/photos"


@pytest.fixture
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every data shard goes up in several parts."""
    monkeypatch.setattr(remote_publish, "UPLOAD_PART_BYTES", 2000)
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)


@pytest.fixture
def quick_to_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test waits for no back-off; how often is asked again stays what it is."""
    monkeypatch.setattr(botocore.retryhandler, "delay_exponential", lambda *_, **__: 0.01)
    s3fs.S3FileSystem.clear_instance_cache()


def s3_config(source: str, model_path: Path, **sections: dict[str, object]) -> Config:
    return config_for(source, Path("unused"), model_path, **({"output": {"uri": f"{URI}/out"}} | sections))


def assert_whole(expected: list[bytes], place: Path) -> None:
    assert embeddings(fetched(f"{URI}/out", place)) == expected
    assert not s3_files().list_multipart_uploads(BUCKET)
    assert Verifier(RemotePath(f"{URI}/out")).verify().proven


@pytest.mark.slow
@pytest.mark.parametrize("what", ["start", "writes", "all", "end"])
def test_storage_that_answers_503_for_a_while_is_waited_for(
    what: str,
    s3: S3Server,
    source: str,
    many_parts: None,
    expected: list[bytes],
    asked_once: None,
    model_path: Path,
    tmp_path: Path,
) -> None:
    """From the first request, commit, or word of success on, for longer than the client tries by itself."""
    first = {"start": "", "end": "_SUCCESS"}.get(what, "/samples/")
    began: list[float] = []
    lines: list[str] = []

    def fault(request: Request) -> str | None:
        writes = request.method in ("PUT", "POST")
        if (writes or what == "start") and first in request.key and not began:
            began.append(time.monotonic() + (0.0 if what in ("start", "end") else 0.5))
        meant = writes or what != "writes"
        return (
            "503"
            if began and meant and 0 <= time.monotonic() - began[0] < (1.5 if first != "/samples/" else 4)
            else None
        )

    s3.fault = fault
    config = s3_config(source, model_path, limits={"attempts": 1, "max_rejected_fraction": 0.9})
    summary = run(config, say=lines.append, report=lambda *_: None)
    assert s3.counts.faults
    assert summary.complete
    assert any(line.startswith("waiting") and "OSError" in line for line in lines), lines
    s3.fault = lambda request: None
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
def test_the_first_requests_for_every_key_fail(
    s3: S3Server,
    source: str,
    many_parts: None,
    quick_to_retry: None,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
) -> None:
    kinds = ["503", "500", "cut"]
    s3.fault = lambda request: kinds[(request.number + len(request.key)) % 3] if request.number < 2 else None
    assert run_here(s3_config(source, model_path)).complete
    assert s3.counts.faults > 100
    s3.fault = lambda request: None
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["one", "many"])
def test_an_answer_that_never_arrives(
    parts: str,
    s3: S3Server,
    source: str,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The object is there, and the client is told nothing: neither lost, nor taken for another driver's."""
    if parts == "many":
        request.getfixturevalue("many_parts")
    s3.fault = lambda asked: "lost" if asked.first and (asked.method == "PUT" or asked.completes) else None
    summary = run_here(s3_config(source, model_path))
    assert summary.complete
    assert summary.this_run.units == summary.totals.units > 3
    assert s3.counts.faults >= 2 * summary.totals.units
    s3.fault = lambda request: None
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
def test_a_completion_that_never_arrives(
    s3: S3Server,
    source: str,
    many_parts: None,
    quick_to_retry: None,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "HOPELESS_SECONDS", 1.0)
    s3.fault = lambda request: "cut" if request.completes and "/data/" in request.key else None
    with pytest.raises(OutputError, match=r"cannot publish s3://bucket/out/data/part-000000-0000\.parquet"):
        run_here(s3_config(source, model_path))
    assert s3.counts.faults >= 2
    assert not s3_files().find(f"{BUCKET}/out/data")
    assert not s3_files().list_multipart_uploads(BUCKET)
    s3.fault = lambda request: None
    assert run_here(s3_config(source, model_path)).complete
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
def test_what_a_killed_process_was_uploading_is_ended(
    s3: S3Server,
    source: str,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
) -> None:
    key = "out/data/part-000000-0001.parquet"
    upload = s3_files().call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
    s3_files().call_s3(
        "upload_part", Bucket=BUCKET, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"half of it"
    )
    others = s3_files().call_s3("create_multipart_upload", Bucket=BUCKET, Key="outside/x")
    assert run_here(s3_config(source, model_path)).complete
    assert [one["UploadId"] for one in s3_files().list_multipart_uploads(BUCKET)] == [others["UploadId"]]
    s3_files().clear_multipart_uploads(BUCKET)
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
def test_writing_is_forbidden(s3: S3Server, source: str, model_path: Path) -> None:
    s3.fault = lambda request: "403" if request.method == "PUT" and "/data/" in request.key else None
    with pytest.raises(OutputError, match=r"cannot publish s3://bucket/out/data/.*access denied"):
        run_here(s3_config(source, model_path))
    assert s3.counts.faults == 1  # not asked for again and again
    assert not s3_files().find(f"{BUCKET}/out/data")


@pytest.mark.slow
def test_reading_is_forbidden(s3: S3Server, source: str, model_path: Path) -> None:
    s3.fault = lambda request: "403" if request.key == "photos/003.png" and request.method == "GET" else None
    summary = run_here(s3_config(source, model_path))
    assert not summary.complete
    assert s3.counts.faults > 0
    assert any("photos/003.png" in problem and "access denied" in problem for problem in summary.problems)
    s3.fault = lambda request: None
    assert run_here(s3_config(source, model_path)).complete


@pytest.mark.slow
def test_listing_is_forbidden(s3: S3Server, source: str, model_path: Path) -> None:
    s3.fault = lambda request: "403" if "list-type" in request.query else None
    with pytest.raises(RequestError, match=r"source\.uri: s3://bucket/photos cannot be read.*access denied"):
        run_here(s3_config(source, model_path))


@pytest.mark.slow
def test_a_bucket_itself_is_an_output_and_a_source(
    s3: S3Server, folder: Path, expected: list[bytes], model_path: Path, tmp_path: Path
) -> None:
    """Its root is no object, so no request can ask for one."""
    whole = config_for(folder, Path("unused"), model_path, output={"uri": URI})
    assert run_here(whole).complete
    assert embeddings(fetched(URI, tmp_path / "out")) == expected
    assert run_here(whole).this_run.units == 0
    assert Verifier(RemotePath(URI)).verify().proven
    s3_files().rm(BUCKET, recursive=True)
    s3_files().put(f"{folder}/", f"{BUCKET}/", recursive=True)
    assert run_here(config_for(URI, tmp_path / "local", model_path)).complete
    assert embeddings(tmp_path / "local") == expected


@pytest.mark.parametrize("uri", ["s3://nowhere/photos", "s3://bucket/nothing", "s3://bucket/photos/*.tar"])
def test_what_is_not_there_is_named(uri: str, s3: S3Server, source: str, model_path: Path) -> None:
    with pytest.raises(RequestError, match=re.escape(uri)):
        run_here(s3_config(uri, model_path))


@pytest.mark.slow
def test_a_changed_object_is_refused_by_name(s3: S3Server, source: str, model_path: Path) -> None:
    run_here(s3_config(source, model_path))
    data = s3_files().cat_file(f"{BUCKET}/photos/005.png")
    s3_files().pipe_file(f"{BUCKET}/photos/005.png", data[:-1] + b"x")  # as many bytes: only its ETag tells
    with pytest.raises(RequestError, match=r"005\.png has changed since it was planned: ETag"):
        run_here(s3_config(source, model_path))


@pytest.mark.slow
def test_an_unrecorded_data_shard_is_adopted_or_replaced(
    s3: S3Server,
    source: str,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
) -> None:
    run_here(s3_config(source, model_path))
    for unit in ("0000", "0001"):
        s3_files().rm_file(f"{BUCKET}/out/samples/part-000000-{unit}.parquet")
    s3_files().pipe_file(f"{BUCKET}/out/data/part-000000-0001.parquet", b"damaged")
    kept = s3_files().info(f"{BUCKET}/out/data/part-000000-0000.parquet")["LastModified"]
    assert run_here(s3_config(source, model_path)).this_run.units == 2
    assert s3_files().info(f"{BUCKET}/out/data/part-000000-0000.parquet")["LastModified"] == kept
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_unit_is_read_in_few_requests(
    kind: str, s3: S3Server, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes within 1.05 times the members' span, or the row groups."""
    photos = {
        f"{number:03d}.png": encoded(np.random.default_rng(number).integers(0, 256, (300, 300, 3), np.uint8))
        for number in range(24)
    }
    name = f"in.{kind}"
    if kind == "tar":
        make_tar(tmp_path / name, list(photos.items()))
    else:
        table = pa.table({"id": list(photos), "image": list(photos.values()), "other": [bytes(100_000)] * len(photos)})
        pq.write_table(table, tmp_path / name, row_group_size=6, compression="NONE")
    size = sum(map(len, photos.values()))
    s3_files().put_file(str(tmp_path / name), f"{BUCKET}/{name}")
    config = s3_config(f"{URI}/{name}", model_path, output={"uri": f"{URI}/out", "shard_tokens": 150})
    request = check_request(config)
    request.listed()
    s3.reset()
    assert not make_plan(request, say=lambda line: None)[1]
    assert s3.counts.bytes_sent[name] < 1.05 * size + 300_000
    assert s3.counts.requests["GET", name] <= 8
    s3.reset()
    monkeypatch.setattr(remote_read, "READ_AHEAD_BYTES", 2000)  # a run looks for a first image before it starts
    summary = run_here(config)
    assert summary.complete
    assert summary.totals.units >= 3
    footer = 70_000 if kind == "parquet" else 2000  # pyarrow reads a file's last 64 KiB to find its metadata
    assert s3.counts.bytes_sent[name] < 1.05 * size + footer * (summary.totals.units + 1)
    assert s3.counts.requests["GET", name] <= 2 * (summary.totals.units + 1)


@pytest.mark.slow
def test_an_image_of_a_folder_is_one_request_that_names_its_etag(s3: S3Server, source: str, model_path: Path) -> None:
    request = check_request(s3_config(source, model_path))
    request.listed()
    for work in (lambda: make_plan(request, say=lambda line: None), lambda: run_here(s3_config(source, model_path))):
        s3.reset()
        work()
        asked = {key: count for key, count in s3.counts.requests.items() if key[1].startswith("photos/")}
        assert {method for method, _ in asked} == {"GET"}
        assert len(asked) == IMAGES
        assert set(asked.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("heeds_if_match", [True, False])
def test_an_object_that_changes_under_a_run_is_named(
    heeds_if_match: bool, s3: S3Server, source: str, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the reading: only the condition can see it, or the answer where a store has none."""
    request = check_request(s3_config(source, model_path))
    request.listed()
    s3.heeds_if_match = heeds_if_match
    s3_files().pipe_file(f"{BUCKET}/photos/003.png", b"another image")
    failed = make_plan(request, say=lambda line: None)[1]
    assert len(failed) == 1
    assert re.search(r"photos/003\.png has changed since it was planned: \d+ bytes then, 13 now", failed[0])


def test_a_range_of_another_object_is_never_taken(s3: S3Server) -> None:
    """Several pieces at once, by a store that takes no notice of If-Match: one of them is of another object."""
    data = bytes(range(256)) * 4
    s3_files().pipe_file(f"{BUCKET}/a", data)
    etag = remote.state_of(f"{URI}/a")[2]
    s3.heeds_if_match = False
    assert remote_read.read_if_match(f"{URI}/a", etag, 10, 500) == data[10:500]
    assert remote_read.read_if_match(f"{URI}/a", etag) == data
    s3_files().pipe_file(f"{BUCKET}/a", data[::-1])
    for piece in ((), (10, 500)):
        with pytest.raises(remote_read.Changed):
            remote_read.read_if_match(f"{URI}/a", etag, *piece)
    assert s3.counts.unheeded == 4


def test_every_request_of_our_own_says_who_pays(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the requests of s3fs before 2026, which says so in its own methods alone."""

    def older(self: Any, method: Any, *tables: dict[str, Any], **words: Any) -> Any:
        everything = dict(self.s3_additional_kwargs)
        for table in (*tables, words):
            everything.update(table)
        return self._filter_kwargs(method, everything)

    s3_files().pipe_file(f"{BUCKET}/in/a", b"a photo")
    s3_files().call_s3("create_multipart_upload", Bucket=BUCKET, Key="in/begun")
    etag = remote.state_of(f"{URI}/in/a")[2]
    monkeypatch.setattr(s3fs.S3FileSystem, "_get_s3_method_kwargs", older)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"requester_pays": True})
    s3.fault = lambda asked: None if asked.payer == "requester" else "403"
    s3.counts.requests.clear()
    assert remote.exists(f"{URI}/in/a")
    assert [path for path, _ in remote.walk(f"{URI}/in", ())] == ["a"]
    assert remote_read.read_if_match(f"{URI}/in/a", etag) == b"a photo"
    assert remote_read.read_if_match(f"{URI}/in/a", etag, 2, 7) == b"photo"
    assert remote_publish.remove_unfinished(f"{URI}/in", lambda name, begun: True) == 1
    assert s3.counts.requests.total() == 6
    assert remote_read.read_tail(f"{URI}/in/a")[0] == b"a photo"
    (tmp_path / "new").write_bytes(b"another")
    assert remote_publish.replace_same(tmp_path / "new", f"{URI}/in/a", etag)
    monkeypatch.setattr(remote_publish, "UPLOAD_PART_BYTES", 1)  # in parts
    etag = hashlib.md5(b"another").hexdigest()
    monkeypatch.setattr(moto.s3.models, "S3_UPLOAD_PART_MIN_SIZE", 1)
    assert remote_publish.replace_same(tmp_path / "new", f"{URI}/in/a", etag)
    assert not s3.counts.faults


@pytest.mark.parametrize("forbidden", [False, True])
def test_a_pattern_of_many_names_is_one_listing_or_a_question_for_each(
    forbidden: bool, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        s3_files().pipe_file(f"{BUCKET}/in/{number:03d}.tar", b"x" * number)
    for number in range(10):  # others, between them
        s3_files().pipe_file(f"{BUCKET}/in/0{number}.txt", b"other")
    s3.reset()
    place = resolve_source(Source(uri=f"{URI}/in/{{000..039}}.tar"))
    asked = sum(s3.counts.requests.values())
    if forbidden:
        s3.fault = lambda request: "403" if "list-type" in request.query else None
    listed = list_source(place)
    assert [file.size for file in listed] == list(range(40))
    assert all(file.etag for file in listed)
    assert sum(s3.counts.requests.values()) - asked == (41 if forbidden else 1)


def test_few_names_among_many_others_are_asked_for_one_by_one(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_list, "PAGE_NAMES", 2)
    for number in range(40):
        s3_files().pipe_file(f"{BUCKET}/in/{number:03d}.tar", b"x")
    s3.reset()
    wanted = [f"{URI}/in/{number:03d}.tar" for number in range(0, 40, 2)]
    assert set(remote_list.states_of(wanted)) == set(wanted[:5])  # a page is looked at, and no more
    assert remote_list.states_of([*wanted, "s3://other/x"]) == {}
    assert remote_list.states_of(wanted[:3]) == {}


def test_a_name_of_a_pattern_that_is_not_there_is_named(s3: S3Server) -> None:
    for number in range(20):
        s3_files().pipe_file(f"{BUCKET}/in/{number:03d}.tar", b"x")
    with pytest.raises(RequestError, match=r"in/020\.tar names no file"):
        list_source(resolve_source(Source(uri=f"{URI}/in/{{000..020}}.tar")))


def test_a_listing_under_way_does_not_keep_the_process_from_ending(s3: S3Server) -> None:
    """It is made in the background: an error found meanwhile ends the command, however slow the store is."""
    script = f"""
import sys
from pipeline.process import in_background
from pipeline.source.lister import list_source
from pipeline.source.part import SourcePlace
tars = ("{URI}/in/0.tar", "{URI}/in/1.tar")
place = SourcePlace(format="webdataset", root="{URI}/in", patterns=tars)
in_background(lambda: list_source(place))
sys.stdin.read()
raise SystemExit(2)
"""
    asked, go_on = threading.Event(), threading.Event()

    def wait(request: Request) -> None:
        asked.set()
        go_on.wait(60)

    s3.fault = wait
    child = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdin=subprocess.PIPE)
    try:
        assert asked.wait(60)
        child.communicate(timeout=20)
        assert child.returncode == 2
    finally:
        go_on.set()
        child.kill()


@pytest.mark.slow
def test_the_reader_and_the_commands_on_an_output_in_object_storage(
    s3: S3Server,
    source: str,
    expected: list[bytes],
    model_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_here(s3_config(source, model_path))
    uri = f"{URI}/out"
    dataset = EmbeddingDataset(uri)
    assert [item["image_embeds"].numpy().tobytes() for item in dataset.stream()] == expected
    s3.reset()
    item = dataset["003.png"]
    assert item["image_embeds"].numpy().tobytes() == expected[3]
    shard = next(key for _, key in s3.counts.requests if key.startswith("out/data/"))
    assert s3.counts.bytes_sent[shard] <= 1.1 * len(expected[3])
    assert s3.counts.requests["GET", shard] == 1
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [item["image_embeds"].numpy().tobytes() for item in loader] == expected
    for words, says in (
        (["status", uri], "complete"),
        (["stats", uri], "tokens_mean"),
        (["stats", uri, "--sql", "SELECT count(*) AS both FROM samples JOIN data USING (key)"], "both"),
        (["verify", uri], "proven"),
    ):
        assert main(words) == 0
        assert says in capsys.readouterr().out
    assert main(["stats", f"{URI}/nothing"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_a_remote_file_system_without_whole_objects(
    folder: Path,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
) -> None:
    """Written beside and renamed: no reader sees half a shard."""
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/photos/{path.name}", path.read_bytes())
    try:
        config = config_for("memory://photos", Path("unused"), model_path, output={"uri": "memory://out"})
        summary = run_here(config)
        assert summary.complete
        assert [item["image_embeds"].numpy().tobytes() for item in EmbeddingDataset("memory://out")] == expected
        assert run_here(config).this_run.units == 0
        assert not [name for name in memory.find("/out") if "unfinished" in name]
    finally:
        memory.rm("/", recursive=True)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://me:secret@bucket/x", "credentials; they belong into the environment"),
        ("s3://me:sec/ret@bucket/x", "credentials; they belong into the environment"),
        ("s3://secret@bucket/x", "credentials; they belong into the environment"),
        ("s3://bucket//x", "an empty name"),
        ("s3://bucket/a/../x", "an empty name or .."),
        ("s3://[x/a", "Invalid"),
        ("https://example.org/a.tar", "fetches nothing from hosts"),
        ("simplecache::s3://bucket/x", "chain of protocols"),
        ("unknown://x", "no storage is known as unknown"),
    ],
)
@pytest.mark.parametrize("field", ["source", "output"])
def test_uris_that_are_refused(field: str, uri: str, says: str, folder: Path, model_path: Path) -> None:
    config = config_for(folder, Path("unused"), model_path, **{field: {"uri": uri}})
    with pytest.raises(RequestError, match=rf"{field}\.uri.*{says}") as caught:
        run_here(config)
    assert "sec" not in str(caught.value)


def test_a_manifest_names_no_hosts(folder: Path, model_path: Path, tmp_path: Path) -> None:
    lines = [
        "https://example.org/a.png?sig=secret",
        "s3://me:secret@bucket/a.png",
        "unknown://a.png",
        "s3://[x//a.png",
        str(folder / "000.png"),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"image": line}) for line in lines))
    run_here(config_for(tmp_path / "a.jsonl", tmp_path / "out", model_path))
    rows = pq.read_table(tmp_path / "out" / "samples").to_pylist()
    assert [row["status"] for row in rows] == ["missing_image"] * 4 + ["ok"]
    assert "fetches nothing from hosts" in rows[0]["error"]
    assert "secret" not in str(rows)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["after_data_publish", "after_samples_write"])
def test_killed_between_its_publications(
    point: str,
    s3: S3Server,
    source: str,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
) -> None:
    config, marker = s3_config(source, model_path), tmp_path / "fired"
    assert run_in_a_fork(config, VISIONBAKE_FAULT=f"{point}:kill@{marker}") == -signal.SIGKILL
    assert marker.exists()
    shard = s3_files().info(f"{BUCKET}/out/data/part-000000-0000.parquet")["LastModified"]
    assert not s3_files().exists(f"{BUCKET}/out/samples/part-000000-0000.parquet")
    assert run_here(config).complete
    assert s3_files().info(f"{BUCKET}/out/data/part-000000-0000.parquet")["LastModified"] == shard
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
def test_two_drivers_on_one_output(
    s3: S3Server, source: str, many_parts: None, expected: list[bytes], model_path: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path / "config.yaml", s3_config(source, model_path))
    twins = [
        subprocess.Popen(command("jobs.run", path), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    said = [twin.communicate(timeout=200)[0].decode() for twin in twins]
    assert [twin.returncode for twin in twins] == [0, 0], said
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray(
    s3: S3Server,
    ray_nodes: dict[str, str],
    source: str,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
) -> None:
    """The clients of every process find the storage by the same variables, here those of the job."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with connected(ray_nodes, **variables):
        summary = run_here(s3_config(source, model_path, cluster={"engine": "ray", "device": "cpu"}))
    assert summary.complete
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
def test_a_profile_says_where_and_who(
    s3: S3Server, source: str, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile baker]\nregion = eu-central-1\nendpoint_url = {s3.url}\n")
    (tmp_path / "credentials").write_text("[baker]\naws_access_key_id = testing\naws_secret_access_key = top-secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "baker")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        assert run_here(s3_config(source, model_path)).complete
        written = [data for name in s3_files().find(f"{BUCKET}/out") for data in [s3_files().cat_file(name)]]
        assert written
        assert not any(b"top-secret" in data for data in written)
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_manifest_that_cannot_be_served_rejects_nothing(
    s3: S3Server, folder: Path, model_path: Path, tmp_path: Path
) -> None:
    """A package that is not there, and a bucket that is not: the world's, whatever the rows say."""
    for number, uri in enumerate(("gs://bucket/a.png", "s3://nowhere/a.png")):
        manifest = tmp_path / f"{number}.jsonl"
        manifest.write_text(json.dumps({"image": uri}))
        summary = run_here(config_for(manifest, tmp_path / str(number), model_path))
        assert not summary.complete
        assert uri in str(summary.problems)
        assert not summary.totals.rejects
        assert not list((tmp_path / str(number) / "plan" / "index").glob("*"))


@pytest.mark.slow
def test_a_broken_read_of_a_gzipped_tar_is_tried_again(
    s3: S3Server, images: dict[str, bytes], model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream's place is lost with it: the next unit must not be taken for damage."""
    make_tar(tmp_path / "a.tar.gz", list(images.items()), "w:gz")
    s3_files().put_file(str(tmp_path / "a.tar.gz"), f"{BUCKET}/a.tar.gz")
    config = s3_config(f"{URI}/a.tar.gz", model_path)
    make_plan(check_request(config), say=lambda line: None)
    monkeypatch.setattr(remote_read, "READ_AHEAD_BYTES", 3000)
    real, calls = remote_read.RemoteFile.read, [0]

    def flaky(self: Any, size: int | None = -1) -> bytes:
        calls[0] += self._uri.endswith("a.tar.gz")
        if calls[0] == 12:
            calls[0] += 1
            raise OSError(5, "made by the test")
        return real(self, size)

    monkeypatch.setattr(remote_read.RemoteFile, "read", flaky)
    summary = run_here(config)
    assert calls[0] > 12
    assert summary.complete
    assert summary.retries == 1


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["409", "501"])
def test_stores_that_answer_a_condition_otherwise(
    answer: str,
    s3: S3Server,
    source: str,
    quick_to_retry: None,
    expected: list[bytes],
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.storage.remote_publish.time.sleep", lambda seconds: None)
    s3.fault = lambda asked: answer if asked.conditional and (answer == "501" or asked.first) else None
    assert run_here(s3_config(source, model_path)).complete
    assert s3.counts.faults >= 10
    s3.fault = lambda request: None
    assert_whole(expected, tmp_path / "out")


@pytest.mark.slow
def test_nothing_is_deleted_in_a_new_output(s3: S3Server, source: str, model_path: Path) -> None:
    s3.fault = lambda asked: "403" if asked.method == "DELETE" else None
    assert run_here(s3_config(source, model_path)).complete
    assert not s3.counts.faults


@pytest.mark.slow
def test_uploads_of_others_go_on(s3: S3Server, source: str, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a unit that only another driver knows yet; and of a unit that is committed, whose upload is too late."""
    monkeypatch.setattr(
        "pipeline.storage.scratch.STALE_SCRATCH_SECONDS", 10**9
    )  # this server begins every upload in 2010
    late, other = (f"out/data/part-{part}-0000.parquet" for part in ("000000", "000007"))
    for key in (late, other):
        s3_files().call_s3("create_multipart_upload", Bucket=BUCKET, Key=key)
    assert run_here(s3_config(source, model_path)).complete
    assert [one["Key"] for one in s3_files().list_multipart_uploads(BUCKET)] == [other]
    s3_files().clear_multipart_uploads(BUCKET)


def test_a_listing_is_paged_and_in_the_order_of_local_ones(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a.png", "a-b.png", "a/z.png", "a/B.png", "a0.png", "\u00fc/x#1?.png", "\u00fc/x%20 y.png", "z/[1]*.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        s3_files().pipe_file(f"{BUCKET}/in/{name}", b"x")
    s3_files().call_s3("put_object", Bucket=BUCKET, Key="in/a/", Body=b"")  # what consoles make for folders
    monkeypatch.setattr("moto.s3.responses.S3Response._get_default_max_keys", lambda *_: 3, raising=False)
    ours = [path for path, _ in remote.walk(f"{URI}/in", (".png",))]
    places = (SourcePlace(format="folder", root=root, patterns=(root,)) for root in (str(tmp_path), f"{URI}/in"))
    local, far = ([file.path for file in list_files(place)] for place in places)
    assert far == local == ours == sorted(names)
    s3_files().call_s3("put_object", Bucket=BUCKET, Key="in//lost.png", Body=b"x")
    with pytest.raises(RequestError, match="empty part"):
        list(list_files(SourcePlace(format="folder", root=f"{URI}/in", patterns=(f"{URI}/in",))))
