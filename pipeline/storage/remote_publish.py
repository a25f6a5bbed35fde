"""Publishing to remote storage: an object appears whole or not at all, and what attempts leave behind is removed."""

from __future__ import annotations

import errno
import posixpath
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .client import client_of, named, request_options
from .remote import entries, exists, state_of, state_of_info
from .uri import GCS, S3, WHOLE_OBJECTS, scheme_of

# Where the store itself refuses a name that is taken.
CREATES = ("s3", "s3a", "gs", "gcs")
UPLOAD_PART_BYTES = 32 << 20
CONFLICTS = 4
UNFINISHED = ".unfinished"


def upload(source: Path, uri: str, *, replace: bool) -> bool:
    """Publishes a complete file: whoever looks sees all of it or none.

    Returns:
        False if the name is taken and `replace` is not set; then nothing changed.

    Raises:
        OSError: the storage refuses; nothing of the attempt is left that a reader could see.
    """
    client, path = client_of(uri)
    scheme = scheme_of(uri)
    if not replace and exists(uri):  # also for a store that takes no notice of a condition
        return False
    options = {"chunksize": UPLOAD_PART_BYTES, "max_concurrency": 8} if scheme in S3 else {}
    try:
        with named(uri):
            if scheme not in WHOLE_OBJECTS:
                _rename_into_place(client, source, path, replace)
            elif scheme in CREATES and not replace:
                _create(client, source, path, options)
            else:
                client.put_file(str(source), path, **options)
    except FileExistsError as error:
        if replace:
            raise OSError(errno.EEXIST, "the storage does not replace it", uri) from error
        return False
    except OSError:
        # An answer that was lost on its way: what stands there is looked at by whoever asked for a new name.
        if not replace and _stands(uri):
            return False
        raise
    return True


def _create(client: Any, source: Path, path: str, options: dict[str, Any]) -> None:
    """A PUT that fails where the name is taken. Raises FileExistsError, and what the client raises."""
    for attempt in range(CONFLICTS):
        try:
            client.put_file(str(source), path, mode="create", **options)
            return
        except FileExistsError:
            raise
        except Exception as error:
            # A store that knows no condition: the look before must do.
            if getattr(error, "errno", None) == errno.ENOSYS or "NotImplemented" in str(error):
                client.put_file(str(source), path, **options)
                return
            conflict = "ConditionalRequestConflict" in f"{error!r} {error.__cause__!r}"
            if not conflict or attempt == CONFLICTS - 1:
                raise
            time.sleep(2**attempt)  # another upload to this name was just ending


def version_of(uri: str) -> str:
    """The storage's word for an object's bytes, by which `replace_same` knows it; empty where it has none.

    Raises:
        FileNotFoundError: it is not there.
        OSError: the storage does not say.
    """
    client, path = client_of(uri)
    if scheme_of(uri) in GCS:
        with named(uri):
            return str(client.info(path).get("generation") or "")
    return state_of(uri)[2] if scheme_of(uri) in S3 else ""


def replace_same(source: Path, uri: str, version: str) -> bool:
    """Replaces an object by a complete file if it still has this version; without one whatever it is.

    Returns:
        False if it has another version by now or is gone; on GCS always, which only deletes under a condition: the
        name is free then, and is published as a new one.

    Raises:
        OSError: the storage refuses.
    """
    if not version:
        return upload(source, uri, replace=True)
    client, path = client_of(uri)
    try:
        with named(uri):
            if scheme_of(uri) in GCS:
                bucket, key, *_ = client.split_path(path)
                client.call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=version)
                return False
            _put_if_match(client, source, path, version)
    except (FileNotFoundError, FileExistsError):
        return False
    except OSError as error:
        if not _is_another(error):
            raise
        return False
    return True


def _put_if_match(client: Any, source: Path, path: str, etag: str) -> None:
    """A PUT, or an upload in parts that is completed, where the object has this ETag. Raises what the client raises.

    By requests of our own: the client's upload in parts hands no such condition on.
    """
    bucket, key, _ = client.split_path(path)
    place = {"Bucket": bucket, "Key": key} | request_options(client)
    try:
        if source.stat().st_size < 2 * UPLOAD_PART_BYTES:
            client.call_s3("put_object", Body=source.read_bytes(), IfMatch=f'"{etag}"', **place)
            return
        upload = place | {"UploadId": client.call_s3("create_multipart_upload", **place)["UploadId"]}
        with ExitStack() as undo:  # also of an interruption
            undo.callback(_abort, client, upload)
            parts: list[dict[str, object]] = []
            with open(source, "rb") as stream:
                while piece := stream.read(UPLOAD_PART_BYTES):
                    number = len(parts) + 1
                    answer = client.call_s3("upload_part", PartNumber=number, Body=piece, **upload)
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            client.call_s3("complete_multipart_upload", MultipartUpload={"Parts": parts}, IfMatch=f'"{etag}"', **upload)
            undo.pop_all()
    except OSError as error:
        if error.errno != errno.ENOSYS and "NotImplemented" not in str(error):
            raise
        client.put_file(str(source), path, chunksize=UPLOAD_PART_BYTES)  # a store that knows no condition


def _abort(client: Any, upload: dict[str, str]) -> None:
    """Ends an upload, if the storage lets it: why it came to nothing is what counts, and a later run ends it too."""
    with suppress(OSError):
        client.call_s3("abort_multipart_upload", **upload)


def _is_another(error: OSError) -> bool:
    """Whether an answer says that a condition was not met."""
    chain = f"{error!r} {error.__cause__!r} {getattr(error.__cause__, '__cause__', None)!r}"
    return any(word in chain for word in ("PreconditionFailed", "Precondition Failed", "conditionNotMet", " 412"))


def _stands(uri: str) -> bool:
    try:
        return exists(uri)
    except OSError:
        return False


def _rename_into_place(client: Any, source: Path, path: str, replace: bool) -> None:
    beside = f"{posixpath.dirname(path)}/_{source.name}{UNFINISHED}"  # no glob for shards finds it
    with ExitStack() as undo:  # also of an interruption: nothing half-written stays
        undo.callback(_remove_if_there, client, beside)
        client.put_file(str(source), beside)
        if replace and client.exists(path):
            client.rm_file(path)
        client.mv(beside, path)
        undo.pop_all()


def _remove_if_there(client: Any, path: str) -> None:
    if client.exists(path):
        client.rm_file(path)


def remove_unfinished(folder: str, judge: Callable[[str, datetime], bool]) -> int:
    """Removes what killed processes left of files: multipart uploads on S3, half-written files elsewhere.

    Args:
        judge: whether one goes, by the name of its file and the moment it was begun.

    Returns:
        How many went. Raises OSError.
    """
    client, path = client_of(folder)
    if scheme_of(folder) in S3:
        return _abort_uploads(folder, judge)
    if scheme_of(folder) in WHOLE_OBJECTS:
        return 0
    count = 0
    for info in entries(folder):
        name = info["name"]
        if name.endswith(UNFINISHED):
            begun = datetime.fromtimestamp(state_of_info(info)[1] / 1e9, UTC)
            if judge(name.removeprefix("_").removesuffix(UNFINISHED).partition("-")[2], begun):
                with named(folder):
                    client.rm_file(f"{path}/{name}")
                count += 1
    return count


def _abort_uploads(folder: str, judge: Callable[[str, datetime], bool]) -> int:
    client, path = client_of(folder)
    bucket, _, prefix = path.partition("/")
    count, who_pays = 0, request_options(client)
    where: dict[str, str] = {}
    while True:
        with named(folder):
            below = f"{prefix.rstrip('/')}/" if prefix else ""
            page = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=below, **where, **who_pays)
            for one in page.get("Uploads", ()):
                if judge(posixpath.basename(one["Key"]), one["Initiated"]):
                    upload = {"Bucket": bucket, "Key": one["Key"], "UploadId": one["UploadId"]}
                    client.call_s3("abort_multipart_upload", **upload, **who_pays)
                    count += 1
        if not page.get("IsTruncated"):
            return count
        where = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
