"""Metadata of any size never makes a picture a reject. Catches: a whole workflow in a PNG, and the picture is lost."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from conftest import encoded, noise
from PIL import Image, PngImagePlugin

from pipeline.index.headers import read_header, without_metadata
from pipeline.prepare.decode import decode

PIXELS = noise(40, 56)
MEGA = 1 << 20


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(size: int) -> bytes:
    return zlib.compress(b"x" * size, 1)


def text(size: int) -> bytes:
    return chunk(b"tEXt", b"workflow\0" + b"x" * size)


def packed_text(size: int, name: bytes = b"prompt") -> bytes:
    return chunk(b"zTXt", name + b"\0\0" + packed(size))


def international(size: int) -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed(size))


def profile(size: int) -> bytes:
    return chunk(b"iCCP", b"ICC\0\0" + packed(size))


def png(before: bytes = b"", behind: bytes = b"", pixels: bytes | None = None) -> bytes:
    """A PNG with chunks before and behind its pixels."""
    plain = pixels or encoded(PIXELS)
    end = plain.index(b"IEND") - 4
    return plain[:33] + before + plain[33:end] + behind + plain[end:]


WITH_METADATA: dict[str, Callable[[], bytes]] = {
    "text-3MB": lambda: png(text(3 * MEGA)),
    "packed-text-3MB": lambda: png(packed_text(3 * MEGA)),
    "packed-text-40MB": lambda: png(packed_text(40 * MEGA)),
    "xmp-2MB": lambda: png(international(2 * MEGA)),
    "xmp-40MB": lambda: png(international(40 * MEGA)),
    "profile-2MB": lambda: png(profile(2 * MEGA)),
    "profile-80MB": lambda: png(profile(80 * MEGA)),
    "many": lambda: png(packed_text(15 * MEGA) * 6),
    "text-behind": lambda: png(behind=packed_text(2 * MEGA)),
    "bomb-behind": lambda: png(behind=packed_text(60 * MEGA)),
    "both-sides": lambda: png(packed_text(20 * MEGA), international(20 * MEGA)),
    "exif-as-text-that-is-a-bomb": lambda: png(packed_text(40 * MEGA, b"Raw profile type exif")),
}


@pytest.mark.parametrize("name", WITH_METADATA)
def test_a_png_with_large_metadata_is_its_picture(name: str) -> None:
    data = WITH_METADATA[name]()
    header = read_header(data)
    assert (header.format, header.width, header.height, header.orientation) == ("PNG", 56, 40, 1)
    assert np.array_equal(decode(data), PIXELS)


def test_these_are_past_what_pillow_takes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", MEGA)  # its default
    with pytest.raises(ValueError, match="too large"):
        Image.open(io.BytesIO(WITH_METADATA["packed-text-3MB"]())).load()


@pytest.mark.parametrize("before", [b"", packed_text(40 * MEGA), profile(80 * MEGA)])
def test_orientation_and_transparency_stay(before: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert("P").save(stream, "PNG", exif=exif, transparency=0)
    plain = stream.getvalue()
    data = png(before, pixels=plain)
    assert (read_header(data).width, read_header(data).orientation) == (40, 6)
    assert np.array_equal(decode(data), decode(plain))


def test_an_orientation_in_a_text_stays_beside_one_that_is_too_large() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" xmlns:tiff="t"><a tiff:Orientation="3"/></x:xmpmeta>'
    small = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    plain = read_header(png(small))
    assert plain.orientation == 3
    assert read_header(png(small + packed_text(40 * MEGA))) == plain


def large_metadata(kind: str) -> bytes:
    options: dict[str, object] = {
        "JPEG": {"icc_profile": b"p" * (3 * MEGA), "comment": b"c" * 60_000, "quality": 95},
        "WEBP": {"icc_profile": b"p" * (3 * MEGA), "xmp": b"x" * (3 * MEGA), "lossless": True},
        "TIFF": {"icc_profile": b"p" * (3 * MEGA), "description": "d" * (3 * MEGA)},
        "GIF": {"comment": b"c" * (2 * MEGA)},
    }[kind]  # type: ignore[assignment]
    return encoded(PIXELS, kind, **options)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "GIF"])
def test_other_formats_with_large_metadata_are_their_picture(kind: str) -> None:
    options: dict[str, object] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    data = large_metadata(kind)
    assert len(data) > 2 * MEGA
    assert np.array_equal(decode(data), decode(encoded(PIXELS, kind, **options)))


def test_what_is_no_metadata_is_never_left_out() -> None:
    for data in (encoded(PIXELS), encoded(PIXELS, "JPEG"), b"", b"\x89PNG\r\n\x1a\n", encoded(PIXELS)[:40]):
        assert without_metadata(data) == data
