"""Sampling: what a whole source would give, from the headers of some samples, with its uncertainty. Writes nothing.

A source is drawn from in DRAWS draws that know nothing of each other, so that the spread between them is the
uncertainty of their mean, whatever the source is made of:

folder      some of its files, each as likely as any other; how many there are is known from the listing
webdataset  the members whose headers begin in a window of bytes, anywhere in any of the tars (compressed: whole tars)
jsonl       the lines that begin in a window of bytes
parquet     some rows of a row group, drawn as often as it has rows

Source for the estimators: Cochran, Sampling Techniques, 3rd edition (1977), 9A.3 (drawing with unequal probabilities).
"""

from __future__ import annotations

import os
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline import rejects
from pipeline.errors import DamagedPart, RequestError
from pipeline.files import open_input, read_input
from pipeline.guard import ImageReader
from pipeline.headers import EXTENSIONS
from pipeline.rejects import Reject
from pipeline.rows import Place, images_of, line_places, open_parquet, read_place
from pipeline.sources import SourceFile, SourcePlace, list_files
from pipeline.tar import BLOCK, GZIP_SUFFIXES, TarStream, walk

DRAWS = 32
PILOT_BYTES = 4 << 20
MIN_WINDOW_BYTES = 64 << 10
SYNC_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One sample: `ok` with its size, or a reject's reason."""

    status: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Some samples, and how many of the source's each stands for, if this were the only draw."""

    weight: float
    samples: tuple[Drawn, ...]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """All draws. `unseen` is the share of the source that was not read: nothing is uncertain where it is 0."""

    draws: tuple[Draw, ...]
    unseen: float
    files: int

    @property
    def samples(self) -> int:
        return sum(len(draw.samples) for draw in self.draws)


def draw(place: SourcePlace, count: int, seed: int, image_column: str) -> Draws:
    """Draws about `count` samples.

    Raises:
        RequestError: a file cannot be listed or read, or there is nothing in it.
    """
    generator = random.Random(seed)
    images = _Images()
    if place.format == "folder":
        return _draw_folder(place, count, generator, images)
    files = list(list_files(place))
    try:
        if place.format == "parquet":
            draws = tuple(_draw_rows(place, files, count, generator, images, image_column))
        else:
            draws = tuple(_draw_windows(place, files, count, generator, images, image_column))
    except (OSError, DamagedPart) as error:
        raise RequestError(f"source: cannot be sampled: {error}") from error
    if not any(one.samples for one in draws):
        raise RequestError(f"source: no image was found in {DRAWS} places of {len(files)} files")
    return Draws(draws=draws, unseen=1.0, files=len(files))


class _Images(ImageReader):
    def drawn(self, data: bytes | None) -> Drawn:
        if data is None:
            return Drawn(status=rejects.MISSING_IMAGE)
        try:
            header = self.header("", data)
        except Reject as reject:
            return Drawn(status=reject.reason)
        return Drawn(status=rejects.OK, width=header.width, height=header.height)

    def of_place(self, place: Place) -> Drawn:
        return Drawn(status=rejects.MISSING_IMAGE) if place.problem else self.drawn(read_place(place))


def _draw_folder(place: SourcePlace, count: int, generator: random.Random, images: _Images) -> Draws:
    kept: list[SourceFile] = []
    total = 0
    for file in list_files(place):  # each of the files so far is in `kept` with the same probability
        total += 1
        if len(kept) < count:
            kept.append(file)
        elif (number := generator.randrange(total)) < count:
            kept[number] = file
    generator.shuffle(kept)
    groups = [group for number in range(DRAWS) if (group := kept[number::DRAWS])]
    draws = []
    for group in groups:
        found = []
        for file in group:
            try:
                found.append(images.drawn(read_input(os.path.join(place.root, file.path))))
            except OSError as error:
                raise RequestError(f"source: {file.path} cannot be read: {error}") from error
        # As if every group were of the same size, so that the draws' mean is that of all files.
        draws.append(Draw(weight=total * len(groups) / len(kept), samples=tuple(found)))
    return Draws(draws=tuple(draws), unseen=1 - len(kept) / total if total else 0.0, files=total)


def _draw_rows(
    place: SourcePlace, files: Sequence[SourceFile], count: int, generator: random.Random, images: _Images, column: str
) -> Iterator[Draw]:
    groups: list[tuple[str, int, int]] = []
    for file in files:
        path = os.path.join(place.root, file.path)
        with open_parquet(path) as parquet:
            metadata = parquet.metadata
            groups += [(path, group, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
    ends = np.cumsum([rows for _, _, rows in groups], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    for _ in range(DRAWS if total else 0):
        path, group, rows = groups[int(np.searchsorted(ends, generator.randrange(total), side="right"))]
        chosen = sorted(generator.sample(range(rows), min(rows, max(1, count // DRAWS))))
        with open_parquet(path) as parquet:
            cells = parquet.read_row_group(group, columns=[column]).column(column).take(chosen)
        found = [images.of_place(one) for cell in cells for one in images_of(cell.as_py(), path, "", "")]
        yield Draw(weight=total / len(chosen), samples=tuple(found))


def _draw_windows(
    place: SourcePlace, files: Sequence[SourceFile], count: int, generator: random.Random, images: _Images, column: str
) -> Iterator[Draw]:
    """Wherever a window starts, a byte of any file is in it with the same probability: it goes on at the start."""
    read = _lines_in if place.format == "jsonl" else _members_in
    files = [file for file in files if file.size]
    ends = np.cumsum([file.size for file in files], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    window = 0
    for _ in range(DRAWS if total else 0):
        file = files[int(np.searchsorted(ends, generator.randrange(total), side="right"))]
        path = os.path.join(place.root, file.path)
        if not window:  # how much is read at a time follows from how many samples are in a first piece
            pilot = min(file.size, PILOT_BYTES)
            found = list(read(path, 0, pilot, images, column))
            window = max(MIN_WINDOW_BYTES, int(count / DRAWS * pilot / max(1, len(found))))
        if path.lower().endswith(GZIP_SUFFIXES):
            yield Draw(weight=total / file.size, samples=tuple(read(path, 0, 1 << 62, images, column)))
            continue
        start, length = generator.randrange(file.size), min(window, file.size)
        pieces = [(start, min(start + length, file.size)), (0, max(0, start + length - file.size))]
        samples = [one for first, last in pieces if first < last for one in read(path, first, last, images, column)]
        yield Draw(weight=total / length, samples=tuple(samples))


def _lines_in(path: str, first: int, last: int, images: _Images, column: str) -> Iterator[Drawn]:
    with open_input(path) as stream:
        if first:
            stream.seek(first - 1)
            stream.readline()
        while (position := stream.tell()) < last and (line := stream.readline()):
            if line.strip():
                for place in line_places(line, path, "", 0, position, column, None):
                    yield images.of_place(place)


def _members_in(path: str, first: int, last: int, images: _Images, column: str) -> Iterator[Drawn]:
    wanted = (*EXTENSIONS, "." + column.lower())
    with TarStream(path) as stream:
        if first:
            start = _next_header(stream, first, last)
            if start is None:
                return
            stream.seek(start)
        try:
            for member, data in walk(stream, wanted):
                if member.offset - BLOCK >= last:
                    return
                if data is not None:
                    yield images.drawn(data)
        except DamagedPart:
            return  # for the index to report


def _next_header(stream: TarStream, first: int, last: int) -> int | None:
    """The first member's header that begins in this range, known by its checksum."""
    position = -(-first // BLOCK) * BLOCK
    stream.seek(position)
    while position < last and (data := stream.read(SYNC_BYTES)):
        for offset in range(0, len(data) - BLOCK + 1, BLOCK):
            if position + offset >= last:
                return None
            block = data[offset : offset + BLOCK]
            if block[257:262] == b"ustar":
                try:
                    tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                except tarfile.HeaderError:
                    continue
                return position + offset
        position += len(data)
    return None
