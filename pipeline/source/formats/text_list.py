"""Text: lists of images, a path a line. A part is a range of lines; a key is `file:row`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ...errors import RequestError
from ..format import Columns
from ..lines import LineFile, LineManifest
from ..listing import Listing
from ..media import VIDEO

PATH = "path"


class PathLines(LineFile):
    """An open list of paths."""

    def fields_of(self, line: bytes) -> dict[str, Any]:
        try:
            return {PATH: line.rstrip(b"\r\n").decode("utf-8")}
        except UnicodeDecodeError as error:
            raise ValueError(f"is not valid UTF-8: {error}") from None


class Text(LineManifest):
    """See the module. A line is a path and no more: it has no columns."""

    name = "text"
    suffixes = (".txt", ".lst", ".list")
    has_columns = False
    opened = PathLines

    def carried_schema(self, listing: Listing, names: Sequence[str], decided: pa.Schema | None = None) -> pa.Schema:
        raise RequestError(f"source.carry: {', '.join(names)}: a list of paths has no columns")

    def columns(self, columns: Columns) -> Columns:
        return replace(columns, image=PATH, video=PATH if columns.media == VIDEO else "")
