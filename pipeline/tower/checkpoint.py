"""Checkpoint: the tower's dimensions and tensors from a local directory, the Hub, or made at random.

Only the tower's tensors are read, memory-mapped, through the safetensors index. No pickle, no remote code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..process import DaemonThreads
from ..storage.files import absolute_uri
from ..storage.location import check_location, shown_location
from .config import read_json, read_preprocessor, tower_config
from .hub_download import download
from .tensors import TORCH_DTYPES, Piece, Pieces, find_tensors, header_entry, open_file, quantization_of

if TYPE_CHECKING:
    import torch  # imported where tensors are read: `plan` and `status` need their headers only

RANDOM_SCHEME = "random:"
PIECE_BYTES = 8 << 20
HASHED_AT_ONCE = 4


class Checkpoint:
    """A resolved checkpoint: its dimensions, and where each tensor of the tower lies.

    Everything that can be wrong with it is found here, from headers alone.

    Args:
        path: a local directory, a Hub id, or `random:SIZE` (see `random_tower.py`).
        revision: of the Hub id.
        weights: False if only `config` is asked for: nothing large is then downloaded.
        deepstack: False to leave the further streams of a family that has them: this is then a tower without.
        patient: wait for a Hub that cannot be reached at the moment.

    Raises:
        RequestError: there is no such checkpoint; it has no tower, or a missing or misshapen tensor; it is of another
            model; its preprocessor does something else.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        *,
        weights: bool = True,
        deepstack: bool = True,
        patient: bool = False,
    ) -> None:
        self.path = path
        self.folder = _locate(path, revision, weights=weights, patient=patient)
        on_hub = not path.startswith(RANDOM_SCHEME) and not local_folder(path).is_dir()
        self.revision = self.folder.name if on_hub else revision  # of a Hub id the commit, so that all see the same
        tree = read_json(self.folder / "config.json", path)
        config = tower_config(tree, read_preprocessor(self.folder, path), path)
        self.config = config if deepstack else replace(config, deepstack_blocks=())
        self._tensors: Pieces = {}
        if weights or not on_hub:
            self._tensors = find_tensors(self.folder, self.config, quantization_of(tree), path)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields our name and tensor, on the CPU and in the checkpoint's dtype, file by file."""
        import torch

        for name, pieces, parts in self._read():
            yield name, parts[0] if len(pieces) == 1 else torch.cat(parts)

    def stored_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields every tensor of the tower under its own name behind the prefix."""
        for _, pieces, parts in self._read():
            yield from zip((piece.name for piece in pieces), parts, strict=True)

    def _read(self) -> Iterator[tuple[str, tuple[Piece, ...], list[torch.Tensor]]]:
        with ExitStack() as opened:
            files: dict[Path, Any] = {}
            for name, pieces in sorted(self._tensors.items(), key=lambda item: (item[1][0].file, item[0])):
                for piece in pieces:
                    if piece.file not in files:
                        files[piece.file] = opened.enter_context(open_file(piece.file, self.path, "pt"))
                yield name, pieces, [files[piece.file].get_tensor(piece.stored) for piece in pieces]

    def sha256(self) -> str:
        """Returns the digest of the tower's tensors by name, dtype, shape and bytes, however the checkpoint is sharded.

        Reads the files themselves, so that a process which only compares checkpoints needs no torch.
        """
        with DaemonThreads(HASHED_AT_ONCE) as pool:
            digests = dict(zip(self._tensors, pool.map(self._sha256_of, self._tensors), strict=True))
        facts = self.config.digest_facts()
        return hashlib.sha256(json.dumps([digests, facts], sort_keys=True).encode()).hexdigest()

    def _sha256_of(self, name: str) -> str:
        """A tensor in pieces has the digest of the whole one: its pieces' bytes follow one another."""
        pieces = self._tensors[name]
        headers = [header_entry(piece, self.path) for piece in pieces]
        dtypes = sorted({TORCH_DTYPES[entry["dtype"]] for _, entry in headers})
        shape = [sum(entry["shape"][0] for _, entry in headers), *headers[0][1]["shape"][1:]]
        digest = hashlib.sha256(f"{name} {'+'.join(dtypes)} {shape}".encode())
        for piece, (start, entry) in zip(pieces, headers, strict=True):
            first, last = entry["data_offsets"]
            with open(piece.file, "rb") as stream:
                stream.seek(start + first)
                left = last - first
                while left:
                    read = stream.read(min(left, PIECE_BYTES))
                    if not read:
                        raise RequestError(
                            f"model.path: {self.path}: {piece.file.name} ends within tensor {piece.stored}"
                        )
                    digest.update(read)
                    left -= len(read)
        return digest.hexdigest()


def local_folder(path: str) -> Path:
    """The folder that a checkpoint's path names, if it is none of the Hub. Raises RequestError: another machine's."""
    return Path(absolute_uri(path))


def _locate(path: str, revision: str | None, *, weights: bool, patient: bool) -> Path:
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
        raise RequestError(f"model.path: {shown_location(path)} does not exist, and is not a Hub id (owner/name)")
    return download(path, revision, weights=weights, patient=patient)
