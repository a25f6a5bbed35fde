"""Patches: pixels to uint8 patches, one frame each, in the reference's patch order.

    encoded bytes ─▶ RGB uint8 [H, W, 3] ─▶ resized uint8 [3, H', W'] ─▶ patches uint8 [P, 3·p·p]

Normalising happens on the device: what leaves here is an eighth of the bytes of the reference's `pixel_values`, and,
once normalised and repeated over the two frames, the same bits.

The side p of a patch is 14 or 16 pixels; what the values are normalised by is the tower's affair.

Source: transformers 5.23, `models/qwen2_vl/image_processing_qwen2_vl.py`, torchvision backend.
"""

from __future__ import annotations

import warnings

import numpy as np

from .. import rejects
from ..grid import Geometry, smart_resize
from ..index.headers import header_of, open_image
from ..rejects import Reject
from .decode import CHANNELS, Decoder, Uint8


def resize(pixels: Uint8, height: int, width: int) -> Uint8:
    """Bicubic with antialiasing, as torchvision does it on uint8.

    Args:
        pixels: uint8 [H, W, 3].

    Returns:
        uint8 [3, height, width], contiguous.
    """
    import torch  # here, so that a process which only indexes does not load it
    from torch.nn import functional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a read-only array is only read here
        planes = torch.from_numpy(pixels).permute(2, 0, 1)
    if planes.shape[1:] != (height, width):
        planes = functional.interpolate(planes[None], size=(height, width), mode="bicubic", antialias=True)[0]
    return planes.contiguous().numpy()


def cut_patches(
    planes: Uint8, patch_size: int, merge_size: int, out_PC: Uint8, frame: int = 0, frames: int = 1
) -> None:
    """Cuts [3, H, W] into patches, the merge_size² patches of a merged token together, channel before row.

    Rows of a patch move as one item of `patch_size` bytes, which is several times faster than moving bytes.

    Args:
        out_PC: uint8 [P, C], C = 3·frames·patch_size².
        frame: which of the `frames` of a temporal patch it is; the others are left as they are.
    """
    height, width = planes.shape[1] // patch_size, planes.shape[2] // patch_size
    row = np.dtype(f"V{patch_size}")
    shape = (height // merge_size, merge_size, patch_size, width // merge_size, merge_size)
    source = planes.view(row).reshape(CHANNELS, *shape)
    target = out_PC.view(row).reshape(shape[0], shape[3], merge_size, merge_size, CHANNELS, frames, patch_size)
    target[..., frame, :] = source.transpose(1, 4, 2, 5, 0, 3)


def prepare_image(
    data: bytes, geometry: Geometry, decoder: Decoder | None = None
) -> tuple[Uint8, tuple[int, int, int]]:
    """Encoded bytes to patches, for one image on its own.

    Returns:
        uint8 [P, C] and the grid `(1, h, w)`.

    Raises:
        Reject: for any reason that one image's bytes can give.
    """
    with open_image(data) as image:
        header = header_of(image, data)
        check_size(header.width, header.height, geometry)
        pixels = (decoder or Decoder()).decode(image, data, header.orientation)
    return patches_of_pixels(pixels, geometry)


def patches_of_pixels(pixels: Uint8, geometry: Geometry) -> tuple[Uint8, tuple[int, int, int]]:
    """RGB uint8 [H, W, 3] to patches uint8 [P, C] and the grid. Raises Reject: `aspect_ratio`."""
    height, width, _ = target_size(pixels.shape[1], pixels.shape[0], geometry)
    grid = (1, height // geometry.patch_size, width // geometry.patch_size)
    patches_PC = np.empty((grid[1] * grid[2], CHANNELS * geometry.patch_size**2), np.uint8)
    cut_patches(resize(pixels, height, width), geometry.patch_size, geometry.merge_size, patches_PC)
    return patches_PC, grid


def check_size(width: int, height: int, geometry: Geometry) -> None:
    """Raises Reject `too_many_pixels`."""
    if width * height > geometry.max_image_pixels:
        limit = geometry.max_image_pixels
        raise Reject(rejects.TOO_MANY_PIXELS, f"{width}x{height} is over limits.max_image_pixels {limit}")


def target_size(width: int, height: int, geometry: Geometry) -> tuple[int, int, str]:
    try:
        return smart_resize(height, width, geometry.factor, geometry.min_pixels, geometry.max_pixels)
    except ValueError as error:
        raise Reject(rejects.ASPECT_RATIO, str(error)) from error
