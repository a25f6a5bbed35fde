"""Qwen3-VL: LayerNorm, tanh GELU, learned positions beside the rotary ones, and three further streams of some types.

Source: transformers 5.23, `models/qwen3_vl/modeling_qwen3_vl.py` (Qwen3VLVisionModel), and its like in qwen3_vl_moe,
qwen3_omni_moe, qwen3_5, qwen3_5_moe and qwen4_exp.
"""

from __future__ import annotations

from typing import Any

from .family import Family, Form, Numbers

POSITIONS = 48 * 48
STREAM_BLOCKS = (8, 16, 24)
NAMES = (
    ("mlp.fc", "mlp.linear_fc"),
    ("ln_q", "norm"),
    ("mlp.0", "linear_fc1"),
    ("mlp.2", "linear_fc2"),
    ("deepstack.", "deepstack_merger_list."),
)
OMNI_NAMES = (("mlp.fc", "mlp.linear_fc"), ("deepstack.", "merger_list."))


def _read(numbers: Numbers, form: Form) -> dict[str, Any]:
    """Qwen3-Omni gives the side of an image for the learned positions: as many as it has patches."""
    patch_size = numbers.number("patch_size", "spatial_patch_size", default=16)
    side = numbers.number("image_size", default=0) // patch_size
    positions = numbers.number("num_position_embeddings", default=side**2 or POSITIONS)
    if round(positions**0.5) ** 2 != positions:
        raise numbers.error(f"vision_config.num_position_embeddings is {positions}, not a square")
    streams = numbers.blocks("deepstack_visual_indexes", STREAM_BLOCKS if form.streams else ())
    if streams and not form.streams:
        raise numbers.error(f"vision_config.deepstack_visual_indexes is {list(streams)}, in a type that has none")
    if list(streams) != sorted(set(streams)) or any(block < 0 for block in streams):
        raise numbers.error(f"vision_config.deepstack_visual_indexes is {list(streams)}, not in increasing order")
    return {
        "width": numbers.number("hidden_size"),
        "intermediate": numbers.number("intermediate_size"),
        "out_width": numbers.number("out_hidden_size"),
        "positions": positions,
        "deepstack_blocks": streams,
    }


QWEN3_VL = Family(
    name="qwen3_vl",
    title="Qwen3-VL",
    forms=(
        Form(model_types=("qwen3_vl", "qwen3_vl_moe"), prefix="model.visual.", renames=NAMES, streams=True),
        Form(
            model_types=("qwen3_omni_moe",),
            prefix="thinker.visual.",
            renames=OMNI_NAMES,
            in_thinker=True,
            streams=True,
        ),
        Form(model_types=("qwen3_5", "qwen3_5_moe", "qwen4_exp"), prefix="model.visual.", renames=NAMES),
    ),
    norm="layer",
    activation="gelu_tanh",
    hidden_act="gelu_pytorch_tanh",
    patch_bias=True,
    patch_size=16,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
    read=_read,
)
