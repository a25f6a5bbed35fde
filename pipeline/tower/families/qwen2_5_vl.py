"""Qwen2.5-VL: RMSNorm, SiLU-gated MLP, attention within windows but for four blocks. Qwen2.5-Omni has q, k, v apart.

Source: transformers 5.23, `models/qwen2_5_vl/modeling_qwen2_5_vl.py` (Qwen2_5_VisionTransformerPretrainedModel) and
`models/qwen2_5_omni/modeling_qwen2_5_omni.py` (Qwen2_5OmniVisionEncoder).
"""

from __future__ import annotations

from typing import Any

from .family import CLIP_MEAN, CLIP_STD, Family, Form, Numbers


def _read(numbers: Numbers, form: Form) -> dict[str, Any]:
    return {
        "width": numbers.number("hidden_size", "embed_dim"),
        "intermediate": numbers.number("intermediate_size"),
        "out_width": numbers.number("out_hidden_size"),
        "window_pixels": numbers.number("window_size", default=112),
        "full_attention_blocks": numbers.blocks("fullatt_block_indexes", (7, 15, 23, 31)),
    }


QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    title="Qwen2.5-VL",
    forms=(
        Form(model_types=("qwen2_5_vl",), prefix="visual."),
        Form(model_types=("qwen2_5_omni",), prefix="thinker.visual.", split_qkv=True, in_thinker=True),
    ),
    norm="rms",
    activation="silu_gated",
    hidden_act="silu",
    patch_bias=False,
    patch_size=14,
    image_mean=CLIP_MEAN,
    image_std=CLIP_STD,
    read=_read,
)
