"""Video decoding: the frames that are asked for, and no more than one of them in memory at a time.

Packets run past in the file's order. One that nothing asked for needs is not decoded: what lies between two entries
(`index/video_entry.py`), and frames that no other refers to. Only frames that are asked for become RGB, by libswscale
as PyAV sets it up: bits of 10-bit and full-range video are what it makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import av
import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from .. import rejects
from ..grid import Int64
from ..index.video_file import OpenVideo, VideoSource, open_video
from ..index.video_header import VideoHeader, turns_of
from ..rejects import Reject
from .decode import Uint8

# Decoders that leave out a frame that no other refers to, when told so before its packet.
LEAVE_OUT = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video"})


def decode_frames(source: VideoSource, header: VideoHeader, wanted: Int64) -> Iterator[tuple[int, Uint8]]:
    """Decodes frames of a video.

    Args:
        header: of these bytes.
        wanted: indices of frames, strictly ascending.

    Yields:
        Each index with its pixels as displayed: RGB, uint8 [H, W, 3].

    Raises:
        Reject: `truncated` (a frame that the header counted is not there), `corrupt`, `unsupported_mode`.
        ReaderLost: no memory.
        OSError: the source cannot be read.
    """
    done = 0
    try:
        for item in _pass(source, header, wanted, sparing=header.timed):
            done += 1
            yield item
    except Reject:
        # Damage. What a decoder puts in its place hangs on all that it decoded before.
        if not header.timed:
            raise
        yield from _pass(source, header, wanted[done:], sparing=False)


def _pass(source: VideoSource, header: VideoHeader, wanted: Int64, *, sparing: bool) -> Iterator[tuple[int, Uint8]]:
    """Decodes once: everything, or only what is needed and then not past the first damage. Raises as above."""
    if not len(wanted):
        return
    reformatter = VideoReformatter()
    with open_video(source, decoding=True) as video:
        decoder = video.stream.codec_context
        decoder.thread_count = 1  # another number conceals damage in another way
        if sparing:
            decoder.options = {"err_detect": "explode"}
        frames = _timed(video, header, wanted, sparing=sparing) if header.timed else _counted(video, wanted)
        for index, frame in frames:
            yield index, _upright(frame, header, index, reformatter)


def _counted(video: OpenVideo, wanted: Int64) -> Iterator[tuple[int, VideoFrame]]:
    """Frames by their order: of a file whose packets do not say when they are shown."""
    asked, last = set(wanted.tolist()), int(wanted[-1])
    index = -1
    for packet in video.container.demux(video.stream):
        for frame in _decode(video.stream.codec_context, packet):
            index += 1
            if index in asked:
                yield index, frame
            if index == last:
                return
    raise Reject(rejects.TRUNCATED, f"decodes to {index + 1} frames, frame {last} is asked for")


def _timed(video: OpenVideo, header: VideoHeader, wanted: Int64, *, sparing: bool) -> Iterator[tuple[int, VideoFrame]]:
    """Frames by when they are shown."""
    wanted_pts = header.pts_N[wanted].tolist()
    asked, decoder = set(wanted_pts), video.stream.codec_context
    entries_K = header.entries_K if sparing else np.empty(0, np.int64)
    entry_of = (np.searchsorted(entries_K, wanted_pts, "right") - 1).tolist()
    leaves_out = sparing and header.codec in LEAVE_OUT
    done, begun, reached = 0, False, -1
    for packet in video.container.demux(video.stream):
        if packet.is_keyframe and packet.size:
            begun = True
            reached = max(reached, _entry(entries_K, packet))
        if not begun or entry_of[done] > reached:
            continue  # before the first key frame, or before the entry of the next frame
        if leaves_out:
            decoder.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in asked else "NONREF"
        for frame in _decode(decoder, packet):
            if frame.pts == wanted_pts[done]:
                yield int(wanted[done]), frame
                done += 1
                if done == len(wanted):
                    return
        if entry_of[done] > reached:
            decoder.flush_buffers()
    raise Reject(rejects.TRUNCATED, f"frame {wanted[done]} is not there, of {header.frames} that its packets announce")


def _decode(decoder: VideoCodecContext, packet: av.Packet) -> list[VideoFrame]:
    """The frames that a packet brings out; an empty one, those that are held back. Raises Reject, FFmpegError."""
    try:
        return decoder.decode(packet if packet.size else None)
    except av.error.InvalidDataError as error:
        if packet.is_corrupt:  # libav's word for one that the file does not hold to its end
            raise Reject(rejects.TRUNCATED, "the file ends within a frame") from error
        raise


def _entry(entries_K: Int64, packet: av.Packet) -> int:
    """Which of the entries a key frame is; -1: none."""
    if packet.pts is None:
        return -1
    place = int(np.searchsorted(entries_K, packet.pts))
    return place if place < len(entries_K) and entries_K[place] == packet.pts else -1


def _upright(frame: VideoFrame, header: VideoHeader, index: int, reformatter: VideoReformatter) -> Uint8:
    """Raises Reject `corrupt` where a frame is of another size than the first one."""
    pixels = np.asarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), np.uint8)
    if turns := turns_of(frame):
        pixels = np.ascontiguousarray(np.rot90(pixels, turns))
    if pixels.shape[:2] != (header.height, header.width):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise Reject(rejects.CORRUPT, f"frame {index} is {found}, the first one {header.width}x{header.height}")
    return pixels
