"""Hub download: a checkpoint's files from the Hugging Face Hub, into the cache that its own tools keep."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from pathlib import Path

from ..errors import RequestError
from .config import INDEX_NAME
from .tensors import PREFIXES, check_stored_kind

# A cache folder that cannot be written.
NO_CACHE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.ENOSPC, errno.EDQUOT)
CONFIG_NAME = "config.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


def download(repo: str, revision: str | None, *, weights: bool, patient: bool) -> Path:
    """Fetches config, preprocessor and the shards that hold the tower through the Hub's own cache and locks.

    Args:
        weights: False to fetch nothing large.
        patient: ask again, for half a minute, a Hub that cannot be reached. False: take what its cache has, or say so.

    Returns:
        The folder of the cache that they lie in.

    Raises:
        RequestError: there is no such checkpoint, the Hub cannot be reached, or its cache cannot be used.
    """
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    unreachable = ""

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=bool(unreachable)))

    try:
        unreachable = "" if patient else _why_unreachable(repo, revision)
        folder = fetch(CONFIG_NAME).parent
        for name in PREPROCESSORS:
            try:
                fetch(name)
            except EntryNotFoundError:
                continue
        if not weights:
            return folder
        try:
            weight_map = json.loads(fetch(INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
            shards = {file for name, file in weight_map.items() if name.startswith(PREFIXES)}
        except EntryNotFoundError:
            names = _names_in(folder) if unreachable else list_repo_files(repo, revision=revision)
            check_stored_kind(names, repo)
            shards = {name for name in names if name.endswith(".safetensors")}
        for shard in sorted(shards):
            fetch(shard)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise RequestError(_not_here(repo, unreachable)) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # The Hub's own errors are OSErrors, too; those of the system have a number. Path.home raises RuntimeError.
        if isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno in NO_CACHE):
            raise RequestError(
                f"model.path: {repo}: the Hub's cache cannot be used: {reason}; set HF_HOME to a folder that can be "
                "written"
            ) from error
        raise RequestError(f"model.path: {repo}: cannot be fetched from the Hub: {reason}") from error
    return folder


def _why_unreachable(repo: str, revision: str | None) -> str:
    """Why the Hub cannot be reached, "" if it can, whatever it answers: the Hub's own client would ask six times."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        get_hf_file_metadata(
            hf_hub_url(repo, CONFIG_NAME, revision=revision),
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
            retry_on_errors=False,
        )
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except HfHubHTTPError:
        return ""  # an answer, which what is fetched next tells in full
    except Exception as error:  # noqa: BLE001  (httpx or another client, as the Hub's library has it)
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def _names_in(folder: Path) -> Iterable[str]:
    return [path.name for path in folder.iterdir()]


def _not_here(repo: str, unreachable: str) -> str:
    """The line for a model that is not in the cache and cannot be fetched."""
    ways = "give a local folder (--model /path/to/folder), or set HF_HOME to a cache that has it"
    if unreachable.startswith("HF_HUB_OFFLINE"):
        return f"model.path: {repo} is no folder here and not in the Hub's cache, and {unreachable}; unset it, {ways}"
    why = unreachable or "its connection broke"
    return (
        f"model.path: {repo} is no folder here and not in the Hub's cache, and the Hub cannot be reached ({why}). "
        f"Without a network {ways}; HF_HUB_OFFLINE=1 then asks the cache alone"
    )
