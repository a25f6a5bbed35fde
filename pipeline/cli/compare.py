"""Comparison: accepted samples encoded again by transformers' own processor and tower.

M tokens, O values of a row, S streams.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..encode.dtypes import split_streams
from ..errors import RequestError, SourceError
from ..index.headers import open_image
from ..index.read import read_index_rows
from ..output.verify import Verifier
from ..prepare.decode import Decoder
from ..read.items import Item, rows_of
from ..read.reader import EmbeddingDataset
from ..source.formats import format_named
from ..source.sample import IndexedSample
from ..storage.large import Encoded
from ..tower.checkpoint import Checkpoint
from ..tower.reference import reference_processor, reference_tower, run_reference
from .compare_clips import clip_values

SEED = 11
# Largest relative RMS between a stored image and the reference in float32: what the dtypes themselves cost, twice over.
LIMITS = {"float32": 1e-4, "float16": 2e-3, "bfloat16": 0.02, "int8": 0.04, "fp8": 0.08}
BFLOAT16_TOWER = 0.06


def compared(verifier: Verifier, count: int) -> list[dict[str, Any]]:
    """Encodes `count` accepted samples again, in float32; each stream is compared by itself, and the worst one counts.

    Raises:
        ImportError: the reference is not installed.
        RequestError: the checkpoint is gone or another one, or the output is not of merged tokens.
        SourceError: a sample's file has vanished.
    """
    config = verifier.dataset.config
    if config["output"]["stage"] != "merged":
        raise RequestError("--sample compares merged tokens; this output is of stage pre_merger")
    checkpoint = _checkpoint_of(verifier)
    preprocess = config["preprocess"]
    processor = reference_processor(checkpoint.config, preprocess["min_pixels"], preprocess["max_pixels"])
    tower = reference_tower(checkpoint, torch.float32, torch.device("cpu"))
    dataset = EmbeddingDataset(str(verifier.output), allow_incomplete=True)
    limit = LIMITS[config["output"]["dtype"]]
    if config["model"]["dtype"] == "bfloat16":
        limit = max(limit, BFLOAT16_TOWER)
    results: list[dict[str, Any]] = []
    decoder = Decoder()
    for sample, item, data in _drawn(verifier, dataset, count):
        if sample.video is not None:
            values_PC, grid = clip_values(sample, data, verifier.geometry, checkpoint.config)
        else:
            assert isinstance(data, bytes)
            with open_image(data) as opened:
                image = Image.fromarray(decoder.decode(opened, data, sample.orientation or 1))
            values = processor(images=[image], return_tensors="pt")
            t, h, w = (int(size) for size in values["image_grid_thw"][0])
            values_PC, grid = values["pixel_values"], (t, h, w)
        exact_MO = run_reference(tower, values_PC, [grid])
        away = distances(rows_of(item).float(), exact_MO, dataset.streams)
        result = {"key": sample.key, "source": sample.source, "relative_rms": max(away), "limit": limit}
        results.append(result | ({"relative_rms_by_stream": away} if dataset.streams else {}))
    return results


def _checkpoint_of(verifier: Verifier) -> Checkpoint:
    """The checkpoint that an output was made with. Raises RequestError: it is gone, or another one."""
    config = verifier.dataset.config
    deepstack = config["output"].get("deepstack", True)  # an output of an earlier version does not speak of it
    checkpoint = Checkpoint(config["model"]["path"], config["model"]["revision"], deepstack=deepstack)
    if checkpoint.sha256() != verifier.dataset.fingerprint_facts["tower_sha256"]:
        raise RequestError(f"--sample: {config['model']['path']} holds other weights than this output was made with")
    return checkpoint


def _drawn(verifier: Verifier, dataset: EmbeddingDataset, count: int) -> Iterator[tuple[IndexedSample, Item, Encoded]]:
    """Yields samples drawn from all accepted ones, what is stored of each, and its bytes. Raises SourceError."""
    assert verifier.plan.planned is not None
    reader = format_named(verifier.plan.planned.format).reader(verifier.plan.planned.columns)
    chosen = np.random.default_rng(SEED).permutation(len(dataset))[:count]
    wanted = {(item["source"], item["key"]): item for item in (dataset[int(number)] for number in chosen)}
    for part in range(verifier.plan.num_parts):
        for sample in read_index_rows(verifier.plan.index_path(part), 0, sys.maxsize):
            item = wanted.pop((sample.source, sample.key), None) if sample.status == "ok" else None
            if item is None:
                continue
            data = reader.read(verifier.plan.part(part), [sample]).encoded[0]
            if data is None:
                raise SourceError(f"{sample.path}, named by {sample.source}, has vanished since it was indexed")
            yield sample, item, data


def distances(ours_MO: Tensor, exact_MO: Tensor, streams: int) -> list[float]:
    """Relative RMS of each stream by itself: among all of them a wrong one, or a small one, would not be seen."""
    if exact_MO.shape != ours_MO.shape:
        return [float("inf")]
    exact_MSO = split_streams(exact_MO, streams)
    away_S = (split_streams(ours_MO, streams) - exact_MSO).norm(dim=(0, 2)) / exact_MSO.norm(dim=(0, 2))
    return [float(away) for away in away_S]
