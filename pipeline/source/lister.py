"""List: a source's files, in sorted order, each as it is now.

A folder is walked; other sources are files by name, pattern or brace.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ..errors import RequestError, listing_error
from ..process import DaemonThreads
from ..storage.files import (
    kind_of,
    map_ahead,
    may_be_read,
    reads_ahead,
    relative_to,
    states_of,
    why_unlistable,
    why_unreadable,
)
from ..storage.local import State
from ..storage.names import left_alone_in
from .formats import format_named
from .listing import Listing, name_of_ignored
from .part import SourceFile, SourcePlace

PATTERNS_AT_ONCE = 32


def list_source(place: SourcePlace) -> Listing:
    """Looks at a source once. Raises RequestError as `list_files`."""
    ignored: Counter[str] = Counter()
    return Listing(place, list_files(place, ignored), ignored)


def list_files(place: SourcePlace, ignored: Counter[str] | None = None) -> Iterator[SourceFile]:
    """Lists the source in sorted order; other files are counted in `ignored` by their extension.

    Raises:
        RequestError: a folder or file that cannot be read, or a pattern that names nothing.
    """
    counts: Counter[str] = Counter() if ignored is None else ignored
    if place.patterns == (place.root,):
        return _list_folder(place, counts)
    return _list_named(place, counts)


def _list_folder(place: SourcePlace, ignored: Counter[str]) -> Iterator[SourceFile]:
    try:
        source_format = format_named(place.format)
        suffixes, is_left_alone = source_format.suffixes_of(place.media), source_format.left_alone_in(place.root)
        for path, state in kind_of(place.root).walk(place.root, suffixes):
            if state is None:
                ignored[name_of_ignored(path, suffixes)] += 1
            elif path.endswith("/") and not source_format.is_of_images:
                # Of a file that nobody sees no row can be told.
                folder = os.path.join(place.root, path)
                raise RequestError(f"source.uri: {folder}: {why_unlistable(folder) or 'folder cannot be listed'}")
            elif is_left_alone(path):
                ignored[os.path.splitext(path)[1].lower() + " (no data)"] += 1
            else:
                yield _file(path, state)
    except OSError as error:
        raise listing_error(f"source.uri: {error.filename or place.root} cannot be listed: {error}", error) from error


def _file(path: str, state: State) -> SourceFile:
    size, mtime_ns, etag = state
    return SourceFile(path=path, size=size, mtime_ns=mtime_ns, etag=etag)


def _in_any_case(pattern: str, suffixes: tuple[str, ...]) -> str:
    """A pattern whose suffix, if it is one of these, is matched in any case: of a pattern that is a name nothing."""
    folder, slash, name = pattern.rpartition("/")
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    if not suffix or not glob.has_magic(name.replace("[[]", "").replace("[?]", "").replace("[*]", "")):
        return pattern
    head, tail = name[: -len(suffix)], name[-len(suffix) :]
    return folder + slash + head + "".join(f"[{one.lower()}{one.upper()}]" if one.isalpha() else one for one in tail)


def _named_by(patterns: Sequence[str], suffixes: tuple[str, ...]) -> Iterator[Mapping[str, State | None]]:
    """The files that each pattern names, and their states where the listing says them. Raises RequestError."""

    try:
        listed = states_of(patterns)
    except OSError:  # who may not list may ask for each
        listed = {}

    def named_by(pattern: str) -> Mapping[str, State | None]:
        if pattern in listed:
            return {pattern: listed[pattern]}
        try:
            return kind_of(pattern).glob(_in_any_case(pattern, suffixes))
        except OSError as error:
            raise listing_error(f"source.uri: {pattern} cannot be listed: {error}", error) from error

    with DaemonThreads(PATTERNS_AT_ONCE) as pool:
        yield from map_ahead(pool, named_by, patterns, PATTERNS_AT_ONCE if reads_ahead(patterns[0]) else 0)


def _list_named(place: SourcePlace, ignored: Counter[str]) -> Iterator[SourceFile]:
    source_format = format_named(place.format)
    paths: dict[str, State | None] = {}
    for pattern, states in zip(place.patterns, _named_by(place.patterns, source_format.suffixes), strict=True):
        found = list(states)
        for path in found:
            if why := source_format.refuses(path):
                raise RequestError(f"source.uri: {path}: {why}")
        # A file that was named in full is what source.format says, whatever its own name says.
        literal = source_format.takes_any_name and (found == [pattern] or glob.escape(pattern) == pattern)
        # Whoever writes a hidden name means it.
        hidden = bool(left_alone_in(relative_to(place.root, pattern)))
        named = [path for path in found if literal or _is_taken(path, pattern, place, hidden=hidden)]
        if not named:
            suffixes = ", ".join("*" + suffix for suffix in source_format.suffixes)
            why = f"is not named {suffixes}" if found else _why_nothing(pattern)
            raise RequestError(f"source.uri: {pattern} {why}")
        for path in set(found) - set(named):
            ignored[name_of_ignored(relative_to(place.root, path), source_format.suffixes)] += 1
        paths.update((path, states[path]) for path in named)
    for path in sorted(paths):
        try:
            state = paths[path] or kind_of(path).state_of(path)
        except OSError as error:
            raise listing_error(f"source: {path} cannot be read: {error}", error) from error
        if not may_be_read(path) and (why := why_unreadable(path)):
            raise RequestError(f"source.uri: {path}: {why}")
        yield _file(relative_to(place.root, path), state)


def _is_taken(path: str, pattern: str, place: SourcePlace, *, hidden: bool) -> bool:
    """Whether a file that a pattern names is one of the source, by its name; or the pattern names its suffix."""
    source_format = format_named(place.format)
    below, suffix = relative_to(place.root, path), os.path.splitext(pattern)[1]
    named = path.lower().endswith(source_format.suffixes)
    named |= source_format.takes_any_name and bool(suffix) and not glob.has_magic(suffix)
    return named and (hidden or not left_alone_in(below)) and not source_format.leaves_alone(below)


def _why_nothing(pattern: str) -> str:
    """Explains a pattern that names no file. Raises RequestError, SourceBusy: storage does not say what there is."""
    plain = pattern.replace("[[]", "[").replace("[?]", "?").replace("[*]", "*")
    if not glob.has_magic(pattern) or glob.escape(plain) == pattern:
        return "names no file"
    try:
        literal = glob.escape(plain).replace("[*]", "*").replace("[?]", "?")
        if literal != pattern and (found := kind_of(pattern).glob(literal)):
            return (
                f"names no file: [ ] stand for one of the characters between them; for the {len(found)} whose names "
                f"have brackets write {literal}"
            )
        folder = os.path.dirname(pattern)
        while glob.has_magic(folder.replace("[[]", "").replace("[?]", "").replace("[*]", "")):
            folder = os.path.dirname(folder)
        folder = folder.replace("[[]", "[").replace("[?]", "?").replace("[*]", "*")
        if not kind_of(folder).is_folder(folder):
            return f"names no file: there is no folder {folder}"
    except OSError as error:
        raise listing_error(f"source.uri: {pattern} cannot be listed: {error}", error) from error
    return f"names no file: it is a pattern, and nothing in {folder} is named so"
