"""Video files: opening one, the stream in it that is the picture, and what an error says of the bytes.

A file is read through Python, whether it is bytes, a path or a file object with `seek`: an error of the storage then
stays what it is, no name is taken for an address, and a few hundred kilobytes of it are in memory.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from .. import rejects
from ..errors import ReaderLost
from ..rejects import Reject
from ..source.unknown import name_of
from ..storage.large import LargeFile

VideoSource = bytes | str | Path | IO[bytes] | LargeFile
# Containers that hold a picture and name no other file. A playlist would have the decoder open what it says.
CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif")
BUFFER_BYTES = 256 << 10
EBML = b"\x1a\x45\xdf\xa3"
MAGICS = {EBML: "Matroska or WebM", b"RIFF": "AVI", b"FLV": "FLV", b"OggS": "Ogg", b"GIF8": "GIF"}
HEAD_BYTES, CODEC_BYTES = 4096, 1 << 20
# The sample entry of an MP4's video track, Matroska's CodecID, AVI's stream header.
CODEC_NAME = re.compile(rb"hdlr.{8}vide.*?stsd.{12}(.{4})|(V_[A-Z0-9/_.]+)|vids(.{4})", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class OpenVideo:
    """An open video: its container, the stream that is the picture, its bytes' number, and the first of them."""

    container: InputContainer
    stream: VideoStream
    size: int
    head: bytes


@contextmanager
def open_video(source: VideoSource, *, decoding: bool) -> Iterator[OpenVideo]:
    """Opens a video and chooses its stream: the one that libav takes for the best, of those that are no cover picture.

    Args:
        decoding: whether more than its first frame will be decoded; else opening is several times faster.

    What libav raises inside is a Reject: `truncated` where the file ends too early, else `corrupt`.

    Raises:
        Reject: `truncated`, `unidentified` (no video), `corrupt`, `unsupported_mode` (no decoder).
        ReaderLost: no memory, or a large file cannot be read.
        OSError: the source cannot be read.
    """
    with _stream_of(source) as file, judged():
        size, head = _length(file), file.read(HEAD_BYTES)
        if not size:
            raise Reject(rejects.TRUNCATED, "the file has no bytes")
        file.seek(0)
        options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
        if not decoding:  # libav decodes some frames on opening, to learn how many a decoder must hold back
            options["skip_frame"] = "all"
        try:
            container: InputContainer = av.open(
                file, "r", options=options, buffer_size=BUFFER_BYTES, metadata_errors="replace"
            )
        except av.error.FFmpegError as error:
            raise _unopened(file, size, head, error) from error
        with container:
            yield OpenVideo(container=container, stream=_picture(container, file), size=size, head=head)


@contextmanager
def judged() -> Iterator[None]:
    """Turns what libav raises into the Reject that it says of the bytes."""
    try:
        yield
    except av.error.EOFError as error:
        raise Reject(rejects.TRUNCATED, f"the file ends too early ({error.strerror})") from error
    except (av.error.MemoryError, MemoryError) as error:
        raise ReaderLost("there was no memory to read a video") from error
    except (av.error.PatchWelcomeError, av.error.DecoderNotFoundError) as error:
        raise Reject(rejects.UNSUPPORTED_MODE, f"the decoder does not know this kind ({error.strerror})") from error
    except av.error.FFmpegError as error:
        raise Reject(rejects.CORRUPT, str(error.strerror or error)) from error


@contextmanager
def _stream_of(source: VideoSource) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, LargeFile):
        with source.opened() as file:
            yield file
    elif isinstance(source, str | Path):
        with open(source, "rb") as file:
            yield file
    else:
        source.seek(0)
        yield source


def _length(file: IO[bytes]) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _unopened(file: IO[bytes], size: int, head: bytes, error: av.error.FFmpegError) -> Reject:
    """The Reject of what libav cannot open: by how the bytes begin, and whether what they announce is there."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        if not _has_whole_moov(file, size):
            return Reject(rejects.TRUNCATED, "no whole moov atom: the file was cut, or never finished")
        return Reject(rejects.CORRUPT, f"damaged MP4 or MOV: {error.strerror}")
    for magic, name in MAGICS.items():
        if head.startswith(magic) and (magic != b"RIFF" or head[8:12] == b"AVI "):
            ends_early = size < HEAD_BYTES
            return Reject(rejects.TRUNCATED if ends_early else rejects.CORRUPT, f"damaged {name}: {error.strerror}")
    name = name_of(head)
    return Reject(rejects.UNIDENTIFIED, f"{f'{name}; it is not' if name else 'not'} a video in {', '.join(CONTAINERS)}")


def _has_whole_moov(file: IO[bytes], size: int) -> bool:
    """Walks the atoms at the top. Source: ISO/IEC 14496-12, 4.2."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:
            length = size - position
        if kind == b"moov":
            return position + length <= size
        if length < 8:
            return True  # no chain of atoms, whatever it is
        position += length
    return False


def _picture(container: InputContainer, file: IO[bytes]) -> VideoStream:
    """Raises Reject: `unidentified`, `unsupported_mode`."""
    pictures = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not pictures:
        others = ", ".join(sorted({stream.type for stream in container.streams}))
        raise Reject(rejects.UNIDENTIFIED, f"no video stream in it, only {others}" if others else "no stream in it")
    best = container.streams.best("video")
    stream = next((stream for stream in pictures if stream is best), pictures[0])
    if stream.codec_context is None:
        raise Reject(rejects.UNSUPPORTED_MODE, f"no decoder for codec {_codec_in(file)}")
    return stream


def _codec_in(file: IO[bytes]) -> str:
    """The name that a container gives its codec, where libav has none: it stands near the beginning or the end.

    Nothing is read of the file after this.
    """
    size = _length(file)
    data = file.read(CODEC_BYTES)
    file.seek(max(0, size - CODEC_BYTES))
    data += file.read(CODEC_BYTES)
    found = CODEC_NAME.search(data)
    return next((name.decode("ascii", "replace") for name in found.groups() if name), "?") if found else "?"
