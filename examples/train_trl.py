"""Trains with TRL's SFTTrainer, from an output and from pixels: python examples/train_trl.py [PHOTOS [MODEL]].

What differs is the collator's processor, and that rows name images by their keys.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from shared import PHOTOS, encoded, side_by_side
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from visionbake import CachedProcessor, EmbeddingDataset

SETTINGS = {"max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "max_length": None}
SETTINGS |= {"logging_steps": 1, "report_to": "none", "save_strategy": "no", "bf16": False, "use_cpu": True}


def row(key: str, image: Any) -> dict[str, Any]:
    """A row as TRL has them; of an output the image is its key."""
    question, answer = "what is this", f"a photo of {Path(key).stem}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "images": [image]}


def train(model_path: str, rows: list[dict[str, Any]], processor: Any) -> list[float]:
    """Trains the language model and returns the losses; from an output without the tower."""
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
    model.model.visual.requires_grad_(False)
    if isinstance(processor, CachedProcessor):
        model.model.visual = None
    collate, plain = DataCollatorForVisionLanguageModeling(processor), AutoProcessor.from_pretrained(model_path)
    with TemporaryDirectory() as folder:
        arguments = SFTConfig(output_dir=folder, **SETTINGS)
        trainer = SFTTrainer(model, arguments, collate, Dataset.from_list(rows), processing_class=plain)
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def main(photos: str = PHOTOS, model_path: str | None = None) -> list[tuple[float, float]]:
    with encoded(photos, model_path) as (model_path, output):
        processor, keys = AutoProcessor.from_pretrained(model_path), list(EmbeddingDataset(output).keys())
        cached = train(model_path, [row(key, key) for key in keys], CachedProcessor(processor, output))
        pixels = train(model_path, [row(key, Image.open(Path(photos, key))) for key in keys], processor)
    return side_by_side(cached, pixels)


if __name__ == "__main__":
    main(*sys.argv[1:])
