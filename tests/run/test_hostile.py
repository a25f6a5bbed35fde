"""Hostile and odd files through a whole run: each ends as the row or the reject that the image policy says."""

from __future__ import annotations

import io
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import config_for, encoded, noise, run_here
from PIL import Image

from pipeline import rejects
from pipeline.output.verify import Verifier


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_zeros(side: int) -> bytes:
    """Bilevel, and nearly all of it compressed away."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def tiff_without_end() -> bytes:
    """Its only directory names itself as the next one."""
    data = bytearray(encoded(noise(30, 40, 1), "TIFF"))
    (offset,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, offset)
    struct.pack_into("<I", data, offset + 2 + 12 * count, offset)
    return bytes(data)


def tiff_of_directories(count: int) -> bytes:
    """A chain of empty directories before any image."""
    data = bytearray(b"II*\0" + struct.pack("<I", 8))
    for number in range(count):
        data += struct.pack("<HI", 0, 8 + 6 * (number + 1))
    return bytes(data)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n(%pipe%touch stray) (r) file\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x.png"/></svg>'


@pytest.mark.slow
def test_every_file_ends_as_a_row_or_a_reject(model_path: Path, tmp_path: Path) -> None:
    picture = noise(30, 40, 1)
    files: dict[str, tuple[bytes, str]] = {
        "bomb.png": (png_of_zeros(30_000), rejects.TOO_MANY_PIXELS),
        "empty.jpg": (b"", rejects.TRUNCATED),
        "eps.jpg": (EPS, rejects.UNIDENTIFIED),
        "loop.tif": (tiff_without_end(), rejects.OK),
        "directories.tif": (tiff_of_directories(50_000), rejects.UNIDENTIFIED),
        "one.png": (encoded(np.zeros((1, 1, 3), np.uint8)), rejects.OK),
        "pickle.png": (b"\x80\x05cos\nsystem\n(S'touch stray'\ntR.", rejects.UNIDENTIFIED),
        "svg.jpg": (SVG, rejects.UNIDENTIFIED),
        "tall.png": (encoded(np.zeros((200, 1, 3), np.uint8)), rejects.OK),
        "taller.png": (encoded(np.zeros((201, 1, 3), np.uint8)), rejects.ASPECT_RATIO),
        "text.png": (b"not an image", rejects.UNIDENTIFIED),
        "zip.webp": (b"PK\x03\x04" + bytes(100), rejects.UNIDENTIFIED),
        "really-a-png.jpg": (encoded(picture), rejects.OK),
        "really-a-jpeg.PNG": (encoded(picture, "JPEG"), rejects.OK),
        "cut.webp": (encoded(noise(64, 64, 2), "WEBP")[:-60], rejects.CORRUPT),
    }
    assert len(files["bomb.png"][0]) < 1 << 20
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "F", "I"):
        grey = Image.fromarray(picture).convert("L")
        image = (grey if mode in "FI" else Image.fromarray(picture)).convert(mode)
        stream = io.BytesIO()
        image.save(stream, "TIFF" if mode in ("CMYK", "F", "I") else "PNG")
        files[f"mode-{mode}.tif"] = (stream.getvalue(), rejects.UNSUPPORTED_MODE if mode in "FI" else rejects.OK)
    wide = io.BytesIO()
    Image.fromarray(noise(30, 40, 3)[..., 0].astype(np.uint16) << 8).save(wide, "PNG")
    files["mode-16.png"] = (wide.getvalue(), rejects.OK)
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert run_here(config_for(folder, tmp_path / "out", model_path)).complete
    assert time.monotonic() - started < 60
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 1.5e9
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out" / "samples").to_pylist()}
    assert rows.keys() == files.keys()
    for name, (_, expected) in files.items():
        assert rows[name]["status"] == expected, rows[name]
        assert rows[name]["status"] == rejects.OK or rows[name]["error"]
    assert Verifier(tmp_path / "out").verify().proven
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert not Path("stray").exists()
