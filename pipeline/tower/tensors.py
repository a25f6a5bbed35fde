"""Tensors: which files of a checkpoint hold what the tower needs, whole, and refused by name where they do not.

A tensor of ours may be stored under another name, or in pieces: queries, keys and values apart. Only headers are read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from ..errors import RequestError
from .config import INDEX_NAME, TowerConfig, read_json
from .families import FAMILIES
from .families.family import QKV, split_names

# On the Hub, and as transformers 5 saves.
PREFIXES = ("model.visual.", "visual.", "thinker.visual.", "thinker.model.visual.")
TORCH_DTYPES = {"BF16": "torch.bfloat16", "F16": "torch.float16", "F32": "torch.float32"}
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf")  # in lower case
# What stands beside, or instead of, a weight that is quantized: AWQ and GPTQ, FP8, compressed-tensors, bitsandbytes.
QUANTIZED = (
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_scale_inv",
    "weight_scale",
    "input_scale",
    "weight_packed",
    "weight_zero_point",
    "weight.absmax",
)


class Piece(NamedTuple):
    """A stored tensor: its file, its name there, and its name behind the prefix."""

    file: Path
    stored: str
    name: str


Pieces = dict[str, tuple[Piece, ...]]


def find_tensors(folder: Path, config: TowerConfig, scheme: str, path: str) -> Pieces:
    """Where each of the tower's tensors lies, by our name for it.

    Args:
        scheme: how the checkpoint says that it is quantized, "" if it does not.
        path: what the user calls the checkpoint.

    Raises:
        RequestError: a tensor is missing, misshapen or quantized, or the index is wrong.
    """
    names = _stored_names(folder, path)
    found = {
        name.removeprefix(prefix): Piece(file, name, name.removeprefix(prefix))
        for prefix in PREFIXES
        for name, file in names.items()
        if name.startswith(prefix)
    }
    if not found:
        check_stored_kind([file.name for file in folder.iterdir()], path)
        raise RequestError(f"model.path: {path} has no vision tower (no tensor named visual.*)")
    shapes = config.shapes()
    tensors = {name: _pieces(name, found, config, scheme, path) for name in shapes}
    files: dict[Path, list[str]] = {}
    for name, pieces in tensors.items():
        for piece in pieces:
            files.setdefault(piece.file, []).append(name)
    for file in sorted(files):
        if file.parent != folder or file.name in ("", "..") or file.suffix != ".safetensors":
            raise RequestError(f"model.path: {path}: {INDEX_NAME} names {file}, not a shard of this folder")
        with open_file(file, path) as opened:
            stored = set(opened.keys())
            for name in files[file]:
                here = [piece for piece in tensors[name] if piece.file == file]
                for piece in here:
                    if piece.stored not in stored:
                        raise RequestError(f"model.path: {path}: tensor visual.{piece.name} is missing in {file.name}")
                    shape = shapes[name]
                    if len(tensors[name]) > 1:
                        shape = (shape[0] // len(tensors[name]), *shape[1:])
                    _check(opened.get_slice(piece.stored), piece, shape, scheme, path)
    return tensors


def check_stored_kind(names: Iterable[str], path: str) -> None:
    """Raises RequestError: a checkpoint has weights of other kinds alone. `names`: of its files."""
    names = sorted(names)
    others = [name for name in names if name.lower().endswith(OTHER_WEIGHTS)]
    if not others or any(name.endswith(".safetensors") for name in names):
        return
    way = "its publisher's copy in safetensors, or one of your own, is what to give"
    if not others[0].lower().endswith(".gguf"):
        way = (
            "those are pickles, which can run code. Save it again, where you trust it: "
            f"AutoModelForImageTextToText.from_pretrained({path!r}).save_pretrained(FOLDER)"
        )
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    raise RequestError(f"model.path: {path} has its weights in {others[0]}{more}; only *.safetensors is read: {way}")


def _stored_names(folder: Path, path: str) -> dict[str, Path]:
    index = folder / INDEX_NAME
    if index.exists():
        weight_map = read_json(index, path).get("weight_map")
        if not isinstance(weight_map, dict):
            raise RequestError(f"model.path: {path}: {INDEX_NAME} has no weight_map")
        return {str(name): folder / str(file) for name, file in weight_map.items()}
    names: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with open_file(file, path) as tensors:
            names.update(dict.fromkeys(tensors.keys(), file))
    return names


def _pieces(name: str, found: Mapping[str, Piece], config: TowerConfig, scheme: str, path: str) -> tuple[Piece, ...]:
    """The stored pieces of one tensor, in whichever of the family's forms it is there."""
    family = FAMILIES[config.family]
    own = family.form(config.model_type)
    candidates = [own.pieces(name)]
    for form in (own, *family.forms):
        stored = form.stored(name)
        candidates.append((stored,))
        if QKV in stored:
            candidates.append(split_names(stored))
    for pieces in candidates:
        if all(piece in found for piece in pieces):
            for piece in pieces:
                _refuse_quantized(piece, found, scheme, path)
            return tuple(found[piece] for piece in pieces)
    missing = next(piece for piece in candidates[0] if piece not in found)
    _refuse_quantized(missing, found, scheme, path)
    raise RequestError(f"model.path: {path}: tensor visual.{missing} is missing")


def _refuse_quantized(name: str, found: Mapping[str, Piece], scheme: str, path: str) -> None:
    """Raises RequestError: what a quantization keeps of a weight stands where the weight is, or should be."""
    module, _, kind = name.rpartition(".")
    if kind == "weight":
        for suffix in QUANTIZED:
            if f"{module}.{suffix}" in found:
                raise _quantized(f"{module}.{suffix} stands beside it", name, scheme, path)


def _quantized(what: str, name: str, scheme: str, path: str) -> RequestError:
    by = f" ({scheme})" if scheme else ""
    return RequestError(
        f"model.path: {path}: tensor visual.{name} is quantized{by}: {what}; quantized towers are not supported, take "
        "a checkpoint whose vision tower is whole"
    )


def _check(header: Any, piece: Piece, shape: tuple[int, ...], scheme: str, path: str) -> None:
    if header.get_dtype() not in TORCH_DTYPES:
        raise _quantized(f"it is {header.get_dtype()}", piece.name, scheme, path)
    if tuple(header.get_shape()) != shape:
        raise RequestError(
            f"model.path: {path}: tensor visual.{piece.name} is {list(header.get_shape())}, config.json says "
            f"{list(shape)}"
        )


def quantization_of(config: Mapping[str, Any]) -> str:
    """How a checkpoint says that it is quantized, "" where it does not."""
    for tree in (config, config.get("text_config"), config.get("thinker_config")):
        scheme = tree.get("quantization_config") if isinstance(tree, dict) else None
        if isinstance(scheme, dict):
            return str(scheme.get("quant_method", "of no name"))[:40]
    return ""


def header_entry(piece: Piece, path: str) -> tuple[int, dict[str, Any]]:
    """Returns where a file's data begin, and what its header says of a tensor. Raises RequestError.

    Source: the format's description in safetensors' README: 8 bytes of length, a JSON header, the data.
    """
    try:
        facts = piece.file.stat()
        start, header = _header(piece.file, (facts.st_size, facts.st_mtime_ns))
        return start, header[piece.stored]
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise RequestError(f"model.path: {path}: {piece.file.name} cannot be read: {error}") from error


@lru_cache(maxsize=64)
def _header(file: Path, state: tuple[int, int]) -> tuple[int, dict[str, Any]]:
    """A safetensors file's first byte of data, and its header. `state` is the file's: another file is read again."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return 8 + length, json.loads(stream.read(length))


def open_file(file: Path, path: str, framework: str = "numpy") -> Any:
    """A file of tensors, memory-mapped. Raises RequestError."""
    try:
        return safe_open(file, framework=framework)
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(f"model.path: {path}: {file.name} cannot be read: {error}") from error
