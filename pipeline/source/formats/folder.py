"""Folder: images and videos below a folder. Parts are runs of the sorted listing; a key is the path below it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

import pyarrow as pa

from ... import rejects
from ...errors import RequestError, SourceBusy, SourceError, reading
from ...process import DaemonThreads
from ...storage.files import READS_AT_ONCE, kind_of, map_ahead, read_input, reads_ahead, why_unlistable, why_unreadable
from ...storage.large import Encoded
from ..carried_values import Carried, carried_of_rows
from ..drawing import Draw, Drawing, Draws
from ..format import Columns, Facts, MediaRule, SourceFormat, UnitBytes
from ..image_formats import EXTENSIONS
from ..listing import Listing
from ..media import BOTH, IMAGE, VIDEO, is_video, suffixes_of, video_named
from ..members import FilesBeside, members_schema, refuse_absent
from ..part import Part, SourceFile
from ..planned import check_unchanged, planned_video, read_planned
from ..sample import IndexedSample

FILES_PER_PART = 8192
PACKED = (".bz2", ".xz", ".zst", ".lz4", ".gz", ".tbz2", ".txz", ".tzst", ".zip", ".7z", ".rar")


class Folder(SourceFormat):
    """See the module."""

    name = "folder"
    suffixes = EXTENSIONS
    is_of_images = True

    def __init__(self, files_per_part: int = FILES_PER_PART) -> None:
        self.files_per_part = files_per_part

    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        if listing.count:
            return
        ignored = listing.ignored
        others = ", ".join(f"{count} {suffix or 'without extension'}" for suffix, count in ignored.most_common(3))
        hint = f"; it holds {others}" if others else ": it is empty"
        if ignored[".tar"] or ignored[".tgz"]:
            hint += f"; for its tars write {uri.rstrip('/')}/*.tar"
        if any(ignored[suffix] for suffix in PACKED):
            hint += "; of what is packed only .tar.gz and .tgz are read: unpack the rest"
        media = listing.place.media
        what = {IMAGE: "image", VIDEO: "video"}.get(media, "image or video")
        raise RequestError(f"source.uri: {uri} holds no {what} ({', '.join(suffixes_of(media))}){hint}")

    def suffixes_of(self, media: str) -> tuple[str, ...]:
        return suffixes_of(media)

    def media_rule(self, listing: Listing, columns: Columns) -> MediaRule:
        return MediaRule(media=BOTH if listing.videos else IMAGE)

    def samples(self, part: Part, columns: Columns, facts: Facts) -> Iterator[IndexedSample]:
        with DaemonThreads(READS_AT_ONCE) as pool:
            read_file = partial(_read_if_readable, part.root, columns.media)
            read = map_ahead(pool, read_file, part.files, reads_ahead(part.root))
            for file, data in zip(part.files, read, strict=True):
                sample = IndexedSample(key=file.path, source=file.path, video=video_named(file.path, columns.media))
                if isinstance(data, str):
                    yield sample.rejected(rejects.MISSING_IMAGE, data)
                else:
                    yield facts(replace(sample, length=len(data)), data)

    def check_unchanged(self, part: Part) -> None:
        for file in part.files:
            if not file.etag and not is_closed_folder(file):  # an object that is read whole has the ETag that it had
                check_unchanged(part.root, file)

    def reader(self, columns: Columns) -> FolderReader:
        return FolderReader()

    def carried_schema(self, listing: Listing, names: Sequence[str], decided: pa.Schema | None = None) -> pa.Schema:
        if decided is None:
            refuse_absent(names, {one.removeprefix(".") for one in listing.ignored if " " not in one}, "file")
        return members_schema(names)

    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """Files, each as likely as any other; how many there are is known from the listing."""
        generator, root = drawing.generator, listing.place.root
        kept: list[SourceFile] = []
        total = 0
        for file in listing:  # each of the files so far is in `kept` with the same probability
            total += 1
            if len(kept) < drawing.count:
                kept.append(file)
            elif (number := generator.randrange(total)) < drawing.count:
                kept[number] = file
        generator.shuffle(kept)
        count = len(drawing.sizes)
        groups = [group for number in range(count) if (group := kept[number::count])]
        videos = [video_named(file.path, drawing.media) for group in groups for file in group]
        with DaemonThreads(READS_AT_ONCE) as pool:
            paths = (os.path.join(root, file.path) for group in groups for file in group)
            read = map_ahead(pool, _image_at, paths, READS_AT_ONCE if drawing.media == IMAGE else reads_ahead(root))
            found = iter([drawing.headers.drawn(data, video) for data, video in zip(read, videos, strict=True)])
        # Each group stands for all: how many samples there are is not uncertain. Of all files each stands for itself.
        each = None if len(kept) < total else len(groups)
        draws = tuple(
            Draw(weight=each or total / len(group), samples=tuple(islice(found, len(group)))) for group in groups
        )
        return Draws(draws=draws, files=total, unseen=1 - len(kept) / total if total else 0.0)


class FolderReader:
    """Reads the files of samples, and those beside them with their names and other suffixes."""

    def __init__(self) -> None:
        self._beside = FilesBeside(())

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str] = ()) -> UnitBytes:
        files = {file.path: file for file in part.files}
        wanted = [sample for sample in samples if sample.sha256 is not None]
        with DaemonThreads(READS_AT_ONCE) as pool:
            data = map_ahead(pool, partial(_reread, part.root, files), wanted, reads_ahead(part.root))
            found = {id(sample): one for sample, one in zip(wanted, data, strict=True)}
        return UnitBytes(
            encoded=[found.get(id(sample)) for sample in samples],
            members=self._members(part, samples, suffixes),
        )

    def _members(
        self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str]
    ) -> list[dict[str, bytes]]:
        if self._beside.names != tuple(suffixes):
            self._beside = FilesBeside(suffixes)
        closed = {file.path for file in part.files if is_closed_folder(file)}
        return [
            {} if sample.source in closed else self._beside.read(os.path.join(part.root, sample.source))
            for sample in samples
        ]

    def carried(
        self, part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
    ) -> Carried:
        return carried_of_rows(members, schema, part.root)

    def close(self) -> None:
        """Nothing is held."""


def is_closed_folder(file: SourceFile) -> bool:
    """Whether what was listed is a folder that may not be: a row says so for all that is in it."""
    return file.path.endswith("/")


def _reread(root: str, files: Mapping[str, SourceFile], sample: IndexedSample) -> Encoded:
    """The file of an indexed sample. Raises SourceError."""
    file = files[sample.source]
    return read_planned(root, file) if sample.video is None else planned_video(root, file)


def _read_if_readable(root: str, media: str, file: SourceFile) -> Encoded | str:
    """A planned file's bytes; or why it can never be read, if it lies there as it did when it was planned.

    Raises:
        SourceError: as `read_planned`, for what is no property of that file.
    """
    if is_closed_folder(file):
        why = why_unlistable(os.path.join(root, file.path))
        return why or "folder could not be listed when the source was planned"
    try:
        return planned_video(root, file) if is_video(file.path, media) else read_planned(root, file)
    except SourceBusy:
        raise
    except SourceError:
        path = os.path.join(root, file.path)
        with reading(path):
            as_planned = kind_of(path).state_of(path) == file.state
        why = why_unreadable(path) if as_planned else ""
        if not why:
            raise
        return why


def _image_at(path: str) -> bytes | None:
    """A file's bytes; None if it can never be read. Raises OSError."""
    try:
        return read_input(path)
    except OSError:
        if why_unreadable(path):
            return None
        raise
