"""Trains with transformers' Trainer, from an output and from pixels: python examples/train_trainer.py [PHOTOS [MODEL]].

What differs is the processor, and what the messages name: keys of the output, or files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from shared import PHOTOS, encoded, side_by_side
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments
from visionbake import CachedProcessor, EmbeddingDataset

SETTINGS = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "remove_unused_columns": False}
SETTINGS |= {"logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True}


def chat(image: str) -> list[dict[str, Any]]:
    """A question about an image, and its answer."""
    question = [{"type": "image", "image": image}, {"type": "text", "text": "what is this"}]
    answer = [{"type": "text", "text": f"a photo of {Path(image).stem}"}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def train(model_path: str, images: list[str], processor: Any) -> list[float]:
    """Trains the language model and returns the losses; from an output without the tower."""
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    if isinstance(processor, CachedProcessor):
        model.model.visual = None
    options = {"tokenize": True, "return_dict": True, "processor_kwargs": {"padding": True, "return_tensors": "pt"}}

    def collate(chats: list[Any]) -> dict[str, Any]:
        inputs = processor.apply_chat_template(chats, **options)
        return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(output_dir=folder, **SETTINGS)
        trainer = Trainer(model, arguments, collate, train_dataset=[chat(image) for image in images])
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def main(photos: str = PHOTOS, model_path: str | None = None) -> list[tuple[float, float]]:
    with encoded(photos, model_path) as (model_path, output):
        processor, keys = AutoProcessor.from_pretrained(model_path), list(EmbeddingDataset(output).keys())
        cached = train(model_path, keys, CachedProcessor(processor, output))
        pixels = train(model_path, [str(Path(photos, key)) for key in keys], processor)
    return side_by_side(cached, pixels)


if __name__ == "__main__":
    main(*sys.argv[1:])
