"""Hand over: what each consumer takes, from the reader's items.

transformers   `CachedProcessor` in place of the model's own processor, or `transformers_inputs`
vLLM           `vllm_embeds`, and `base64_tensor` for its server
SGLang         `sglang_image`
a live merger  `run_merger`, for outputs of `stage: pre_merger`

Source: transformers 5.23 `models/qwen2_5_vl`, `models/qwen3_vl`; vLLM 0.33 `model_executor/models/qwen3_vl.py`; SGLang
0.5.23 `srt/models/qwen2_5_vl.py`, `srt/models/qwen3_vl.py`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import RequestError
from .items import DEEPSTACK, EMBEDS, GRID, Item, rows_of, streams_of
from .reader import EmbeddingDataset

IMAGE_PLACEHOLDER = "<image>"  # of LLaVA's conversations


def transformers_inputs(items: Sequence[Item]) -> dict[str, Any]:
    """`image_grid_thw` and `mm_encoder_outputs` for a Qwen model of transformers 5.23 or newer.

    Beside them the model needs `input_ids` with as many image tokens, and `mm_token_type_ids`: without those its
    positions are wrong, in some families silently. `CachedProcessor` gives all of them.

    Raises:
        RequestError: an item is a video.
    """
    _check_images(items)
    from transformers.modeling_outputs import BaseModelOutputWithPooling
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    tokens: Any = [item[EMBEDS] for item in items]
    features: BaseModelOutputWithPooling
    if streams := streams_of(items):
        levels: Any = [[item[DEEPSTACK][level] for item in items] for level in range(streams)]
        features = BaseModelOutputWithDeepstackFeatures(pooler_output=tokens, deepstack_features=levels)
    else:
        features = BaseModelOutputWithPooling(pooler_output=tokens)
    return {
        "image_grid_thw": torch.stack([item[GRID] for item in items]),
        "mm_encoder_outputs": {"image": features},
    }


def vllm_embeds(items: Sequence[Item]) -> dict[str, dict[str, Tensor]]:
    """`multi_modal_data` of one prompt, for `LLM(…, enable_mm_embeds=True)`: rows [Σ, hidden], grids [n, 3].

    A row has all of its streams, `[main | stream 0 | …]`, as vLLM's Qwen3-VL splits it.

    Raises:
        RequestError: the images are not of one width.
    """
    _check_width(items)
    return {
        "image": {
            "image_embeds": torch.cat([rows_of(item) for item in items]),
            "image_grid_thw": torch.stack([item[GRID] for item in items]),
        }
    }


def base64_tensor(tensor: Tensor) -> str:
    """A tensor as vLLM's server takes it: torch.save, base64. Cloned first: of a view the whole storage is saved."""
    stream = io.BytesIO()
    torch.save(tensor.clone(), stream)
    return base64.b64encode(stream.getvalue()).decode()


def vllm_message_part(items: Sequence[Item]) -> dict[str, Any]:
    """The part of a chat message that carries the images to vLLM's server."""
    image = vllm_embeds(items)["image"]
    return {"type": "image_embeds", "image_embeds": {name: base64_tensor(value) for name, value in image.items()}}


def sglang_image(items: Sequence[Item]) -> dict[str, Any]:
    """SGLang's precomputed embedding: one dictionary for all images of a request to a Qwen2.5-VL model.

    SGLang 0.5.23 takes it in that model alone: every other one of the family sends what it is given through its tower.

    Raises:
        RequestError: the images are not of one width, or have further streams, as no Qwen2.5-VL has.
    """
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


def _check_images(items: Sequence[Item]) -> None:
    """Raises RequestError: an item is a video, which a model takes by other names."""
    if videos := [item["key"] for item in items if item.get("media") == "video"]:
        raise RequestError(f"{videos[0]} is a video: it is no image of a prompt")


def _check_width(items: Sequence[Item]) -> None:
    """An engine may crash on a wrong shape instead of refusing it."""
    _check_images(items)
    widths = {item[EMBEDS].shape[1] * (1 + len(item.get(DEEPSTACK, ()))) for item in items}
    if len(widths) != 1:
        raise RequestError(f"images of several widths in one prompt: {sorted(widths)}")


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


class CachedProcessor:
    """The model's own processor, but images are keys of an output: no image is opened, no tower is needed.

    Used as the processor is: `processor(text=…, images=…)`, `processor.apply_chat_template(messages, tokenize=True)`.
    Everything else is the wrapped processor's.

    Args:
        processor: the model's own (`AutoProcessor.from_pretrained`).
        output: of visionbake, by URI or opened.
        key_of: from what a message names (a path, as a rule) to the key in the output.

    Raises:
        RequestError: the output lacks the further streams that its model takes.
    """

    def __init__(
        self, processor: Any, output: str | EmbeddingDataset, key_of: Callable[[str], str] | None = None
    ) -> None:
        self._processor = processor
        self._dataset = EmbeddingDataset(output) if isinstance(output, str) else output
        self._key_of = key_of or (lambda name: name)
        if not self._dataset.info.config["output"].get("deepstack", True):
            raise RequestError(
                f"{self._dataset.uri} was made with output.deepstack: false; the model adds the further streams to its "
                "first layers, and is silently wrong, or fails, without them"
            )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._processor, name)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> Any:
        """Calls the processor, with keys for images.

        Returns:
            A BatchFeature: `input_ids`, `attention_mask`, `mm_token_type_ids`, `image_grid_thw`, `mm_encoder_outputs`.

        Raises:
            KeyError: an image is not in the output.
            RequestError: the text has more or fewer images than were given.
        """
        from transformers import BatchFeature

        texts = [text] if isinstance(text, str) else list(text or [])
        items = self._dataset.get_many([self._key_of(name) for name in _flat(images)])
        token = self._processor.image_token
        asked = sum(one.count(token) for one in texts)
        if asked != len(items):
            raise RequestError(f"the text has {asked} image tokens ({token}), {len(items)} images were given")
        remaining = iter(items)
        expanded = []
        for one in texts:
            first, *rest = one.split(token)
            pieces = [first]
            for piece in rest:
                pieces += [token * len(next(remaining)[EMBEDS]), piece]
            expanded.append("".join(pieces))
        typed = options.pop("return_mm_token_type_ids", getattr(self._processor, "return_mm_token_type_ids", True))
        # The Omnis' processors pad on the left, whatever their tokenizer would do.
        options = {**getattr(self._processor, "text_kwargs", {}), **options}
        encoded = dict(self._processor.tokenizer(expanded, return_tensors=return_tensors, **options))
        if not typed:  # the Omnis find their images by their tokens
            return BatchFeature(encoded | (transformers_inputs(items) if items else {}))
        ids = encoded["input_ids"]
        image_id = self._processor.image_token_id
        if isinstance(ids, list):
            encoded["mm_token_type_ids"] = [[int(number == image_id) for number in row] for row in ids]
        else:
            encoded["mm_token_type_ids"] = (ids == image_id) * 1  # of its own kind: a tensor or an array of int64
        return BatchFeature(encoded | (transformers_inputs(items) if items else {}))

    def apply_chat_template(
        self,
        conversation: list[Any],
        *,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Applies the processor's template to chat messages or LLaVA records, one conversation or a list of them."""
        batch = [conversation] if conversation and _is_message(conversation[0]) else conversation
        chats = [from_llava(one) if isinstance(one, dict) else one for one in batch]
        texts = self._processor.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=add_generation_prompt, **_template_options(options)
        )
        if not tokenize:
            return texts[0] if batch is not conversation else texts
        rest = {name: value for name, value in options.items() if name not in _template_options(options)}
        inputs = self(
            images=[name for chat in chats for name in image_names(chat)],
            text=texts,
            **rest,
            **(processor_kwargs or {}),
        )
        return inputs if return_dict else inputs["input_ids"]


TOKENIZER_OPTIONS = (
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "padding_side",
    "return_mm_token_type_ids",
)


def _template_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in TOKENIZER_OPTIONS}


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def _flat(images: Any) -> list[str]:
    if images is None:
        return []
    if isinstance(images, str):
        return [images]
    return [name for one in images for name in _flat(one)]


def image_names(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Lists what a chat's image parts name, in order. Raises RequestError for a part that names nothing."""
    names: list[str] = []
    for message in messages:
        content = message["content"]
        for part in content if isinstance(content, list) else []:
            if part.get("type") in ("image", "image_url"):
                name = next(
                    (part[field] for field in ("image", "path", "url") if isinstance(part.get(field), str)), None
                )
                if name is None:
                    raise RequestError(f"an image part without image, path or url: {sorted(part)}")
                names.append(name)
    return names


def from_llava(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A LLaVA record (`image`, `conversations`) as chat messages. Raises RequestError: its images do not match."""
    images = iter(_flat(record.get("image")))
    messages: list[dict[str, Any]] = []
    for turn in record["conversations"]:
        role = {"human": "user", "gpt": "assistant", "system": "system"}.get(turn["from"], turn["from"])
        pieces = turn["value"].split(IMAGE_PLACEHOLDER)
        content: list[dict[str, Any]] = []
        for number, piece in enumerate(pieces):
            if number:
                name = next(images, None)
                if name is None:
                    raise RequestError(f"a LLaVA record has more {IMAGE_PLACEHOLDER} than images: {record.get('id')}")
                content.append({"type": "image", "image": name})
            if text := (piece.lstrip("\n") if number else piece):
                content.append({"type": "text", "text": text})
        messages.append({"role": role, "content": content})
    if next(images, None) is not None:
        raise RequestError(f"a LLaVA record has more images than {IMAGE_PLACEHOLDER}: {record.get('id')}")
    return messages
