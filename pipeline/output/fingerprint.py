"""Fingerprint: exactly what decides a byte of an output."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata

from ..config_fields import Config
from ..sampling import VideoSampling
from .layout import SCHEMA_VERSION
from .video_schema import VIDEO_SCHEMA_VERSION

# Fields of the configuration that outputs of earlier versions do not have, with what was so before them.
LATER_FIELDS: dict[str, object] = {"output.deepstack": True, "model.attention": "auto"}
_NO_DEFAULT = object()


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def config_facts(config: Config, sampling: VideoSampling | None = None) -> dict[str, object]:
    """The part of the fingerprint that is known before any device is: flat, so that a difference has a name.

    The checkpoint counts by its tensors (`tower_sha256`), not by the path or revision it was found at. A field that
    outputs of earlier versions do not have counts as its default there: it is a fact only where it says otherwise.

    Args:
        sampling: of an output that has clips; where there are none, nothing about them is a fact.
    """
    facts: dict[str, object] = {"schema_version": SCHEMA_VERSION}
    for section, without in (
        ("preprocess", ("video",)),
        ("model", ("path", "revision", "compile")),
        ("pack", ()),
        ("output", ("uri",)),
    ):
        for name, value in getattr(config, section).model_dump().items():
            if name not in without and LATER_FIELDS.get(f"{section}.{name}", _NO_DEFAULT) != value:
                facts[f"{section}.{name}"] = value
    if config.model.dtype == "auto":  # an encoder says what it comes to
        del facts["model.dtype"]
    if config.model.compile != "auto":  # what that comes to is known when the device is
        facts["compiled"] = config.model.compile == "on"
    if sampling is not None:
        facts["preprocess.video"], facts["video_schema_version"] = sampling.to_json(), VIDEO_SCHEMA_VERSION
        facts["source.media"], facts["source.video_column"] = config.source.media, config.source.video_column
    facts["source.image_column"] = config.source.image_column
    facts["source.key_column"] = config.source.key_column
    facts["source.carry"] = list(config.source.carry)
    facts["limits.max_image_pixels"] = config.limits.max_image_pixels
    facts["cluster.threads_per_encoder"] = config.cluster.threads_per_encoder
    return facts


def fingerprint_of(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
