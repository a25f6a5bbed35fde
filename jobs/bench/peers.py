"""Peers: the plain Ray Data recipe around the reference implementation, which `bench` measures against."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.reference import reference_processor, reference_tower, run_reference
from pipeline.tower.tower import Tower


def pixel_values(tower: Tower, patches_PC: Tensor) -> Tensor:
    """The reference's input, float32 [P, 3·t·p²], from our patches of still images."""
    config = tower.config
    frames = tower.normalize(patches_PC).view(len(patches_PC), config.in_channels, 1, -1)
    return frames.expand(-1, -1, config.temporal_patch_size, -1).reshape(len(patches_PC), -1)


class RayDataProcessor:
    """The recipe's first stage: encoded bytes to `pixel_values`, 8 images a batch."""

    def __init__(self, model: str, min_pixels: int, max_pixels: int) -> None:
        torch.set_num_threads(1)
        self._processor = reference_processor(Checkpoint(model, weights=False).config, min_pixels, max_pixels)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows: dict[str, Any] = {"path": list(batch["path"]), "pixel_values": [], "grid_thw": []}
        for data in batch["bytes"]:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            out = self._processor(images=[image], return_tensors="pt")
            rows["pixel_values"].append(out["pixel_values"].numpy())
            rows["grid_thw"].append(out["image_grid_thw"][0].numpy())
        return rows


class RayDataTower:
    """The recipe's second stage: `pixel_values` to embeddings, a batch a forward."""

    def __init__(self, model: str) -> None:
        torch.set_num_threads(1)
        self._tower = reference_tower(Checkpoint(model), torch.float32, torch.device("cpu"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        grids = [(int(t), int(h), int(w)) for t, h, w in batch["grid_thw"]]
        pixels = torch.cat([torch.as_tensor(values) for values in batch["pixel_values"]])
        tokens = run_reference(self._tower, pixels, grids)
        counts = [t * h * w // self._tower.spatial_merge_unit for t, h, w in grids]
        pieces = [piece.numpy() for piece in tokens.split(counts)]
        return {"path": list(batch["path"]), "grid_thw": list(batch["grid_thw"]), "embedding": pieces}


def run_ray_data_recipe(photos: Path, output: Path, model: str, min_pixels: int, max_pixels: int) -> int:
    """Runs what a user would write with Ray Data, in an initialised Ray; returns the number of rows written.

    Each stage asks for half a CPU: with Ray's defaults the recipe hangs on 2 cores.
    """
    import ray

    data = ray.data.read_binary_files(str(photos), include_paths=True, ray_remote_args={"num_cpus": 0.5})
    data = data.map_batches(
        RayDataProcessor,
        fn_constructor_kwargs={"model": model, "min_pixels": min_pixels, "max_pixels": max_pixels},
        batch_size=8,
        concurrency=1,
        num_cpus=0.5,
    ).map_batches(RayDataTower, fn_constructor_kwargs={"model": model}, batch_size=8, concurrency=1, num_cpus=0.5)
    data.write_parquet(str(output), ray_remote_args={"num_cpus": 0.5})
    return int(ray.data.read_parquet(str(output)).count())
