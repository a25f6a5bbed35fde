"""Processor: a model's own, whose images and videos are keys of an output.

What a prompt looks like is the wrapped processor's to say: how many tokens stand for an image or a video, what is
written between the frames of a clip, which tokens are of which medium. It is asked with the grids and times that the
output has, in place of pixels.

Source: transformers 5.23, `processing_utils.py` (`ProcessorMixin`) and each family's `processing_*.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import RequestError
from .adapters import transformers_inputs
from .chats import flat, from_llava, image_names, is_message, video_names
from .items import EMBEDS, GRID, IMAGE, VIDEO, Item, medium_of
from .reader import EmbeddingDataset

# What a family is told of a clip's time beside its tokens: seconds of a temporal patch, by the name its model takes.
SECONDS = ("second_per_grid_ts", "video_second_per_grid")
SOUND = ("audio", "load_audio_from_video", "use_audio_in_video")
TOKENIZER_OPTIONS = (
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "padding_side",
    "return_mm_token_type_ids",
)


class CachedProcessor:
    """The model's own processor, but images and videos are keys of an output: none is opened, no tower is needed.

    Used as the processor is: `processor(text=…, images=…, videos=…)`, `processor.apply_chat_template(messages,
    tokenize=True)`. Everything else is the wrapped processor's. A clip's frames were chosen when the output was made;
    options that would choose others have no place here.

    Args:
        processor: the model's own (`AutoProcessor.from_pretrained`), of transformers 5.23 or newer.
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
        videos: Any = None,
        *,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> Any:
        """Calls the processor, with keys for images and videos.

        Returns:
            A BatchFeature: `input_ids`, `attention_mask`, `mm_token_type_ids`, `image_grid_thw`, `video_grid_thw`,
            `mm_encoder_outputs`, and what the family is told of time (`second_per_grid_ts`, `video_second_per_grid`):
            all that the processor would give but pixels.

        Raises:
            KeyError: an image or video is not in the output.
            RequestError: the text has more or fewer of them than were given; a key is of the other medium; sound is
                asked for, which no output has.
        """
        from transformers import BatchFeature

        _check_silent(options)
        texts = [text] if isinstance(text, str) else list(text or [])
        items = {medium: self._items(names, medium) for medium, names in ((IMAGE, images), (VIDEO, videos))}
        instead = [self._texts_of(some, medium, texts) for medium, some in items.items()]
        texts, _ = self._processor.get_text_with_replacements(texts, *instead)
        typed = options.pop("return_mm_token_type_ids", getattr(self._processor, "return_mm_token_type_ids", True))
        # The Omnis' processors pad on the left, whatever their tokenizer would do.
        options = {**getattr(self._processor, "text_kwargs", {}), **options}
        encoded = dict(self._processor.tokenizer(texts, return_tensors=return_tensors, **options))
        if typed:  # the Omnis find their images by their tokens
            encoded["mm_token_type_ids"] = self._processor.create_mm_token_type_ids(encoded["input_ids"])
        if items[VIDEO]:
            seconds = [float(item["second_per_grid"]) for item in items[VIDEO]]
            encoded |= {name: seconds for name in SECONDS if name in self._processor.model_input_names}
        features = BatchFeature(encoded, tensor_type=return_tensors)
        given = items[IMAGE] + items[VIDEO]
        return BatchFeature(dict(features) | (transformers_inputs(given) if given else {}))

    def _items(self, names: Any, medium: str) -> list[Item]:
        """Reads the named images or videos of the output. Raises KeyError, RequestError: as `__call__`."""
        items = self._dataset.get_many([self._key_of(name) for name in flat(names)])
        for item in items:
            if (true := medium_of(item)) != medium:
                raise RequestError(
                    f"{item['key']} was given among the {medium}s, and is one of the {true}s of {self._dataset.uri}: "
                    f"name it in a part of type {true}, or among `{true}s`"
                )
        return items

    def _texts_of(self, items: Sequence[Item], medium: str, texts: Sequence[str]) -> list[str]:
        """Returns what stands in the prompt for each item. Raises RequestError: the texts ask for more, or fewer."""
        token: str = getattr(self._processor, f"{medium}_token")
        asked = sum(one.count(token) for one in texts)
        if asked != len(items):
            raise RequestError(f"the text has {asked} {medium} tokens ({token}), {len(items)} {medium}s were given")
        if not items:
            return []
        inputs: dict[str, Any] = {f"{medium}_grid_thw": torch.stack([item[GRID] for item in items])}
        if medium == VIDEO:
            inputs["video_metadata"] = [_metadata(item) for item in items]
        replace = getattr(self._processor, f"replace_{medium}_token")
        found = [replace(inputs, number, load_audio_from_video=False) for number in range(len(items))]
        for item, one in zip(items, found, strict=True):
            if one.count(token) != len(item[EMBEDS]):
                raise RequestError(
                    f"{item['key']} has {len(item[EMBEDS])} tokens in {self._dataset.uri}, and {one.count(token)} by "
                    "the processor: they are of different models"
                )
        return found

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
        batch = [conversation] if conversation and is_message(conversation[0]) else conversation
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
            videos=[name for chat in chats for name in video_names(chat)],
            **rest,
            **(processor_kwargs or {}),
        )
        return inputs if return_dict else inputs["input_ids"]


def _metadata(item: Item) -> Any:
    """Returns a clip's frames and rate, from which Qwen3-VL's processor writes the times between its frames."""
    from transformers.video_utils import VideoMetadata

    frames = list(item["frames"])
    return VideoMetadata(total_num_frames=frames[-1] + 1, fps=item["fps"], frames_indices=frames)


def _check_silent(options: dict[str, Any]) -> None:
    """Raises RequestError: sound is asked for."""
    for name in SOUND:
        if options.pop(name, None):
            raise RequestError(f"{name}: an output has no sound; give it to the model's own processor")


def _template_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in TOKENIZER_OPTIONS}
