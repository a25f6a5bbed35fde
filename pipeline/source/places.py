"""Places: every image that the rows of a Parquet file or the lines of a manifest name, or what is wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..errors import DamagedPart, SourceError
from ..storage.files import open_input
from ..storage.remote import beside, is_remote, problem_with
from .listing import check_unchanged
from .part import SourceFile

if TYPE_CHECKING:
    from .part import Part

from .rows import open_parquet, read_image_file

BATCH_ROWS = 64
_NO_TEXT = object()


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one image of a row is: `key` of the sample, `data` or `path`, or the `problem` with it.

    Attributes:
        offset: the row's number in a Parquet file, the line's first byte in a manifest.
        item: the image's number in the row's list, or None.
        group: the row group, -1 in a manifest.
    """

    key: str
    offset: int
    group: int = -1
    item: int | None = None
    data: bytes | None = None
    path: str | None = None
    problem: str = ""


def places(part: Part, image_column: str, key_column: str | None) -> Iterator[Place]:
    """Every image of a part, in order. Raises SourceError and DamagedPart as `index_part` does."""
    (file,) = part.files
    check_unchanged(part.root, file)
    if part.format == "parquet":
        yield from _parquet_places(part, file, image_column, key_column)
    else:
        yield from _jsonl_places(part, file, image_column, key_column)


def _parquet_places(part: Part, file: SourceFile, image_column: str, key_column: str | None) -> Iterator[Place]:
    path = os.path.join(part.root, file.path)
    columns = [image_column] if key_column in (None, image_column) else [image_column, key_column]
    row = file.row
    try:
        with open_parquet(path) as parquet:
            for group in range(file.first, file.last):
                for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    images = _values(batch.column(image_column))
                    keys = _values(batch.column(key_column)) if key_column else [None] * len(images)
                    for image, key in zip(images, keys, strict=True):
                        name = f"{file.path}:{row}" if key is None else _key_text(key)
                        if image is _NO_TEXT or key is _NO_TEXT:
                            problem = f"row {row}: its {'key' if key is _NO_TEXT else 'image'} is not valid UTF-8"
                            yield Place(key=f"{file.path}:{row}", offset=row, group=group, problem=problem)
                        else:
                            for found in images_of(image, path, name, f"row {row}"):
                                yield replace(found, offset=row, group=group)
                        row += 1
    except (OSError, pa.ArrowException, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the world's; Arrow's own of a bad file has none
            raise SourceError(f"{path}: cannot be read: {error}") from error
        raise DamagedPart(f"{path}: cannot be read as Parquet with a column {image_column}: {error}") from error


def _key_text(key: Any) -> str:
    """Bytes as text where they are, else as hexadecimal digits."""
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError:
            return key.hex()
    return str(key)


def _values(column: pa.Array) -> list[Any]:
    """As Python has them; text that is none as `_NO_TEXT`."""

    def value(cell: pa.Scalar) -> Any:
        try:
            return cell.as_py()
        except UnicodeDecodeError:
            return _NO_TEXT

    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [value(cell) for cell in column]


def _jsonl_places(part: Part, file: SourceFile, image_column: str, key_column: str | None) -> Iterator[Place]:
    path = os.path.join(part.root, file.path)
    row, position = file.row, file.first
    try:
        with open_input(path) as stream:
            stream.seek(file.first)
            while position < file.last:
                line = stream.readline()
                if not line:
                    raise SourceError(f"{path}: ends at byte {position}, before {file.last}")
                if line.strip():
                    yield from line_places(line, path, f"{file.path}:{row}", row, position, image_column, key_column)
                position += len(line)
                row += 1
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def line_places(
    line: bytes, path: str, name: str, row: int, position: int, image_column: str, key_column: str | None
) -> Iterator[Place]:
    where = f"line {row + 1}"
    try:
        tree = parse_line(line)
    except ValueError as error:
        yield Place(key=name, offset=position, problem=f"{where} is not a JSON object: {error}"[:1000])
        return
    if key_column is not None:
        if isinstance(tree.get(key_column), str | int) and _is_text(str(tree[key_column])):
            name = str(tree[key_column])
        else:
            yield Place(key=name, offset=position, problem=f"{where} has no {key_column!r} that can be a key")
            return
    if image_column not in tree:
        yield Place(key=name, offset=position, problem=f"{where} has no {image_column!r}")
        return
    for found in images_of(tree[image_column], path, name, where):
        yield replace(found, offset=position)


def _is_text(value: str) -> bool:
    """Whether it can be stored: JSON can spell halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_line(line: bytes) -> dict[str, Any]:
    """One line of a manifest. Raises ValueError: not a JSON object."""
    try:
        tree = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(tree, dict):
        raise ValueError(f"it is a {type(tree).__name__}")
    return tree


def images_of(value: Any, path: str, name: str, where: str) -> Iterator[Place]:
    """The images that a cell names: one, or one for each item of a list."""
    if isinstance(value, list):
        if not value:
            yield Place(key=name, offset=0, problem=f"{where}: its list of images is empty")
        for number, item in enumerate(value):
            yield replace(_image(item, path, f"{name}/{number}", f"{where}, image {number}"), item=number)
    else:
        yield _image(value, path, name, where)


def _image(value: Any, path: str, name: str, where: str) -> Place:
    place = Place(key=name, offset=0)
    if isinstance(value, dict):
        data = value.get("bytes")
        value = data if isinstance(data, bytes) else value.get("path")
    if value is None or value == "":
        return replace(place, problem=f"{where} has no image")
    if isinstance(value, bytes):
        return replace(place, data=value)
    if isinstance(value, str) and not _is_text(value):
        return replace(place, problem=f"{where}: its image's path is not valid UTF-8")
    if not isinstance(value, str):
        return replace(place, problem=f"{where}: its image is a {type(value).__name__}, not a path")
    if is_remote(path) and not value.startswith(("/", "file://")) and not is_remote(value):
        value = beside(path, value)
    if is_remote(value):
        # By its looks alone: a client that cannot be had is no property of these bytes.
        problem = problem_with(value)
        return replace(place, problem=f"{where}: {problem}"[:1000]) if problem else replace(place, path=value)
    return replace(place, path=os.path.join(os.path.dirname(path), value.removeprefix("file://")))


def read_place(place: Place) -> bytes | None:
    """The image's bytes; None if its file is not there. Raises SourceError: it is there and cannot be read."""
    if place.data is not None or place.path is None:
        return place.data
    return read_image_file(place.path)
