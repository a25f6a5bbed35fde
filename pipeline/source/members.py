"""Members: what stands beside an image in a tar or a folder, carried whole: text as string, others as binary.

Suffixes are compared without case: `0.TXT` is the `txt` of `0.JPG`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from ..errors import reading
from ..storage.files import as_path, lists_by_prefix, read_input, source_names, why_unreadable
from .carried_values import UNREADABLE
from .columns import refuse_missing
from .image_formats import EXTENSIONS

TEXT_SUFFIXES = ("txt", "text", "caption", "json", "jsonl", "html", "md", "csv", "url", "cls", "id", "transcript")


def members_schema(suffixes: Sequence[str]) -> pa.Schema:
    """The types of carried members, by their suffixes alone."""
    return pa.schema([(suffix, pa.string() if _is_text(suffix) else pa.binary()) for suffix in suffixes])


def refuse_absent(names: Sequence[str], endings: Collection[str], what: str) -> None:
    """Raises RequestError: a carried member whose last extension nothing of the source has, with those that there are.

    Args:
        endings: the extensions of what is no image, in lower case, without a dot; `what`: has them.
    """
    there = {*endings, *(extension.removeprefix(".") for extension in EXTENSIONS)}
    for name in names:
        if name.lower().rpartition(".")[2] not in there:
            refuse_missing("source.carry", name, sorted(endings), f"no {what} ends in", "they end in")


def _is_text(suffix: str) -> bool:
    return suffix.rpartition(".")[2].lower() in TEXT_SUFFIXES


def wanted_members(members: Sequence[Mapping[str, Any]] | None, names: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """The members of a sample that carried columns name; of several that differ by case the one that is written so."""
    found: dict[str, Mapping[str, Any]] = {}
    for name in names:
        alike = [member for member in members or () if member["suffix"].lower() == name.lower()]
        if alike:
            found[name] = next((member for member in alike if member["suffix"] == name), alike[0])
    return found


class FilesBeside:
    """Reads the files that stand beside images, with their names and other suffixes.

    A file whose suffix is written as the column is asked for by that name. Only where there is none, its folder's names
    are looked at: once a folder, or where storage lists by prefix, those of the image alone.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = tuple(names)
        self._listed: tuple[str, dict[str, str]] = ("", {})

    def read(self, image: str) -> dict[str, Any]:
        """The files beside an image, by the columns' names. Raises SourceError: one is there and cannot be read."""
        stem = os.path.splitext(image)[0]
        found: dict[str, Any] = {}
        for name in self.names:
            path = f"{stem}.{name}"
            with reading(path):
                data = _read_if_there(path)
                if data is None and (alike := self._alike(stem, name)):
                    data = _read_if_there(alike)
            if data is not None:
                found[name] = data
        return found

    def _alike(self, stem: str, name: str) -> str | None:
        """The file beside whose suffix is this name in another case. Raises OSError."""
        if name.lower() == name.upper():
            return None
        folder, slash, stem_name = stem.rpartition("/")
        by_prefix = lists_by_prefix(as_path(folder))
        listed = f"{stem}." if by_prefix else folder
        if self._listed[0] != listed:
            names = list(source_names(folder, f"{stem_name}." if by_prefix else ""))
            endings = [f".{one.lower()}" for one in self.names]
            alike = {one[: -len(end)] + end: one for one in names for end in endings if one.lower().endswith(end)}
            self._listed = (listed, alike)
        other = self._listed[1].get(f"{stem_name}.{name.lower()}")
        return None if other is None else folder + slash + other


def _read_if_there(path: str) -> Any:
    """A file's bytes, None where there is none, `UNREADABLE` where it can never be read. Raises OSError."""
    try:
        return read_input(path)
    except (FileNotFoundError, IsADirectoryError):
        return None
    except OSError:
        if why_unreadable(path):
            return UNREADABLE
        raise
