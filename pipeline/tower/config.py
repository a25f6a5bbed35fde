"""Tower configuration: a checkpoint's dimensions and preprocessing, from its JSON files alone. No torch in here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import RequestError
from .families import MODEL_TYPES, family_of
from .families.family import LARGEST_NUMBER, Activation, Family, Norm, Numbers

Stage = Literal["merged", "pre_merger"]  # what is written of an image: the merger's output, or its input
MAX_DEPTH = 1024
LARGEST_AREA = 1 << 31
INDEX_NAME = "model.safetensors.index.json"
BICUBIC = 3
ROPE_THETA = 10_000.0
# The image processor's own limits, where a checkpoint gives none: areas in pixels.
MIN_PIXELS, MAX_PIXELS = 56 * 56, 28 * 28 * 1280
# Patches at which one frame's full attention costs as much as everything else: 1.294 GF / 20 480 F for Qwen2.5-VL-7B.
# The number of that family stays what it was, because packs hang on it.
LINEAR_PATCHES = 63_000


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Dimensions of a vision tower, under one spelling.

    Attributes:
        family: the implementation: qwen2_vl, qwen2_5_vl or qwen3_vl.
        model_type: the whole checkpoint's, one of `MODEL_TYPES`.
        width: of the tower.
        out_width: of one stream of merged tokens, the language model's width.
        window_pixels: side of an attention window; 0 where every block attends to the whole frame.
        full_attention_blocks: those that attend to the whole frame although there are windows.
        positions: learned ones, a square number; 0 for none.
        deepstack_blocks: those after which a further stream is taken, in order; each has a merger of its own.
        min_pixels, max_pixels: the checkpoint's own limits of an image's area; they decide no token by themselves.
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
    window_pixels: int = 0
    full_attention_blocks: tuple[int, ...] = ()
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    # A field below this line is in the digest where it is not its default: see `digest_facts`.
    family: str = "qwen2_5_vl"
    norm: Norm = "rms"
    activation: Activation = "silu_gated"
    patch_bias: bool = False
    positions: int = 0
    deepstack_blocks: tuple[int, ...] = ()
    # A field below this line decides no token.
    model_type: str = "qwen2_5_vl"
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def factor(self) -> int:
        """Pixels along a merged token's side: an image's sides become multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def window_merged(self) -> int:
        """Merged tokens along a window's side; 0 where there are none."""
        return self.window_pixels // self.factor

    @property
    def streams(self) -> int:
        """Further streams behind the main one."""
        return len(self.deepstack_blocks)

    @property
    def merged_width(self) -> int:
        """Values that a merger takes for one token."""
        return self.width * self.merge_size**2

    @property
    def linear_patches(self) -> int:
        """Patches at which one frame's full attention costs as much as everything else."""
        if self.window_pixels:
            return LINEAR_PATCHES
        matrices = 3 if self.activation == "silu_gated" else 2
        blocks = self.depth * (4 * self.width**2 + matrices * self.width * self.intermediate)
        merger = (1 + self.streams) * (self.merged_width + self.out_width) * self.width
        return round((blocks + merger) / (2 * self.width * self.depth))

    def attends_fully(self, block: int) -> bool:
        return not self.window_pixels or block in self.full_attention_blocks

    def stream_width(self, stage: str) -> int:
        """Values of one stream of a token that is written: of its merger's output, or of its input."""
        return self.out_width if stage == "merged" else self.merged_width

    def width_of(self, stage: str) -> int:
        """Values of a token that is written, [main | stream 0 | stream 1 | …]."""
        return self.stream_width(stage) * (1 + self.streams)

    def digest_facts(self) -> dict[str, Any]:
        """All that decides a token. A field that an earlier version did not have is left out where it is its default,
        so that a checkpoint's digest stays what it was."""
        facts = asdict(self)
        for name in ("model_type", "min_pixels", "max_pixels"):
            del facts[name]
        for name in ("family", "norm", "activation", "patch_bias", "positions", "deepstack_blocks"):
            if facts[name] == getattr(type(self), name):
                del facts[name]
        return facts

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the tower by our name for it, the same in all families."""
        patch = (self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size)
        shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (self.width, *patch)}
        if self.patch_bias:
            shapes["patch_embed.proj.bias"] = (self.width,)
        if self.positions:
            shapes["pos_embed.weight"] = (self.positions, self.width)
        shapes |= self._merger_shapes("merger", self.width)
        for stream in range(self.streams):
            shapes |= self._merger_shapes(f"deepstack.{stream}", self.merged_width)
        inner = ("gate_proj", "up_proj", "down_proj") if self.activation == "silu_gated" else ("fc1", "fc2")
        for block in range(self.depth):
            linear = {"attn.qkv": (3 * self.width, self.width), "attn.proj": (self.width, self.width)}
            linear |= {f"mlp.{name}": (self.intermediate, self.width) for name in inner[:-1]}
            linear[f"mlp.{inner[-1]}"] = (self.width, self.intermediate)
            for name, shape in linear.items():
                shapes[f"blocks.{block}.{name}.weight"] = shape
                shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
            for name in ("norm1", "norm2"):
                shapes |= self._norm_shapes(f"blocks.{block}.{name}", self.width)
        return shapes

    def _norm_shapes(self, name: str, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{kind}": (width,) for kind in (("weight", "bias") if self.norm == "layer" else ("weight",))}

    def _merger_shapes(self, name: str, norm_width: int) -> dict[str, tuple[int, ...]]:
        merged = self.merged_width
        return self._norm_shapes(f"{name}.ln_q", norm_width) | {
            f"{name}.mlp.0.weight": (merged, merged),
            f"{name}.mlp.0.bias": (merged,),
            f"{name}.mlp.2.weight": (self.out_width, merged),
            f"{name}.mlp.2.bias": (self.out_width,),
        }


def tower_config(config: dict[str, Any], preprocessor: dict[str, Any], path: str) -> TowerConfig:
    """Reads the dimensions in every spelling that published checkpoints use. Raises RequestError."""
    model_type, family = _known_family(config, path)
    form = family.form(model_type)
    numbers = Numbers(vision=_vision_config(config, path), path=path)
    act = numbers.vision.get("hidden_act", family.hidden_act)
    if act != family.hidden_act:
        raise numbers.error(f"vision_config.hidden_act is {act!r}, not {family.hidden_act!r}")
    rope = numbers.vision.get("rope_parameters") or {}
    if not isinstance(rope, dict) or rope.get("rope_theta", ROPE_THETA) != ROPE_THETA:
        raise numbers.error(f"vision_config.rope_parameters is {rope!r:.80}; rope_theta must be {ROPE_THETA:g}")
    result = TowerConfig(
        family=family.name,
        model_type=model_type,
        norm=family.norm,
        activation=family.activation,
        patch_bias=family.patch_bias,
        depth=numbers.number("depth", "num_hidden_layers"),
        num_heads=numbers.number("num_heads", "num_attention_heads"),
        in_channels=numbers.number("in_channels", "in_chans", default=3),
        patch_size=numbers.number("patch_size", "spatial_patch_size", default=family.patch_size),
        merge_size=numbers.number("spatial_merge_size", default=2),
        temporal_patch_size=numbers.number("temporal_patch_size", default=2),
        image_mean=_triple(preprocessor, "image_mean", family.image_mean, path),
        image_std=_triple(preprocessor, "image_std", family.image_std, path),
        **family.read(numbers, form),
        **_pixel_limits(preprocessor, path),
    )
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        ours = getattr(result, name)
        if preprocessor.get(name, ours) != ours:
            raise RequestError(
                f"model.path: {path}: preprocessor_config.json says {name} {preprocessor[name]}, config.json {ours}"
            )
    heads_fit = result.width % result.num_heads == 0 and result.head_dim % 4 == 0
    windows_fit = not result.window_pixels or result.window_merged >= 1
    blocks_fit = all(block < result.depth for block in result.deepstack_blocks) and result.depth <= MAX_DEPTH
    if not (heads_fit and windows_fit and blocks_fit) or result.in_channels != 3:
        raise numbers.error(f"vision_config is not one of a {family.title} tower: {result}")
    return result


def _known_family(config: dict[str, Any], path: str) -> tuple[str, Family]:
    """Raises RequestError: it is a model of another type."""
    found = family_of(config.get("model_type"))
    if found is None:
        known, model_type = ", ".join(MODEL_TYPES), config.get("model_type")
        qwen = isinstance(model_type, str) and model_type.startswith("qwen")
        which = "Qwen types that this version knows are" if qwen else "this version encodes with Qwen's towers:"
        raise RequestError(f"model.path: {path} is a model of type {model_type!r}; {which} {known}")
    return found


def _vision_config(config: dict[str, Any], path: str) -> dict[str, Any]:
    """The tower's dimensions, wherever they lie. Raises RequestError."""
    thinker = config.get("thinker_config")
    for tree in (config, thinker if isinstance(thinker, dict) else {}):
        vision = tree.get("vision_config")
        if isinstance(vision, dict):
            return vision
    if "_vision" in str(config.get("model_type")):
        return config
    raise RequestError(f"model.path: {path}: config.json has no vision_config")


def _pixel_limits(preprocessor: dict[str, Any], path: str) -> dict[str, Any]:
    """The limits of an image's area: by their own names, or as `size`, whose "edges" are areas. Raises RequestError."""
    size = preprocessor.get("size")
    size = size if isinstance(size, dict) else {}
    limits: dict[str, int] = {}
    names = (("min_pixels", "shortest_edge", MIN_PIXELS), ("max_pixels", "longest_edge", MAX_PIXELS))
    for name, edge, default in names:
        given = [value for value in (preprocessor.get(name), size.get(edge), size.get(name)) if value is not None]
        limits[name] = given[0] if given else default
        if type(limits[name]) is not int or not 1 <= limits[name] <= LARGEST_AREA:
            raise RequestError(
                f"model.path: {path}: preprocessor_config.json: {name} is {limits[name]!r:.80}, not an area in pixels"
            )
    return limits


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
