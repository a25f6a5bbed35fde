"""visionbake: the vision tower of a vision-language model, run once over an image data set.

The stages, in flow order:

    config       the configuration file
    remote       object storage, and all else that fsspec opens (remote_read, remote_publish: by the file)
    files        opening, scratch and publishing, wherever files lie
    sources      list: a source to its files
    rows         Parquet and JSONL: ranges of rows, and their images' bytes (places: what rows and lines name)
    parts        the plan: files to numbered parts
    carry        what stands beside an image in the source
    tar          strict reading of tar structure
    headers      what an encoded image's header says
    index        facts about every sample's bytes (index_read: reading them)
    grid         sizes, windows and positions that a grid decides
    units        cut: an index to units, one output shard each
    decode       encoded bytes to RGB pixels, the image policy
    guard        the same for bytes that may crash their decoder
    unit_reader  a unit's bytes, in few requests
    prepare      resize, cut into patches: a unit's bytes to its patches
    pack         which images share a forward
    tower_config the tower's dimensions
    checkpoint   its tensors (random_tower makes some)
    encoder      the tower
    linear       its matrix products
    fused        what lies between them on a GPU
    storage      the dtypes that tokens are stored in
    encode       a prepared unit to its tokens (fp8_error: what fp8 products cost)
    shard        write a data shard (shard_tar: as WebDataset)
    commit       publish it, then its samples shard (layout: under which names)
    output       fingerprint, totals, _SUCCESS (card: its README.md)
    settings     what the stages of a run are told
    stages       what one process of each kind does (process: its cores and memory)
    driver       which process does what (engine_inline, engine_ray run them; ray_cluster)
    request      a configuration checked against the world
    runner       the whole run (metrics_ray: what Prometheus sees of it)
    estimate     what a run would write and cost (estimate_plan: of all parts; duplicates, output_size)
    sampling     headers drawn from a source (sampling_images), for an estimate with intervals (extrapolate)
    pace         how fast units were encoded, and how busy encoders were
    verify       an output's files against their records and the source's index
    reader       an output as a data set of torch, row by row
    stream       the same for training: shuffled, split, resumable
    adapters     what transformers, vLLM and SGLang take
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.adapters import CachedProcessor
    from pipeline.reader import EmbeddingDataset
    from pipeline.stream import EmbeddingStream
    from pipeline.vision_encoder import Embedding, VisionEncoder

__all__ = ["CachedProcessor", "Embedding", "EmbeddingDataset", "EmbeddingStream", "VisionEncoder"]
_PLACES = {
    "CachedProcessor": "adapters",
    "Embedding": "vision_encoder",
    "EmbeddingDataset": "reader",
    "EmbeddingStream": "stream",
    "VisionEncoder": "vision_encoder",
}


def __getattr__(name: str) -> object:
    """Loads the public classes on first use: importing a stage must not import them all."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"pipeline.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
