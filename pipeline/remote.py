"""Object storage and other remote file systems, through fsspec's clients.

A place is a URI such as `s3://bucket/folder/a.tar`. Whatever a client raises comes out as an OSError that names the
URI. Credentials, endpoints, regions, retries and timeouts are the clients' own: for S3 the AWS variables and profiles.
Nothing is taken from a cached listing: a run must see what another has committed a moment ago.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from pipeline.errors import RequestError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
HOSTS = ("http", "https", "ftp", "git", "github")
# Where an object appears only when all of it is there. Elsewhere it is written beside, then renamed.
WHOLE_OBJECTS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss")
# Where the store itself refuses a name that is taken.
CREATES = ("s3", "s3a", "gs", "gcs")
S3 = ("s3", "s3a")
UPLOAD_PART_BYTES = 32 << 20
# A range larger than this is read in several requests: one that fails is asked for again by itself.
RANGE_BYTES = 64 << 20
READ_AHEAD_BYTES = 8 << 20
UNFINISHED = ".unfinished"


def is_remote(uri: str | os.PathLike[str] | RemotePath) -> bool:
    """Whether this is a URI of something else than a local file."""
    return isinstance(uri, RemotePath) or (isinstance(uri, str) and "://" in uri and not uri.startswith("file://"))


def check_uri(field: str, uri: str) -> None:
    """Raises RequestError for a remote URI that cannot be used, before anything is read."""
    if not is_remote(uri):
        return
    parts = urlsplit(uri)
    if "@" in parts.netloc or "::" in uri:
        # Not repeated in the message: it would be a secret in a log.
        raise RequestError(
            f"{field}: a URI with credentials or a chain of protocols; credentials belong into the environment or a "
            "profile, as the storage's own tools read them"
        )
    if parts.scheme in HOSTS:
        raise RequestError(f"{field}: {uri} is a URL: visionbake fetches nothing from hosts; download it first")
    try:
        _client(uri)
    except RequestError as error:
        raise RequestError(f"{field}: {error}") from error


def _client(uri: str) -> tuple[Any, str]:
    """fsspec's client for a URI (one for each process), and the path that it knows the URI by."""
    scheme = uri.partition("://")[0]
    try:
        options = fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(uri)
        client = fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError as error:
        extra = f": install visionbake[{EXTRAS[scheme]}]" if scheme in EXTRAS else ""
        raise RequestError(f"{uri}: {error}{extra}") from error
    except ValueError as error:
        raise RequestError(f"{uri}: {error}") from error
    return client, client._strip_protocol(uri)


@contextmanager
def _named(uri: str) -> Iterator[None]:
    """Gives every failure of a client one type."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"not found ({error})" if str(error) else "not found", uri) from error
    except PermissionError as error:
        raise PermissionError(errno.EACCES, f"access denied ({error})", uri) from error
    except (FileExistsError, TypeError, AttributeError, AssertionError):  # the first is an answer, the others are bugs
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", uri) from error


@dataclass(frozen=True)
class RemotePath:
    """A URI with as much of pathlib's interface as an output needs."""

    uri: str

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return posixpath.basename(self.uri.rstrip("/"))

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.uri.rstrip("/").rpartition("/")[0])

    def exists(self) -> bool:
        return exists(self.uri)

    def read_bytes(self) -> bytes:
        return read(self.uri)

    def read_text(self, encoding: str = "utf-8") -> str:
        return read(self.uri).decode(encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        client, path = _client(self.uri)
        try:
            with _named(self.uri):
                client.rm_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise


def exists(uri: str) -> bool:
    """Whether there is such an object. Raises OSError where the storage does not say."""
    client, path = _client(uri)
    try:
        with _named(uri):
            return str(client.info(path)["type"]) != "directory"
    except FileNotFoundError:
        return False


def is_folder(uri: str) -> bool:
    """Whether anything lies below this URI. Raises OSError where the storage does not say."""
    client, path = _client(uri)
    try:
        with _named(uri):
            return str(client.info(path)["type"]) == "directory"
    except FileNotFoundError:
        return False


def state_of(uri: str) -> tuple[int, int, str]:
    """Size, mtime in ns, and ETag, of which an object has one. Raises OSError."""
    client, path = _client(uri)
    with _named(uri):
        return state_of_info(client.info(path))


def state_of_info(info: dict[str, Any]) -> tuple[int, int, str]:
    """The same, of an entry of a listing."""
    size = int(info["size"] or 0)
    for name in ("ETag", "etag", "md5Hash"):
        if info.get(name):
            return size, 0, str(info[name]).strip('"')
    for name in ("mtime", "LastModified", "last_modified", "modified", "created"):
        moment = info.get(name)
        if isinstance(moment, datetime):
            moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if isinstance(moment, int | float):
            return size, int(moment * 1e9), ""
    return size, 0, ""


def entries(folder: str) -> list[dict[str, Any]]:
    """What lies directly in a folder, with `name` relative to it; names of folders end in a slash. Raises OSError."""
    client, path = _client(folder)
    with _named(folder):
        found = client.ls(path, detail=True)
    result = []
    for info in found:
        name = posixpath.basename(info["name"].rstrip("/"))
        if info["name"].rstrip("/") != path.rstrip("/") and name:
            result.append(info | {"name": name + ("/" if info["type"] == "directory" else "")})
    return result


def names(folder: str, prefix: str = "") -> list[str]:
    """The names of the files in a folder that begin with a prefix; none where there is no folder. Raises OSError."""
    client, path = _client(folder)
    try:
        with _named(folder):
            if _scheme(folder) in WHOLE_OBJECTS and prefix:
                return [posixpath.basename(name) for name in client.find(path, prefix=prefix)]
            found = client.ls(path, detail=True)
    except FileNotFoundError:
        return []
    return [
        name
        for info in found
        if info["type"] == "file" and (name := posixpath.basename(info["name"])).startswith(prefix)
    ]


def glob(pattern: str) -> dict[str, tuple[int, int, str]]:
    """The files that a pattern names: URI and state. Raises OSError."""
    client, path = _client(pattern)
    with _named(pattern):
        found = client.glob(path, detail=True)
    return {uri_of(pattern, name): state_of_info(info) for name, info in found.items() if info["type"] == "file"}


def uri_of(example: str, path: str) -> str:
    """The URI of a client's path, written as an example of the same storage is."""
    _, known = _client(example)
    head = example[: len(example) - len(known)] if example.endswith(known) else example.partition("://")[0] + "://"
    return head + path


def beside(uri: str, name: str) -> str:
    """The URI that a relative name means in a file at this URI: `..` is no folder in an object store."""
    scheme, _, path = uri.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(path), name))}"


def read(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """An object, or a range of it: one request up to RANGE_BYTES, several at once above. Raises OSError."""
    client, path = _client(uri)
    with _named(uri):
        if start is None or end is None:
            # One request: s3fs would first ask for the size, to read in pieces.
            return bytes(client.cat_file(path, **({"max_concurrency": 1} if _scheme(uri) in S3 else {})))
        starts = list(range(start, end, RANGE_BYTES))
        if len(starts) <= 1:
            data = bytes(client.cat_file(path, start=start, end=end)) if starts else b""
        else:
            ends = [min(first + RANGE_BYTES, end) for first in starts]
            data = b"".join(client.cat_ranges([path] * len(starts), starts, ends, on_error="raise"))
        return data


class RemoteFile(io.RawIOBase):
    """An object read by ranges: a read is a request. Raises OSError."""

    def __init__(self, uri: str) -> None:
        self._uri, self._position = uri, 0
        self._size = state_of(uri)[0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._position + size)
        if end <= self._position:
            return b""
        data = read(self._uri, self._position, end)
        if len(data) != end - self._position:
            raise OSError(errno.EIO, f"{len(data)} of {end - self._position} bytes at {self._position}", self._uri)
        self._position = end
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def dataset_of(folder: RemotePath) -> Any:
    """A folder of Parquet files as a pyarrow data set. Raises OSError."""
    import pyarrow.dataset

    client, path = _client(folder.uri)
    with _named(folder.uri):
        files = sorted(f"{path}/{name}" for name in names(folder.uri) if name.endswith(".parquet"))
        return pyarrow.dataset.dataset(files, format="parquet", filesystem=client)


def download(uri: str, target: Path) -> None:
    """Raises OSError."""
    client, path = _client(uri)
    with _named(uri):
        client.get_file(path, str(target))


def upload(source: Path, uri: str, *, replace: bool) -> bool:
    """Publishes a complete file: whoever looks sees all of it or none.

    Returns:
        False if the name is taken and `replace` is not set; then nothing changed.

    Raises:
        OSError: the storage refuses; nothing of the attempt is left that a reader could see.
    """
    client, path = _client(uri)
    scheme = _scheme(uri)
    if not replace and exists(uri):
        return False
    options = {"chunksize": UPLOAD_PART_BYTES, "max_concurrency": 8} if scheme in S3 else {}
    try:
        with _named(uri):
            if scheme not in WHOLE_OBJECTS:
                _rename_into_place(client, source, path, replace)
            elif scheme in CREATES and not replace:
                client.put_file(str(source), path, mode="create", **options)
            else:
                client.put_file(str(source), path, **options)
    except FileExistsError:
        return False
    except OSError:
        # An answer that was lost on its way: what stands there is looked at by whoever asked for a new name.
        if not replace and _stands(uri):
            return False
        raise
    return True


def _stands(uri: str) -> bool:
    try:
        return exists(uri)
    except OSError:
        return False


def _rename_into_place(client: Any, source: Path, path: str, replace: bool) -> None:
    beside = f"{posixpath.dirname(path)}/_{source.name}{UNFINISHED}"  # no glob for shards finds it
    try:
        client.put_file(str(source), beside)
        if replace and client.exists(path):
            client.rm_file(path)
        client.mv(beside, path)
    except BaseException:
        if client.exists(beside):
            client.rm_file(beside)
        raise


def remove_unfinished(folder: str, older_than: datetime | None = None) -> int:
    """Removes what killed processes left of files: multipart uploads on S3, half-written files elsewhere.

    Returns:
        How many there were. Raises OSError.
    """
    client, path = _client(folder)
    if _scheme(folder) not in S3:
        if _scheme(folder) in WHOLE_OBJECTS:
            return 0
        found = [name for name in names(folder) if name.endswith(UNFINISHED)]
        with _named(folder):
            for name in found:
                client.rm_file(f"{path}/{name}")
        return len(found)
    bucket, _, prefix = path.partition("/")
    count = 0
    where: dict[str, str] = {}
    with _named(folder):
        while True:
            page = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix.rstrip('/')}/", **where)
            for one in page.get("Uploads", ()):
                if older_than is None or one["Initiated"] < older_than:
                    client.call_s3("abort_multipart_upload", Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])
                    count += 1
            if not page.get("IsTruncated"):
                return count
            where = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]
