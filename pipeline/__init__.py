"""visionbake: the vision tower of a vision-language model, run once over an image data set.

The stages, in flow order:

    config       the configuration file
    parts        list: a source to numbered parts
    tar          strict reading of tar structure
    headers      what an encoded image's header says
    index        facts about every sample's bytes
    grid         sizes, windows and positions that a grid decides
    units        cut: an index to units, one output shard each
    decode       encoded bytes to RGB pixels, the image policy
    prepare      resize, cut into patches; a unit's bytes to its patches
    pack         which images share a forward
    checkpoint   the tower's dimensions and tensors (random_tower makes some)
    encoder      the tower
    encode       a prepared unit to its tokens
    shard        write a data shard
    commit       publish it, then its samples shard
    output       fingerprint, totals, card, _SUCCESS
    stages       what one process of each kind does
    driver       which process does what (engine_inline, engine_ray run them)
    runner       the whole run
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.vision_encoder import Embedding, VisionEncoder

__all__ = ["Embedding", "VisionEncoder"]


def __getattr__(name: str) -> object:
    """Loads the public classes on first use: importing a stage must not import them all."""
    if name in __all__:
        from pipeline import vision_encoder

        return getattr(vision_encoder, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
