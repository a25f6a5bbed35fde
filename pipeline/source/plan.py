"""List: from a source URI to numbered parts, frozen once planned.

A part is a tar, a chunk of a folder's sorted listing, some row groups of a Parquet file, or some lines of a manifest.
Parts only ever grow: files that appear later become new parts with the next numbers; a planned file that vanished or
changed is refused by name.

    plan/plan.json                  which source this plan is of
    plan/parts/parts-NNNNNN.parquet one row per file: part, path, size, mtime_ns, ETag; named after its first part

Listings are streamed and merged in sorted order, so that a folder of millions of files costs one directory's names.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import RequestError
from ..storage.files import AnyPath, as_path, names_in, open_input
from ..storage.publish import publish_new, sync_file, write_text
from ..storage.scratch import Scratch, writing_scratch
from .format import Columns
from .formats import format_named
from .keys import repeats_by_part
from .lister import list_source
from .listing import Listing
from .part import Part, SourceFile, SourcePlace
from .planned import difference

if TYPE_CHECKING:  # preparing and encoding run where the configuration's packages are not
    from ..config import Source

PLAN_VERSION = 4
ROWS_AT_ONCE = 8192
FILES_PER_LIST = 64 * ROWS_AT_ONCE
_LIST_NAME = re.compile(r"parts-([0-9]{6,9})\.parquet")
_INDEX_NAME = re.compile(r"part-([0-9]{6,9})\.parquet")

PARTS_SCHEMA = pa.schema(
    [
        pa.field("part", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("first", pa.int64(), nullable=False),
        pa.field("last", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("repeated", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """The source that a plan is of: plan.json.

    Attributes:
        members: the rule by which a tar's members form samples. It was decided once, and a run that goes on takes it.
    """

    version: int
    root: str
    format: str
    image_column: str
    key_column: str | None
    members: str = "grouped"  # of plans that were made before there was a choice

    @classmethod
    def of(cls, source: Source, place: SourcePlace, members: str) -> PlannedSource:
        """The source that a configuration names, with the rule that its members are taken by."""
        return cls(
            version=PLAN_VERSION,
            root=place.root,
            format=place.format,
            image_column=source.image_column,
            key_column=source.key_column,
            members=members,
        )

    @classmethod
    def read(cls, described: AnyPath) -> PlannedSource:
        """The inverse of `asdict` as JSON. Raises RequestError: it is no plan of ours."""
        try:
            return cls(**dict(json.loads(described.read_text(encoding="utf-8"))))
        except (IsADirectoryError, ValueError, TypeError) as error:
            raise RequestError(f"{described} is not a plan of visionbake: {error}") from error


def is_planned(output: AnyPath) -> bool:
    """Whether there is a plan in an output."""
    return (output / "plan" / "plan.json").exists()


class Plan:
    """The plan folder of one output: the frozen parts, and where their indices lie."""

    def __init__(self, output: str | AnyPath, files_per_list: int = FILES_PER_LIST) -> None:
        self._files_per_list = files_per_list
        self.folder = as_path(output) / "plan"
        self.lists_folder = self.folder / "parts"
        self.index_folder = self.folder / "index"
        self.planned: PlannedSource | None = None
        self.decided = ""  # what `update` decided for the user, in a line
        self.num_parts = 0
        self._starts: list[int] = []
        self.reload()

    def reload(self) -> None:
        """Reads what is planned by now. Raises RequestError: it is no plan of ours."""
        described = self.folder / "plan.json"
        if described.exists():
            self.planned = PlannedSource.read(described)
        self._starts = sorted(_numbers(names_in(self.lists_folder, "parts-"), _LIST_NAME))
        self.num_parts = self._count()

    def index_path(self, part: int) -> AnyPath:
        return self.index_folder / f"part-{part:06d}.parquet"

    def indexed_parts(self) -> set[int]:
        """By names alone: an index file is complete when it exists."""
        return set(_numbers(names_in(self.index_folder, "part-"), _INDEX_NAME))

    def part(self, number: int) -> Part:
        """Reads one part's files. Raises KeyError if there is no such part."""
        assert self.planned is not None
        start = max((start for start in self._starts if start <= number), default=-1)
        if start < 0 or number >= self.num_parts:
            raise KeyError(number)
        with open_input(self._list_path(start), forwards=False) as stream:
            table = pq.read_table(stream, filters=[("part", "=", number)])
        files = tuple(
            SourceFile(**{name: value for name, value in row.items() if name != "part"}) for row in table.to_pylist()
        )
        planned = self.planned
        return Part(number=number, format=planned.format, root=planned.root, files=files, members=planned.members)

    def _list_path(self, start: int) -> AnyPath:
        return self.lists_folder / f"parts-{start:06d}.parquet"

    def _count(self) -> int:
        if not self._starts:
            return 0
        with open_input(self._list_path(self._starts[-1]), forwards=False) as stream:
            metadata = pq.ParquetFile(stream).metadata
        return int(metadata.row_group(metadata.num_row_groups - 1).column(0).statistics.max) + 1

    def _known(self) -> Iterator[SourceFile]:
        """All planned files in sorted order, each once: each list is sorted, so a merge of the lists is."""
        last = ""
        for file in heapq.merge(*(self._read_list(start) for start in self._starts), key=lambda file: file.path):
            if file.path != last:
                yield file
            last = file.path

    def _read_list(self, start: int) -> Iterator[SourceFile]:
        names = ["path", "size", "mtime_ns", "etag"]
        with open_input(self._list_path(start)) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(4096, columns=names):
                columns = (batch.column(name).to_pylist() for name in names)
                for path, size, mtime_ns, etag in zip(*columns, strict=True):
                    yield SourceFile(path=path, size=size, mtime_ns=mtime_ns, etag=etag)

    def check_source(self, source: Source, place: SourcePlace) -> None:
        """Raises RequestError if this plan is of another source."""
        if self.planned is None:
            return
        planned = asdict(self.planned)
        members = self.planned.members if source.members == "auto" else source.members
        for name, value in asdict(PlannedSource.of(source, place, members)).items():
            if planned[name] != value:
                raise RequestError(
                    f"output {self.folder.parent} was planned with source.{name} {planned[name]!r}, not "
                    f"{value!r}; use another output.uri"
                )

    def check_files(self, source: Source, listing: Listing) -> int:
        """How many of the source's files are not planned yet.

        Raises:
            RequestError: the plan is of another source, or a planned file vanished or changed; the message names it.
        """
        self.check_source(source, listing.place)
        return sum(1 for _ in _new_files(self._known(), listing))

    def update(self, source: Source, listing: Listing, scratch: Scratch, new_files: int | None = None) -> int:
        """Brings the plan up to the source as it was listed.

        Args:
            new_files: what `check_files` has just found, if it was asked.

        Returns:
            How many parts are new.

        Raises:
            RequestError: a planned file vanished or changed; the message names it.
        """
        before, place = self.num_parts, listing.place
        while True:
            if new_files is None:
                new_files = self.check_files(source, listing)  # refuses before anything is written
            if not new_files:
                break
            self._describe(source, listing, scratch)
            new = _new_files(self._known(), listing)
            per_part = format_named(place.format).files_per_part
            while (appended := self._append(new, per_part, place, scratch)) is True:
                pass
            if appended is False:
                break
            self.reload()  # another run has planned meanwhile
            listing, new_files = list_source(place), None
        return self.num_parts - before

    def _parts_of(self, place: SourcePlace, files: list[SourceFile]) -> list[list[SourceFile]]:
        """The files of each part that some of a listing's files form: one of them all, or several of a single file."""
        if len(files) > 1:
            return [files]
        source_format = format_named(place.format)
        spans = source_format.spans(place, files[0])
        assert self.planned is not None
        if len(spans) > 1 and self.planned.key_column is not None:
            columns = Columns(image=self.planned.image_column, key=self.planned.key_column)
            repeats = repeats_by_part(source_format.keys(place, span, columns) for span in spans)
            spans = [replace(span, repeated=digests) for span, digests in zip(spans, repeats, strict=True)]
        return [[span] for span in spans]

    def _describe(self, source: Source, listing: Listing, scratch: Scratch) -> None:
        if self.planned is not None:
            return
        place = listing.place
        members: str = source.members
        if members == "auto":
            columns = Columns(image=source.image_column, key=source.key_column)
            rule = format_named(place.format).members_rule(listing, columns)
            members, self.decided = rule.members, rule.said
        described = self.folder / "plan.json"
        path = scratch.path("plan.json")
        write_text(path, json.dumps(asdict(PlannedSource.of(source, place, members)), indent=2) + "\n")
        publish_new(path, described)
        self.planned = PlannedSource.read(described)
        self.check_source(source, place)

    def _append(self, new: Iterator[SourceFile], per_part: int, place: SourcePlace, scratch: Scratch) -> bool | None:
        """Writes the next list file of about `files_per_list` rows; all parts of one file are in one list.

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
            with writing_scratch(path):
                while written + len(rows) < self._files_per_list:
                    chunk = [file for _, file in zip(range(per_part), new, strict=False)]
                    if not chunk:
                        break
                    for files in self._parts_of(place, chunk):
                        rows.extend({"part": number, **asdict(file)} for file in files)
                        number += 1
                    if len(rows) >= ROWS_AT_ONCE or len(chunk) == per_part > 1:
                        writer = writer or pq.ParquetWriter(path, PARTS_SCHEMA)
                        writer.write_table(pa.Table.from_pylist(rows, PARTS_SCHEMA))
                        written += len(rows)
                        rows = []
                if rows:
                    writer = writer or pq.ParquetWriter(path, PARTS_SCHEMA)
                    writer.write_table(pa.Table.from_pylist(rows, PARTS_SCHEMA))
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


def _numbers(names: Iterable[str], form: re.Pattern[str]) -> Iterator[int]:
    """Yields the number in each file name of a form; a copy or a part of such a file has another name."""
    return (int(match[1]) for name in names if (match := form.fullmatch(name)))


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
            if old.state != file.state:
                raise RequestError(f"source: {file.path} {difference(old, file)}; use another output.uri")
            old = next(known_iterator, None)
        else:
            yield file
    if old is not None:
        raise RequestError(f"source: {old.path} was planned and has vanished; restore it, or use another output.uri")
