"""Random weights in the real checkpoint format, for demonstrations, tests and benchmarks where no hub is reached.

Query and key rows are scaled up, so that attention is peaked as in a trained tower: with stock random weights it is
nearly uniform, and mistakes in rotary positions or segments hardly show.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..process import cache_folders
from .config import INDEX_NAME, TowerConfig
from .families import MODEL_TYPES
from .families.qwen3_vl import POSITIONS
from .published import published_config, published_preprocessor

if TYPE_CHECKING:
    import torch  # imported where weights are made, which is once on a machine

SEED = 20_250_101
VERSION = 2
# At a width of 320 and up to 8 blocks. By 1/√width elsewhere, which keeps the logits' spread, and less in deeper
# towers: at 6 and 32 blocks, rounding grows until the reference itself is 1.7e-5 away from float64.
QUERY_KEY_SCALE = 6.0
POSITION_SCALE = 15.0  # learned positions of a standard deviation of 0.3, as large as what they are added to
SHARD_BYTES = 1 << 30


def random_config(
    *, depth: int, width: int, num_heads: int, intermediate: int, out_width: int, full: tuple[int, ...]
) -> TowerConfig:
    """A tower of Qwen2.5-VL."""
    return replace(
        family_config("qwen2_5_vl", depth, width, num_heads, intermediate, out_width),
        window_pixels=112,
        full_attention_blocks=full,
    )


def family_config(
    model_type: str, depth: int, width: int, num_heads: int, intermediate: int, out_width: int
) -> TowerConfig:
    """A tower of any model type; what the family has besides is published as usual, or for `replace`."""
    family = MODEL_TYPES[model_type]
    third = family.name == "qwen3_vl"
    return TowerConfig(
        family=family.name,
        model_type=model_type,
        norm=family.norm,
        activation=family.activation,
        patch_bias=family.patch_bias,
        depth=depth,
        width=width,
        num_heads=num_heads,
        intermediate=intermediate,
        out_width=out_width,
        in_channels=3,
        patch_size=family.patch_size,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=family.image_mean,
        image_std=family.image_std,
        positions=POSITIONS if third else 0,
        min_pixels=65_536 if third else 3136,
        max_pixels=16_777_216 if third else 12_845_056,
    )


def _tiny(model_type: str) -> TowerConfig:
    """Heads as wide as the published ones: 80, and 72 for the third implementation."""
    family = MODEL_TYPES[model_type]
    if family.name == "qwen2_5_vl":
        return replace(SIZES["tiny"], model_type=model_type)
    if family.name == "qwen2_vl":
        return family_config(model_type, 4, 160, 2, 640, 256)
    streams = (0, 1, 2) if family.form(model_type).streams else ()
    return replace(family_config(model_type, 4, 144, 2, 536, 256), deepstack_blocks=streams)


def _qwen3(model_type: str, depth: int, width: int, intermediate: int, out_width: int) -> TowerConfig:
    streams = {24: (5, 11, 17), 27: (8, 16, 24)}[depth] if MODEL_TYPES[model_type].form(model_type).streams else ()
    return replace(family_config(model_type, depth, width, 16, intermediate, out_width), deepstack_blocks=streams)


SIZES = {
    # For demonstrations and tests.
    "tiny": random_config(depth=4, width=160, num_heads=2, intermediate=428, out_width=256, full=(1, 3)),
    "small": random_config(depth=8, width=320, num_heads=4, intermediate=856, out_width=512, full=(3, 7)),
    # For benchmarks on a CPU: the published width, and a full block in eight, as published.
    "wide": random_config(depth=8, width=1280, num_heads=16, intermediate=3420, out_width=3584, full=(7,)),
    # The published dimensions of Qwen2.5-VL-3B and -7B.
    "3b": random_config(depth=32, width=1280, num_heads=16, intermediate=3420, out_width=2048, full=(7, 15, 23, 31)),
    "7b": random_config(depth=32, width=1280, num_heads=16, intermediate=3420, out_width=3584, full=(7, 15, 23, 31)),
}
SIZES |= {f"{model_type}_tiny": _tiny(model_type) for model_type in MODEL_TYPES}
# The published dimensions of the others.
SIZES |= {
    "qwen2_vl_2b": family_config("qwen2_vl", 32, 1280, 16, 5120, 1536),
    "qwen2_vl_7b": family_config("qwen2_vl", 32, 1280, 16, 5120, 3584),
    "qwen2_5_vl_3b": SIZES["3b"],
    "qwen2_5_vl_7b": SIZES["7b"],
    "qwen2_5_omni_7b": replace(SIZES["7b"], model_type="qwen2_5_omni"),
    "qwen3_vl_2b": _qwen3("qwen3_vl", 24, 1024, 4096, 2048),
    "qwen3_vl_4b": _qwen3("qwen3_vl", 24, 1024, 4096, 2560),
    "qwen3_vl_8b": _qwen3("qwen3_vl", 27, 1152, 4304, 4096),
    "qwen3_vl_32b": _qwen3("qwen3_vl", 27, 1152, 4304, 5120),
    "qwen3_vl_moe_30b": _qwen3("qwen3_vl_moe", 27, 1152, 4304, 2048),
    "qwen3_omni_moe_30b": _qwen3("qwen3_omni_moe", 27, 1152, 4304, 2048),
    "qwen3_5_4b": _qwen3("qwen3_5", 24, 1024, 4096, 2560),
    "qwen3_5_9b": _qwen3("qwen3_5", 27, 1152, 4304, 4096),
    # For benchmarks on a CPU: the published widths, 8 blocks, and as many streams as published.
    "qwen2_vl_wide": family_config("qwen2_vl", 8, 1280, 16, 5120, 3584),
    "qwen3_vl_wide": replace(family_config("qwen3_vl", 8, 1152, 16, 4304, 4096), deepstack_blocks=(2, 4, 6)),
    "qwen3_5_wide": family_config("qwen3_5", 8, 1152, 16, 4304, 4096),
}


def make_random_tower(size: str, cache: Path | None = None) -> Path:
    """Makes a checkpoint of random weights, unless this node has it already.

    Args:
        size: a key of `SIZES`.
        cache: where it is kept; by default `$XDG_CACHE_HOME/visionbake`, `~/.cache/visionbake`, or a folder of this
            user among the temporary files, the first that can be written.

    Returns:
        A folder with config.json, preprocessor_config.json and sharded safetensors.

    Raises:
        RequestError: an unknown size, or no folder to keep it in.
    """
    if size not in SIZES:
        raise RequestError(f"model.path: random:{size}: unknown size; known are {', '.join(SIZES)}")
    folders = [cache] if cache is not None else cache_folders("visionbake")
    refused: OSError | None = None
    for folder in folders:
        try:
            return _made_in(folder, size)
        except OSError as error:  # no home, or one that cannot be written
            refused = error
    raise RequestError(
        f"model.path: random:{size}: there is no folder to keep it in ({refused}); set XDG_CACHE_HOME"
    ) from refused


def _made_in(cache: Path, size: str) -> Path:
    """Raises OSError: it cannot be kept there."""
    folder = cache / f"random-{size}-v{VERSION}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".random-{size}-", dir=cache))
    try:
        write_random_checkpoint(scratch, SIZES[size])
        scratch.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process of this node made it meanwhile
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def write_random_checkpoint(
    folder: Path, config: TowerConfig, *, seed: int = SEED, prefix: str | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a seeded checkpoint in bfloat16, in the form in which its type is published, with a language model's
    tensor among the names. `prefix` is another one than the type's own."""
    import torch
    from safetensors.torch import save_file

    form = MODEL_TYPES[config.model_type].form(config.model_type)
    generator = torch.Generator().manual_seed(seed)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, shape in config.shapes().items():
        tensor = _random_tensor(name, shape, config, generator).to(torch.bfloat16)
        if size and size + 2 * tensor.numel() > shard_bytes:
            shards.append({})
            size = 0
        pieces = form.pieces(name)
        for piece, part in zip(pieces, tensor.chunk(len(pieces)), strict=True):
            shards[-1][(form.prefix if prefix is None else prefix) + piece] = part.contiguous()
        size += 2 * tensor.numel()
    shards[0]["lm_head.weight"] = torch.zeros(2, config.out_width, dtype=torch.bfloat16)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    _write_json(folder / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})
    _write_json(folder / "config.json", published_config(config))
    _write_json(folder / "preprocessor_config.json", published_preprocessor(config))


def _random_tensor(name: str, shape: tuple[int, ...], config: TowerConfig, generator: torch.Generator) -> torch.Tensor:
    import torch

    tensor = torch.randn(shape, generator=generator) * (0.02 if len(shape) > 1 else 0.1)
    if name == "pos_embed.weight":
        tensor *= POSITION_SCALE
    if name.endswith(("norm1.weight", "norm2.weight", "ln_q.weight")):
        tensor += 1
    if name.endswith("attn.qkv.weight"):
        scale = QUERY_KEY_SCALE * (320 / config.width) ** 0.5 * min(1.0, 8 / config.depth) ** 0.5
        tensor[: 2 * config.width] *= scale
    return tensor


def _write_json(path: Path, tree: object) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
