"""The reference implementation: transformers' own processor and tower, for those who compare with it.

`verify --sample`, the benchmarks and the tests do; nothing that a run needs imports this.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..prepare.decode import CHANNELS
from ..sampling import VideoSampling
from .checkpoint import Checkpoint
from .config import TowerConfig, read_json
from .pack_plan import Grid

# transformers' module, its configuration and its tower.
CLASSES = {
    "qwen2_vl": ("Qwen2VLVisionConfig", "Qwen2VisionTransformerPretrainedModel"),
    "qwen2_5_vl": ("Qwen2_5_VLVisionConfig", "Qwen2_5_VisionTransformerPretrainedModel"),
    "qwen2_5_omni": ("Qwen2_5OmniVisionEncoderConfig", "Qwen2_5OmniVisionEncoder"),
    "qwen3_vl": ("Qwen3VLVisionConfig", "Qwen3VLVisionModel"),
    "qwen3_vl_moe": ("Qwen3VLMoeVisionConfig", "Qwen3VLMoeVisionModel"),
    "qwen3_omni_moe": ("Qwen3OmniMoeVisionEncoderConfig", "Qwen3OmniMoeVisionEncoder"),
    "qwen3_5": ("Qwen3_5VisionConfig", "Qwen3_5VisionModel"),
    "qwen3_5_moe": ("Qwen3_5MoeVisionConfig", "Qwen3_5MoeVisionModel"),
    "qwen4_exp": ("Qwen4ExpVisionConfig", "Qwen4ExpVisionModel"),
}

UNCAPPED = {"cap_pixels_per_frame": False}  # a frame's budget is its own, as it is where nobody says it in 5.23


def reference_processor(config: TowerConfig, min_pixels: int, max_pixels: int) -> Any:
    """transformers' Qwen2VLImageProcessor with its torchvision backend, as the checkpoint sets it up."""
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )


def reference_video_processor(config: TowerConfig, sampling: VideoSampling) -> Any:
    """transformers' video processor of a family, which is given the frames that were taken.

    Frames that qwen-vl-utils has resized are not resized again, as that package's users have it.
    """
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    made, further = (Qwen3VLVideoProcessor, {}) if sampling.rule == "qwen3" else (Qwen2VLVideoProcessor, UNCAPPED)
    return made(
        size={"shortest_edge": sampling.min_pixels, "longest_edge": sampling.max_pixels},
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
        do_resize=sampling.rule != "utils",
        do_sample_frames=False,
        **further,
    )


def reference_tower(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, attention: str = "sdpa") -> Any:
    """transformers' tower with the checkpoint's weights, without further streams where the checkpoint is read so.

    Its rotary frequencies stay float32, as `from_pretrained` leaves them: `.to(bfloat16)` alone would round them.
    """
    from transformers.initialization import no_init_weights

    model_type = checkpoint.config.model_type
    config_class, tower_class = CLASSES[model_type]
    module = f"transformers.models.{model_type}"
    config = getattr(import_module(f"{module}.configuration_{model_type}"), config_class)(**_vision_tree(checkpoint))
    config._attn_implementation = attention
    with no_init_weights():  # every weight is loaded below, strictly
        tower: Any = getattr(import_module(f"{module}.modeling_{model_type}"), tower_class)(config)
    frequencies = tower.rotary_pos_emb.inv_freq.clone()
    tower.load_state_dict({name: tensor.float() for name, tensor in checkpoint.stored_tensors()})
    tower = tower.to(dtype=dtype, device=device).eval().requires_grad_(False)
    if device.type == "cuda" and dtype == torch.float32:  # TF32 has the mantissa of a half: no measure of fp32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    tower.rotary_pos_emb.inv_freq = frequencies.to(device)
    if tower.rotary_pos_emb.inv_freq.dtype != torch.float32:
        raise AssertionError("the reference's rotary frequencies were rounded")
    return tower


def _vision_tree(checkpoint: Checkpoint) -> dict[str, Any]:
    """The tower's part of config.json, as it stands there, under the names that transformers' class has."""
    tree = read_json(checkpoint.folder / "config.json", checkpoint.path)
    tree = dict(tree.get("thinker_config", tree).get("vision_config", tree))
    tree.pop("model_type", None)
    tree["in_channels"] = tree.pop("in_chans", tree.get("in_channels", CHANNELS))
    if "deepstack_visual_indexes" in tree and not checkpoint.config.streams:
        tree["deepstack_visual_indexes"] = []
    return tree


@torch.inference_mode()
def run_reference(reference: Any, pixels_PC: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Merged tokens [M, O] in input order: the main stream, then the further ones, in width."""
    out = reference(pixels_PC, torch.tensor(grids, device=pixels_PC.device))
    streams = [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]
    return torch.cat(streams, 1) if len(streams) > 1 else streams[0]
