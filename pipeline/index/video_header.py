"""Headers of videos: size as displayed, codec, how many frames there are and when each is shown, by demuxing.

No header's count is believed. Of the pixels, one frame alone is decoded: it proves that there is a decoder, and it
alone says its size and how far it is turned. N frames.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .. import rejects
from ..grid import Int64
from ..rejects import Reject
from .headers import MAX_SIDE
from .video_entry import is_entry
from .video_file import EBML, OpenVideo, VideoSource, open_video
from .video_times import times_of

DEFAULT_FPS = 24.0  # transformers' own, where nothing is known
SEGMENT = b"\x18\x53\x80\x67"
# Their packets carry no times, or guesses: frames are counted as the decoder gives them.
UNTIMED = frozenset({"avi"})


@dataclass(frozen=True, kw_only=True)
class VideoHeader:
    """Facts about a video's bytes.

    Attributes:
        container, codec: libav's names, such as `mov` and `h264`.
        width, height: as displayed, in pixels: turned, whatever shape a pixel is said to have.
        turns: quarter turns to the left that make a decoded frame as displayed, 0 to 3.
        pts_N: when each frame is shown, ascending, in units of `time_base`; empty where the file has no such times.
        frames: how many there are.
        entries_K: the pts of frames from which decoding may begin: those that are shown later need nothing earlier.
        time_base: numerator and denominator of a second.
        zero: the pts that is second 0.
        fps: frames by seconds from the first one's begin to the last one's end.
        duration: those seconds.
    """

    container: str
    codec: str
    width: int
    height: int
    turns: int
    frames: int
    pts_N: Int64 = field(repr=False)
    entries_K: Int64 = field(repr=False)
    time_base: tuple[int, int]
    zero: int
    fps: float
    duration: float

    @property
    def timed(self) -> bool:
        """Whether frames are known by their times; else by the order in which the decoder gives them."""
        return len(self.pts_N) > 0

    def times(self) -> npt.NDArray[np.float64]:
        """Seconds at which each frame is shown."""
        return times_of(self.pts_N, self.frames, self.fps, self.zero, self.time_base)


def read_video_header(source: VideoSource) -> VideoHeader:
    """Reads a video's header, from all of its packets.

    Raises:
        Reject: `truncated`, `unidentified`, `corrupt`, `unsupported_mode`, `too_many_pixels`.
        ReaderLost: no memory.
        OSError: the source cannot be read.
    """
    with open_video(source, decoding=False) as video:
        _check_announced(video)
        packets = _Packets(video.stream)
        for packet in video.container.demux(video.stream):
            packets.add(packet)
        return packets.header(video.container)


class _Packets:
    """Facts that packets give, one after the other."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._decoder = stream.codec_context
        self._decoder.thread_count = 1
        self._frame: VideoFrame | None = None
        self._codec = self._decoder.codec.canonical_name
        self._pts = array("q")
        self._entries = array("q")
        self._untimed = 0
        self._begun = False
        self._headless = 0
        self._begin: int | None = None
        self._end: int | None = None
        self._error: av.error.FFmpegError | None = None

    def add(self, packet: av.Packet) -> None:
        """Counts a packet that will be a frame; decodes it while none has been."""
        if not packet.size:
            return
        self._begun = self._begun or packet.is_keyframe
        if not self._begun:
            self._headless += 1
            return  # nothing can be made of what comes before the first key frame
        if self._frame is None:
            self._decode(packet)
        if packet.pts is not None and packet.is_keyframe and is_entry(packet, self._decoder, self._codec):
            self._entries.append(packet.pts)
        if packet.is_discard or is_hidden(packet, self._codec):
            return
        if packet.pts is None:
            self._untimed += 1
            return
        self._pts.append(packet.pts)
        end = packet.pts + (packet.duration or 0)
        self._begin = packet.pts if self._begin is None else min(self._begin, packet.pts)
        self._end = end if self._end is None else max(self._end, end)

    def _decode(self, packet: av.Packet) -> None:
        """The first frame, without waiting for those that a decoder holds back to bring them in order."""
        try:
            frames = self._decoder.decode(packet) or self._decoder.decode(None)
            self._frame = frames[0] if frames else None
        except av.error.FFmpegError as error:
            self._error = error
        self._decoder.flush_buffers()

    def header(self, container: InputContainer) -> VideoHeader:
        """Raises Reject."""
        count = len(self._pts) + self._untimed
        if not count and self._headless:
            raise Reject(rejects.CORRUPT, f"none of its {self._headless} frames is a key frame")
        if not count:
            raise Reject(rejects.TRUNCATED, "its video stream holds no frame")
        if self._frame is None:
            why = f" ({self._error.strerror})" if self._error else ""
            raise Reject(rejects.CORRUPT, f"none of its {count} frames can be decoded{why}")
        width, height, turns = _displayed(self._frame)
        pts_N = np.unique(_int64(self._pts))
        name = container.format.name.partition(",")[0]
        if name in UNTIMED or len(pts_N) != count:
            pts_N = np.empty(0, np.int64)
        base = self._stream.time_base
        assert base is not None
        fps, duration = self._rate(count, float(base))
        return VideoHeader(
            container=name,
            codec=self._codec,
            width=width,
            height=height,
            turns=turns,
            frames=count,
            pts_N=pts_N,
            entries_K=np.unique(_int64(self._entries)),
            time_base=(base.numerator, base.denominator),
            zero=_zero_of(container, self._stream),
            fps=fps,
            duration=duration,
        )

    def _rate(self, count: int, base: float) -> tuple[float, float]:
        """Frames a second and seconds, by torchcodec's rule: it scans a file too."""
        numerator, denominator = self._stream.time_base.as_integer_ratio() if self._stream.time_base else (1, 1)
        seconds = 0.0
        if self._begin is not None and self._end is not None:
            seconds = self._end * numerator / denominator - self._begin * numerator / denominator
        if seconds > 0 and self._untimed == 0:
            return count / seconds, seconds
        rate = self._stream.average_rate or self._stream.base_rate
        fps = float(rate) if rate else DEFAULT_FPS
        return fps, count / fps


def _int64(values: array[int]) -> Int64:
    return np.array(values, np.int64)


def is_hidden(packet: av.Packet, codec: str) -> bool:
    """Whether a packet is a frame that is never shown: VP8's reference frames. Source: RFC 6386, 9.1."""
    return codec == "vp8" and not memoryview(packet)[0] & 0x10


def _displayed(frame: VideoFrame) -> tuple[int, int, int]:
    """Width, height and quarter turns to the left. Raises Reject: `too_many_pixels`."""
    turns = turns_of(frame)
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    if max(width, height) > MAX_SIDE:
        raise Reject(rejects.TOO_MANY_PIXELS, f"a size of {width}x{height}")
    return width, height, turns


def turns_of(frame: VideoFrame) -> int:
    """Quarter turns to the left that show a frame upright; an angle between them is rounded, as torchcodec does."""
    return round(frame.rotation / 90) % 4


def _zero_of(container: InputContainer, stream: VideoStream) -> int:
    """The pts that a player calls second 0: where the file begins, if that is not at 0. Earlier is not known."""
    start = container.start_time
    if start is None or start <= 0 or stream.time_base is None:
        return 0
    return round(start / (av.time_base * stream.time_base))


def _check_announced(video: OpenVideo) -> None:
    """Raises Reject `truncated` where the file says that it is longer than its bytes are.

    Source: the sample table (ISO/IEC 14496-12, 8.7), Matroska's Segment (RFC 9559, 4), AVI's RIFF chunk.
    """
    name, needed = video.container.format.name, 0
    if name.startswith("mov"):
        needed = max((entry.pos + entry.size for entry in video.stream.index_entries), default=0)
    elif name.startswith("matroska"):
        needed = _segment_end(video.head)
    elif name.startswith("avi") and video.head.startswith(b"RIFF"):
        needed = 8 + int.from_bytes(video.head[4:8], "little")
    if needed > video.size:
        raise Reject(rejects.TRUNCATED, f"the file has {video.size} bytes, its header speaks of {needed}")


def _segment_end(head: bytes) -> int:
    """Where Matroska's segment ends; 0 where that is not said, as in what was streamed."""
    place = head.find(SEGMENT)
    if not head.startswith(EBML) or place < 0 or place + 12 > len(head):
        return 0
    first = head[place + 4]
    width = 9 - first.bit_length() if first else 0
    if not width:
        return 0
    value = int.from_bytes(head[place + 4 : place + 4 + width], "big") & ((1 << 7 * width) - 1)
    unknown = (1 << 7 * width) - 1
    return 0 if value == unknown else place + 4 + width + value
