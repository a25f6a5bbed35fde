"""Small videos made in code, each once a session: 64×48, at most 50 frames, of every kind that a data set may hold."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np

SHIPPED = Path(__file__).parent / "data" / "videos"
NAMES = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
WIDTH, HEIGHT, FRAMES, RATE = 64, 48, 50, 25
X265 = {"x265-params": "log-level=none:pools=1:frame-threads=1:keyint=12"}


def drawing(index: int, width: int, height: int) -> np.ndarray:
    """RGB [H, W, 3] that moves, and differs in every frame."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 3 + index * 5, y * 4 + index * 3, (x + y) * 2 + index * 7], -1).astype(np.uint8)
    pixels[index * 2 % height :, index * 3 % width :][:8, :8] = 255 - index * 4
    return pixels


def make(
    codec: str,
    container: str,
    *,
    frames: int = FRAMES,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    times_ms: Sequence[int] | None = None,
    rotation: int = 0,
    full_range: bool = False,
) -> bytes:
    """Encodes a clip.

    Args:
        times_ms: when each frame is shown; without it 25 a second.
        rotation: degrees to the left that show it upright.
    """
    with (
        tempfile.NamedTemporaryFile() as file,  # `faststart` opens what it wrote again
        av.open(file.name, "w", format=container, options=muxing or {}) as output,
    ):
        options = dict(options or {})
        if codec == "libx264":  # its assembly makes other bytes now and then, on one processor (mbtree with AVX-512)
            options["x264-params"] = ":".join(filter(None, ["asm=0", options.get("x264-params")]))
        stream = output.add_stream(codec, rate=RATE, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        base = Fraction(1, 1000) if times_ms else Fraction(1, RATE)
        stream.codec_context.time_base = base
        if full_range:
            stream.codec_context.color_range = 2
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(drawing(index, *size), format="rgb24").reformat(
                format=pixels, dst_color_range=2 if full_range else None
            )
            frame.pts, frame.time_base = times_ms[index] if times_ms else index, base
            output.mux(stream.encode(frame))
        if frames:
            output.mux(stream.encode(None))
        output.close()
        return Path(file.name).read_bytes()


def with_edit_list(data: bytes, skipped: int) -> bytes:
    """An MP4 whose edit list leaves out its first frames: 512 units a frame, 40 ms."""
    changed = bytearray(data)
    place = data.index(b"elst") + 12
    duration = int.from_bytes(data[place : place + 4], "big") - skipped * 1000 // RATE
    media_time = int.from_bytes(data[place + 4 : place + 8], "big") + skipped * 512
    changed[place : place + 8] = duration.to_bytes(4, "big") + media_time.to_bytes(4, "big")
    return bytes(changed)


def flipped(data: bytes, count: int, seed: int) -> bytes:
    """Bytes of the pixels changed at random: `mdat` of an MP4 whose `moov` stands before it."""
    changed, random = bytearray(data), np.random.default_rng(seed)
    for place in random.integers(data.index(b"mdat") + 200, len(data), count):
        changed[place] ^= int(random.integers(1, 256))
    return bytes(changed)


def damaged(data: bytes, count: int, *, concealed: bool) -> bytes:
    """A clip with the first damage that a decoder conceals, or fails at: encoders' bytes differ between processors."""
    outcome = FRAMES if concealed else None
    return next(clip for seed in range(100) if _frames_of(clip := flipped(data, count, seed)) == outcome)


def _frames_of(data: bytes) -> int | None:
    """How many frames decode; None: the decoder fails."""
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_count = 1
        try:
            return len(list(container.decode(video=0)))
        except av.error.InvalidDataError:
            return None


def _blank(data: bytes) -> bytes:
    """An MP4 whose pictures are zeros; `moov` stands before them."""
    place = data.index(b"mdat") + 4
    return data[:place] + bytes(len(data) - place)


def _sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _uneven() -> list[int]:
    return [40 * index + index % 5 * 7 + (300 if index > 20 else 0) for index in range(FRAMES)]


FAST = {"movflags": "faststart"}
BFRAMES = {"bf": "3", "g": "12"}
MADE: dict[str, Callable[[], bytes]] = {
    "mpeg4.mp4": lambda: make("mpeg4", "mp4"),
    "mpeg4.avi": lambda: make("mpeg4", "avi"),
    "h264.mp4": lambda: make("libx264", "mp4", options=BFRAMES, muxing=FAST),
    "h264-long-gop.mp4": lambda: make("libx264", "mp4"),
    "h264-no-reorder.mp4": lambda: make("libx264", "mp4", options={"bf": "0"}),
    "h264.mkv": lambda: make("libx264", "matroska", options=BFRAMES),
    "h264.ts": lambda: make("libx264", "mpegts", options=BFRAMES),
    "h264.avi": lambda: make("libx264", "avi", options=BFRAMES),
    "h264-fragments.mp4": lambda: make(
        "libx264", "mp4", options=BFRAMES, muxing={"movflags": "frag_keyframe+empty_moov"}
    ),
    "h264-open-gop.mp4": lambda: make(
        "libx264", "mp4", options={"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}
    ),
    "h264-refresh.mp4": lambda: make("libx264", "mp4", options={"g": "15", "x264-params": "intra-refresh=1"}),
    "hevc10.mp4": lambda: make("libx265", "mp4", pixels="yuv420p10le", options=X265),
    "hevc.mkv": lambda: make("libx265", "matroska", options=X265),
    "vp8.webm": lambda: make(
        "libvpx", "webm", options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4", "g": "20"}
    ),
    "vp9.webm": lambda: make("libvpx-vp9", "webm", options={"cpu-used": "8", "lag-in-frames": "12", "g": "20"}),
    "av1.mp4": lambda: make("libsvtav1", "mp4", options={"preset": "12", "g": "20", "svtav1-params": "lp=1"}),
    "mpeg2.mpg": lambda: make("mpeg2video", "mpeg", options={"bf": "2"}),
    "gif.gif": lambda: make("gif", "gif", pixels="rgb8", frames=20),
    "mjpeg.mov": lambda: make("mjpeg", "mov", pixels="yuvj420p"),
    "odd-444.mkv": lambda: make("ffv1", "matroska", size=(63, 47), pixels="yuv444p"),
    "full-range.mp4": lambda: make("libx264", "mp4", full_range=True),
    "turned.mp4": lambda: make("libx264", "mp4", rotation=90, options=BFRAMES),
    "turned-right.mp4": lambda: make("libx264", "mp4", rotation=-90),
    "upside-down.mkv": lambda: make("libx264", "matroska", rotation=180),
    "uneven.mp4": lambda: make("libx264", "mp4", times_ms=_uneven(), options=BFRAMES),
    "edited.mp4": lambda: with_edit_list(make("libx264", "mp4", options={"bf": "2", "g": "10"}), 13),
    "one.mp4": lambda: make("libx264", "mp4", frames=1),
    "three.mp4": lambda: make("libx264", "mp4", frames=3),
    "flipped.mp4": lambda: damaged(made("h264.mp4"), 3, concealed=True),
}
# What is no clip, and the reason that it is rejected for.
BROKEN: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty.mp4": ("truncated", lambda: b""),
    "sound.m4a": ("unidentified", _sound),
    "text.mp4": ("unidentified", lambda: b"no video at all\n" * 20),
    "playlist.m3u8": ("unidentified", lambda: b"#EXTM3U\n#EXTINF:2,\n/etc/hostname\n#EXT-X-ENDLIST\n"),
    "none.mkv": ("truncated", lambda: make("mpeg4", "matroska", frames=0)),
    "unfinished.mp4": ("truncated", lambda: made("mpeg4.mp4")[: len(made("mpeg4.mp4")) * 6 // 10]),
    "cut.mp4": ("truncated", lambda: made("h264.mp4")[: len(made("h264.mp4")) * 6 // 10]),
    "cut.mkv": ("truncated", lambda: made("h264.mkv")[: len(made("h264.mkv")) * 6 // 10]),
    "cut.webm": ("truncated", lambda: made("vp9.webm")[: len(made("vp9.webm")) * 6 // 10]),
    "cut.avi": ("truncated", lambda: made("mpeg4.avi")[: len(made("mpeg4.avi")) * 6 // 10]),
    "codec.mp4": ("unsupported_mode", lambda: made("h264.mp4").replace(b"avc1", b"zzz9")),
    "codec.mkv": ("unsupported_mode", lambda: made("odd-444.mkv").replace(b"V_FFV1", b"V_QQQ1")),
    "rubbish.mp4": ("corrupt", lambda: _blank(made("h264.mp4"))),
}


@cache
def made(name: str) -> bytes:
    """A clip of `MADE` or `BROKEN`."""
    return MADE[name]() if name in MADE else BROKEN[name][1]()


def shipped(name: str) -> bytes:
    return (SHIPPED / name).read_bytes()


def clip_of(name: str) -> bytes:
    """Any clip by its name."""
    return shipped(name) if name in NAMES else made(name)
