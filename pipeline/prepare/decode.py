"""Decode: encoded bytes to RGB pixels, by the image policy of docs/sources.md.

Plain JPEGs go through simplejpeg (libjpeg-turbo), everything else through Pillow with the allow-list's decoders.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

from .. import rejects
from ..errors import ReaderLost
from ..index.headers import DECODE_ERRORS, header_of, open_image, without_metadata
from ..rejects import Reject

try:  # the fast JPEG decoder is optional: the same libjpeg-turbo inside Pillow gives the same bits
    import simplejpeg
except ImportError:  # pragma: no cover - on machines without the wheel
    simplejpeg = None

Uint8 = npt.NDArray[np.uint8]
CHANNELS = 3
WHITE = (255, 255, 255, 255)
MAX_BUFFER_BYTES = 128 << 20


class Decoder:
    """Decodes one image after another, the pixels of JPEGs into one buffer that the next image overwrites.

    Fresh memory costs more than it seems: the system hands it out page by page, zeroed.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(0, np.uint8)

    def decode(self, image: Image.Image, data: bytes, orientation: int) -> Uint8:
        """Decodes an image that `open_image` opened, as `decode` does. The result may lie in the buffer."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels = None
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                pixels = _decode_jpeg(data, self._room(image.width * image.height * CHANNELS))
            if pixels is None:
                try:
                    pixels = _decode_any(image, data)
                except DECODE_ERRORS as error:
                    message = str(error) or type(error).__name__
                    short = isinstance(error, EOFError) or "truncated" in message.lower()
                    raise Reject(rejects.TRUNCATED if short else rejects.CORRUPT, message) from error
                except MemoryError as error:  # of the world: another machine, or this one later, may have it
                    raise ReaderLost(f"there was no memory to decode {image.width}×{image.height} pixels") from error
        return _orient(pixels, orientation)

    def _room(self, size: int) -> Uint8 | None:
        if size > MAX_BUFFER_BYTES:
            return None
        if size > len(self._buffer):
            self._buffer = np.empty(size, np.uint8)
        return self._buffer


def decode(data: bytes) -> Uint8:
    """Decodes one encoded image by the image policy of docs/sources.md.

    Args:
        data: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.

    Returns:
        RGB, uint8 [H, W, 3], as displayed.

    Raises:
        Reject: `truncated`, `unidentified`, `corrupt` or `unsupported_mode`.
    """
    with open_image(data) as image:
        return Decoder().decode(image, data, header_of(image, data).orientation)


def _decode_jpeg(data: bytes, buffer: Uint8 | None) -> Uint8 | None:
    """RGB pixels, or None where the JPEG has any oddity: then Pillow decides what it is worth."""
    if simplejpeg is None:
        return None
    try:
        return simplejpeg.decode_jpeg(
            data, colorspace="RGB", fastdct=False, fastupsample=False, strict=True, buffer=buffer
        )
    except ValueError:
        return None


def _decode_any(image: Image.Image, data: bytes) -> Uint8:
    """RGB pixels of any image; of a PNG whose metadata behind the pixels is larger than Pillow may unpack, without it.

    Raises:
        Reject, any of DECODE_ERRORS, MemoryError.
    """
    try:
        return np.asarray(to_rgb(image))
    except ValueError:
        pixels_only = without_metadata(data)
        if len(pixels_only) == len(data):
            raise
    with open_image(pixels_only) as image:
        return np.asarray(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Decodes the first frame to mode RGB; transparency on white, 16 bits scaled to 8 by their high byte."""
    image.seek(0)
    image.load()
    mode = image.mode
    if mode.startswith("I;16"):
        wide = np.asarray(image)
        eight = Image.fromarray((wide >> 8).astype(np.uint8))
        transparent = image.info.get("transparency")
        if not isinstance(transparent, int):
            return eight.convert("RGB")
        alpha = Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8))
        return _on_white(Image.merge("LA", (eight, alpha)))
    if mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        raise Reject(rejects.UNSUPPORTED_MODE, f"pixels of mode {mode}")
    if image.has_transparency_data:
        return _on_white(image)
    return image if mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")


def _orient(pixels: Uint8, orientation: int) -> Uint8:
    """Applies an EXIF orientation. Source: EXIF 2.32, tag 0x0112."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
