"""What demuxing says of a video is what decoding all of it would: frames, times, size; or why it is none."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from clips import BROKEN, MADE, NAMES, RATE, clip_of, made

from pipeline.index.video_header import read_video_header
from pipeline.rejects import Reject


def decoded(data: bytes) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(data)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("name", [*NAMES, *MADE])
def test_demuxing_says_what_decoding_would(name, tmp_path) -> None:
    data, frames = clip_of(name), decoded(clip_of(name))
    header = read_video_header(data)
    turned = abs(frames[0].rotation) == 90
    assert header.frames == len(frames)
    assert (header.width, header.height) == (frames[0].width, frames[0].height)[:: -1 if turned else 1]
    assert header.turns == frames[0].rotation // 90 % 4
    if header.timed:
        assert header.pts_N.tolist() == [frame.pts for frame in frames]
    times = header.times()
    assert len(times) == header.frames and (np.diff(times) > 0).all()
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path / name, io.BytesIO(b"x" + data)):
        again = read_video_header(source if not isinstance(source, io.BytesIO) else io.BytesIO(data))
        assert (again.frames, again.pts_N.tolist(), again.fps) == (header.frames, header.pts_N.tolist(), header.fps)


def test_counts_that_headers_say_are_not_believed() -> None:
    edited = made("edited.mp4")
    with av.open(io.BytesIO(edited)) as container:
        announced = container.streams.video[0].frames
    assert (announced, read_video_header(edited).frames) == (50, 37)
    with av.open(io.BytesIO(made("h264.mkv"))) as container:
        assert container.streams.video[0].frames == 0
    assert read_video_header(made("h264.mkv")).frames == 50


def test_the_rate_is_frames_by_seconds() -> None:
    even, uneven = read_video_header(made("h264.mp4")), read_video_header(made("uneven.mp4"))
    assert (even.fps, even.duration) == (RATE, 2.0)
    assert uneven.fps == pytest.approx(50 / uneven.duration) and uneven.fps < 22
    assert uneven.times()[21] - uneven.times()[20] == pytest.approx(0.347, abs=1e-3)
    assert read_video_header(made("one.mp4")).fps == RATE


def test_a_transport_stream_begins_at_second_0() -> None:
    header = read_video_header(made("h264.ts"))
    assert header.pts_N[0] > 0 and header.times()[0] == 0


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_clip_has_its_reason(name) -> None:
    reason, _ = BROKEN[name]
    with pytest.raises(Reject) as caught:
        read_video_header(made(name))
    assert caught.value.reason == reason, caught.value.message


def test_an_unknown_codec_is_named() -> None:
    for name, codec in (("codec.mp4", "zzz9"), ("codec.mkv", "V_QQQ1")):
        with pytest.raises(Reject, match=codec):
            read_video_header(made(name))


def test_a_cover_picture_is_no_video() -> None:
    """An audio file's cover is a video stream of one frame to libav."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=16_000)
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 16_000, 0
        output.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        output.mux(cover.encode(None))
        output.mux(sound.encode(silence))
        output.mux(sound.encode(None))
    with pytest.raises(Reject, match="no video stream"):
        read_video_header(file.getvalue())


class Counting(io.BytesIO):
    """A file of an object store, as far as its reads are counted."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.largest = max(self.largest, len(data))
        return data


def test_a_file_object_is_read_in_ranges() -> None:
    file = Counting(clip_of("bigbuckbunny.mp4"))
    assert read_video_header(file).frames == 132
    assert file.largest <= 256 << 10


class Failing(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 20_000:
            raise ConnectionResetError("the store has gone")
        return super().read(size)


def test_an_error_of_the_storage_is_no_reject() -> None:
    with pytest.raises(ConnectionResetError):
        read_video_header(Failing(clip_of("bikes.mp4")))
    with pytest.raises(FileNotFoundError):
        read_video_header("nowhere.mp4")
