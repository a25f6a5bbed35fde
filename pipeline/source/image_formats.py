"""Image formats: the allow-list of decoders, and the names that such files have."""

from __future__ import annotations

from PIL import features

# Pillow may be built without AVIF: such files are then no images here.
_AVIF = bool(features.check("avif"))
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", *(("AVIF",) if _AVIF else ()))
# JPEG has many names: what browsers and Windows save (.jfif, .jpe, .pjpeg), and cameras with several pictures (.mpo).
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *((".avif", ".avifs") if _AVIF else ()),
)
# What is an image by its name too, and is not decoded: a sample of nothing else names an image, and has none.
NOT_DECODED = (
    *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".jxr", ".svg", ".ico", ".psd", ".tga", ".exr", ".hdr"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".dds", ".cr2", ".cr3", ".nef", ".dng", ".arw", ".orf", ".rw2", ".raf"),
    *(() if _AVIF else (".avif", ".avifs")),
)
