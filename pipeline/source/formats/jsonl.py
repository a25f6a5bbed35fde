"""JSONL: manifests, an object a line. A part is a range of lines; a key is the key field's value, else `file:row`."""

from __future__ import annotations

import os
from typing import Any

from ...errors import RequestError, listing_error
from ..format import Columns
from ..json_object import object_of
from ..lines import LineFile, LineManifest, starts_with
from ..listing import Listing


class JsonLines(LineFile):
    """An open manifest of an object a line."""

    def fields_of(self, line: bytes) -> dict[str, Any]:
        try:
            return object_of(line)
        except ValueError as error:
            raise ValueError(f"is not a JSON object: {error}") from None


class Jsonl(LineManifest):
    """See the module."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")
    opened = JsonLines

    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        for file in listing:
            path = os.path.join(listing.place.root, file.path)
            try:
                is_array = starts_with(path, b"[")
            except OSError as error:
                raise listing_error(f"source: {path}: cannot be read: {error}", error) from error
            if is_array:
                raise RequestError(
                    f"source.uri: {path} is one JSON array, not an object a line; set source.format to json"
                )
        super().check(listing, columns, uri)
