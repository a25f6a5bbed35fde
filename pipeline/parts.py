"""List: from a source URI to numbered parts, frozen once planned.

A part is a tar, or a chunk of a folder's sorted listing. Parts only ever grow: files that appear later become new
parts with the next numbers; a planned file that vanished or changed is refused by name.

    plan/plan.json                  which source this plan is of
    plan/parts/parts-NNNNNN.parquet one row per file: part, path, size, mtime_ns; named after its first part

Listings are streamed and merged in sorted order, so that a folder of millions of files costs one directory's names.
"""

from __future__ import annotations

import glob
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError, RequestError, SourceError
from pipeline.files import Scratch, publish_new, sync_file, write_text
from pipeline.headers import EXTENSIONS
from pipeline.tar import COMPRESSED_ELSEWHERE, GZIP_SUFFIXES

if TYPE_CHECKING:  # preparing and encoding run where the configuration's packages are not
    from pipeline.config import Source

PLAN_VERSION = 1
FOLDER_PART_FILES = 8192
FILES_PER_LIST = 64 * FOLDER_PART_FILES
TAR_SUFFIXES = (".tar", *GZIP_SUFFIXES)

PARTS_SCHEMA = pa.schema(
    [
        pa.field("part", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of the source as it was when it was planned. `path` is relative to the source's root."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, kw_only=True)
class Part:
    number: int
    format: str
    root: str
    files: tuple[SourceFile, ...]


@dataclass(frozen=True, kw_only=True)
class SourcePlace:
    """A source URI made definite: its format, and the folder that paths are relative to."""

    format: str
    root: str
    patterns: tuple[str, ...]  # absolute; the folder itself, or the tars' glob patterns


def resolve_source(source: Source) -> SourcePlace:
    """Decides format and root. Raises RequestError, naming the URI, for what does not exist or is not supported."""
    uri = os.path.expanduser(source.uri)
    try:
        import braceexpand

        patterns = [os.path.abspath(pattern) for pattern in braceexpand.braceexpand(uri)]
    except ValueError as error:
        raise RequestError(f"source.uri: {source.uri}: unbalanced braces") from error
    literal = os.path.abspath(uri)
    if os.path.isdir(literal):
        if source.format not in ("auto", "folder"):
            raise RequestError(f"source.uri: {source.uri} is a folder, source.format says {source.format}")
        return SourcePlace(format="folder", root=literal, patterns=(literal,))
    if uri.lower().endswith(COMPRESSED_ELSEWHERE):
        raise RequestError(f"source.uri: {source.uri}: of the compressed tars only .tar.gz and .tgz can be read")
    named_as_tar = uri.lower().endswith(TAR_SUFFIXES) or uri.lower().endswith((".tar*", "*"))
    if source.format == "webdataset" or (source.format == "auto" and named_as_tar):
        if os.path.exists(literal):
            patterns = [glob.escape(literal)]
        return SourcePlace(format="webdataset", root=_common_root(patterns), patterns=tuple(patterns))
    if not os.path.exists(literal):
        raise RequestError(f"source.uri: {source.uri} does not exist")
    raise RequestError(
        f"source.uri: {source.uri}: neither a folder nor a tar (*.tar, *.tar.gz, *.tgz); set source.format if it is one"
    )


def _common_root(patterns: list[str]) -> str:
    """The longest folder above every pattern that has no glob character in it."""
    folders = []
    for pattern in patterns:
        folder = os.path.dirname(pattern)
        while glob.has_magic(folder.replace("[[]", "").replace("[*]", "").replace("[?]", "")):
            folder = os.path.dirname(folder)
        folders.append(folder.replace("[[]", "[").replace("[*]", "*").replace("[?]", "?"))
    return os.path.commonpath(folders)


def list_files(place: SourcePlace, ignored: Counter[str] | None = None) -> Iterator[SourceFile]:
    """Lists the source in sorted order; other files are counted in `ignored` by their extension.

    Raises:
        RequestError: a folder or file that cannot be read, or a pattern that names nothing.
    """
    counts: Counter[str] = Counter() if ignored is None else ignored
    return _list_folder(place.root, "", counts) if place.format == "folder" else _list_tars(place, counts)


def _list_folder(root: str, below: str, ignored: Counter[str]) -> Iterator[SourceFile]:
    """Depth first, in the order of the relative paths' code points; names only, one directory's at a time."""
    names: list[str] = []
    try:
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=True):
                    if not entry.is_symlink() or not _is_above(entry.path, root):
                        names.append(entry.name + "/")
                elif entry.name.lower().endswith(EXTENSIONS):
                    names.append(entry.name)
                else:
                    ignored[os.path.splitext(entry.name)[1].lower()] += 1
    except OSError as error:
        raise RequestError(f"source.uri: {os.path.join(root, below)} cannot be listed: {error}") from error
    names.sort()
    for name in names:
        path = below + name
        if name.endswith("/"):
            yield from _list_folder(root, path, ignored)
        else:
            try:
                facts = os.stat(os.path.join(root, path))
                path.encode("utf-8")
            except UnicodeEncodeError:
                raise RequestError(f"source: {path!r}: the file's name is not valid UTF-8; rename it") from None
            except OSError as error:
                raise RequestError(f"source: {path} cannot be read: {error}") from error
            yield SourceFile(path=path, size=facts.st_size, mtime_ns=facts.st_mtime_ns)


def _is_above(link: str, root: str) -> bool:
    """Whether a link leads to a folder that holds it: following it would never end."""
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return (here + os.sep).startswith(target.rstrip(os.sep) + os.sep)


def _list_tars(place: SourcePlace, ignored: Counter[str]) -> Iterator[SourceFile]:
    paths: set[str] = set()
    for pattern in place.patterns:
        found = glob.glob(pattern, recursive=True)
        unreadable = [path for path in found if path.lower().endswith(COMPRESSED_ELSEWHERE)]
        if unreadable:
            raise RequestError(f"source.uri: {unreadable[0]}: of the compressed tars only .tar.gz and .tgz can be read")
        tars = [path for path in found if path.lower().endswith(TAR_SUFFIXES)]
        if not tars:
            what = "names no file" if not found else "is not named *.tar, *.tar.gz or *.tgz"
            raise RequestError(f"source.uri: {pattern} {what}")
        for path in found:
            if path not in tars:
                ignored[os.path.splitext(path)[1].lower()] += 1
        paths.update(tars)
    for path in sorted(paths):
        try:
            facts = os.stat(path)
            path.encode("utf-8")
        except (OSError, UnicodeEncodeError) as error:
            raise RequestError(f"source: {path!r} cannot be read: {error}") from error
        yield SourceFile(path=os.path.relpath(path, place.root), size=facts.st_size, mtime_ns=facts.st_mtime_ns)


class Plan:
    """The plan folder of one output: the frozen parts, and where their indices lie."""

    def __init__(self, output: str | Path) -> None:
        self.folder = Path(output) / "plan"
        self.lists_folder = self.folder / "parts"
        self.index_folder = self.folder / "index"
        self.identity: dict[str, object] | None = None
        described = self.folder / "plan.json"
        if described.exists():
            self.identity = json.loads(described.read_text(encoding="utf-8"))
        self._starts = sorted(
            int(path.stem.removeprefix("parts-")) for path in self.lists_folder.glob("parts-*.parquet")
        )
        self.num_parts = self._count()

    def index_path(self, part: int) -> Path:
        return self.index_folder / f"part-{part:06d}.parquet"

    def indexed_parts(self) -> set[int]:
        """By names alone: an index file is complete when it exists."""
        if not self.index_folder.is_dir():
            return set()
        return {int(name[5:11]) for name in os.listdir(self.index_folder) if name.startswith("part-")}

    def part(self, number: int) -> Part:
        """Reads one part's files. Raises KeyError if there is no such part."""
        assert self.identity is not None
        start = max((start for start in self._starts if start <= number), default=-1)
        if start < 0 or number >= self.num_parts:
            raise KeyError(number)
        table = pq.read_table(self._list_path(start), filters=[("part", "=", number)])
        files = tuple(
            SourceFile(path=row["path"], size=row["size"], mtime_ns=row["mtime_ns"]) for row in table.to_pylist()
        )
        return Part(number=number, format=str(self.identity["format"]), root=str(self.identity["root"]), files=files)

    def _list_path(self, start: int) -> Path:
        return self.lists_folder / f"parts-{start:06d}.parquet"

    def _count(self) -> int:
        if not self._starts:
            return 0
        metadata = pq.ParquetFile(self._list_path(self._starts[-1])).metadata
        return int(metadata.row_group(metadata.num_row_groups - 1).column(0).statistics.max) + 1

    def _known(self) -> Iterator[SourceFile]:
        """All planned files in sorted order: each list is sorted, so a merge of the lists is."""
        return heapq.merge(*(self._read_list(start) for start in self._starts), key=lambda file: file.path)

    def _read_list(self, start: int) -> Iterator[SourceFile]:
        for batch in pq.ParquetFile(self._list_path(start)).iter_batches(4096, columns=["path", "size", "mtime_ns"]):
            columns = (batch.column(index).to_pylist() for index in range(3))
            for path, size, mtime_ns in zip(*columns, strict=True):
                yield SourceFile(path=path, size=size, mtime_ns=mtime_ns)

    def check_source(self, source: Source, place: SourcePlace) -> None:
        """Raises RequestError if this plan is of another source."""
        if self.identity is None:
            return
        wanted = _identity(source, place)
        for name, value in wanted.items():
            if self.identity.get(name) != value:
                raise RequestError(
                    f"output {self.folder.parent} was planned with source.{name} {self.identity.get(name)!r}, not "
                    f"{value!r}; use another output.uri"
                )

    def check_files(self, source: Source, place: SourcePlace) -> int:
        """How many of the source's files are not planned yet.

        Raises:
            RequestError: the plan is of another source, or a planned file vanished or changed; the message names it.
        """
        self.check_source(source, place)
        return sum(1 for _ in _new_files(self._known(), list_files(place)))

    def update(self, source: Source, place: SourcePlace, scratch: Scratch, new_files: int | None = None) -> int:
        """Brings the plan up to the source as it is now.

        Args:
            new_files: what `check_files` has just found, if it was asked.

        Returns:
            How many parts are new.

        Raises:
            RequestError: a planned file vanished or changed; the message names it.
        """
        before = self.num_parts
        while True:
            if new_files is None:
                new_files = self.check_files(source, place)  # refuses before anything is written
            if not new_files:
                break
            self._describe(source, place, scratch)
            new = _new_files(self._known(), list_files(place))
            per_part = FOLDER_PART_FILES if place.format == "folder" else 1
            while (appended := self._append(new, per_part, scratch)) is True:
                pass
            if appended is False:
                break
            self.__init__(self.folder.parent)  # type: ignore[misc]  # another run planned meanwhile: look again
            new_files = None
        return self.num_parts - before

    def _describe(self, source: Source, place: SourcePlace, scratch: Scratch) -> None:
        if self.identity is not None:
            return
        described = self.folder / "plan.json"
        path = scratch.path("plan.json")
        write_text(path, json.dumps(_identity(source, place), indent=2) + "\n")
        publish_new(path, described)
        self.identity = json.loads(described.read_text(encoding="utf-8"))
        self.check_source(source, place)

    def _append(self, new: Iterator[SourceFile], per_part: int, scratch: Scratch) -> bool | None:
        """Writes the next list file of at most FILES_PER_LIST rows.

        Returns:
            False when nothing is left, None if another run has published a list of this name.
        """
        first = self.num_parts
        path = scratch.path(f"parts-{first:06d}.parquet")
        rows: list[dict[str, object]] = []
        written = 0
        writer: pq.ParquetWriter | None = None
        number = first
        try:
            while written + len(rows) < FILES_PER_LIST:
                chunk = [file for _, file in zip(range(per_part), new, strict=False)]
                if not chunk:
                    break
                rows.extend({"part": number, **asdict(file)} for file in chunk)
                number += 1
                if len(rows) >= FOLDER_PART_FILES or len(chunk) == per_part > 1:
                    writer = writer or pq.ParquetWriter(path, PARTS_SCHEMA)
                    writer.write_table(pa.Table.from_pylist(rows, PARTS_SCHEMA))
                    written += len(rows)
                    rows = []
            if rows:
                writer = writer or pq.ParquetWriter(path, PARTS_SCHEMA)
                writer.write_table(pa.Table.from_pylist(rows, PARTS_SCHEMA))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}") from error
        finally:
            if writer is not None:
                writer.close()
        if number == first:
            return False
        sync_file(path)
        if not publish_new(path, self._list_path(first)):
            return None
        self._starts.append(first)
        self.num_parts = number
        return True


def _identity(source: Source, place: SourcePlace) -> dict[str, object]:
    return {
        "version": PLAN_VERSION,
        "root": place.root,
        "format": place.format,
        "image_column": source.image_column,
        "key_column": source.key_column,
    }


def _new_files(known: Iterable[SourceFile], listed: Iterable[SourceFile]) -> Iterator[SourceFile]:
    """Merges two sorted listings; yields what is only in the second.

    Raises:
        RequestError: a known file is missing or differs.
    """
    known_iterator = iter(known)
    old = next(known_iterator, None)
    for file in listed:
        if old is not None and old.path < file.path:
            raise RequestError(
                f"source: {old.path} was planned and has vanished; restore it, or use another output.uri"
            )
        if old is not None and old.path == file.path:
            if old != file:
                raise RequestError(f"source: {file.path} {_difference(old, file)}; use another output.uri")
            old = next(known_iterator, None)
        else:
            yield file
    if old is not None:
        raise RequestError(f"source: {old.path} was planned and has vanished; restore it, or use another output.uri")


def _difference(old: SourceFile, new: SourceFile) -> str:
    if old.size != new.size:
        return f"has changed since it was planned: {old.size} bytes then, {new.size} now"
    return f"has changed since it was planned: mtime {old.mtime_ns} ns then, {new.mtime_ns} now"


def check_unchanged(part: Part, file: SourceFile) -> None:
    """Raises SourceError, naming the file, if it is no longer what was planned."""
    path = os.path.join(part.root, file.path)
    try:
        facts = os.stat(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    now = SourceFile(path=file.path, size=facts.st_size, mtime_ns=facts.st_mtime_ns)
    if now != file:
        raise SourceError(f"{path} {_difference(file, now)}")
