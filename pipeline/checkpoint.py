"""Checkpoint: the tower's dimensions and tensors from a local directory, the Hub, or made at random.

Only `visual.*` (on the Hub) or `model.visual.*` (as transformers 5 saves) tensors are read, memory-mapped, through the
safetensors index. No pickle, no remote code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.errors import RequestError

PREFIXES = ("model.visual.", "visual.")
MODEL_TYPES = ("qwen2_5_vl", "qwen2_5_vl_vision")
INDEX_NAME = "model.safetensors.index.json"
RANDOM_SCHEME = "random:"
# What no tower is beyond, and what must not be counted to.
LARGEST_NUMBER, MAX_DEPTH = 1 << 20, 1024
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3
PLAIN_DTYPES = ("BF16", "F16", "F32")


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Dimensions of a Qwen2.5-VL vision tower, under one spelling.

    Attributes:
        width: of the tower (1280 in every published checkpoint).
        out_width: of the merged tokens, the language model's width.
        window_pixels: side of an attention window.
        full_attention_blocks: those that attend to the whole frame.
    """

    depth: int
    width: int
    num_heads: int
    intermediate: int
    out_width: int
    in_channels: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    window_pixels: int
    full_attention_blocks: tuple[int, ...]
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def window_merged(self) -> int:
        """Merged tokens along a window's side."""
        return self.window_pixels // self.patch_size // self.merge_size

    def width_of(self, stage: str) -> int:
        """Values of a token that is written: of the merger's output, or of its input."""
        return self.out_width if stage == "merged" else self.width * self.merge_size**2

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the tower by its name behind the prefix."""
        merged = self.width * self.merge_size**2
        patch = (self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size)
        shapes: dict[str, tuple[int, ...]] = {
            "patch_embed.proj.weight": (self.width, *patch),
            "merger.ln_q.weight": (self.width,),
            "merger.mlp.0.weight": (merged, merged),
            "merger.mlp.0.bias": (merged,),
            "merger.mlp.2.weight": (self.out_width, merged),
            "merger.mlp.2.bias": (self.out_width,),
        }
        for block in range(self.depth):
            linear = {
                "attn.qkv": (3 * self.width, self.width),
                "attn.proj": (self.width, self.width),
                "mlp.gate_proj": (self.intermediate, self.width),
                "mlp.up_proj": (self.intermediate, self.width),
                "mlp.down_proj": (self.width, self.intermediate),
            }
            for name, shape in linear.items():
                shapes[f"blocks.{block}.{name}.weight"] = shape
                shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
            shapes[f"blocks.{block}.norm1.weight"] = (self.width,)
            shapes[f"blocks.{block}.norm2.weight"] = (self.width,)
        return shapes


class Checkpoint:
    """A resolved checkpoint: its dimensions, and where each tensor of the tower lies.

    Everything that can be wrong with it is found here, from headers alone.

    Args:
        path: a local directory, a Hub id, or `random:SIZE` (see `random_tower.py`).
        revision: of the Hub id.

    Raises:
        RequestError: there is no such checkpoint; it has no tower, or a missing or misshapen tensor; it is of another
            model; its preprocessor does something else.
    """

    def __init__(self, path: str, revision: str | None = None) -> None:
        self.path = path
        self.folder = _locate(path, revision)
        config = _read_json(self.folder / "config.json", path)
        self.config = tower_config(config, _preprocessor(self.folder, path), path)
        self._files = self._find_tensors()

    def _find_tensors(self) -> dict[str, tuple[Path, str]]:
        index = self.folder / INDEX_NAME
        if index.exists():
            weight_map = _read_json(index, self.path).get("weight_map")
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
                    if header.get_dtype() not in PLAIN_DTYPES:
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
            with _open(file, self.path) as tensors:
                for name, (place, stored) in sorted(self._files.items()):
                    if place == file:
                        yield name, tensors.get_tensor(stored)

    def sha256(self) -> str:
        """Of the tower's tensors by name, dtype, shape and bytes: the same however the checkpoint is sharded."""
        digests: dict[str, str] = {}
        for name, tensor in self.tensors():
            head = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
            digest = hashlib.sha256(head)
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            digests[name] = digest.hexdigest()
        return hashlib.sha256(json.dumps([digests, asdict(self.config)], sort_keys=True).encode()).hexdigest()


def tower_config(config: dict[str, Any], preprocessor: dict[str, Any], path: str) -> TowerConfig:
    """Reads the dimensions in every spelling that published checkpoints use. Raises RequestError."""
    model_type = config.get("model_type")
    vision = config.get("vision_config", config if model_type == "qwen2_5_vl_vision" else None)
    if model_type not in MODEL_TYPES:
        raise RequestError(
            f"model.path: {path} is a model of type {model_type!r}; this version encodes with qwen2_5_vl only"
        )
    if not isinstance(vision, dict):
        raise RequestError(f"model.path: {path}: config.json has no vision_config")

    def number(*names: str, default: int | None = None) -> int:
        for name in names:
            value = vision.get(name)
            if value is not None:
                if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_NUMBER:
                    raise RequestError(
                        f"model.path: {path}: vision_config.{name} is {value!r:.80}, not an integer from 1 to "
                        f"{LARGEST_NUMBER}"
                    )
                return value
        if default is None:
            raise RequestError(f"model.path: {path}: vision_config.{names[0]} is missing")
        return default

    if vision.get("hidden_act", "silu") != "silu":
        raise RequestError(f"model.path: {path}: vision_config.hidden_act is {vision['hidden_act']!r}, not 'silu'")
    blocks = vision.get("fullatt_block_indexes", [7, 15, 23, 31])
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        raise RequestError(f"model.path: {path}: vision_config.fullatt_block_indexes is {blocks!r}, not a list")
    result = TowerConfig(
        depth=number("depth", "num_hidden_layers"),
        width=number("hidden_size", "embed_dim"),
        num_heads=number("num_heads", "num_attention_heads"),
        intermediate=number("intermediate_size"),
        out_width=number("out_hidden_size"),
        in_channels=number("in_channels", "in_chans", default=3),
        patch_size=number("patch_size", "spatial_patch_size", default=14),
        merge_size=number("spatial_merge_size", default=2),
        temporal_patch_size=number("temporal_patch_size", default=2),
        window_pixels=number("window_size", default=112),
        full_attention_blocks=tuple(blocks),
        image_mean=_triple(preprocessor, "image_mean", CLIP_MEAN, path),
        image_std=_triple(preprocessor, "image_std", CLIP_STD, path),
    )
    for name, ours in (("patch_size", result.patch_size), ("merge_size", result.merge_size)):
        if preprocessor.get(name, ours) != ours:
            raise RequestError(
                f"model.path: {path}: preprocessor_config.json says {name} {preprocessor[name]}, config.json {ours}"
            )
    heads_fit = result.width % result.num_heads == 0 and result.head_dim % 4 == 0
    if result.depth > MAX_DEPTH or not heads_fit or result.window_merged < 1 or result.in_channels != 3:
        raise RequestError(f"model.path: {path}: vision_config is not one of a Qwen2.5-VL tower: {result}")
    return result


def _triple(tree: dict[str, Any], name: str, default: tuple[float, ...], path: str) -> tuple[float, ...]:
    value = tree.get(name, default)
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_number(x) for x in value):
        raise RequestError(f"model.path: {path}: preprocessor_config.json: {name} is {value!r:.80}, not three numbers")
    if name == "image_std" and not all(value):
        raise RequestError(f"model.path: {path}: preprocessor_config.json: {name} is {value!r}: it divides")
    return tuple(float(x) for x in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def _preprocessor(folder: Path, path: str) -> dict[str, Any]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            tree = _read_json(folder / name, path)
            tree = tree.get("image_processor", tree)
            if not isinstance(tree, dict):
                raise RequestError(f"model.path: {path}: {name}: its image_processor is not a JSON object")
            steps = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": BICUBIC}
            for step, ours in steps.items():
                if tree.get(step, ours) != ours:
                    raise RequestError(f"model.path: {path}: {name} says {step}: {tree[step]!r}, supported is {ours!r}")
            scale = tree.get("rescale_factor", 1 / 255)
            if not _is_number(scale) or abs(scale - 1 / 255) > 1e-9:
                raise RequestError(f"model.path: {path}: {name} says rescale_factor: {scale!r:.80}, not 1/255")
            return dict(tree)
    return {}


def _read_json(file: Path, path: str) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"model.path: {path}: {file.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"model.path: {path}: {file.name} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise RequestError(f"model.path: {path}: {file.name} is not a JSON object")
    return tree


def _open(file: Path, path: str) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(f"model.path: {path}: {file.name} cannot be read: {error}") from error


def _locate(path: str, revision: str | None) -> Path:
    """The local folder of a checkpoint, downloading or making it if need be, once per node."""
    if path.startswith(RANDOM_SCHEME):
        from pipeline.random_tower import make_random_tower

        return make_random_tower(path.removeprefix(RANDOM_SCHEME))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise RequestError(f"model.path: {path} is a file; a directory with config.json and *.safetensors is needed")
    if path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise RequestError(f"model.path: {path} does not exist, and is not a Hub id (owner/name)")
    return _download(path, revision)


def _download(repo: str, revision: str | None) -> Path:
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
