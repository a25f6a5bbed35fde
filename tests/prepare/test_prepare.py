"""Against transformers' image processor itself, and the image policy line by line."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PHOTOS, encoded, noise
from PIL import Image
from transformers import Qwen2VLImageProcessor

from pipeline import rejects
from pipeline.grid import Geometry
from pipeline.index.headers import read_header
from pipeline.prepare.decode import decode
from pipeline.prepare.patches import prepare_image
from pipeline.rejects import Reject
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.tower import Tower

GEOMETRY = Geometry(
    patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=3136, max_pixels=200_000, max_image_pixels=4_000_000
)


# Patches of 16 pixels, and another mean and deviation: what Qwen3-VL's checkpoints say to the same image processor.
GEOMETRY_16 = replace(GEOMETRY, patch_size=16, min_pixels=4096)
PUBLISHED = {14: {}, 16: {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}}


@pytest.fixture(scope="session", params=[14, 16])
def tower(request: pytest.FixtureRequest, model_path: Path, streamed_path: Path) -> Tower:
    path = {14: model_path, 16: streamed_path}[request.param]
    return Tower(Checkpoint(str(path)), torch.float32, torch.device("cpu"))


def reference_values(image: Image.Image, geometry: Geometry) -> tuple[torch.Tensor, list[int]]:
    budgets = {"min_pixels": geometry.min_pixels, "max_pixels": geometry.max_pixels}
    processor = Qwen2VLImageProcessor(**budgets, **PUBLISHED[geometry.patch_size])
    assert "torchvision" in type(processor).__mro__[1].__name__.lower()
    out = processor(images=[image], return_tensors="pt")
    return out["pixel_values"], out["image_grid_thw"][0].tolist()


def assert_bit_equal(data: bytes, tower: Tower, geometry: Geometry | None = None) -> None:
    size = tower.config.patch_size
    geometry = geometry or {14: GEOMETRY, 16: GEOMETRY_16}[size]
    patches_PC, grid = prepare_image(data, geometry)
    expected, expected_grid = reference_values(Image.open(io.BytesIO(data)).convert("RGB"), geometry)
    assert list(grid) == expected_grid
    assert patches_PC.dtype == np.uint8
    values = size**2
    ours = tower.normalize(torch.from_numpy(patches_PC)).view(-1, 3, 1, values).expand(-1, -1, 2, -1)
    assert torch.equal(ours.reshape(-1, 6 * values), expected)


def test_photos_are_bit_equal_to_the_reference(tower: Tower) -> None:
    photos = sorted(PHOTOS.rglob("*.jpg"))
    assert len(photos) >= 10
    for path in photos:
        assert_bit_equal(path.read_bytes(), tower)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width"), [(600, 800), (588, 812), (28, 28), (1, 1), (14, 2800), (2800, 14), (31, 997), (1500, 1400)]
)
def test_sizes_are_bit_equal_to_the_reference(height: int, width: int, tower: Tower) -> None:
    assert_bit_equal(encoded(noise(height, width)), tower)
    assert_bit_equal(encoded(noise(height, width), "JPEG", quality=60, subsampling=2), tower)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
def test_jpeg_variants_are_bit_equal(options: dict[str, object], tower: Tower) -> None:
    assert_bit_equal(encoded(noise(321, 457), "JPEG", **options), tower)


def test_a_turned_image_on_its_own_is_bit_equal(tower: Tower) -> None:
    from PIL import ImageOps

    data = oriented(noise(60, 150), 6, "JPEG")
    upright = encoded(np.asarray(ImageOps.exif_transpose(_open(data)).convert("RGB")))
    assert prepare_image(data, GEOMETRY)[1] == (1, 10, 4)
    assert np.array_equal(prepare_image(data, GEOMETRY)[0], prepare_image(upright, GEOMETRY)[0])
    assert_bit_equal(upright, tower)


def oriented(pixels: np.ndarray, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, kind, exif=exif.tobytes()) if kind != "TIFF" else encoded(pixels, kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    options = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(40, 70), kind, exif=exif if kind == "TIFF" else exif.tobytes(), **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape[:2] == ((70, 40) if orientation >= 5 else (40, 70))
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]
    assert np.array_equal(decode(data), expected)


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_there_is_not_leaves_the_picture_as_it_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    header = read_header(encoded(noise(40, 70), exif=exif.tobytes()))
    assert (header.height, header.width, header.orientation) == (40, 70, 1)


def test_a_late_exif_chunk_counts_without_decoding() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(40, 70))
    chunk = exif.tobytes().removeprefix(b"Exif\0\0")
    late = struct.pack(">I4s", len(chunk), b"eXIf") + chunk + struct.pack(">I", zlib.crc32(b"eXIf" + chunk))
    data = data[:-12] + late + data[-12:]
    assert read_header(data).orientation == 6
    assert decode(data).shape == (70, 40, 3)


def png_16(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_16_bit_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    pixels = decode(png_16(ramp))
    assert np.array_equal(pixels[..., 0], (ramp >> 8).astype(np.uint8))
    assert len(np.unique(pixels)) == 256


def test_grey_palette_bilevel_and_cmyk_become_rgb() -> None:
    grey = noise(30, 50)[..., 0]
    assert np.array_equal(decode(encoded(grey)), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(decode(encoded(grey, "JPEG")), np.asarray(_open(encoded(grey, "JPEG")).convert("RGB")))
    colours = Image.fromarray(noise(30, 50)).quantize(17)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        data = _save(colours, kind)
        assert np.array_equal(decode(data), np.asarray(_open(data).convert("RGB")))
    assert set(np.unique(decode(_save(Image.fromarray(grey).convert("1"), "PNG")))) <= {0, 255}
    cmyk = Image.fromarray(noise(30, 50)).convert("CMYK")
    for kind in ("JPEG", "TIFF"):
        data = _save(cmyk, kind)
        assert np.array_equal(decode(data), np.asarray(_open(data).convert("RGB")))


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB", "I;16"])
def test_transparency_is_composited_on_white(mode: str) -> None:
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (20, 10), (10, 20, 30, 0) if mode == "RGBA" else (10, 0))
        data = _save(image, "PNG")
    elif mode == "P":
        image = Image.new("P", (20, 10), 3)
        image.putpalette(list(range(48)))
        data = _save(image, "PNG", transparency=3)
    elif mode == "I;16":
        data = _save(Image.fromarray(np.full((10, 20), 1000, np.uint16)), "PNG", transparency=1000)
    else:
        colour = 7 if mode == "L" else (7, 8, 9)
        data = _save(Image.new(mode, (20, 10), colour), "PNG", transparency=colour)
    assert (decode(data) == 255).all()
    half = Image.new("RGBA", (20, 10), (0, 0, 0, 128))
    assert abs(int(decode(_save(half, "PNG"))[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _save(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    red = decode(data)[5, 5]
    assert red[0] > 200
    assert red[1] < 50


def test_a_jpeg_with_several_pictures_is_its_first(tower: Tower) -> None:
    frames = [Image.fromarray(noise(90, 120, seed)) for seed in (1, 2)]
    data = _save(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert read_header(data).format == "JPEG"
    assert_bit_equal(data, tower)


@pytest.mark.parametrize("name", ["unidentified", "truncated", "eps", "svg"])
def test_what_is_no_image_is_unidentified_or_truncated(name: str) -> None:
    data = {
        "unidentified": b"hello world" * 20,
        "truncated": b"",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "svg": b"<svg xmlns='x' width='10' height='10'/>",
    }[name]
    with pytest.raises(Reject) as reject:
        prepare_image(data, GEOMETRY)
    assert reject.value.reason == (rejects.TRUNCATED if name == "truncated" else rejects.UNIDENTIFIED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_truncation_is_a_reject_or_the_whole_image(kind: str) -> None:
    whole = encoded(noise(64, 96), kind)
    expected = decode(whole)
    reasons = set()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        reasons.add(outcome(whole[:length], expected))
    assert reasons <= {rejects.TRUNCATED, rejects.CORRUPT, rejects.UNIDENTIFIED, rejects.OK}
    assert rejects.TRUNCATED in reasons


def outcome(data: bytes, expected: np.ndarray) -> str:
    """The reject reason, `ok` for the expected pixels, or what must not be: other pixels."""
    try:
        return rejects.OK if np.array_equal(decode(data), expected) else "other pixels"
    except Reject as reject:
        return reject.reason


def test_limits_are_checked_before_decoding() -> None:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I4s", 13, b"IHDR") + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    bomb = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    for data, reason in ((bomb, rejects.TOO_MANY_PIXELS), (encoded(noise(1, 201)), rejects.ASPECT_RATIO)):
        with pytest.raises(Reject) as reject:
            prepare_image(data, GEOMETRY)
        assert reject.value.reason == reason
    assert prepare_image(encoded(noise(1, 200)), GEOMETRY)[1][0] == 1


def test_a_side_that_no_column_holds_is_a_reject() -> None:
    """One such header must not take its part of 8192 files down."""
    bmp = bytearray(_save(Image.fromarray(noise(20, 20)), "BMP"))
    bmp[18:22] = b"\xff\xff\xff\xff"
    with pytest.raises(Reject) as reject:
        read_header(bytes(bmp))
    assert reject.value.reason in (rejects.TOO_MANY_PIXELS, rejects.CORRUPT)


def test_float_and_32_bit_pixels_are_unsupported() -> None:
    for mode in ("F", "I"):
        with pytest.raises(Reject) as reject:
            decode(_save(Image.new(mode, (20, 10), 5), "TIFF"))
        assert reject.value.reason == rejects.UNSUPPORTED_MODE


def test_without_the_fast_decoder_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = [path.read_bytes() for path in sorted(PHOTOS.rglob("*.jpg"))]
    fast = [decode(data) for data in photos]
    import pipeline.prepare.decode as decode_module

    monkeypatch.setattr(decode_module, "simplejpeg", None)
    for data, pixels in zip(photos, fast, strict=True):
        assert np.array_equal(decode(data), pixels)


def test_the_geometry_is_the_checkpoints(checkpoint: Checkpoint) -> None:
    assert (checkpoint.config.patch_size, checkpoint.config.merge_size) == (GEOMETRY.patch_size, GEOMETRY.merge_size)
