"""Named images: what the cell of a row, or the field of a line, gives or names as its image, or what is wrong with it.

An image is given as bytes, as `{bytes, path}` (Hugging Face's layout), as a `data:` value, as a path, or as a list of
those. Paths are relative to the file that names them, absolute, or URIs of object storage. Nothing is fetched from
hosts. A cell that names nothing (null, an empty text or list, a field that is not there) is no reject: `no_image`.
"""

from __future__ import annotations

import base64
import binascii
import errno
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

from .. import rejects
from ..errors import RequestError, source_error
from ..storage.files import path_named_in, read_input
from ..storage.uri import WEB, problem_with, scheme_of
from .columns import shown
from .keys import digests_in, key_digest
from .sample import IndexedSample, VideoFacts

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

    def is_of(self, video_path: str) -> bool:
        """Whether it is a video, or a span of one, of this file."""
        return self.video is not None and self.path == video_path

    def read(self) -> bytes | None:
        """The image's bytes; None if its file is not there. Raises SourceError: it is there and cannot be read."""
        if self.data is not None or self.path is None:
            return self.data
        return read_image_file(self.path)


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


def inline_bytes(value: Any, item: int | None = None) -> bytes | None:
    """The bytes that a cell holds: as they are, in `{bytes, path}`, or as a `data:` value; None where it names a file.

    Args:
        item: of a list, which one.

    Raises:
        ValueError: text that stands for bytes, and does not decode.
    """
    if item is not None:
        value = value[item]
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
    if isinstance(value, list):
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


def read_image_file(path: str) -> bytes | None:
    """An image's own file; None if it is not there. Raises SourceError: it cannot be read."""
    try:
        return read_input(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise source_error(f"{path[:200]}: cannot be read: {error.strerror or error}", error) from error


def reread_image_file(sample: IndexedSample) -> bytes | None:
    """The file of an indexed sample that names one; None if it has vanished. Raises SourceError: it cannot be read."""
    assert sample.path is not None
    return read_image_file(sample.path)


def _no_file(path: str) -> str:
    shown_path = path if len(path) <= SHOWN_OF_PATH else f"{path[:SHOWN_OF_PATH]}… of {len(path)} characters"
    looks = _BASE64.search(path)
    hint = "; it looks like base64: write `data:image/any;base64,` before it" if looks else ""
    return f"there is no file {shown_path}{hint}"


def indexed(images: Iterator[NamedImage], source: str, facts: Any, repeated: bytes = b"") -> Iterator[IndexedSample]:
    """Named images as indexed samples; a second one with a key, in this part or an earlier one, is a duplicate.

    Args:
        source: the file that names them.
        facts: completes a sample by the facts about its bytes.
        repeated: see `SourceFile`.
    """
    keys: set[str] = set()
    before = digests_in(repeated)
    video: tuple[str, bytes | None] = ("", None)  # the last one's file: several questions about it follow one another
    for image in images:
        sample = IndexedSample(
            key=image.key,
            source=source,
            offset=image.offset,
            path=image.path,
            item=image.item,
            group=image.group,
            video=image.video,
        )
        if image.problem and image.reason == rejects.NO_IMAGE:
            yield sample.rejected(rejects.NO_IMAGE, image.problem)
        elif image.key in keys or (before and key_digest(image.key) in before):
            yield sample.rejected(rejects.DUPLICATE_KEY, f"the key {image.key} stands in {source} more than once")
        elif (data := None if image.problem else video[1] if image.is_of(video[0]) else image.read()) is None:
            yield sample.rejected(image.reason, image.problem or _no_file(str(image.path)))
        else:
            if image.video is not None and image.path is not None:
                video = (image.path, data)
            yield facts(replace(sample, length=len(data)), data)
        keys.add(image.key)
