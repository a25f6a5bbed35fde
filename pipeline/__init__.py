"""visionbake: the vision tower of a vision-language model, run once over an image data set.

The ground floor, which everything may use:

    config    the configuration file
    errors    one error type per kind of failure
    rejects   why an image has no tokens
    sampling  which frames of a clip are taken, and how large: the settings, written out
    grid      sizes, windows and positions that a grid decides; Geometry
    fault     named places at which a test can kill a process
    process   a process's share of its machine

The wings, in the order of the data flow. Each imports the ground floor and the wings above it, never one below
(`tests/test_architecture.py` holds that); the docstring of a wing lists its modules in reading order:

    storage   where bytes lie: local files and object stores; scratch; publishing
    source    what the source is: listing, parts, tars, rows, carried columns
    index     facts about every sample's bytes; cutting units
    prepare   a unit's bytes to patches
    tower     the tower
    encode    patches to tokens
    output    what a run leaves behind: shards, commit, fingerprint, totals
    run       which process does what, on Ray or inline; the whole run
    estimate  what a run would write and cost
    read      an output as a data set, and for its consumers
    cli       the commands

The package is installed as `visionbake`; in a checkout it is the folder `pipeline`. Inside, imports are relative, so
that it is the same code under either name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .batch_encoder import BatchEncoder
    from .read.processor import CachedProcessor
    from .read.reader import EmbeddingDataset
    from .read.stream import EmbeddingStream
    from .vision_encoder import Embedding, VisionEncoder

__all__ = ["BatchEncoder", "CachedProcessor", "Embedding", "EmbeddingDataset", "EmbeddingStream", "VisionEncoder"]
_MODULES = {
    "BatchEncoder": ".batch_encoder",
    "CachedProcessor": ".read.processor",
    "Embedding": ".vision_encoder",
    "EmbeddingDataset": ".read.reader",
    "EmbeddingStream": ".read.stream",
    "VisionEncoder": ".vision_encoder",
}


def __getattr__(name: str) -> object:
    """Loads the public classes on first use: importing a stage must not import them all."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
