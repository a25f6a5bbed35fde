"""The Hugging Face Hub: what its file system does not say of a file afresh, or not at all.

Its fsspec client answers from listings that it has made once, and it may list a whole folder to know one file. A state
must be of this moment, so that is asked for by itself, in one request.
"""

from __future__ import annotations

from typing import Any

HUB = "hf"
FRESH = {"refresh": True}  # of a listing
EXACT = {"cache_type": "none"}  # of a range: nothing is read ahead of it


def info_of(client: Any, path: str) -> dict[str, Any]:
    """Type and size of a file or folder as they are now, and a file's blob, which is another for other bytes.

    Raises:
        FileNotFoundError: there is none, or no such repository.
        Exception: what the client raises.
    """
    from huggingface_hub import HfApi

    place = client.resolve_path(path)
    if not place.path:
        return {"name": path, "type": "directory", "size": 0}
    if not hasattr(place, "repo_id"):  # a bucket, which tells times
        return dict(client.info(path, **FRESH))
    api = HfApi(endpoint=client.endpoint, token=client.token)
    found = api.get_paths_info(place.repo_id, [place.path_in_repo], revision=place.revision, repo_type=place.repo_type)
    if not found:
        raise FileNotFoundError(path)
    size = getattr(found[0], "size", None)
    if size is None:
        return {"name": path, "type": "directory", "size": 0}
    return {"name": path, "type": "file", "size": size, "blob_id": found[0].blob_id}
