"""What the examples share: a whole Qwen2.5-VL of random weights and two layers, an output, losses side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from visionbake.cli import main as visionbake

PHOTOS = str(Path(__file__).parent.parent / "tests" / "data" / "photos")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>", "<unk>"]
WORDS = ["user", "assistant", "what", "is", "this", "a", "photo", "of"]
WORDS += ["cat", "boat", "building", "butterfly", "castle", "orange"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %} {{ part['text'] }} {% endif %}{% endfor %}<|im_end|> {% endfor %}"
)


def save_tiny_model(folder: str) -> str:
    """Writes the model and its processor as a checkpoint is published; returns the folder."""
    bare = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, additional_special_tokens=SPECIAL[1:-1], **named)
    images = Qwen2VLImageProcessor(min_pixels=3136, max_pixels=50_176)
    Qwen2_5_VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE).save_pretrained(folder)
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"intermediate_size": 128, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10_000.0}}
    tower = {"depth": 4, "hidden_size": 64, "num_heads": 2, "intermediate_size": 100, "out_hidden_size": 64}
    tower |= {"fullatt_block_indexes": [1, 3]}
    numbers = {f"{name}_token_id": SPECIAL.index(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    numbers |= {f"{name}_token_id": SPECIAL.index(f"<|{name}_pad|>") for name in ("image", "video")}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=tower, **numbers))
    with torch.no_grad():
        for parameter in model.model.visual.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)  # else what the tower says is too faint to matter
    model.save_pretrained(folder)
    return folder


@contextmanager
def encoded(photos: str, model_path: str | None, *options: str) -> Iterator[tuple[str, str]]:
    """Encodes photos in float32, in one process, by a model or a tiny one; yields the model's path and the output."""
    with TemporaryDirectory() as folder:
        model_path, output = model_path or save_tiny_model(f"{folder}/model"), f"{folder}/out"
        exact = ["--dtype", "float32", "--set", "output.dtype=float32", "--set", "cluster.engine=inline"]
        assert visionbake(["run", photos, output, "--model", model_path, *exact, *options]) == 0
        yield model_path, output


def side_by_side(cached: list[float], pixels: list[float]) -> list[tuple[float, float]]:
    """Prints the losses of each step from an output and from pixels, and returns them."""
    losses = list(zip(cached, pixels, strict=True))
    for step, (ours, reference) in enumerate(losses):
        print(f"step {step}: {ours:.6f} from the output, {reference:.6f} from pixels")
    return losses
