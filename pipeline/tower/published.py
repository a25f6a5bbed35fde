"""Published: a tower's configuration as the checkpoints of its type spell it on the Hub."""

from __future__ import annotations

from .config import TowerConfig
from .families import MODEL_TYPES

ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_5_omni": "Qwen2_5OmniModel",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
}


def published_config(config: TowerConfig) -> dict[str, object]:
    """config.json, but for the language model."""
    family = MODEL_TYPES[config.model_type]
    vision = {
        "depth": config.depth,
        "hidden_act": family.hidden_act,
        "num_heads": config.num_heads,
        "patch_size": config.patch_size,
        "spatial_merge_size": config.merge_size,
        "temporal_patch_size": config.temporal_patch_size,
    }
    vision |= {"qwen2_vl": _second, "qwen2_5_vl": _second_and_a_half, "qwen3_vl": _third}[family.name](config)
    tree: dict[str, object] = {
        "architectures": [ARCHITECTURES[config.model_type]],
        "model_type": config.model_type,
    }
    if family.form(config.model_type).in_thinker:
        thinker = {"model_type": f"{config.model_type}_thinker", "vision_config": vision}
        return tree | {"thinker_config": thinker}
    return tree | {"hidden_size": config.out_width, "vision_config": vision}


def _second(config: TowerConfig) -> dict[str, object]:
    return {
        "embed_dim": config.width,
        "hidden_size": config.out_width,
        "mlp_ratio": config.intermediate // config.width,
        "in_chans": config.in_channels,
        "spatial_patch_size": config.patch_size,
    }


def _second_and_a_half(config: TowerConfig) -> dict[str, object]:
    return {
        "hidden_size": config.width,
        "intermediate_size": config.intermediate,
        "in_chans": config.in_channels,
        "out_hidden_size": config.out_width,
        "spatial_patch_size": config.patch_size,
        "window_size": config.window_pixels,
        "fullatt_block_indexes": list(config.full_attention_blocks),
        "tokens_per_second": 2,
    }


def _third(config: TowerConfig) -> dict[str, object]:
    vision: dict[str, object] = {
        "hidden_size": config.width,
        "intermediate_size": config.intermediate,
        "out_hidden_size": config.out_width,
        "deepstack_visual_indexes": list(config.deepstack_blocks),
        "initializer_range": 0.02,
    }
    if config.model_type == "qwen3_omni_moe":
        return vision | {
            "in_chans": config.in_channels,
            "spatial_patch_size": config.patch_size,
            "image_size": round(config.positions**0.5) * config.patch_size,
        }
    # Some say `qwen3_vl` where their own type is meant.
    model_type = "qwen3_vl" if config.model_type == "qwen3_vl" else config.model_type
    return vision | {
        "model_type": model_type,
        "in_channels": config.in_channels,
        "num_position_embeddings": config.positions,
    }


def published_preprocessor(config: TowerConfig) -> dict[str, object]:
    """preprocessor_config.json: the areas under names of their own, or as edges."""
    third = config.family == "qwen3_vl"
    edges = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
    areas = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast" if third else "Qwen2VLImageProcessor",
        "patch_size": config.patch_size,
        "temporal_patch_size": config.temporal_patch_size,
        "merge_size": config.merge_size,
        **({"size": edges} if third else areas),
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }
