"""Checkpoint: the tower's dimensions and tensors from a local directory, the Hub, or made at random.

Only `visual.*` (on the Hub) or `model.visual.*` (as transformers 5 saves) tensors are read, memory-mapped, through the
safetensors index. No pickle, no remote code.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import RequestError
from ..process import DaemonThreads
from ..storage.files import absolute_uri
from ..storage.location import check_location
from .config import INDEX_NAME, read_json, read_preprocessor, tower_config

if TYPE_CHECKING:
    import torch  # imported where tensors are read: `plan` and `status` need their headers only

PREFIXES = ("model.visual.", "visual.")
RANDOM_SCHEME = "random:"
TORCH_DTYPES = {"BF16": "torch.bfloat16", "F16": "torch.float16", "F32": "torch.float32"}
PIECE_BYTES = 8 << 20
HASHED_AT_ONCE = 4


class Checkpoint:
    """A resolved checkpoint: its dimensions, and where each tensor of the tower lies.

    Everything that can be wrong with it is found here, from headers alone.

    Args:
        path: a local directory, a Hub id, or `random:SIZE` (see `random_tower.py`).
        revision: of the Hub id.
        weights: False if only `config` is asked for: nothing large is then downloaded.

    Raises:
        RequestError: there is no such checkpoint; it has no tower, or a missing or misshapen tensor; it is of another
            model; its preprocessor does something else.
    """

    def __init__(self, path: str, revision: str | None = None, *, weights: bool = True) -> None:
        self.path = path
        self.folder = _locate(path, revision, weights)
        on_hub = not path.startswith(RANDOM_SCHEME) and not local_folder(path).is_dir()
        self.revision = self.folder.name if on_hub else revision  # of a Hub id the commit, so that all see the same
        config = read_json(self.folder / "config.json", path)
        self.config = tower_config(config, read_preprocessor(self.folder, path), path)
        self._files = {} if on_hub and not weights else self._find_tensors()

    def _find_tensors(self) -> dict[str, tuple[Path, str]]:
        index = self.folder / INDEX_NAME
        if index.exists():
            weight_map = read_json(index, self.path).get("weight_map")
            if not isinstance(weight_map, dict):
                raise RequestError(f"model.path: {self.path}: {INDEX_NAME} has no weight_map")
            names = {str(name): self.folder / str(file) for name, file in weight_map.items()}
        else:
            names = {}
            for file in sorted(self.folder.glob("*.safetensors")):
                with _open(file, self.path) as tensors:
                    names.update(dict.fromkeys(tensors.keys(), file))
        found = {
            name.removeprefix(prefix): (file, name)
            for prefix in PREFIXES
            for name, file in names.items()
            if name.startswith(prefix)
        }
        if not found:
            raise RequestError(f"model.path: {self.path} has no vision tower (no tensor named visual.*)")
        shapes = self.config.shapes()
        for name in shapes:
            if name not in found:
                raise RequestError(f"model.path: {self.path}: tensor visual.{name} is missing")
        for file in sorted({found[name][0] for name in shapes}):
            if file.parent != self.folder or file.name in ("", "..") or file.suffix != ".safetensors":
                raise RequestError(f"model.path: {self.path}: {INDEX_NAME} names {file}, not a shard of this folder")
            with _open(file, self.path) as tensors:
                stored = set(tensors.keys())
                for name in (name for name in shapes if found[name][0] == file):
                    if found[name][1] not in stored:
                        raise RequestError(f"model.path: {self.path}: tensor visual.{name} is missing in {file.name}")
                    header = tensors.get_slice(found[name][1])
                    if header.get_dtype() not in TORCH_DTYPES:
                        raise RequestError(
                            f"model.path: {self.path}: tensor visual.{name} is {header.get_dtype()}; quantized towers "
                            "are not supported"
                        )
                    shape = tuple(header.get_shape())
                    if shape != shapes[name]:
                        raise RequestError(
                            f"model.path: {self.path}: tensor visual.{name} is {list(shape)}, config.json says "
                            f"{list(shapes[name])}"
                        )
        return {name: found[name] for name in shapes}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields name and tensor, on the CPU and in the checkpoint's dtype, file by file."""
        for file in sorted({file for file, _ in self._files.values()}):
            with _open(file, self.path, "pt") as tensors:
                for name, (place, stored) in sorted(self._files.items()):
                    if place == file:
                        yield name, tensors.get_tensor(stored)

    def sha256(self) -> str:
        """Returns the digest of the tower's tensors by name, dtype, shape and bytes, however the checkpoint is sharded.

        Reads the files themselves, so that a process which only compares checkpoints needs no torch.
        """
        with DaemonThreads(HASHED_AT_ONCE) as pool:
            digests = dict(zip(self._files, pool.map(self._sha256_of, self._files), strict=True))
        return hashlib.sha256(json.dumps([digests, asdict(self.config)], sort_keys=True).encode()).hexdigest()

    def _sha256_of(self, name: str) -> str:
        file, stored = self._files[name]
        start, entry = _header_entry(file, stored, self.path)
        first, last = entry["data_offsets"]
        digest = hashlib.sha256(f"{name} {TORCH_DTYPES[entry['dtype']]} {entry['shape']}".encode())
        with open(file, "rb") as stream:
            stream.seek(start + first)
            left = last - first
            while left:
                piece = stream.read(min(left, PIECE_BYTES))
                if not piece:
                    raise RequestError(f"model.path: {self.path}: {file.name} ends within tensor {stored}")
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()


@lru_cache(maxsize=64)
def _header(file: Path, state: tuple[int, int]) -> tuple[int, dict[str, Any]]:
    """A safetensors file's first byte of data, and its header. `state` is the file's: another file is read again."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return 8 + length, json.loads(stream.read(length))


def _header_entry(file: Path, name: str, path: str) -> tuple[int, dict[str, Any]]:
    """Returns where a file's data begin, and what its header says of a tensor. Raises RequestError.

    Source: the format's description in safetensors' README: 8 bytes of length, a JSON header, the data.
    """
    try:
        facts = file.stat()
        start, header = _header(file, (facts.st_size, facts.st_mtime_ns))
        return start, header[name]
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise RequestError(f"model.path: {path}: {file.name} cannot be read: {error}") from error


def _open(file: Path, path: str, framework: str = "numpy") -> Any:
    try:
        return safe_open(file, framework=framework)
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(f"model.path: {path}: {file.name} cannot be read: {error}") from error


def local_folder(path: str) -> Path:
    """The folder that a checkpoint's path names, if it is none of the Hub. Raises RequestError: another machine's."""
    return Path(absolute_uri(path))


def _locate(path: str, revision: str | None, weights: bool) -> Path:
    """The local folder of a checkpoint, downloading or making it if need be, once per node."""
    if path.startswith(RANDOM_SCHEME):
        from .random_tower import make_random_tower

        return make_random_tower(path.removeprefix(RANDOM_SCHEME))
    check_location("model.path", path)
    folder = local_folder(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise RequestError(f"model.path: {path} is a file; a directory with config.json and *.safetensors is needed")
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise RequestError(f"model.path: {path} does not exist, and is not a Hub id (owner/name)")
    return _download(path, revision, weights)


def _download(repo: str, revision: str | None, weights: bool) -> Path:
    """Fetches config, preprocessor and the shards that hold the tower through the Hub's own cache and locks."""
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=revision))

    try:
        folder = fetch("config.json").parent
        for name in ("preprocessor_config.json", "processor_config.json"):
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
            shards = {name for name in list_repo_files(repo, revision=revision) if name.endswith(".safetensors")}
        for shard in sorted(shards):
            fetch(shard)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(f"model.path: {repo}: cannot be fetched from the Hub: {reason}") from error
    return folder
