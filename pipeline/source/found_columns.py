"""Found columns: what the first samples of a source have, for whoever writes a configuration; nothing else needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from .image_formats import EXTENSIONS
from .media import IMAGE, VIDEO, VIDEO_EXTENSIONS, begins_like_a_still

ROWS_LOOKED_AT = 20
VIDEO_HEADS = (b"\x1aE\xdf\xa3", b"RIFF")  # Matroska; AVI, as whatever RIFF is no WebP
VIDEO_BRAND = b"ftyp"  # from byte 4 on; an AVIF, which has it too, is a still by then


@dataclass(frozen=True, kw_only=True)
class FoundColumn:
    """A column, a field, or a kind of member.

    Attributes:
        kind: the type of its values.
        holds: image or video where its first values are some or name some, else "".
    """

    name: str
    kind: str
    holds: str = ""


def columns_of_rows(rows: Iterable[Mapping[str, Any]], schema: pa.Schema | None = None) -> list[FoundColumn]:
    """Returns the columns of some rows, in the order in which they are met.

    Args:
        schema: their types, where the file says them.
    """
    values: dict[str, list[Any]] = {name: [] for name in (schema.names if schema is not None else ())}
    for row in rows:
        for name, value in row.items():
            values.setdefault(str(name), []).append(value)
    return [
        FoundColumn(
            name=name,
            kind=_kind_of(some) if schema is None else str(schema.field(schema.names.index(name)).type),
            holds=next(filter(None, map(_held, some)), ""),
        )
        for name, some in values.items()
    ]


def _kind_of(values: list[Any]) -> str:
    kinds = {type(value).__name__ for value in values if value is not None}
    return " or ".join(sorted(kinds)) or "null"


def _held(value: Any) -> str:
    """Whether a cell is, or names, an image or a video; "" where it is neither."""
    while isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        if begins_like_a_still(value) or value.startswith(b"GIF8"):
            return IMAGE
        return VIDEO if value.startswith(VIDEO_HEADS) or value[4:8] == VIDEO_BRAND else ""
    return held_by(value) if isinstance(value, str) else ""


def held_by(name: str) -> str:
    """Whether a file that is called so is an image or a video, "" if neither; of a URL without its query."""
    name = name.partition("?")[0].lower()
    if name.startswith("data:image/") or name.endswith(EXTENSIONS):
        return IMAGE
    return VIDEO if name.endswith(VIDEO_EXTENSIONS) else ""
