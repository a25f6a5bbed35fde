"""Text: lists of images, a path a line. A part is a range of lines; a key is `file:row`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ...errors import RequestError, listing_error
from ...storage.files import open_input
from ..format import Columns
from ..found_columns import FoundColumn
from ..lines import LineFile, LineManifest
from ..listing import Listing
from ..media import VIDEO
from ..unknown import LOOKED_AT, no_list_but

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

    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        for file in listing:
            path = os.path.join(listing.place.root, file.path)
            try:
                with open_input(path, forwards=False) as stream:
                    name = no_list_but(stream.read(LOOKED_AT))
            except OSError as error:
                raise listing_error(f"source: {path}: cannot be read as {self.name}: {error}", error) from error
            if name:
                raise RequestError(f"source.uri: {path} is no list of paths; it is {name}")
        super().check(listing, columns, uri)

    def carried_schema(self, listing: Listing, names: Sequence[str], decided: pa.Schema | None = None) -> pa.Schema:
        raise RequestError(f"source.carry: {', '.join(names)}: a list of paths has no columns")

    def columns_found(self, listing: Listing) -> list[FoundColumn]:
        return []  # a line is a path, and nothing to choose from

    def columns(self, columns: Columns) -> Columns:
        return replace(columns, image=PATH, video=PATH if columns.media == VIDEO else "")
