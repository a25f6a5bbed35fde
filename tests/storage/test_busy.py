"""Failures that waiting may help are told from those that it does not, on every path from storage to an error."""

from __future__ import annotations

import errno
import io
import os
import pickle
import socket
import ssl
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from s3_server import BUCKET, S3Server

from pipeline import errors
from pipeline.config import Source
from pipeline.errors import OutputBusy, OutputError, RequestError, SourceBusy, SourceError, StorageBusy
from pipeline.index.read import read_index_arrays
from pipeline.output.dataset import check_output, remove_success
from pipeline.output.info import read_dataset
from pipeline.output.record import read_record
from pipeline.source.named_image import read_image_file
from pipeline.source.part import SourceFile
from pipeline.source.planned import check_unchanged, read_planned
from pipeline.source.resolve import resolve_source
from pipeline.source.tar import TarStream
from pipeline.storage import files, remote, remote_read, scratch
from pipeline.storage.publish import publish_new, publish_over, write_text
from pipeline.storage.remote import RemotePath
from pipeline.storage.scratch import Scratch, local_copy, writing_scratch

pytestmark = pytest.mark.slow

URI = f"s3://{BUCKET}"


@pytest.mark.parametrize(
    "error",
    [
        StorageBusy(errno.EAGAIN, "slow down", "s3://b/k"),
        StorageBusy(errno.ENOSPC, "no space", "/tmp", here=True),
        OutputBusy("cannot write", here=True),
        OutputBusy("cannot write"),
        SourceBusy("cannot read", here=True),
        SourceBusy("cannot read"),
    ],
)
def test_they_travel_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.here) == (type(error), str(error), error.here)
    assert errors.is_busy(copy)


BUSY = "EAGAIN EBUSY EIO ESTALE ETIMEDOUT EHOSTDOWN EHOSTUNREACH ECONNREFUSED ECONNRESET ECONNABORTED ENETDOWN EPIPE"
HERE = "EMFILE ENFILE ENOMEM ENOBUFS ENOTCONN ESHUTDOWN"
FOR_GOOD = "EACCES EPERM EROFS ENOSPC EDQUOT ENOENT ENOTDIR EINVAL EFBIG ENAMETOOLONG ELOOP"


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (BUSY, (True, False, OutputBusy, SourceBusy)),
        (HERE, (True, True, OutputBusy, SourceBusy)),
        (FOR_GOOD, (False, False, OutputError, SourceError)),
    ],
)
def test_a_file_system_says_it_by_errno(names: str, kinds: tuple[object, ...]) -> None:
    for name in names.split():
        error = OSError(getattr(errno, name), name)
        with pytest.raises(OutputError) as output, errors.writing("there"):
            raise error
        with pytest.raises(SourceError) as source, errors.reading("there"):
            raise error
        assert (errors.is_busy(error), errors.is_here(error), type(output.value), type(source.value)) == kinds, name
        assert getattr(output.value, "here", False) is getattr(source.value, "here", False) is kinds[1]


def client_error(code: str, status: int) -> Exception:
    """An answer as s3fs raises it: translated, with botocore's as its cause."""
    answer = {"Error": {"Code": code, "Message": "made by the test"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return s3fs.errors.translate_boto_error(ClientError(answer, "PutObject"))


class GoogleError(Exception):
    """As gcsfs raises it."""

    def __init__(self, code: int) -> None:
        super().__init__(f"answered {code}")
        self.code = code


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        *(client_error(*answer) for answer in [("SlowDown", 503), ("InternalError", 500), ("503", 503), ("x", 502)]),
        *(client_error(*answer) for answer in [("RequestTimeout", 400), ("ConditionalRequestConflict", 409)]),
        *(client_error(*answer) for answer in [("RequestLimitExceeded", 400), ("429", 429), ("TooManyRequests", 429)]),
        *(client_error(*answer) for answer in [("NoSuchUpload", 404), ("IncompleteBody", 400), ("BadDigest", 400)]),
        GoogleError(503),
        GoogleError(429),
        EndpointConnectionError(endpoint_url="http://nowhere"),
        ReadTimeoutError(endpoint_url="http://nowhere"),
        TimeoutError(),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        BrokenPipeError(),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        caused(RuntimeError("wrapped"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")),
        OSError(errno.EIO, "a mount's"),
    ],
    ids=repr,
)
def test_a_client_says_that_waiting_may_help(error: Exception) -> None:
    with pytest.raises(StorageBusy, match="s3://b/k") as raised, remote.named("s3://b/k"):
        raise error
    assert not raised.value.here


@pytest.mark.parametrize(
    "error",
    [
        *(client_error(*answer) for answer in [("AccessDenied", 403), ("403", 403), ("NoSuchBucket", 404)]),
        *(client_error(*answer) for answer in [("NoSuchKey", 404), ("InvalidRequest", 400), ("NotImplemented", 501)]),
        *(client_error(*answer) for answer in [("QuotaExceeded", 403), ("XMinioStorageFull", 507)]),
        GoogleError(403),
        GoogleError(400),
        NoCredentialsError(),
        ValueError("wrong"),
        caused(OSError("TLS"), ssl.SSLCertVerificationError(1, "certificate verify failed")),
        caused(ConnectionError("TLS"), ssl.SSLCertVerificationError(1, "certificate verify failed")),
        OSError(errno.EROFS, "read-only"),
        OSError(errno.EDQUOT, "quota"),
    ],
    ids=repr,
)
def test_a_client_says_that_waiting_does_not_help(error: Exception) -> None:
    with pytest.raises(OSError, match="s3://b/k") as raised, remote.named("s3://b/k"):
        raise error
    assert not errors.is_busy(raised.value)


def written(folder: Path) -> Path:
    path = folder / "scratch"
    path.write_bytes(b"content")
    return path


FILE = SourceFile(path="a.tar", size=7, mtime_ns=0, etag="e")
OUT = RemotePath(f"{URI}/out")
PATHS: dict[str, tuple[type[Exception], Callable[[Path], object]]] = {
    "publish_new": (OutputBusy, lambda place: publish_new(written(place), OUT / "a")),
    "publish_over": (OutputBusy, lambda place: publish_over(written(place), OUT / "a")),
    "read_record": (OutputBusy, lambda place: read_record(OUT / "a.parquet")),
    "read_index_arrays": (OutputBusy, lambda place: read_index_arrays(OUT / "a.parquet")),
    "check_output": (OutputBusy, lambda place: check_output(OUT, {})),
    "remove_success": (OutputBusy, lambda place: remove_success(OUT)),
    "read_dataset": (OutputBusy, lambda place: read_dataset(OUT)),
    "read_planned": (SourceBusy, lambda place: read_planned(URI, FILE)),
    "a range": (SourceBusy, lambda place: read_planned(URI, FILE, 0, 5)),
    "check_unchanged": (SourceBusy, lambda place: check_unchanged(URI, FILE)),
    "TarStream": (SourceBusy, lambda place: TarStream(f"{URI}/a.tar")),
    "read_image_file": (SourceBusy, lambda place: read_image_file(f"{URI}/a.png")),
    "resolve_source": (SourceBusy, lambda place: resolve_source(Source(uri=f"{URI}/a"))),
    "a listing": (StorageBusy, lambda place: list(remote.walk(f"{URI}/a", (".png",)))),
    "a copy": (StorageBusy, lambda place: remote_read.download(f"{URI}/a.tar", place / "copy")),
    "names": (StorageBusy, lambda place: list(files.names_in(OUT, "part-"))),
}


@pytest.mark.parametrize("fault", ["503", "500", "cut"])
def test_every_path_says_that_storage_is_busy(fault: str, s3: S3Server, asked_once: None, tmp_path: Path) -> None:
    s3.fault = lambda request: fault
    for name, (kind, call) in PATHS.items():
        before = s3.counts.faults
        with pytest.raises(kind) as raised:
            call(tmp_path)
        assert type(raised.value) is kind, name
        assert not raised.value.here  # type: ignore[attr-defined]
        assert s3.counts.faults > before, name


def test_no_path_says_so_of_what_is_forbidden(s3: S3Server, asked_once: None, tmp_path: Path) -> None:
    s3.fault = lambda request: "403"
    for name, (_, call) in PATHS.items():
        with pytest.raises((OutputError, SourceError, RequestError, OSError)) as raised:
            call(tmp_path)
        assert not errors.is_busy(raised.value), name
    assert s3.counts.faults >= len(PATHS)


def test_a_server_that_is_gone_is_waited_for(
    s3: S3Server, asked_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for url in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(OutputBusy):
            publish_new(written(tmp_path), OUT / "a")


def test_a_body_that_breaks_off_is_read_again_later(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3fs.S3FileSystem().pipe_file(f"{BUCKET}/a.tar", b"x" * 100)
    monkeypatch.setattr(remote_read, "read", lambda uri, start, end: b"x" * (end - start - 1))
    with pytest.raises(SourceBusy):
        TarStream(f"{URI}/a.tar").read(50)


class FullDisk:
    """A disk that takes nothing."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, 0

    def __call__(self, *_: object, **__: object) -> Any:
        self.asked += 1
        raise OSError(self.number, os.strerror(self.number))


def test_a_full_scratch_disk_is_this_nodes_own_trouble(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a remote output; of a local one scratch lies on the output's file system, which is full for everybody."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        disk = FullDisk(number)
        with monkeypatch.context() as patch, Scratch(OUT) as far:
            path = far.path("a")
            patch.setattr(os, "fsync", disk)
            with pytest.raises(OutputBusy) as raised:
                write_text(path, "content")
            assert raised.value.here
            with Scratch(tmp_path / "out") as near, pytest.raises(OutputError) as local:
                write_text(near.path("a"), "content")
            assert type(local.value) is OutputError
            assert disk.asked == 2
        with monkeypatch.context() as patch:
            disk = FullDisk(number)
            patch.setattr(Path, "mkdir", disk)
            with pytest.raises(OutputBusy) as raised:
                Scratch(OUT).path("a")
            assert raised.value.here
            with pytest.raises(StorageBusy) as copying, local_copy(OUT / "a"):
                pass
            assert copying.value.here
            assert disk.asked == 2


def test_a_copy_for_which_there_is_no_space_is_this_nodes_own_trouble(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs.S3FileSystem().pipe_file(f"{BUCKET}/out/a", b"x" * 100)
    disk = FullDisk(errno.ENOSPC)
    monkeypatch.setattr(remote.client_of(f"{URI}/out/a")[0], "get_file", disk)
    with pytest.raises(StorageBusy) as raised, local_copy(OUT / "a"):
        pass
    assert raised.value.here
    assert disk.asked == 1


def test_scratch_of_a_node_is_known_by_its_place(tmp_path: Path) -> None:
    node = scratch._node_scratch() / "nonce" / "a"
    for path, kind in ((node, OutputBusy), (tmp_path / "_tmp" / "a", OutputError)):
        with pytest.raises(OutputError) as raised, writing_scratch(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert type(raised.value) is kind


def test_a_mount_that_breaks_while_a_tar_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    disk = FullDisk(errno.ESTALE)
    with TarStream(path) as stream:
        monkeypatch.setattr(stream, "_stream", type("Broken", (), {"read": disk, "seek": disk, "close": bool})())
        with pytest.raises(SourceBusy):
            stream.read(10)
        with pytest.raises(SourceBusy):
            stream.seek(5)
    assert disk.asked == 2
