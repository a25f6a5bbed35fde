"""Geometry of a checkpoint: its factor, and budgets of pixels, which are its own where nobody asks for others."""

from __future__ import annotations

from ..errors import RequestError
from ..grid import Geometry
from .config import TowerConfig


def geometry_of(
    config: TowerConfig,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    max_image_pixels: int,
    spelling: str = "{}",
) -> Geometry:
    """The sizes and budgets that decide the grids of images for a tower.

    Args:
        min_pixels, max_pixels: None for the checkpoint's own.
        spelling: how the caller's user writes `min_pixels` and `max_pixels`, for errors.

    Raises:
        RequestError: a budget holds not one merged token, or there is no size between the two.
    """
    low = config.min_pixels if min_pixels is None else min_pixels
    high = config.max_pixels if max_pixels is None else max_pixels
    names = {name: spelling.format(name) for name in ("min_pixels", "max_pixels")}
    if high < config.factor**2:
        raise RequestError(
            f"{names['max_pixels']}: {high} is less than one token of {config.model_type}, which is "
            f"{config.factor}x{config.factor} pixels ({config.factor**2})"
        )
    if high < low:
        others = [name for name, asked in (("min_pixels", min_pixels), ("max_pixels", max_pixels)) if asked is None]
        own = f"; {' and '.join(names[name] for name in others)} is the checkpoint's own: set it too" if others else ""
        raise RequestError(f"{names['max_pixels']} ({high}) must be at least {names['min_pixels']} ({low}){own}")
    return Geometry(
        patch_size=config.patch_size,
        merge_size=config.merge_size,
        temporal_patch_size=config.temporal_patch_size,
        min_pixels=low,
        max_pixels=high,
        max_image_pixels=max_image_pixels,
    )
