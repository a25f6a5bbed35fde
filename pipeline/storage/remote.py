"""Object storage and other remote file systems, through fsspec's clients.

A location is a URI such as `s3://bucket/folder/a.tar`. Whatever a client raises comes out as an OSError that names the
URI. Credentials, endpoints, regions, retries and timeouts are the clients' own: for S3 the AWS variables and profiles.
Nothing is taken from a cached listing: a run must see what another has committed a moment ago.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import has_magic
from typing import Any

from ..errors import RequestError
from .client import client_of, named, request_options
from .hub import FRESH, HUB, info_of
from .hub import read as read_hub
from .local import State
from .names import is_left_alone, left_alone_in
from .uri import S3, WHOLE_OBJECTS, is_file_uri, local_path, problem_with, scheme_of

# A range larger than this is read in several requests: one that fails is asked for again by itself.
RANGE_BYTES = 64 << 20


def is_remote(uri: str | os.PathLike[str] | RemotePath) -> bool:
    """Whether this is a URI of something else than a local file."""
    return isinstance(uri, RemotePath) or (isinstance(uri, str) and "://" in uri and not is_file_uri(uri))


def check_uri(field: str, uri: str) -> None:
    """Raises RequestError for a URI that cannot be used, before anything is read."""
    if not is_remote(uri):
        try:
            local_path(uri)
        except ValueError as error:
            raise RequestError(f"{field}: {error}") from error
        return
    if problem := problem_with(uri):
        raise RequestError(f"{field}: {problem}")
    try:
        client_of(uri)
    except OSError as error:
        raise RequestError(f"{field}: {error}") from error


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
        client, path = client_of(self.uri)
        try:
            with named(self.uri):
                client.rm_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise


def exists(uri: str) -> bool:
    """Whether there is such an object. Raises OSError where the storage does not say."""
    client, path = client_of(uri)
    try:
        with named(uri):
            if scheme_of(uri) in S3:  # its `info` lists as well, in search of a folder
                bucket, key, _ = client.split_path(path)
                if key:  # a bucket itself is no object
                    client.call_s3("head_object", Bucket=bucket, Key=key, **request_options(client))
                return bool(key)
            return str(_info(uri, client, path)["type"]) != "directory"
    except FileNotFoundError:
        return False


def is_folder(uri: str) -> bool:
    """Whether anything lies below this URI. Raises OSError where the storage does not say."""
    client, path = client_of(uri)
    try:
        with named(uri):
            return str(_info(uri, client, path)["type"]) == "directory"
    except FileNotFoundError:
        return False


def state_of(uri: str) -> State:
    """Size, mtime in ns, and ETag, of which an object has one. Raises OSError."""
    client, path = client_of(uri)
    with named(uri):
        return state_of_info(_info(uri, client, path))


def _info(uri: str, client: Any, path: str) -> dict[str, Any]:
    """Asks a client about a path, as it is now. Raises what that does."""
    return info_of(client, path) if scheme_of(uri) == HUB else dict(client.info(path))


def state_of_info(info: dict[str, Any]) -> State:
    """The same, of an entry of a listing."""
    size = int(info["size"] or 0)
    for name in ("ETag", "etag", "md5Hash", "blob_id"):
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
    """Lists what lies directly in a folder, `name` relative to it; names of folders end in a slash. Raises OSError."""
    client, path = client_of(folder)
    with named(folder):
        found = client.ls(path, detail=True, **(FRESH if scheme_of(folder) == HUB else {}))
    result = []
    for info in found:
        if info["name"] == path.rstrip("/") + "/" and info["type"] == "directory":
            raise OSError(errno.EINVAL, "holds names with an empty part ('//'), which this listing cannot tell", folder)
        name = posixpath.basename(info["name"].rstrip("/"))
        if info["name"].rstrip("/") != path.rstrip("/") and name:
            result.append(info | {"name": name + ("/" if info["type"] == "directory" else "")})
    return result


def walk(folder: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, State | None]]:
    """Every file below a folder: its path relative to it, and its state; in the order of the paths' code points.

    Args:
        suffixes: in lower case; of files with other ones the state is not said, nor of those that are left alone
            (`names.is_left_alone`).

    Raises:
        OSError: it cannot be listed.
    """
    for path, state in _walk(folder):
        yield path, state if path.lower().endswith(suffixes) and not left_alone_in(path) else None


def _walk(folder: str) -> Iterator[tuple[str, State | None]]:
    """On S3 a page of a thousand names at a time, elsewhere a folder at a time. Raises OSError."""
    if scheme_of(folder) not in S3:
        for entry in sorted(entries(folder), key=lambda entry: entry["name"]):
            if entry["name"].endswith("/"):
                if is_left_alone(entry["name"].rstrip("/")):
                    yield entry["name"], None
                    continue
                for path, state in _walk(f"{folder}/{entry['name'].rstrip('/')}"):
                    yield entry["name"] + path, state
            else:
                yield entry["name"], state_of_info(entry)
        return
    start = below(folder)
    for info in pages(folder, start):
        name = info["Key"][len(start) :]
        if name.startswith("/") or "//" in name:
            raise OSError(errno.EINVAL, f"{name} has an empty part ('//')", folder)
        if name and not name.endswith("/"):  # such are what consoles make for folders
            yield name, state_of_info(info | {"size": info["Size"]})


def below(folder: str) -> str:
    """Returns the prefix that the keys of all objects in a folder of S3 have."""
    _, path = client_of(folder)
    prefix = path.partition("/")[2]
    return f"{prefix.rstrip('/')}/" if prefix else ""


def pages(folder: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Lists the objects whose keys begin with a prefix, a page of a thousand at a time. Raises OSError."""
    client, path = client_of(folder)
    bucket = path.partition("/")[0]
    where: dict[str, str] = {}
    while True:
        with named(folder):
            page = client.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **where, **request_options(client))
        yield from page.get("Contents", ())
        if not page.get("IsTruncated"):
            return
        where = {"ContinuationToken": page["NextContinuationToken"]}


def lists_by_prefix(folder: str) -> bool:
    return scheme_of(folder) in WHOLE_OBJECTS


def glob(pattern: str) -> dict[str, State | None]:
    """The files that a pattern names: URI and state; of a plain name one request. Raises OSError."""
    client, path = client_of(pattern)
    if not has_magic(path):
        try:
            with named(pattern):
                info = _info(pattern, client, path)
        except FileNotFoundError:
            return {}
        return {pattern: state_of_info(info)} if info["type"] == "file" else {}
    with named(pattern):
        found = client.glob(path, detail=True, **(FRESH if scheme_of(pattern) == HUB else {}))
    return {uri_of(pattern, name): state_of_info(info) for name, info in found.items() if info["type"] == "file"}


def uri_of(example: str, path: str) -> str:
    """The URI of a client's path, written as an example of the same storage is."""
    _, known = client_of(example)
    head = example[: len(example) - len(known)] if example.endswith(known) else example.partition("://")[0] + "://"
    return head + path


def read(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """An object, or a range of it: one request up to RANGE_BYTES, several at once above. Raises OSError."""
    client, path = client_of(uri)
    with named(uri):
        if scheme_of(uri) == HUB:
            return read_hub(client, path, start, end)
        if start is None or end is None:
            # One request: s3fs would first ask for the size, to read in pieces.
            return bytes(client.cat_file(path, **({"max_concurrency": 1} if scheme_of(uri) in S3 else {})))
        starts = list(range(start, end, RANGE_BYTES))
        if len(starts) <= 1:
            data = bytes(client.cat_file(path, start=start, end=end)) if starts else b""
        else:
            ends = [min(first + RANGE_BYTES, end) for first in starts]
            data = b"".join(client.cat_ranges([path] * len(starts), starts, ends, on_error="raise"))
        return data
