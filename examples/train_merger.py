"""Trains merger and language model from what lies before the merger: python examples/train_merger.py [PHOTOS [MODEL]].

The blocks of the tower are frozen and ran once (`output.stage: pre_merger`); the merger runs live, with gradients.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from shared import PHOTOS, encoded, side_by_side
from train_trainer import chat
from transformers import AutoModelForImageTextToText, AutoProcessor
from visionbake import CachedProcessor, EmbeddingDataset
from visionbake.read.adapters import run_merger

STEPS, BATCH = 6, 2


def train(model_path: str, images: list[str], processor: Any) -> list[float]:
    """Trains the merger and the language model and returns the losses; from an output without the tower's blocks."""
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype=torch.float32)
    visual, merger = model.model.visual.requires_grad_(False), model.model.visual.merger.requires_grad_(True)
    if isinstance(processor, CachedProcessor):
        visual.blocks = None
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    options = {"tokenize": True, "return_dict": True, "processor_kwargs": {"padding": True, "return_tensors": "pt"}}
    losses = []
    for step in range(STEPS):
        first = step * BATCH % (len(images) - BATCH + 1)
        inputs = dict(processor.apply_chat_template([chat(one) for one in images[first : first + BATCH]], **options))
        if "mm_encoder_outputs" in inputs:  # of an output: what the merger takes, not what it gives
            image = inputs["mm_encoder_outputs"]["image"]
            image.pooler_output = run_merger(merger, [{"image_embeds": one} for one in image.pooler_output])
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        assert all(one.grad is not None for one in merger.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def main(photos: str = PHOTOS, model_path: str | None = None) -> list[tuple[float, float]]:
    with encoded(photos, model_path, "--set", "output.stage=pre_merger") as (model_path, output):
        processor, keys = AutoProcessor.from_pretrained(model_path), list(EmbeddingDataset(output).keys())
        cached = train(model_path, keys, CachedProcessor(processor, output))
        pixels = train(model_path, [str(Path(photos, key)) for key in keys], processor)
    return side_by_side(cached, pixels)


if __name__ == "__main__":
    main(*sys.argv[1:])
