"""Random weights in the real checkpoint format, for demonstrations, tests and benchmarks where no hub is reached.

Query and key rows are scaled up, so that attention is peaked as in a trained tower: with stock random weights it is
nearly uniform, and mistakes in rotary positions or segments hardly show.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..process import cache_folders
from .config import CLIP_MEAN, CLIP_STD, INDEX_NAME, TowerConfig

if TYPE_CHECKING:
    import torch  # imported where weights are made, which is once on a machine

SEED = 20_250_101
VERSION = 2
# At a width of 320 and up to 8 blocks. By 1/√width elsewhere, which keeps the logits' spread, and less in deeper
# towers: at 6 and 32 blocks, rounding grows until the reference itself is 1.7e-5 away from float64.
QUERY_KEY_SCALE = 6.0
SHARD_BYTES = 1 << 30


def random_config(
    *, depth: int, width: int, num_heads: int, intermediate: int, out_width: int, full: tuple[int, ...]
) -> TowerConfig:
    return TowerConfig(
        depth=depth,
        width=width,
        num_heads=num_heads,
        intermediate=intermediate,
        out_width=out_width,
        in_channels=3,
        patch_size=14,
        merge_size=2,
        temporal_patch_size=2,
        window_pixels=112,
        full_attention_blocks=full,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )


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
    folder: Path, config: TowerConfig, *, seed: int = SEED, prefix: str = "visual.", shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes a seeded checkpoint in bfloat16, as published ones are, with a language model's tensor among the names."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, shape in config.shapes().items():
        tensor = torch.randn(shape, generator=generator) * (0.02 if len(shape) > 1 else 0.1)
        if "norm" in name or "ln_q" in name:
            tensor += 1
        if name.endswith("attn.qkv.weight"):
            tensor[: 2 * config.width] *= (
                QUERY_KEY_SCALE * (320 / config.width) ** 0.5 * min(1.0, 8 / config.depth) ** 0.5
            )
        tensor = tensor.to(torch.bfloat16)
        if size and size + 2 * tensor.numel() > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][prefix + name] = tensor
        size += 2 * tensor.numel()
    shards[0]["lm_head.weight"] = torch.zeros(2, config.out_width, dtype=torch.bfloat16)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    _write_json(folder / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})
    _write_json(folder / "config.json", published_config(config))
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": config.patch_size,
            "temporal_patch_size": config.temporal_patch_size,
            "merge_size": config.merge_size,
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
        },
    )


def published_config(config: TowerConfig) -> dict[str, object]:
    """config.json as published checkpoints spell it."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": config.out_width,
        "vision_config": {
            "depth": config.depth,
            "hidden_act": "silu",
            "hidden_size": config.width,
            "intermediate_size": config.intermediate,
            "num_heads": config.num_heads,
            "in_chans": config.in_channels,
            "out_hidden_size": config.out_width,
            "patch_size": config.patch_size,
            "spatial_merge_size": config.merge_size,
            "spatial_patch_size": config.patch_size,
            "window_size": config.window_pixels,
            "fullatt_block_indexes": list(config.full_attention_blocks),
            "tokens_per_second": 2,
            "temporal_patch_size": config.temporal_patch_size,
        },
    }


def _write_json(path: Path, tree: object) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
