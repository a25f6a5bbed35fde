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
from ..storage.files import kind_of, map_ahead, reads_ahead, relative_to, states_of
from ..storage.local import State
from .formats import format_named
from .listing import Listing
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
        for path, state in kind_of(place.root).walk(place.root, format_named(place.format).suffixes):
            if state is None:
                ignored[os.path.splitext(path)[1].lower()] += 1
            else:
                yield _file(path, state)
    except OSError as error:
        raise listing_error(f"source.uri: {error.filename or place.root} cannot be listed: {error}", error) from error


def _file(path: str, state: State) -> SourceFile:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"source: {path!r}: the file's name is not valid UTF-8; rename it") from None
    size, mtime_ns, etag = state
    return SourceFile(path=path, size=size, mtime_ns=mtime_ns, etag=etag)


def _named_by(patterns: Sequence[str]) -> Iterator[Mapping[str, State | None]]:
    """The files that each pattern names, and their states where the listing says them. Raises RequestError."""

    try:
        listed = states_of(patterns)
    except OSError:  # who may not list may ask for each
        listed = {}

    def named_by(pattern: str) -> Mapping[str, State | None]:
        if pattern in listed:
            return {pattern: listed[pattern]}
        try:
            return kind_of(pattern).glob(pattern)
        except OSError as error:
            raise listing_error(f"source.uri: {pattern} cannot be listed: {error}", error) from error

    with DaemonThreads(PATTERNS_AT_ONCE) as pool:
        yield from map_ahead(pool, named_by, patterns, PATTERNS_AT_ONCE if reads_ahead(patterns[0]) else 0)


def _list_named(place: SourcePlace, ignored: Counter[str]) -> Iterator[SourceFile]:
    source_format = format_named(place.format)
    paths: dict[str, State | None] = {}
    for pattern, states in zip(place.patterns, _named_by(place.patterns), strict=True):
        found = list(states)
        for path in found:
            if why := source_format.refuses(path):
                raise RequestError(f"source.uri: {path}: {why}")
        # A file that was named in full is what source.format says, whatever its own name says.
        literal = source_format.takes_any_name and (found == [pattern] or glob.escape(pattern) == pattern)
        named = [path for path in found if literal or path.lower().endswith(source_format.suffixes)]
        if not named:
            suffixes = ", ".join("*" + suffix for suffix in source_format.suffixes)
            raise RequestError(f"source.uri: {pattern} {f'is not named {suffixes}' if found else 'names no file'}")
        for path in set(found) - set(named):
            ignored[os.path.splitext(path)[1].lower()] += 1
        paths.update((path, states[path]) for path in named)
    for path in sorted(paths):
        try:
            path.encode("utf-8")
            state = paths[path] or kind_of(path).state_of(path)
        except (OSError, UnicodeEncodeError) as error:
            raise listing_error(f"source: {path!r} cannot be read: {error}", error) from error
        yield _file(relative_to(place.root, path), state)
