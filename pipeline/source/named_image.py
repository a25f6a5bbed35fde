"""Named images: what the cell of a row, or the field of a line, gives or names as its image, or what is wrong with it.

An image is given as bytes, as `{bytes, path}` (Hugging Face's layout), as a `data:` value, as a path, or as a list of
those. Paths are relative to the file that names them, absolute, or URIs of object storage. Nothing is fetched from
hosts. A cell that names nothing (null, an empty text or list, a field that is not there) is no reject: `no_image`.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from .. import rejects
from ..errors import RequestError, source_error
from ..rejects import Reject
from ..storage.files import READS_AT_ONCE, map_ahead, path_named_in, read_input
from ..storage.held import read_or_leave
from ..storage.large import Encoded
from ..storage.uri import WEB, problem_with, scheme_of
from .columns import shown
from .frame_bytes import join_frames
from .sample import VideoFacts

URLS_LOOKED_AT = 100  # values that are all URLs of hosts, before a source of nothing else is refused
SHOWN_OF_PATH = 300  # characters
# How JPEG, PNG, WebP, GIF and BMP begin in base64, and what no path is so long without.
_BASE64 = re.compile(r"(?:^|/)(?:/9j/|iVBORw0KGgo|UklGR|R0lGOD|Qk[01])[A-Za-z0-9+/_=-]{200}")
_DATA = re.compile(r"data:[^,]{0,200}?(;base64)?,", re.IGNORECASE)
_STANDARD = str.maketrans("-_", "+/")  # of the alphabet for URLs


@dataclass(frozen=True, kw_only=True)
class NamedImage:
    """One image of a row: `key` of the sample, `data` or `path`, or the `problem` with it.

    Attributes:
        offset: the row's number in a Parquet file, the line's first byte in a manifest.
        item: the image's number in the row's list, or None.
        group: the row group, -1 in a manifest.
        reason: the status of a sample with a problem.
        video: of a video, the span that is asked for.
        frames: of a list of frame images, each of them; none of them has a problem.
    """

    key: str
    offset: int
    group: int = -1
    item: int | None = None
    data: bytes | None = None
    path: str | None = None
    problem: str = ""
    reason: str = rejects.MISSING_IMAGE
    video: VideoFacts | None = None
    frames: tuple[NamedImage, ...] = ()

    @property
    def video_files(self) -> tuple[str | None, ...]:
        """The files that a video, a span of one, or a list of frames is of; empty where some of it is no file."""
        paths = (self.path,) if not self.frames else tuple(frame.path for frame in self.frames)
        return paths if self.video is not None and None not in paths else ()

    def read(self) -> Encoded:
        """Returns the image's bytes, or those of its frames, joined; of a large video where they lie.

        Raises:
            Reject: `missing_image`: there is no such file.
            SourceError: it is there and cannot be read.
        """
        if self.frames:
            return _read_frames(self.frames)
        data: Encoded | None = self.data
        if data is None and self.path is not None:
            data = read_image_file(self.path, is_video=self.video is not None)
        if data is None:
            raise Reject(rejects.MISSING_IMAGE, _no_file(str(self.path)))
        return data


def named_images(value: Any, path: str, name: str, where: str) -> Iterator[NamedImage]:
    """Every image of one cell.

    Args:
        value: the cell: an image, or a list of images.
        path: the file that the cell stands in.
        name: the row's key; the n-th image of a list gets `/n` behind it.
        where: the row or line, for messages.
    """
    if isinstance(value, list):
        if not value:
            yield NamedImage(
                key=name, offset=0, problem=f"{where}: its list of images is empty", reason=rejects.NO_IMAGE
            )
        for number, item in enumerate(value):
            yield replace(_image(item, path, f"{name}/{number}", f"{where}, image {number}"), item=number)
    else:
        yield _image(value, path, name, where)


def named_frames(value: Sequence[Any], path: str, name: str, where: str) -> NamedImage:
    """One video that is a list of images, its frames; arguments as of `named_images`."""
    clip = NamedImage(key=name, offset=0, video=VideoFacts(is_frames=True))
    if not value:
        return replace(clip, problem=f"{where}: its list of frames is empty", reason=rejects.NO_IMAGE)
    frames = tuple(_image(item, path, name, f"{where}, frame {number}") for number, item in enumerate(value))
    for frame in frames:
        if frame.problem:
            # A frame that is null is no row that names nothing.
            reason = rejects.MISSING_IMAGE if frame.reason == rejects.NO_IMAGE else frame.reason
            return replace(clip, problem=frame.problem, reason=reason)
    return replace(clip, frames=frames)


def _read_frames(frames: Sequence[NamedImage]) -> bytes:
    """Raises as `NamedImage.read`, naming the frame."""

    def read(numbered: tuple[int, NamedImage]) -> bytes:
        try:
            data = numbered[1].read()
            assert isinstance(data, bytes)
            return data
        except Reject as reject:
            raise Reject(reject.reason, f"frame {numbered[0]}: {reject.message}") from reject

    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return join_frames(map_ahead(pool, read, enumerate(frames), READS_AT_ONCE))


def listed(value: Any) -> Any:
    """A cell's value; text that is a list in JSON, which is how a CSV file has one, as that list."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, list) else value


def _image(value: Any, path: str, name: str, where: str) -> NamedImage:
    image = NamedImage(key=name, offset=0)
    try:
        data = inline_bytes(value)
    except ValueError as error:
        return replace(image, problem=f"{where}: {error}", reason=rejects.CORRUPT)
    if data is not None:
        return replace(image, data=data)
    if isinstance(value, dict):
        if value and not value.keys() & {"bytes", "path"}:
            return replace(image, problem=f"{where}: its image has {shown(list(value))}, and neither bytes nor path")
        if value.get("path") in (None, "") and value.get("bytes") not in (None, "", b""):
            kind = type(value["bytes"]).__name__
            return replace(image, problem=f"{where}: the bytes of its image are a {kind}, not bytes or base64")
        value = value.get("path")
    if value is None or value == "":
        return replace(image, problem=f"{where} names no image", reason=rejects.NO_IMAGE)
    if isinstance(value, str) and not is_text(value):
        return replace(image, problem=f"{where}: its image's path is not valid UTF-8")
    if not isinstance(value, str):
        return replace(image, problem=f"{where}: its image is a {type(value).__name__}, not a path")
    try:
        # Judged by its looks alone: a client that cannot be had is no property of these bytes.
        return replace(image, path=path_named_in(path, value))
    except ValueError as error:
        return replace(image, problem=f"{where}: {error}")


def inline_bytes(value: Any) -> bytes | None:
    """The bytes that a cell holds: as they are, in `{bytes, path}`, or as a `data:` value; None where it names a file.

    Raises:
        ValueError: text that stands for bytes, and does not decode.
    """
    if isinstance(value, dict):
        data = value.get("bytes")
        if isinstance(data, str) and data and not _DATA.match(data):
            return _of_base64(data)  # JSON has no bytes
        value = value.get("path") if data in (None, "") else data
    if isinstance(value, str) and (match := _DATA.match(value)):
        text = value[match.end() :]
        return _of_base64(unquote(text)) if match[1] else unquote_to_bytes(text)
    return value if isinstance(value, bytes) else None


def _of_base64(text: str) -> bytes:
    """Decodes either alphabet, with or without padding and white space. Raises ValueError: it is no base64."""
    text = "".join(text.split()).rstrip("=").translate(_STANDARD)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"its image is no base64: {error}") from error


def refuse_urls(values: Iterable[Any], column: str, path: str) -> None:
    """Refuses a column that holds nothing but URLs of hosts, as far as one looks, before anything is read of it.

    Args:
        values: cells, as many as it takes to find one that is something else.

    Raises:
        RequestError: naming the column and what fetches URLs.
    """
    first, count = "", 0
    for value in values:
        if not (named := first_named(value)):
            continue
        if not (isinstance(named, str) and "://" in named and scheme_of(named).lower() in WEB):
            return
        first, count = first or named, count + 1
        if count == URLS_LOOKED_AT:
            break
    if first:
        raise RequestError(f"source.image_column: {column} of {path} holds URLs: {problem_with(first)}")


def first_named(value: Any) -> Any:
    """The first that a cell gives or names; None or empty where it names nothing."""
    while isinstance(value, list):
        value = next(filter(None, value), None)
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value


def is_text(value: str) -> bool:
    """Whether it can be stored: JSON can spell halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_image_file(path: str, *, is_video: bool = False) -> Encoded | None:
    """An image's or a video's own file; None if it is not there. Raises SourceError: it cannot be read."""
    try:
        return read_or_leave(path) if is_video else read_input(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise source_error(f"{path[:200]}: cannot be read: {error.strerror or error}", error) from error


def _no_file(path: str) -> str:
    shown_path = path if len(path) <= SHOWN_OF_PATH else f"{path[:SHOWN_OF_PATH]}… of {len(path)} characters"
    looks = _BASE64.search(path)
    hint = "; it looks like base64: write `data:image/any;base64,` before it" if looks else ""
    return f"there is no file {shown_path}{hint}"
