"""Kinds: the format that `source.format: auto` comes to, by what lies in a folder, or by a file's name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import RequestError
from ..storage.files import kind_of
from ..storage.names import left_alone_in
from .formats import FORMATS
from .lines import starts_with

NAMES_LOOKED_AT = 20_000  # of a folder, in sorted order
FILES_OPENED = 16
DATA = ("folder", "webdataset", "parquet", "arrow")  # what a folder is, whatever manifests lie beside it
MANIFESTS = ("jsonl", "json", "csv")
DELTA_LOG = "_delta_log/"
NOUNS = {"folder": "images", "webdataset": "tars", "parquet": "Parquet files", "arrow": "Arrow files"}
NOUNS |= {"jsonl": "JSONL manifests", "json": "JSON arrays", "csv": "CSV manifests", "text": "lists of paths"}


@dataclass(kw_only=True)
class _Found:
    """The names in a folder, by the format that they belong to.

    Attributes:
        folders: that hold images.
        cut: the last one, where there are more.
        has_log: whether there is a Delta table's log.
    """

    paths: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    folders: set[str] = field(default_factory=set)
    cut: str | None = None
    has_log: bool = False

    def add(self, path: str) -> None:
        self.has_log |= path.startswith(DELTA_LOG) or f"/{DELTA_LOG}" in path
        kind = kind_by_suffix(path)
        if kind is None or left_alone_in(path) or FORMATS[kind].leaves_alone(path):
            return
        self.counts[kind] += 1
        self.paths.setdefault(kind, []).append(path)
        if kind == "folder":
            self.folders.add(os.path.dirname(path))

    def drop_what_stands_beside(self) -> None:
        """Leaves out tables of a tar, or a folder, that is called as they are: img2dataset writes such."""
        stems = {os.path.splitext(path)[0] for path in self.paths.get("webdataset", ())} | self.folders
        for kind in ("parquet", *MANIFESTS):
            left = [path for path in self.paths.get(kind, ()) if not self._is_beside(path, stems)]
            self.paths[kind] = left
            self.counts[kind] = len(left)

    def _is_beside(self, path: str, stems: set[str]) -> bool:
        stem = os.path.splitext(path)[0]
        # What it stands beside may come after all that was looked at.
        unseen = self.cut is not None and (stem > self.cut or self.cut.startswith(stem))
        return stem in stems or stem.removesuffix("_stats") in stems or unseen


def kind_by_suffix(path: str) -> str | None:
    """The format of a file in a folder, by its name; None of what is none."""
    name = path.lower()
    return next((kind for kind in (*DATA, *MANIFESTS) if name.endswith(FORMATS[kind].suffixes)), None)


def format_of_folder(folder: str, uri: str) -> tuple[str, str]:
    """Decides what a folder is.

    Returns:
        The format, and why, in a line; no reason of a folder of images.

    Raises:
        RequestError: it holds several kinds of data; each choice is a line to type.
        OSError: it cannot be listed.
    """
    found = _Found()
    for number, (path, _) in enumerate(kind_of(folder).walk(folder, ())):
        if number == NAMES_LOOKED_AT:
            found.cut = path
            break
        found.add(path)
    found.drop_what_stands_beside()
    data = [kind for kind in DATA if found.counts[kind]]
    if not data:
        _keep_arrays(folder, found)
        data = [kind for kind in MANIFESTS if found.counts[kind]]
    if len(data) > 1:
        raise _mixture(uri, found, data)
    (kind,) = data or ("folder",)
    beside = [f"{found.counts[other]} *{FORMATS[other].suffixes[0]}" for other in MANIFESTS if found.counts[other]]
    if kind == "folder" and not beside:
        return kind, ""
    left = f"; {', '.join(beside)} beside them are left alone" if beside and kind in DATA else ""
    if kind == "parquet" and found.has_log:
        left += "; its _delta_log is left alone, so rows that the table has dropped are read, too"
    holds = _counted(kind, found)
    return kind, f"source.format: auto took {kind}: {uri} holds {holds}{left}"


def _keep_arrays(folder: str, found: _Found) -> None:
    """Leaves out JSON files that are no array of objects, such as settings. Raises OSError."""
    paths = found.paths.get("json", [])
    kept = [path for path in paths[:FILES_OPENED] if starts_with(os.path.join(folder, path), b"[")]
    if len(paths) <= FILES_OPENED or not kept:
        found.counts["json"] = len(kept)


def _counted(kind: str, found: _Found) -> str:
    count, noun = found.counts[kind], NOUNS[kind]
    return f"1 {noun.removesuffix('s')}" if count == 1 else f"{count}{'+' if found.cut else ''} {noun}"


def _mixture(uri: str, found: _Found, kinds: Iterable[str]) -> RequestError:
    choices = [f"  --set source.format={kind}    # {_counted(kind, found)}" for kind in kinds]
    holds = " and ".join(_counted(kind, found) for kind in kinds)
    return RequestError("\n".join([f"source.uri: {uri} holds {holds}: say which are meant, by one of", *choices]))


def format_by_name(name: str) -> str | None:
    """The format of a file that is named in full, or by a pattern; None of a name that says nothing."""
    name = name.lower().rstrip("*")
    kinds = ("parquet", "arrow", *MANIFESTS, "text")
    return next((kind for kind in kinds if name.endswith(FORMATS[kind].suffixes)), None)
