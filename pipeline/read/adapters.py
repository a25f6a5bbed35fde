"""Hand over: what each consumer takes, from the reader's items.

transformers   `CachedProcessor` (`read/processor.py`) in place of the model's own processor, or `transformers_inputs`
vLLM           `vllm_embeds`, and `base64_tensor` for its server
SGLang         `sglang_image`
a live merger  `run_merger`, for outputs of `stage: pre_merger`

Source: transformers 5.23 `models/qwen2_5_vl`, `models/qwen3_vl`; vLLM 0.33 `multimodal/inputs.py`,
`model_executor/models/qwen2_vl.py`, `qwen2_5_vl.py`, `qwen3_vl.py`, `renderers/chat_utils`; SGLang 0.5.23
`srt/models/qwen2_5_vl.py`, `srt/models/qwen3_vl.py`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import RequestError
from .chats import from_llava as from_llava  # public names of this module
from .chats import image_names as image_names
from .chats import video_names as video_names
from .items import DEEPSTACK, EMBEDS, GRID, VIDEO, Item, by_medium, medium_of, rows_of, streams_of


def transformers_inputs(items: Sequence[Item]) -> dict[str, Any]:
    """`image_grid_thw`, `video_grid_thw` and `mm_encoder_outputs` for a Qwen model of transformers 5.23 or newer.

    Images and videos may be mixed; the model has those of each medium in their order. Beside them the model needs
    `input_ids` with as many image and video tokens, `mm_token_type_ids`, and for videos what its family is told of
    time: without those its positions are wrong, in some families silently. `CachedProcessor` gives all of them.
    """
    inputs: dict[str, Any] = {"mm_encoder_outputs": {}}
    for medium, some in by_medium(items).items():
        inputs[f"{medium}_grid_thw"] = torch.stack([item[GRID] for item in some])
        inputs["mm_encoder_outputs"][medium] = _features(some)
    return inputs


def _features(items: Sequence[Item]) -> Any:
    """The tower's output of items of one medium, by item; further streams by level, then by item."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    tokens: Any = [item[EMBEDS] for item in items]
    if streams := streams_of(items):
        levels: Any = [[item[DEEPSTACK][level] for item in items] for level in range(streams)]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=levels)
    return BaseModelOutputWithPooling(pooler_output=tokens)


def vllm_embeds(items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """`multi_modal_data` of one prompt, for `LLM(…, enable_mm_embeds=True)`: rows [Σ, hidden], grids [n, 3].

    A row has all of its streams, `[main | stream 0 | …]`, as vLLM's Qwen3-VL splits it. Videos have what any family
    is told of time, and each model takes its own of it: `timestamps`, a list of seconds a video, Qwen3-VL;
    `second_per_grid_ts`, float32 [n], Qwen2.5-VL and the Omnis.

    Raises:
        RequestError: the items are not of one width.
    """
    _check_width(items)
    data: dict[str, dict[str, Any]] = {}
    for medium, some in by_medium(items).items():
        data[medium] = {
            f"{medium}_embeds": torch.cat([rows_of(item) for item in some]),
            f"{medium}_grid_thw": torch.stack([item[GRID] for item in some]),
        }
        if medium == VIDEO:
            data[medium]["timestamps"] = [list(item["timestamps"]) for item in some]
            data[medium]["second_per_grid_ts"] = torch.tensor([item["second_per_grid"] for item in some])
    return data


def base64_tensor(tensor: Tensor) -> str:
    """A tensor as vLLM's server takes it: torch.save, base64. Cloned first: of a view the whole storage is saved."""
    stream = io.BytesIO()
    torch.save(tensor.clone(), stream)
    return base64.b64encode(stream.getvalue()).decode()


def vllm_message_part(items: Sequence[Item]) -> dict[str, Any]:
    """The part of a chat message that carries the images to vLLM's server.

    Raises:
        RequestError: an item is a video, or they are not of one width.
    """
    _check_images(items, "vLLM's server was not tried with tokens of videos; give it to `LLM` (`vllm_embeds`)")
    image = vllm_embeds(items)["image"]
    return {"type": "image_embeds", "image_embeds": {name: base64_tensor(value) for name, value in image.items()}}


def sglang_image(items: Sequence[Item]) -> dict[str, Any]:
    """SGLang's precomputed embedding: one dictionary for all images of a request to a Qwen2.5-VL model.

    SGLang 0.5.23 takes it in that model alone, and for images alone: every other one of the family, and every video,
    goes through its tower.

    Raises:
        RequestError: an item is a video, they are not of one width, or have further streams, as no Qwen2.5-VL has.
    """
    _check_images(items, "SGLang 0.5.23 sends every video through its tower; serve it with vLLM (`vllm_embeds`)")
    _check_width(items)
    if streams_of(items):
        raise RequestError(
            "SGLang 0.5.23 takes no precomputed tokens of a model with further streams (Qwen3-VL): its models but "
            "Qwen2.5-VL send what they are given through their tower; serve them with vLLM (`vllm_embeds`)"
        )
    return {
        "format": "precomputed_embedding",
        "feature": torch.cat([item[EMBEDS] for item in items]),
        "image_grid_thw": torch.stack([item[GRID] for item in items]),
    }


def _check_images(items: Sequence[Item], advice: str) -> None:
    """Raises RequestError: an item is a video."""
    if videos := [item["key"] for item in items if medium_of(item) == VIDEO]:
        raise RequestError(f"{videos[0]} is a video: {advice}")


def _check_width(items: Sequence[Item]) -> None:
    """An engine may crash on a wrong shape instead of refusing it."""
    widths = {item[EMBEDS].shape[1] * (1 + len(item.get(DEEPSTACK, ()))) for item in items}
    if len(widths) != 1:
        raise RequestError(f"items of several widths in one prompt: {sorted(widths)}")


def run_merger(merger: Any, items: Sequence[Item], stream: int | None = None) -> list[Tensor]:
    """Merged tokens of `stage: pre_merger` items by a live merger, with gradients.

    Args:
        merger: `model.visual.merger`; for a further stream its own, `model.visual.deepstack_merger_list[stream]`.
        stream: which further stream; None for the main one.

    Raises:
        RequestError: the items are no merger's input, or have no such stream.
    """
    if stream is not None and not 0 <= stream < streams_of(items):
        raise RequestError(f"stream {stream}: these items have {streams_of(items)} further streams")
    inputs = [item[EMBEDS] if stream is None else item[DEEPSTACK][stream] for item in items]
    weight = next(merger.parameters())
    tokens_MD = torch.cat(inputs).to(device=weight.device, dtype=weight.dtype)
    norm = merger.ln_q if hasattr(merger, "ln_q") else merger.norm
    wide = max(parameter.shape[-1] for parameter in merger.parameters() if parameter.dim() == 2)
    if tokens_MD.shape[1] != wide:
        raise RequestError(f"tokens of {tokens_MD.shape[1]} values are not a merger's input; was stage pre_merger?")
    # Before the 2×2 shuffle or behind it: each merger's norm is as wide as what it takes.
    merged = merger(tokens_MD.reshape(-1, norm.weight.shape[0]))
    return list(merged.split([len(one) for one in inputs]))
