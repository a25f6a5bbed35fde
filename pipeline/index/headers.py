"""Headers of encoded images: format, size as displayed, orientation. No pixel is decoded.

Pillow parses the headers, with the decoders of the allow-list and no other.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from .. import rejects
from ..rejects import Reject
from ..source.image_formats import FORMATS
from ..source.unknown import name_of, raw_name

MAX_SIDE = 2**31 - 1  # what the index's columns hold
# What Pillow's plugins raise on damaged bytes, beside OSError.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    NotImplementedError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)
# Sizes are judged here, from the header, against the configuration's limit.
Image.MAX_IMAGE_PIXELS = None
# What one text or colour profile of a PNG, and all of them, may unpack to. Past that it is opened without them.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 16 << 20, 64 << 20
TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
PNG_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts that may hold an orientation


@dataclass(frozen=True, kw_only=True)
class Header:
    """Facts about encoded bytes. `width` and `height` have `orientation` (EXIF, 1 to 8) applied."""

    format: str
    width: int
    height: int
    orientation: int


def open_image(data: bytes) -> Image.Image:
    """Opens encoded bytes without decoding; a PNG whose metadata is larger than Pillow may unpack, without it.

    Raises:
        Reject: `truncated` (no bytes), `unidentified`, `corrupt`.
    """
    if not data:
        raise Reject(rejects.TRUNCATED, "the file has no bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            name = name_of(data)
            what = f"{name}; it is not" if name else "not"
            raise Reject(rejects.UNIDENTIFIED, f"{what} one of {', '.join(FORMATS)}") from None
        except DECODE_ERRORS as error:
            for kept in (PNG_ORIENTATION, ()) if isinstance(error, ValueError) else ():
                with suppress(*DECODE_ERRORS):
                    return Image.open(io.BytesIO(without_metadata(data, kept)), formats=FORMATS)
            raise Reject(rejects.CORRUPT, f"damaged header: {error}") from error


def without_metadata(data: bytes, kept: tuple[bytes, ...] = ()) -> bytes:
    """A PNG without its texts and its colour profile, but those that begin with one of `kept`; else the same bytes."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    pieces, start = [], 0
    for kind, position, length in _png_chunks(data):
        if kind in PNG_METADATA and not (kept and data.startswith(kept, position + 8)):
            pieces.append(data[start:position])
            start = position + 12 + length
    return b"".join([*pieces, data[start:]]) if pieces else data


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's kind, where it begins, and how long its data is, 8 bytes further on.

    Source: PNG specification (third edition), 5.3.
    """
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position, length
        position += 12 + length


def read_header(data: bytes) -> Header:
    """Reads the header of one encoded image. Raises Reject as `open_image` does."""
    if data[:4] in TIFF_SIGNATURES and (name := name_of(data)):
        raise Reject(rejects.UNIDENTIFIED, f"{name}; it is not one of {', '.join(FORMATS)}")
    with open_image(data) as image:
        if image.format == "TIFF" and (name := raw_name(image)):
            raise Reject(rejects.UNIDENTIFIED, f"{name}; it is not one of {', '.join(FORMATS)}")
        return header_of(image, data)


def header_of(image: Image.Image, data: bytes) -> Header:
    """The header of an image that `open_image` opened. Raises Reject: `corrupt`."""
    try:
        orientation = _orientation(image, data)
    except DECODE_ERRORS:
        orientation = 1  # damaged EXIF leaves the picture as it is stored
    width, height = image.size
    if width < 1 or height < 1:
        raise Reject(rejects.CORRUPT, f"a size of {width}x{height}")
    if max(width, height) > MAX_SIDE:
        raise Reject(rejects.TOO_MANY_PIXELS, f"a size of {width}x{height}")
    if orientation >= 5:
        width, height = height, width
    # A JPEG with several pictures in it (as phones write) is opened as MPO; its first frame is the photo.
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    return Header(format=kind, width=width, height=height, orientation=orientation)


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "TIFF":
        return 1  # Pillow's reader applies a TIFF's orientation itself, to the size as well
    if image.format == "PNG" and "exif" not in image.info and (late := _late_png_exif(data)):
        image.info["exif"] = late
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The base class's method: that of PNG would decode all pixels in search of a late eXIf chunk.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _late_png_exif(data: bytes) -> bytes:
    """The eXIf chunk of a PNG, wherever it stands. Source: PNG specification (third edition), 11.3.2."""
    for kind, position, length in _png_chunks(data):
        if kind == b"eXIf":
            return b"Exif\0\0" + data[position + 8 : position + 8 + length]
        if kind == b"IEND":
            break
    return b""
