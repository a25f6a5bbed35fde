"""Qwen2-VL: LayerNorm, quick GELU, full attention in every block.

Source: transformers 5.23, `models/qwen2_vl/modeling_qwen2_vl.py` (Qwen2VisionTransformerPretrainedModel).
"""

from __future__ import annotations

from typing import Any

from .family import CLIP_MEAN, CLIP_STD, Family, Form, Numbers


def _read(numbers: Numbers, form: Form) -> dict[str, Any]:
    """`hidden_size` is the language model's width here, and `embed_dim` the tower's."""
    width = numbers.number("embed_dim")
    return {
        "width": width,
        "intermediate": width * numbers.number("mlp_ratio", default=4),
        "out_width": numbers.number("hidden_size"),
    }


QWEN2_VL = Family(
    name="qwen2_vl",
    title="Qwen2-VL",
    forms=(Form(model_types=("qwen2_vl",), prefix="visual."),),
    norm="layer",
    activation="quick_gelu",
    hidden_act="quick_gelu",
    patch_bias=False,
    patch_size=14,
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
    read=_read,
)
