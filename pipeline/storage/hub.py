"""The Hugging Face Hub: what its fsspec client is not asked for.

That client answers from listings that it has made once, lists a whole folder to know one file, and makes a new one of
itself for every thread. So there is one a process, whose listings are always made anew; a state and a range of bytes
are asked for by themselves, in one request each.
"""

from __future__ import annotations

import os
from typing import Any

import fsspec

HUB = "hf"
FRESH = {"refresh": True}  # of a listing
NO_SUCH_RANGE = 416
_clients: dict[tuple[int, str], Any] = {}


def client_of_process() -> Any:
    """The Hub's fsspec client. Its endpoint and token are found as the Hub's own tools find them."""
    key = (os.getpid(), str(fsspec.config.conf.get(HUB)))
    if key not in _clients:
        _clients[key] = fsspec.filesystem(HUB, skip_instance_cache=True)
    return _clients[key]


def read(client: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """A file, or a range of it, which ends where the file does.

    Raises:
        FileNotFoundError: there is none.
        Exception: what the client raises.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import EntryNotFoundError, build_hf_headers, hf_raise_for_status, http_backoff  # type: ignore[attr-defined]

    place = client.resolve_path(path)
    if not hasattr(place, "repo_id"):  # a bucket
        return bytes(client.cat_file(path, start=start, end=end))
    # Not the client's own `url`, which lists the folder to know whether this is one.
    url = hf_hub_url(
        place.repo_id,
        place.path_in_repo,
        repo_type=place.repo_type,
        revision=place.revision,
        endpoint=client.endpoint,
    )
    headers = build_hf_headers(token=client.token)
    if start is not None and end is not None:
        headers["range"] = f"bytes={start}-{end - 1}"
    answer = http_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    if answer.status_code == NO_SUCH_RANGE:
        return b""
    try:
        hf_raise_for_status(answer)
    except EntryNotFoundError as error:
        raise FileNotFoundError(path) from error
    return bytes(answer.content)


def info_of(client: Any, path: str) -> dict[str, Any]:
    """Type and size of a file or folder as they are now, and a file's blob, which is another for other bytes.

    Raises:
        FileNotFoundError: there is none, or no such repository.
        Exception: what the client raises.
    """
    from huggingface_hub import HfApi, RepoFile

    place = client.resolve_path(path)
    if not place.path:
        return {"name": path, "type": "directory", "size": 0}
    if not hasattr(place, "repo_id"):  # a bucket, which tells times
        return dict(client.info(path, **FRESH))
    api = HfApi(endpoint=client.endpoint, token=client.token)
    found = api.get_paths_info(place.repo_id, [place.path_in_repo], revision=place.revision, repo_type=place.repo_type)
    if not found:
        raise FileNotFoundError(path)
    if not isinstance(found[0], RepoFile):
        return {"name": path, "type": "directory", "size": 0}
    return {"name": path, "type": "file", "size": found[0].size, "blob_id": found[0].blob_id}
