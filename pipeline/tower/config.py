"""Tower configuration: a checkpoint's dimensions and preprocessing, from its JSON files alone. No torch in here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    pass  # imported where tensors are read: `plan` and `status` need their headers only


from dataclasses import dataclass
from typing import Literal

Stage = Literal["merged", "pre_merger"]  # what is written of an image: the merger's output, or its input
MODEL_TYPES = ("qwen2_5_vl", "qwen2_5_vl_vision")
# What no tower is beyond, and what must not be counted to.
LARGEST_NUMBER, MAX_DEPTH = 1 << 20, 1024
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3


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


def read_preprocessor(folder: Path, path: str) -> dict[str, Any]:
    """The image processor's configuration, {} where there is none. Raises RequestError: it does something else."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).exists():
            tree = read_json(folder / name, path)
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


def read_json(file: Path, path: str) -> dict[str, Any]:
    """A JSON object of the checkpoint that the user calls `path`. Raises RequestError."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"model.path: {path}: {file.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"model.path: {path}: {file.name} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise RequestError(f"model.path: {path}: {file.name} is not a JSON object")
    return tree


INDEX_NAME = "model.safetensors.index.json"
