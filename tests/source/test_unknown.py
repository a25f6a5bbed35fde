"""What is no image that we decode is called by its name. Catches: `unidentified`, and nobody knows what to do."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile

import pytest
from conftest import encoded, noise
from PIL import Image

from pipeline import rejects
from pipeline.index.headers import read_header
from pipeline.rejects import Reject
from pipeline.source.unknown import name_of

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
S3_ERROR = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>no</Message></Error>'


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")
    return stream.getvalue()


KINDS: dict[str, tuple[bytes, str]] = {
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC; "),
    "heif": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC; "),
    "jxl-codestream": (b"\xff\x0a\xfa\x1f", "JPEG XL; "),
    "jxl-container": (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL; "),
    "jp2": (encoded(noise(8, 8), "JPEG2000"), "JPEG 2000; "),
    "svg": (b'<?xml version="1.0"?>\n<!-- x --><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG, "),
    "svg-bare": (b"  <SVG width='1'></SVG>", "SVG, "),
    "lfs": (LFS, "a Git LFS pointer, .*git lfs pull"),
    "annex": (b"../.git/annex/objects/X1/f0/SHA256E-s1--ab.jpg", "a git-annex pointer"),
    "html": (b"\r\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    "html-bom": (b"\xef\xbb\xbf<HTML><head></head></HTML>", "an HTML page"),
    "s3-error": (S3_ERROR, r"an error that a store answered with \(AccessDenied\)"),
    "xml": (b'<?xml version="1.0"?><a/>', "XML; "),
    "json-error": (json.dumps({"message": "rate limit exceeded"}).encode(), "JSON, .*rate limit exceeded"),
    "text": ("zu viele Anfragen, später\n".encode(), "text: zu viele Anfragen, später; "),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3", "a PDF; "),
    "psd": (b"8BPS\0\1" + bytes(20), "a Photoshop document"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "a video"),
    "mov": (b"\0\0\0\x14ftypqt  \0\0\2\0", "a QuickTime video"),
    "mkv": (b"\x1aE\xdf\xa3\x9fB\x86", "a Matroska or WebM video"),
    "avi": (b"RIFF\x24\0\0\0AVI LIST", "a video"),
    "wav": (b"RIFF\x24\0\0\0WAVEfmt ", "an audio file"),
    "cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1", "camera raw"),
    "raf": (b"FUJIFILMCCD-RAW 0201", "camera raw"),
    "zip": (_zip(), "a zip file"),
    "gzip": (gzip.compress(b"x"), "a gzip file"),
    "tar": (_tar(), "a tar"),
    "appledouble": (b"\0\5\x16\x07\0\2\0\0Mac OS X        ", "a Mac's resource fork"),
    "zeros": (bytes(5000), "5000 zero bytes"),
    "ico": (encoded(noise(16, 16), "ICO"), "an icon"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_image_is_called_by_its_name(kind: str) -> None:
    data, says = KINDS[kind]
    with pytest.raises(Reject, match=f"^{says}.*not one of JPEG, PNG") as caught:
        read_header(data)
    assert caught.value.reason == rejects.UNIDENTIFIED


@pytest.mark.parametrize("data", [b"\x13\x37\xc0\xde" * 40, b"\xff" * 300, "é".encode("latin-1") * 9, b"a\0b"])
def test_what_is_not_known_is_given_no_name(data: bytes) -> None:
    with pytest.raises(Reject, match=r"^not one of JPEG"):
        read_header(data)


def test_a_text_that_is_cut_inside_a_character_is_a_text() -> None:
    assert name_of("ä".encode() * 4000).startswith("text: ää")


def test_an_image_is_none_of_these() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        assert name_of(encoded(noise(16, 16), kind)) in ("", "a RIFF file")  # WebP is one
        assert Image.open(io.BytesIO(encoded(noise(16, 16), kind))).format == kind


def test_an_empty_file_says_so() -> None:
    with pytest.raises(Reject, match="no bytes"):
        read_header(b"")
