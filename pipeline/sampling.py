"""Sampling: `preprocess.video` with every default written out. `index/video_rules.py` writes them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Rule = Literal["qwen2", "qwen3", "utils"]
TEMPORAL = 2  # frames of a temporal patch, in every family


@dataclass(frozen=True, kw_only=True)
class VideoSampling:
    """`preprocess.video` with every default written out. A field that the rule does not have is None.

    Attributes:
        rule: `qwen2` or `qwen3` (transformers' video processors), or `utils` (qwen-vl-utils).
        fps, num_frames: at most one of them; neither takes every frame.
        min_pixels, max_pixels: of a frame; of all frames together where the rule is `qwen3`.
        total_pixels: of all frames together, each pair counted once.
        second_per_grid: what the reference says whatever was sampled; None where it follows from the frames.
    """

    sampler: Literal["transformers", "qwen_vl_utils"]
    rule: Rule
    fps: float | None
    num_frames: int | None
    min_frames: int | None
    max_frames: int | None
    min_pixels: int
    max_pixels: int
    total_pixels: float | None
    patch_size: int
    merge_size: int
    second_per_grid: float | None = None

    @property
    def factor(self) -> int:
        return self.patch_size * self.merge_size

    @property
    def row_bytes(self) -> int:
        """Bytes of a patch of a clip, of two frames."""
        return 3 * TEMPORAL * self.patch_size**2

    def to_json(self) -> dict[str, object]:
        return asdict(self)
