"""The reference tower, helped as far as it can be: the strictest peer on a GPU."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.pack_plan import Grid
from pipeline.tower.reference import reference_tower


def helped_reference(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
    """The reference with varlen_attn for its attention, what grids decide computed beforehand, and compiled blocks.

    Its patch embedding is a matrix product, as ours is: how fast a Conv3d in bfloat16 is hangs on cuDNN's choice.
    """
    from torch.nn.attention.varlen import varlen_attn
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    if checkpoint.config.model_type != "qwen2_5_vl":
        raise NotImplementedError(f"the reference of {checkpoint.config.model_type} is not helped")
    reference = reference_tower(checkpoint, dtype, device)
    extra: dict[str, Any] = {"num_splits": 1} if "num_splits" in inspect.signature(varlen_attn).parameters else {}

    def forward(
        self: Any,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: Any = None,
        max_seqlen: Any = None,
        **_: Any,
    ) -> Tensor:
        count = hidden_states.shape[0]
        q, k, v = self.qkv(hidden_states).reshape(count, 3, self.num_heads, -1).unbind(1)
        q, k = modeling.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        attended: Any = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **extra)
        return self.proj(attended.reshape(count, -1))

    let_every_shape_be_compiled()
    weight = reference.patch_embed.proj.weight.flatten(1)
    bias = reference.patch_embed.proj.bias

    def embed(pixels_PC: Tensor) -> Tensor:
        return torch.nn.functional.linear(pixels_PC.to(weight.dtype), weight, bias)

    reference.patch_embed.forward = embed
    plans: dict[tuple[Grid, ...], dict[str, Any]] = {}
    for block in reference.blocks:
        block.attn.forward = types.MethodType(forward, block.attn)
        block.compile(dynamic=False)

    @torch.inference_mode()
    def run(pixels_PC: Tensor, grids: list[Grid]) -> Tensor:
        key = tuple(grids)
        if key not in plans:
            plans[key] = _precomputed(reference, grids, device)
        return reference(pixels_PC, torch.tensor(grids, device=device), **plans[key]).pooler_output

    return run


def let_every_shape_be_compiled() -> None:
    """Dynamo compiles a function 8 times and then, without a word, runs it as it is: slower, in our favour."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    config.recompile_limit, config.accumulated_recompile_limit = 1 << 10, 1 << 14
    config.fail_on_recompile_limit_hit = True


def compiled_graphs() -> int:
    """How many graphs this process has compiled."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _precomputed(reference: Any, grids: list[Grid], device: torch.device) -> dict[str, Any]:
    """The keyword arguments that the reference takes instead of computing them; of those that its version knows."""
    from transformers import vision_utils

    grid_thw = torch.tensor(grids)
    merge = reference.spatial_merge_size
    window, cu_window = vision_utils.get_vision_window_index(
        grid_thw, spatial_merge_size=merge, window_size=reference.window_size, patch_size=reference.patch_size
    )
    cu_window = torch.unique_consecutive(torch.as_tensor(cu_window)).to(torch.int32)
    cu = vision_utils.get_vision_cu_seqlens(grid_thw).to(torch.int32)
    return {
        "position_ids": vision_utils.get_vision_position_ids(grid_thw, merge).to(device),
        "cu_seqlens": cu.to(device),
        "window_index": torch.as_tensor(window).to(device),
        "cu_window_seqlens": cu_window.to(device),
        "max_seqlen": int(cu.diff().max()),
        "max_window_seqlen": int(cu_window.diff().max()),
    }
