"""List: a source URI to its files, in sorted order, each as it is now.

folder      image files below a folder
webdataset  tars, by brace or glob
parquet     Parquet files, or a folder of them
jsonl       manifests, or a folder of them
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..errors import RequestError, SourceError
from ..storage import remote
from ..storage.files import map_ahead, read_input
from ..storage.remote import is_remote
from ..storage.remote_read import Changed, read_if_match, reads_conditionally
from .image_formats import EXTENSIONS
from .part import SourceFile, SourcePlace
from .tar import COMPRESSED_ELSEWHERE, GZIP_SUFFIXES

if TYPE_CHECKING:  # preparing and encoding run where the configuration's packages are not
    from ..config import Source

SUFFIXES = {
    "webdataset": (".tar", *GZIP_SUFFIXES),
    "parquet": (".parquet", ".pq"),
    "jsonl": (".jsonl", ".ndjson"),
}
FILES_AT_ONCE = 4096
SPOOLED_BYTES = 16 << 20
PATTERNS_AT_ONCE = 32
OUTPUT_FOLDERS = ("data", "samples", "plan/index", "plan/parts")


def resolve_source(source: Source) -> SourcePlace:
    """Decides format and root. Raises RequestError, naming the URI, for what does not exist or is not supported."""
    remote.check_uri("source.uri", source.uri)
    uri = source.uri if is_remote(source.uri) else os.path.expanduser(source.uri.removeprefix("file://"))
    try:
        import braceexpand

        patterns = [_absolute(pattern) for pattern in braceexpand.braceexpand(uri)]
    except ValueError as error:
        raise RequestError(f"source.uri: {source.uri}: unbalanced braces") from error
    literal = _absolute(uri)
    try:
        return _resolve(source, uri, literal, patterns)
    except OSError as error:
        raise RequestError(f"source.uri: {source.uri} cannot be read: {error}") from error


def _absolute(uri: str) -> str:
    return uri.rstrip("/") if is_remote(uri) else os.path.abspath(uri)


def _resolve(source: Source, uri: str, literal: str, patterns: list[str]) -> SourcePlace:
    if remote.is_folder(literal) if is_remote(literal) else os.path.isdir(literal):
        if source.format == "webdataset":
            raise RequestError(f"source.uri: {source.uri} is a folder; for its tars write {uri.rstrip('/')}/*.tar")
        kind = "folder" if source.format == "auto" else source.format
        return SourcePlace(format=kind, root=literal, patterns=(literal,))
    exists = remote.exists(literal) if is_remote(literal) else os.path.exists(literal)
    if exists:
        patterns = [glob.escape(literal)]
    for kind in ("parquet", "jsonl"):
        if source.format == kind or (source.format == "auto" and uri.lower().rstrip("*").endswith(SUFFIXES[kind])):
            return SourcePlace(format=kind, root=_common_root(patterns), patterns=tuple(patterns))
    if uri.lower().endswith(COMPRESSED_ELSEWHERE):
        raise RequestError(f"source.uri: {source.uri}: of the compressed tars only .tar.gz and .tgz can be read")
    named_as_tar = uri.lower().endswith(SUFFIXES["webdataset"]) or uri.lower().endswith((".tar*", "*"))
    if source.format == "webdataset" or (source.format == "auto" and named_as_tar):
        return SourcePlace(format="webdataset", root=_common_root(patterns), patterns=tuple(patterns))
    if not exists:
        raise RequestError(f"source.uri: {source.uri} does not exist")
    raise RequestError(
        f"source.uri: {source.uri}: neither a folder nor a tar (*.tar, *.tar.gz, *.tgz), Parquet or JSONL file by its "
        "name; set source.format if it is one"
    )


def _common_root(patterns: list[str]) -> str:
    """The longest folder above every pattern that has no glob character in it."""
    folders = []
    for pattern in patterns:
        folder = os.path.dirname(pattern)
        while glob.has_magic(folder.replace("[[]", "").replace("[*]", "").replace("[?]", "")):
            folder = os.path.dirname(folder)
        folders.append(folder.replace("[[]", "[").replace("[*]", "*").replace("[?]", "?"))
    scheme, separator, _ = folders[0].partition("://")
    if not separator:
        return os.path.commonpath(folders)
    # As if they were local ones: every one begins with the same scheme, and has a bucket.
    common = os.path.commonpath(["/" + folder.partition("://")[2] for folder in folders]).lstrip("/")
    if not common:
        raise RequestError(f"source.uri: {', '.join(patterns[:2])}: not all in one bucket")
    return f"{scheme}://{common}"


class Listing:
    """A source's files as one look at it found them, in sorted order.

    Listing costs requests, and two looks may differ: a run lists once and hands this on. It is kept in memory up to
    SPOOLED_BYTES, beyond that in an unnamed temporary file.

    Attributes:
        place: what was listed.
        count: how many files there are.
        ignored: the other files, counted by extension.

    Raises:
        RequestError: as `list_files`.
    """

    def __init__(self, place: SourcePlace) -> None:
        self.place = place
        self.count = 0
        self.ignored: Counter[str] = Counter()
        self._spool = tempfile.SpooledTemporaryFile(max_size=SPOOLED_BYTES)
        files = list_files(place, self.ignored)
        while batch := list(itertools.islice(files, FILES_AT_ONCE)):
            self.count += len(batch)
            pickle.dump(batch, self._spool, protocol=pickle.HIGHEST_PROTOCOL)
        self._end = self._spool.tell()

    def __iter__(self) -> Iterator[SourceFile]:
        position = 0
        while position < self._end:
            self._spool.seek(position)
            batch: list[SourceFile] = pickle.load(self._spool)
            position = self._spool.tell()
            yield from batch


def list_files(place: SourcePlace, ignored: Counter[str] | None = None) -> Iterator[SourceFile]:
    """Lists the source in sorted order; other files are counted in `ignored` by their extension.

    Raises:
        RequestError: a folder or file that cannot be read, or a pattern that names nothing.
    """
    counts: Counter[str] = Counter() if ignored is None else ignored
    if place.patterns == (place.root,):
        return _list_folder(place.root, "", counts, SUFFIXES.get(place.format, EXTENSIONS))
    return _list_named(place, counts)


def _list_folder(root: str, below: str, ignored: Counter[str], suffixes: tuple[str, ...]) -> Iterator[SourceFile]:
    """Depth first, in the order of the relative paths' code points; names only, one directory's at a time."""
    if is_remote(root):
        yield from _list_remote(root, ignored, suffixes)
        return
    names: list[str] = []
    try:
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=True):
                    if not entry.is_symlink() or not _is_above(entry.path, root):
                        names.append(entry.name + "/")
                elif entry.name.lower().endswith(suffixes):
                    names.append(entry.name)
                else:
                    ignored[os.path.splitext(entry.name)[1].lower()] += 1
    except OSError as error:
        raise RequestError(f"source.uri: {os.path.join(root, below)} cannot be listed: {error}") from error
    names.sort()
    for name in names:
        path = below + name
        if name.endswith("/"):
            yield from _list_folder(root, path, ignored, suffixes)
        else:
            try:
                facts = os.stat(os.path.join(root, path))
                path.encode("utf-8")
            except UnicodeEncodeError:
                raise RequestError(f"source: {path!r}: the file's name is not valid UTF-8; rename it") from None
            except OSError as error:
                raise RequestError(f"source: {path} cannot be read: {error}") from error
            yield SourceFile(path=path, size=facts.st_size, mtime_ns=facts.st_mtime_ns)


def _list_remote(root: str, ignored: Counter[str], suffixes: tuple[str, ...]) -> Iterator[SourceFile]:
    """In the same order, so that a folder is the same source wherever it lies."""
    try:
        for path, (size, mtime_ns, etag) in remote.walk(root):
            if path.lower().endswith(suffixes):
                yield SourceFile(path=path, size=size, mtime_ns=mtime_ns, etag=etag)
            else:
                ignored[os.path.splitext(path)[1].lower()] += 1
    except OSError as error:
        raise RequestError(f"source.uri: {root} cannot be listed: {error}") from error


def _is_above(link: str, root: str) -> bool:
    """Whether a link leads to a folder that holds it: following it would never end."""
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return (here + os.sep).startswith(target.rstrip(os.sep) + os.sep)


def _named_by(patterns: Sequence[str]) -> Iterator[Mapping[str, tuple[int, int, str] | None]]:
    """The files that each pattern names, and their states where the listing says them. Raises RequestError."""

    def named_by(pattern: str) -> Mapping[str, tuple[int, int, str] | None]:
        try:
            return remote.glob(pattern) if is_remote(pattern) else dict.fromkeys(glob.glob(pattern, recursive=True))
        except OSError as error:
            raise RequestError(f"source.uri: {pattern} cannot be listed: {error}") from error

    with ThreadPoolExecutor(PATTERNS_AT_ONCE) as pool:
        yield from map_ahead(pool, named_by, patterns, PATTERNS_AT_ONCE if is_remote(patterns[0]) else 0)


def _list_named(place: SourcePlace, ignored: Counter[str]) -> Iterator[SourceFile]:
    paths: dict[str, tuple[int, int, str] | None] = {}
    for pattern, states in zip(place.patterns, _named_by(place.patterns), strict=True):
        found = list(states)
        unreadable = [path for path in found if path.lower().endswith(COMPRESSED_ELSEWHERE)]
        if unreadable and place.format == "webdataset":
            raise RequestError(f"source.uri: {unreadable[0]}: of the compressed tars only .tar.gz and .tgz can be read")
        suffixes = SUFFIXES[place.format]
        # A file that was named in full is what source.format says, whatever its own name says.
        literal = found == [pattern] or glob.escape(pattern) == pattern
        named = [path for path in found if literal or path.lower().endswith(suffixes)]
        if place.format == "webdataset":
            named = [path for path in found if path.lower().endswith(suffixes)]
        if not named:
            what = "names no file" if not found else f"is not named {', '.join('*' + suffix for suffix in suffixes)}"
            raise RequestError(f"source.uri: {pattern} {what}")
        for path in found:
            if path not in named:
                ignored[os.path.splitext(path)[1].lower()] += 1
        paths.update((path, states[path]) for path in named)
    for path in sorted(paths):
        try:
            path.encode("utf-8")
            size, mtime_ns, etag = paths[path] or state_of(path)
        except (OSError, UnicodeEncodeError) as error:
            raise RequestError(f"source: {path!r} cannot be read: {error}") from error
        below = path.removeprefix(place.root + "/") if is_remote(path) else os.path.relpath(path, place.root)
        yield SourceFile(path=below, size=size, mtime_ns=mtime_ns, etag=etag)


def files_of_output_in(place: SourcePlace, output: str) -> str:
    """A file that an output there would have and this source would take for its own; empty if there is none."""
    suffixes = SUFFIXES.get(place.format, EXTENSIONS)
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


def state_of(path: str) -> tuple[int, int, str]:
    """Size, mtime in ns and ETag of a file as it is now. Raises OSError."""
    if is_remote(path):
        return remote.state_of(path)
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns, ""


def difference(old: SourceFile, new: SourceFile) -> str:
    if old.size != new.size:
        return f"has changed since it was planned: {old.size} bytes then, {new.size} now"
    if old.etag or new.etag:
        return f"has changed since it was planned: ETag {old.etag} then, {new.etag} now"
    return f"has changed since it was planned: mtime {old.mtime_ns} ns then, {new.mtime_ns} now"


def read_planned(root: str, file: SourceFile, start: int | None = None, end: int | None = None) -> bytes:
    """A file's bytes, or a range of them, having made sure that it is what was planned.

    Of an object with an ETag that is one conditional request, where the storage's client can make one.

    Raises:
        SourceError: naming the file: it has changed, or cannot be read.
    """
    path = os.path.join(root, file.path)
    try:
        if file.etag and is_remote(path) and reads_conditionally(path):
            return read_if_match(path, file.etag, start, end)
        check_unchanged(root, file)
        return read_input(path, start, end)
    except Changed as error:
        check_unchanged(root, file)  # says how
        raise SourceError(f"{path} has changed since it was planned") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error


def check_unchanged(root: str, file: SourceFile) -> None:
    """Raises SourceError, naming the file, if it is no longer what was planned."""
    path = os.path.join(root, file.path)
    try:
        size, mtime_ns, etag = state_of(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    now = SourceFile(path=file.path, size=size, mtime_ns=mtime_ns, etag=etag)
    if now.state != file.state:
        raise SourceError(f"{path} {difference(file, now)}")
