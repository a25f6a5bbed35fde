"""The reference implementation: transformers' own processor and tower, for those who compare with it.

`verify --sample`, the benchmarks and the tests do; nothing that a run needs imports this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..prepare.decode import CHANNELS
from .checkpoint import Checkpoint
from .pack_plan import Grid


def reference_processor(min_pixels: int, max_pixels: int) -> Any:
    """transformers' Qwen2VLImageProcessor with its torchvision backend."""
    from transformers import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(min_pixels=min_pixels, max_pixels=max_pixels)


def reference_tower(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, attention: str = "sdpa") -> Any:
    """transformers' tower with the checkpoint's weights.

    Its rotary frequencies stay float32, as `from_pretrained` leaves them: `.to(bfloat16)` alone would round them.
    """
    from transformers.initialization import no_init_weights
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    tree = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))["vision_config"]
    tree["in_channels"] = tree.pop("in_chans", CHANNELS)
    config = Qwen2_5_VLVisionConfig(**tree)
    config._attn_implementation = attention
    with no_init_weights():  # every weight is loaded below, strictly
        tower: Any = Qwen2_5_VisionTransformerPretrainedModel(config)
    frequencies = tower.rotary_pos_emb.inv_freq.clone()
    tower.load_state_dict({name: tensor.float() for name, tensor in checkpoint.tensors()})
    tower = tower.to(dtype=dtype, device=device).eval().requires_grad_(False)
    tower.rotary_pos_emb.inv_freq = frequencies.to(device)
    if tower.rotary_pos_emb.inv_freq.dtype != torch.float32:
        raise AssertionError("the reference's rotary frequencies were rounded")
    return tower


@torch.inference_mode()
def run_reference(reference: Any, pixels_PC: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Merged tokens [M, O] in input order."""
    return reference(pixels_PC, torch.tensor(grids, device=pixels_PC.device)).pooler_output
