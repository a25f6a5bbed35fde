"""Video rules: `preprocess.video` with every default written out, for one family and one sampler.

Source: transformers 5.23, `models/qwen2_vl/video_processing_qwen2_vl.py`, `models/qwen2_5_omni/processing_*.py` and
the same of Qwen3; qwen-vl-utils 0.0.14, `vision_process.py`. Pixel limits are those of the files on the Hub.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config_fields import Video
from ..errors import RequestError
from ..sampling import TEMPORAL, Rule, VideoSampling

RULES: dict[str, Rule] = {
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_omni": "qwen2",
    "qwen3_omni_moe": "qwen2",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3",
    "qwen3_5": "qwen3",
    "qwen3_5_moe": "qwen3",
    "qwen4_exp": "qwen3",
}
# Their processors take it from the requested rate, or from a constant, and not from what was sampled.
OMNI_DEFAULT_FPS = {"qwen2_5_omni": 2.0, "qwen3_omni_moe": 1.0}
UTILS_SEQUENCE_TOKENS = 128_000
UTILS_MIN_TOKENS, UTILS_MAX_TOKENS = 128, 768


def resolve_sampling(video: Video, model_type: str, patch_size: int, merge_size: int) -> VideoSampling:
    """Writes out what the configuration leaves to the family.

    Raises:
        RequestError: the model type is not known, or a field is given that the sampler does not have.
    """
    if model_type not in RULES:
        raise RequestError(f"preprocess.video: model type {model_type} is none of {', '.join(RULES)}")
    rule: Rule = "utils" if video.sampler == "qwen_vl_utils" else RULES[model_type]
    sampling = _defaults(rule, video, model_type, patch_size, merge_size)
    given = {name: value for name in _FIELDS if (value := getattr(video, name)) is not None}
    for name in given:
        _check_has(sampling, name)
    if "num_frames" in given:
        given |= {"fps": None, "min_frames": None, "max_frames": None}
    sampling = replace(sampling, **given)
    if sampling.max_pixels < sampling.min_pixels:
        raise RequestError(
            f"preprocess.video: max_pixels {sampling.max_pixels} must be at least min_pixels {sampling.min_pixels}"
            f"{'' if video.min_pixels else ', the default of this sampler: set min_pixels too'}"
        )
    return sampling


def written_out(sampling: VideoSampling) -> Video:
    """The configuration that says all of it: what the family decided, too."""
    fields: dict[str, Any] = {name: getattr(sampling, name) for name in _FIELDS}
    if sampling.total_pixels is not None:
        fields["total_pixels"] = int(sampling.total_pixels)
    return Video(sampler=sampling.sampler, **fields)


_FIELDS = ("fps", "num_frames", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels")


def _defaults(rule: Rule, video: Video, model_type: str, patch_size: int, merge_size: int) -> VideoSampling:
    """The family's on the Hub, or the package's. `qwen2` samples only where a rate or a number is asked for."""
    area = (patch_size * merge_size) ** 2
    sampled = rule != "qwen2" or video.fps is not None
    omni = OMNI_DEFAULT_FPS.get(model_type)
    # Fields a rule does not use hold None; those of pixels are what the checkpoint's own files say.
    pixels = {"qwen2": (3136, 12_845_056), "qwen3": (4096, 25_165_824)}
    low, high = pixels.get(rule, (UTILS_MIN_TOKENS * area, UTILS_MAX_TOKENS * area))
    if rule == "qwen2" and omni is not None:
        low, high = UTILS_MIN_TOKENS * area, UTILS_MAX_TOKENS * area
    return VideoSampling(
        sampler=video.sampler,
        rule=rule,
        fps=2.0 if rule != "qwen2" else None,
        num_frames=None,
        min_frames=4 if sampled else None,
        max_frames=768 if sampled else None,
        min_pixels=low,
        max_pixels=high,
        total_pixels=UTILS_SEQUENCE_TOKENS * area * 0.9 if rule == "utils" else None,
        patch_size=patch_size,
        merge_size=merge_size,
        second_per_grid=None if omni is None or rule == "utils" else TEMPORAL / (video.fps or omni),
    )


def _check_has(sampling: VideoSampling, name: str) -> None:
    """Raises RequestError where the sampler has no such field, or does not look at it."""
    where = f"preprocess.video.{name}: sampler {sampling.sampler}"
    if name == "total_pixels" and sampling.rule == "qwen2":
        raise RequestError(f"{where} has no budget for a whole clip in this family; max_pixels is that of a frame")
    if name == "total_pixels" and sampling.rule == "qwen3":
        raise RequestError(f"{where} has no such field in this family; max_pixels is the budget of the whole clip")
    if name in ("min_frames", "max_frames") and sampling.max_frames is None:
        raise RequestError(f"{where} takes every frame in this family, unless fps is set")
