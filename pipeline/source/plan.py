"""List: from a source URI to numbered parts, frozen once planned.

A part is a tar, a chunk of a folder's sorted listing, some row groups of a Parquet file, or some lines of a manifest.
Parts only ever grow: files that appear later become new parts with the next numbers; a planned file that vanished or
changed is refused by name, unless `index.changes` has found what became of it.

    plan/plan.json                  which source this plan is of
    plan/states/                    what became of files since: see `states`
    plan/parts/parts-NNNNNN.parquet one row per file: part, path, size, mtime_ns, ETag; named after its first part

Listings are streamed and merged in sorted order, so that a folder of millions of files costs one directory's names.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import groupby
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DamagedPart, RequestError
from ..storage.files import AnyPath, as_path, names_in, open_input, remove_folder
from ..storage.publish import publish_new, sync_file, write_text
from ..storage.scratch import Scratch, writing_scratch
from .format import Columns
from .formats import format_named
from .keys import repeats_by_part
from .lister import list_source
from .listing import Listing
from .part import Part, SourceFile, SourcePlace
from .planned import KnownFile, as_now, merged, refusal
from .planned_source import PlannedSource
from .states import States

if TYPE_CHECKING:  # preparing and encoding run where the configuration's packages are not
    from ..config_fields import Source

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
        pa.field("from_byte", pa.int64(), nullable=False),
        pa.field("to_byte", pa.int64(), nullable=False),
    ]
)


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
        self.states = States(self.folder / "states")

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
        rows = table.drop_columns("part").to_pylist()
        states = self.states.between(rows[0]["path"], rows[-1]["path"])
        files = tuple(as_now(SourceFile(**row), states.get(row["path"])) for row in rows)
        planned = self.planned
        return Part(
            number=number,
            format=planned.format,
            root=planned.root,
            files=files,
            members=planned.members,
            of=self.num_parts,
        )

    def _list_path(self, start: int) -> AnyPath:
        return self.lists_folder / f"parts-{start:06d}.parquet"

    def _count(self) -> int:
        if not self._starts:
            return 0
        with open_input(self._list_path(self._starts[-1]), forwards=False) as stream:
            metadata = pq.ParquetFile(stream).metadata
        return int(metadata.row_group(metadata.num_row_groups - 1).column(0).statistics.max) + 1

    def _known(self) -> Iterator[KnownFile]:
        """All planned files in sorted order: each list is sorted, so a merge of the lists is."""
        states = iter(self.states)
        state = next(states, None)
        rows = heapq.merge(*(self._read_list(start) for start in self._starts), key=lambda row: row[1].path)
        for path, group in groupby(rows, key=lambda row: row[1].path):
            numbers, files = zip(*group, strict=True)
            while state is not None and state.path < path:
                state = next(states, None)
            now = as_now(files[0], state if state is not None and state.path == path else None)
            yield KnownFile(planned=files[0], now=now, parts=range(numbers[0], numbers[-1] + 1))

    def _read_list(self, start: int) -> Iterator[tuple[int, SourceFile]]:
        """Each part's number, and its file."""
        names = ["part", "path", "size", "mtime_ns", "etag"]
        with open_input(self._list_path(start)) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(4096, columns=names):
                columns = (batch.column(name).to_pylist() for name in names)
                for part, path, size, mtime_ns, etag in zip(*columns, strict=True):
                    yield part, SourceFile(path=path, size=size, mtime_ns=mtime_ns, etag=etag)

    def changes(self, listing: Listing) -> Iterator[tuple[KnownFile, SourceFile | None]]:
        """Every planned file that the listing has in another state than it was last known in, None where it is gone."""
        for known, listed in merged(self._known(), listing):
            if known is not None and not known.is_as_known(listed):
                yield known, listed

    def remove(self) -> None:
        """Forgets all, so that it can be made anew. Whenever it is ended, what is left is a plan. Raises OSError."""
        for folder in (self.index_folder, self.folder / "states", self.lists_folder):
            for name in sorted(names_in(folder), reverse=True):
                (folder / name).unlink(missing_ok=True)
            remove_folder(folder)
        (self.folder / "plan.json").unlink(missing_ok=True)
        self.planned = None
        self.reload()

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
        return sum(1 for _ in self.new_files(listing))

    def new_files(self, listing: Listing) -> Iterator[SourceFile]:
        """The files that are not planned yet. Raises RequestError: a planned one is missing or differs."""
        for known, listed in merged(self._known(), listing):
            if known is None:
                assert listed is not None
                yield listed
            elif not known.is_as_known(listed):
                raise RequestError(refusal(known.planned, listed))

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
            new = self.new_files(listing)
            while (appended := self._append(source, new, place, scratch)) is True:
                pass
            if appended is False:
                break
            self.reload()  # another run has planned meanwhile
            listing, new_files = list_source(place), None
        return self.num_parts - before

    def _parts_of(self, source: Source, place: SourcePlace, files: list[SourceFile]) -> list[list[SourceFile]]:
        """The files of each part that some of a listing's files form: one of them all, or several of a single file."""
        if len(files) > 1:
            return [files]
        source_format = format_named(place.format)
        spans = spans_of_file(place, files[0], source.on_damaged)
        size, count = files[0].size, len(spans)
        spans = [
            replace(span, from_byte=size * number // count, to_byte=size * (number + 1) // count)
            for number, span in enumerate(spans)
        ]
        assert self.planned is not None
        if len(spans) > 1 and self.planned.key_column is not None:
            columns = self.planned.columns
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

    def _append(self, source: Source, new: Iterator[SourceFile], place: SourcePlace, scratch: Scratch) -> bool | None:
        """Writes the next list file of about `files_per_list` rows; all parts of one file are in one list.

        Returns:
            False when nothing is left, None if another run has published a list of this name.
        """
        first, per_part = self.num_parts, format_named(place.format).files_per_part
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
                    for files in self._parts_of(source, place, chunk):
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


def spans_of_file(place: SourcePlace, file: SourceFile, on_damaged: str) -> list[SourceFile]:
    """A file's parts: of one that is damaged in its structure a single one, where that is to be skipped or salvaged.

    Raises:
        RequestError: it is damaged, and that is to fail; it cannot be read.
        SourceBusy: it cannot be read at the moment.
    """
    try:
        return format_named(place.format).spans(place, file)
    except DamagedPart as error:
        if on_damaged == "fail":
            way_on = "mend or remove it, or set source.on_damaged: skip to go on without it"
            raise RequestError(f"source: {str(error).rstrip('.')}; {way_on}") from error
        return [file]


def _numbers(names: Iterable[str], form: re.Pattern[str]) -> Iterator[int]:
    """Yields the number in each file name of a form; a copy or a part of such a file has another name."""
    return (int(match[1]) for name in names if (match := form.fullmatch(name)))
