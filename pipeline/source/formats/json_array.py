"""JSON: manifests that are one array of objects. A part is a range of them; a key is the key field's value, else
`file:row`.

An array is read object by object, and an object again from its first byte, so no more of it is in memory than one
object and the bytes read with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

from ..json_object import object_of
from ..lines import BOM, starts_with
from ..manifest import Manifest
from ..manifest_file import ManifestFile, Record

BYTES_AT_ONCE = 1 << 18
LARGEST_OBJECT_BYTES = 1 << 28
_SPACE = " \t\r\n"
# Looks for ends alone: what is wrong inside an object is its own reject.
_scan = json.JSONDecoder(parse_int=len, strict=False).raw_decode


class JsonArray(ManifestFile):
    """An open array of objects."""

    def records(self, offset: int = 0, row: int = 0) -> Iterator[Record]:
        text = _Window(self, offset)
        if not offset:
            text.skip_start()
        while text.next_is_object():
            start, data = text.take()
            try:
                yield Record(row=row, offset=start, fields=object_of(data))
            except ValueError as error:
                yield Record(row=row, offset=start, fields={}, problem=f"is not a JSON object: {error}")
            row += 1


class _Window:
    """The part of an array that is looked at. A byte is a character here: where an object ends is ASCII's to say."""

    def __init__(self, manifest: JsonArray, offset: int) -> None:
        self._stream = manifest.stream
        self._stream.seek(offset)
        self._start, self._at, self._text, self._ended = offset, 0, "", False

    def skip_start(self) -> None:
        """Passes over what stands before the first object. Raises ValueError: it is no array."""
        self._grow()
        self._at = len(BOM) if self._text.startswith(BOM.decode("latin-1")) else 0
        if (first := self._peek()) != "[":
            what = "an object; jsonl is what has an object a line" if first == "{" else "something else"
            raise ValueError(f"it is no array of objects but {what if first else 'empty'}")
        self._at += 1

    def next_is_object(self) -> bool:
        """Goes on to the next object; False at the array's end. Raises ValueError: the array is cut or goes wrong."""
        if self._peek() == ",":
            self._at += 1
        character = self._peek()
        if not character:
            raise ValueError(f"the array is not closed where the file ends, at byte {self._start + self._at}")
        return character != "]"

    def take(self) -> tuple[int, bytes]:
        """The next object's first byte, and its bytes. Raises ValueError: there is none, or it is too large."""
        while True:
            try:
                _, end = _scan(self._text, self._at)
                if end < len(self._text) or self._ended:
                    break
            except RecursionError:
                raise ValueError(f"the object at byte {self._start + self._at} is nested too deep") from None
            except ValueError as error:
                if self._ended or len(self._text) - self._at > LARGEST_OBJECT_BYTES:
                    raise ValueError(f"the object at byte {self._start + self._at}: {error}") from None
            self._grow()
        start, data = self._start + self._at, self._text[self._at : end].encode("latin-1")
        self._at = end
        return start, data

    def _peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._grow()

    def _grow(self) -> None:
        """Reads on, at least as much as there is of what is not taken yet; lets go of what is."""
        rest = self._text[self._at :]
        data = self._stream.read(max(BYTES_AT_ONCE, len(rest)))
        self._ended = not data
        self._start, self._at = self._start + self._at, 0
        self._text = rest + data.decode("latin-1")


class Json(Manifest):
    """See the module."""

    name = "json"
    suffixes = (".json",)
    opened = JsonArray

    def left_alone_in(self, folder: str) -> Callable[[str], bool]:
        """Whether a file of a folder is no array: settings, most often."""
        return lambda path: not starts_with(os.path.join(folder, path), b"[")
