"""Unknown: what bytes are that are none of the image formats, by their first ones, so that a reject says what it is.

Nothing is decoded, and the reason stays `unidentified`: a name helps whoever has to convert or fetch the files.
"""

from __future__ import annotations

import re

from PIL import Image

LOOKED_AT = 4096
_SHOWN = 60  # characters of a text
# The brands of ISO media files (ISO/IEC 14496-12, `ftyp`).
_BRANDS = {
    "HEIC": (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"),
    "AVIF": (b"avif", b"avis"),
    "camera raw (CR3)": (b"crx ",),
    "a QuickTime video": (b"qt  ",),
    "an audio file (M4A)": (b"M4A ", b"M4B "),
}
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"%PDF-", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\0\0\2\0", "a cursor (CUR)"),
    (b"qoif", "QOI"),
    (b"DDS ", "a DDS texture"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"gimp xcf", "a GIMP document (XCF)"),
    (b"FLIF", "FLIF"),
    (b"FORM", "an IFF file"),
    (b"SIMPLE  =", "FITS"),
    (b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (b"IIRO", "camera raw (ORF)"),
    (b"IIRS", "camera raw (ORF)"),
    (b"MMOR", "camera raw (ORF)"),
    (b"\0MRM", "camera raw (MRW)"),
    (b"FOVb", "camera raw (X3F)"),
    (b"IIU\0", "camera raw (RW2)"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"\0\0\1\xba", "an MPEG video"),
    (b"\0\0\1\xb3", "an MPEG video"),
    (b"FLV\1", "a Flash video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3"),
    (b"fLaC", "a FLAC file"),
    (b"PK\3\4", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (b"Rar!", "a rar file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x04\x95", "a pickle"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\0\5\x16\x07", "a Mac's resource fork (AppleDouble), not the file itself"),
    (b"Mac OS X  ", "a Mac's resource fork"),
    (b"\x01\xda", "an SGI image"),
)
_SUBFILE, _PHOTOMETRIC, _MAKE, _SUB_IFDS, _DNG_VERSION = 254, 262, 271, 330, 50706  # TIFF tags
_OF_A_SENSOR = (32803, 34892)  # photometric interpretations: colour filter array, linear raw
_RAW_OF_MAKERS = {"NIKON": "NEF", "SONY": "ARW", "PENTAX": "PEF", "SAMSUNG": "SRW", "EPSON": "ERF"}
# The formats that are decoded: no reject names them, but a file that should be something else may be one.
_IMAGES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"BM", "a BMP image"),
)
_XML = "XML"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\x1b"))
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"^(\.\./)*\.git/annex/objects/|^/annex/objects/")
_HTML = re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_SVG = re.compile(rb"<svg\b|<!doctype\s+svg", re.IGNORECASE)
_XML_ERROR = re.compile(rb"<Error>.*?<Code>([^<]{1,60})</Code>", re.DOTALL)


def no_list_but(data: bytes) -> str:
    """Names what should be a list of paths by its first bytes, "" where it may be one: text, in whatever encoding.

    A path may begin as a file of some format does, so that only what is no text is looked up among those.
    """
    if data.translate(None, _CONTROLS) != data:
        return name_of_any(data) or "binary data"
    name = _text_name(data)
    lines = len(data.split(b"\n", 2))  # of a pointer that git-annex leaves one
    return "" if name.startswith(("text", "JSON")) or name == _XML or (_ANNEX.match(data) and lines > 2) else name


def name_of_any(data: bytes) -> str:
    """Names bytes as `name_of` does, or one of the image formats that are decoded, or text that is no UTF-8."""
    if data.startswith(_UTF_16):
        return "text in UTF-16: convert it to UTF-8"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP image"
    return name_of(data) or next((name for start, name in _IMAGES if data.startswith(start)), "")


def raw_name(image: Image.Image) -> str:
    """Names a camera's raw photo in the container of a TIFF, of which a TIFF reader shows a thumbnail; else "".

    Source: Adobe, Digital Negative Specification 1.7 (DNGVersion); TIFF/EP (ISO 12234-2): reduced images and SubIFDs.
    """
    tags = getattr(image, "tag_v2", {})
    if _DNG_VERSION in tags:
        return "camera raw (DNG)"
    if tags.get(_PHOTOMETRIC) in _OF_A_SENSOR:
        return "camera raw"
    if _SUB_IFDS in tags and tags.get(_SUBFILE, 0) == 1:
        maker = str(tags.get(_MAKE, "")).upper()
        return f"camera raw ({next((kind for name, kind in _RAW_OF_MAKERS.items() if maker.startswith(name)), 'TIFF')})"
    return ""


def name_of(data: bytes) -> str:
    """Names such bytes, "" where they are not known."""
    if data[:4] in (b"II*\0", b"MM\0*") and data[8:10] == b"CR":
        return "camera raw (CR2)"
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    if data[4:8] == b"ftyp":
        if data[8:12] == b"mif1" and b"avif" in data[16:64]:  # which kind it is stands among the others it is read as
            return "AVIF"
        return next((name for name, brands in _BRANDS.items() if data[8:12] in brands), "a video (MP4)")
    if data[:4] == b"RIFF":
        return {b"AVI ": "a video (AVI)", b"WAVE": "an audio file (WAV)"}.get(data[8:12], "a RIFF file")
    if data[4:8] in (b"moov", b"mdat", b"wide", b"free"):
        return "a QuickTime video"
    if data[257:262] == b"ustar":
        return "a tar"
    if len(data) > 188 and data[0] == data[188] == 0x47:
        return "an MPEG transport stream"
    if not data.strip(b"\0"):
        return f"{len(data)} zero bytes: its file was never written, or lost its data"
    return _text_name(data)


def _text_name(data: bytes) -> str:
    head = data[:LOOKED_AT].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(_LFS):
        return "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    if _ANNEX.match(head):
        return "a git-annex pointer, not the file itself: fetch it with `git annex get`"
    if head.startswith(b"<"):
        if _SVG.search(head):
            return "SVG, a drawing without pixels"
        if error := _XML_ERROR.search(head):
            return f"an error that a store answered with ({error[1].decode('utf-8', 'replace')}), not the file"
        return "an HTML page, such as a server's error, not the file" if _HTML.search(head) else _XML
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or len(data) <= LOOKED_AT:
            return ""
        text = head[: error.start].decode("utf-8")
    if not text or not all(one.isprintable() or one in "\r\n\t" for one in text):
        return ""
    shown = " ".join(text.split())[:_SHOWN]
    if head[:1] in (b"{", b"["):
        return f"JSON, such as a server's error: {shown}"
    return f"text: {shown}"
