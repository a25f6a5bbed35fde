"""Entries of a video: key frames from which decoding may begin, so that what lies before them is never decoded.

A flag says less than is needed: of H.264, it also stands on pictures that refresh an image over the next second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import av
from av.codec.context import CodecContext

# Their key frames forget everything. Of H.264 and HEVC, the type of a NAL unit says so.
FORGETTING = frozenset({"vp8", "vp9", "av1", "mjpeg"})
H264_IDR = 5  # ITU-T H.264, table 7-1
HEVC_IRAP = range(16, 22)  # ITU-T H.265, table 7-1: BLA, IDR, CRA
LENGTH_AT = {"h264": 4, "hevc": 21}  # where a decoder's configuration says how wide a length is
START_CODE = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)


def is_entry(packet: av.Packet, decoder: CodecContext, codec: str) -> bool:
    """Whether frames that are shown after this key frame can be decoded from it on, bit for bit."""
    if codec not in ("h264", "hevc"):
        return codec in FORGETTING
    first_bytes = _unit_heads(bytes(packet), decoder.extradata or b"", LENGTH_AT[codec])
    if codec == "h264":
        return any(first & 0x1F == H264_IDR for first in first_bytes)
    return any(first >> 1 & 0x3F in HEVC_IRAP for first in first_bytes)


def _unit_heads(data: bytes, extradata: bytes, length_at: int) -> Iterator[int]:
    """The first byte of each NAL unit: behind start codes, or behind lengths as MP4 and Matroska have them.

    Source: ISO/IEC 14496-15, 5.3.3 and 8.3.3.
    """
    if extradata[:1] != b"\x01" or len(extradata) <= length_at:
        yield from (found.group(1)[0] for found in START_CODE.finditer(data))
        return
    width = (extradata[length_at] & 3) + 1
    position = 0
    while position + width < len(data):
        length = int.from_bytes(data[position : position + width], "big")
        yield data[position + width]
        position += width + length
        if not length:
            return
