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
