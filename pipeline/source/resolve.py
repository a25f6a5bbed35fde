"""Resolve: a source URI to its format and its root. Here a format is chosen, and nowhere else."""

from __future__ import annotations

import fnmatch
import glob
import os
from typing import TYPE_CHECKING

from ..errors import RequestError, listing_error
from ..storage.files import absolute_uri, common_folder, kind_of
from ..storage.location import check_location, literal_prefix, shown_location
from .formats import FORMATS, format_named
from .formats.folder import PACKED
from .kinds import format_by_name, format_of_folder
from .lines import starts_with
from .part import SourcePlace
from .tar import COMPRESSED_ELSEWHERE

if TYPE_CHECKING:  # preparing and encoding run where the configuration's packages are not
    from ..config_fields import Source

OUTPUT_FOLDERS = ("data", "samples", "ledger", "plan/index", "plan/parts")


def resolve_source(source: Source) -> SourcePlace:
    """Decides format and root. Raises RequestError, naming the URI, for what does not exist or is not supported."""
    check_location("source.uri", source.uri)
    try:
        return _resolve(source, absolute_uri(source.uri))
    except OSError as error:
        raise listing_error(f"source.uri: {source.uri} cannot be read: {error}", error) from error


def _resolve(source: Source, literal: str) -> SourcePlace:
    storage = kind_of(literal)
    if storage.is_folder(literal):
        named = source.format != "auto"
        kind, decided = (source.format, "") if named else format_of_folder(literal, source.uri)
        return SourcePlace(format=kind, root=literal, patterns=(literal,), decided=decided)
    exists = storage.exists(literal)
    patterns = [glob.escape(literal)] if exists else _patterns(source.uri, literal)
    named = source.format in FORMATS and source.format != "folder"
    kind = source.format if named else _kind_by_name(source, patterns)
    if kind:
        return SourcePlace(format=kind, root=_common_root(patterns), patterns=tuple(patterns))
    if not exists:
        raise RequestError(f"source.uri: {shown_location(source.uri)} does not exist")
    if source.uri.lower().endswith(PACKED):
        raise RequestError(f"source.uri: {source.uri}: of what is packed only .tar.gz and .tgz are read: unpack it")
    raise RequestError(
        f"source.uri: {source.uri}: neither a folder nor a tar (*.tar, *.tar.gz, *.tgz), Parquet, Arrow, JSONL, JSON, "
        "CSV or text (*.txt, *.lst) file by its name; set source.format if it is one"
    )


def _patterns(text: str, literal: str) -> list[str]:
    """The patterns that a URI stands for; in each, what exists as it is written is escaped.

    Args:
        literal: the same, made absolute.

    Raises:
        RequestError: its braces are unbalanced.
        OSError: storage does not say what exists.
    """
    head, rest = literal_prefix(literal, "{")
    try:
        if _has_braces(head):  # of folders that are called so
            patterns = [f"{head}/{pattern}" for pattern in _expanded(rest)] if rest else [head]
        else:
            patterns = [absolute_uri(pattern) for pattern in _expanded(text)]
    except ValueError as error:
        raise RequestError(
            f"source.uri: {shown_location(text)} does not exist, and as a pattern it has unbalanced braces; a brace "
            "that is meant as it stands is written \\{"
        ) from error
    escaped: dict[str, str] = {}
    return [_with_literal_folders(pattern, escaped) for pattern in patterns]


def _has_braces(text: str) -> bool:
    return "{" in text


def _expanded(text: str) -> list[str]:
    """Raises ValueError: unbalanced braces."""
    if not _has_braces(text):
        return [text]  # a backslash is then what it is
    import braceexpand

    return list(braceexpand.braceexpand(text))


def _with_literal_folders(pattern: str, escaped: dict[str, str]) -> str:
    """A pattern whose folders that exist as they are written are escaped: `set[1]` is one, where there is one.

    Args:
        escaped: what came of folders that were asked for before.
    """
    folder, slash, name = pattern.rpartition("/")
    if not glob.has_magic(folder):
        return pattern
    if folder not in escaped:
        head, rest = literal_prefix(folder, "[*?")
        escaped[folder] = glob.escape(head) + ("/" + rest if rest else "")
    return escaped[folder] + slash + name


def _kind_by_name(source: Source, patterns: list[str]) -> str:
    """The format of files with such a name, "" where it says nothing.

    Raises:
        RequestError: tars that cannot be read.
        OSError: storage does not say what there is.
    """
    name = source.uri.lower()
    if source.format == "auto":
        kind = format_by_name(name)
        if kind == "json" and (paths := kind_of(patterns[0]).glob(patterns[0])):
            # Many a .json file has an object a line.
            return "json" if starts_with(min(paths), b"[") else "jsonl"
        if kind:
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
