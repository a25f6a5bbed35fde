"""Resolve: a source URI to its format and its root. Here a format is chosen, and nowhere else."""

from __future__ import annotations

import fnmatch
import glob
import os
from typing import TYPE_CHECKING

from ..errors import RequestError, listing_error
from ..storage.files import absolute_uri, common_folder, kind_of
from ..storage.remote import check_uri
from .formats import FORMATS, format_named
from .part import SourcePlace
from .tar import COMPRESSED_ELSEWHERE

if TYPE_CHECKING:  # preparing and encoding run where the configuration's packages are not
    from ..config import Source

OUTPUT_FOLDERS = ("data", "samples", "ledger", "plan/index", "plan/parts")


def resolve_source(source: Source) -> SourcePlace:
    """Decides format and root. Raises RequestError, naming the URI, for what does not exist or is not supported."""
    check_uri("source.uri", source.uri)
    literal = absolute_uri(source.uri)
    try:
        import braceexpand

        patterns = [absolute_uri(pattern) for pattern in braceexpand.braceexpand(source.uri)]
    except ValueError as error:
        raise RequestError(f"source.uri: {source.uri}: unbalanced braces") from error
    try:
        return _resolve(source, literal, patterns)
    except OSError as error:
        raise listing_error(f"source.uri: {source.uri} cannot be read: {error}", error) from error


def _resolve(source: Source, literal: str, patterns: list[str]) -> SourcePlace:
    storage = kind_of(literal)
    if storage.is_folder(literal):
        if source.format == "webdataset":
            raise RequestError(
                f"source.uri: {source.uri} is a folder; for its tars write {source.uri.rstrip('/')}/*.tar"
            )
        return SourcePlace(
            format="folder" if source.format == "auto" else source.format, root=literal, patterns=(literal,)
        )
    exists = storage.exists(literal)
    if exists:
        patterns = [glob.escape(literal)]
    kind = source.format if source.format in FORMATS and source.format != "folder" else _kind_by_name(source)
    if kind:
        return SourcePlace(format=kind, root=_common_root(patterns), patterns=tuple(patterns))
    if not exists:
        raise RequestError(f"source.uri: {source.uri} does not exist")
    raise RequestError(
        f"source.uri: {source.uri}: neither a folder nor a tar (*.tar, *.tar.gz, *.tgz), Parquet or JSONL file by its "
        "name; set source.format if it is one"
    )


def _kind_by_name(source: Source) -> str:
    """The format of files with such a name, "" where it says nothing. Raises RequestError: tars that cannot be read."""
    name = source.uri.lower()
    if source.format == "auto":
        for kind in ("parquet", "jsonl"):
            if name.rstrip("*").endswith(FORMATS[kind].suffixes):
                return kind
    if name.endswith(COMPRESSED_ELSEWHERE):
        raise RequestError(f"source.uri: {source.uri}: of the compressed tars only .tar.gz and .tgz can be read")
    named_as_tar = name.endswith((*FORMATS["webdataset"].suffixes, ".tar*", "*"))
    return "webdataset" if source.format == "auto" and named_as_tar else ""


def _common_root(patterns: list[str]) -> str:
    """The longest folder above every pattern that has no glob character in it."""
    folders = []
    for pattern in patterns:
        folder = os.path.dirname(pattern)
        while glob.has_magic(folder.replace("[[]", "").replace("[*]", "").replace("[?]", "")):
            folder = os.path.dirname(folder)
        folders.append(folder.replace("[[]", "[").replace("[*]", "*").replace("[?]", "?"))
    try:
        return common_folder(folders)
    except ValueError as error:
        raise RequestError(f"source.uri: {', '.join(patterns[:2])}: {error}") from error


def files_of_output_in(place: SourcePlace, output: str) -> str:
    """A file that an output there would have and this source would take for its own; empty if there is none."""
    suffixes = format_named(place.format).suffixes
    for name in ("data/part-000000-0000.tar", *(f"{folder}/part-000000.parquet" for folder in OUTPUT_FOLDERS)):
        path = f"{output.rstrip('/')}/{name}"
        if name.endswith(suffixes) and any(_could_match(path, pattern, place.root) for pattern in place.patterns):
            return path
    return ""


def _could_match(path: str, pattern: str, root: str) -> bool:
    if pattern == root:
        return path.startswith(root.rstrip("/") + "/")

    def match(names: list[str], parts: list[str]) -> bool:
        if not parts:
            return not names
        if parts[0] == "**":
            return any(match(names[skipped:], parts[1:]) for skipped in range(len(names) + 1))
        return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and match(names[1:], parts[1:])

    return match(path.split("/"), pattern.split("/"))
