"""Sampling: what a whole source would give, from the headers of some samples, with its uncertainty. Writes nothing.

A source is drawn from in DRAWS draws that know nothing of each other, so that the spread between them is the
uncertainty of their mean, whatever the source is made of:

folder      some of its files, each as likely as any other; how many there are is known from the listing
webdataset  the members whose headers begin in a window of bytes, anywhere in any of the tars (compressed: whole tars)
jsonl       the lines that begin in a window of bytes
parquet     some rows of a row group, drawn as often as it has rows (of very many files, as often as they are large)

Source for the estimators: Cochran, Sampling Techniques, 3rd edition (1977), 9A.3 (drawing with unequal probabilities).
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..errors import DamagedPart, RequestError
from ..source.listing import Listing
from ..source.part import SourceFile, SourcePlace
from ..source.places import Place, images_of, line_places
from ..source.rows import open_parquet
from ..source.tar import GZIP_SUFFIXES
from ..storage.files import READS_AT_ONCE, map_ahead, open_input, read_input
from .sampling_images import Drawn, DrawnImages, samples_in_tar

DRAWS = 32
PILOT_BYTES = 4 << 20
MIN_WINDOW_BYTES = 64 << 10
FOOTERS_READ = 512  # of more Parquet files only those that are drawn are opened


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


def draw(listing: Listing, count: int, seed: int, image_column: str) -> Draws:
    """Draws about `count` samples, at least one a draw.

    Raises:
        RequestError: a file cannot be listed or read, or there is nothing in it.
    """
    generator, place = random.Random(seed), listing.place
    images = DrawnImages()
    count = max(count, DRAWS)
    if place.format == "folder":
        return _draw_folder(listing, count, generator, images)
    files = list(listing)
    try:
        if place.format == "parquet":
            draws = tuple(_draw_rows(place, files, count, generator, images, image_column))
        else:
            draws = tuple(_draw_windows(place, files, count, generator, images, image_column))
    except (OSError, DamagedPart, pa.ArrowException) as error:
        raise RequestError(f"source: cannot be sampled: {error}") from error
    except KeyError as error:
        raise RequestError(f"source: cannot be sampled: a file has no column {error}") from error
    if not any(one.samples for one in draws):
        raise RequestError(f"source: no image was found in {DRAWS} places of {len(files)} files")
    return Draws(draws=draws, unseen=1.0, files=len(files))


def _draw_folder(listing: Listing, count: int, generator: random.Random, images: DrawnImages) -> Draws:
    kept: list[SourceFile] = []
    total, place = 0, listing.place
    for file in listing:  # each of the files so far is in `kept` with the same probability
        total += 1
        if len(kept) < count:
            kept.append(file)
        elif (number := generator.randrange(total)) < count:
            kept[number] = file
    generator.shuffle(kept)
    if len(kept) < total:  # groups of one size: how many samples there are is then not uncertain
        kept = kept[: len(kept) // DRAWS * DRAWS]
    groups = [group for number in range(DRAWS) if (group := kept[number::DRAWS])]
    try:
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            paths = (os.path.join(place.root, file.path) for group in groups for file in group)
            found = [images.drawn(data) for data in map_ahead(pool, read_input, paths, READS_AT_ONCE)]
    except OSError as error:
        raise RequestError(f"source: cannot be sampled: {error}") from error
    rest = iter(found)
    draws = [
        Draw(weight=total * len(groups) / len(kept), samples=tuple(itertools.islice(rest, len(group))))
        for group in groups
    ]
    return Draws(draws=tuple(draws), unseen=1 - len(kept) / total if total else 0.0, files=total)


def _draw_rows(
    place: SourcePlace,
    files: Sequence[SourceFile],
    count: int,
    generator: random.Random,
    images: DrawnImages,
    column: str,
) -> Iterator[Draw]:
    paths = [os.path.join(place.root, file.path) for file in files]
    wanted = max(1, count // DRAWS)
    if len(paths) > FOOTERS_READ:
        size_ends = np.cumsum([file.size for file in files], dtype=np.int64)
        chosen = [_at(size_ends, generator) for _ in range(DRAWS)]
        sizes = {paths[number]: files[number].size for number in chosen}
    else:
        chosen, sizes = list(range(len(paths))), {}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        distinct = [paths[number] for number in dict.fromkeys(chosen)]
        rows_of = dict(zip(distinct, map_ahead(pool, _rows_by_group, distinct, READS_AT_ONCE), strict=True))
    if sizes:
        # Each of a file's rows stands for all of its rows, and the file for as many as it would take to be all bytes.
        total_bytes = int(size_ends[-1])
        for number in chosen:
            path, rows = paths[number], sum(rows_of[paths[number]])
            drawn = _some_rows(path, rows_of[path], wanted, generator, images, column)
            scale = total_bytes / sizes[path]
            yield Draw(weight=scale * rows / max(1, drawn.rows), samples=drawn.samples)
        return
    groups = [(path, group, rows) for path in distinct for group, rows in enumerate(rows_of[path])]
    ends = np.cumsum([rows for _, _, rows in groups], dtype=np.int64)
    for _ in range(DRAWS if len(ends) and ends[-1] else 0):
        path, group, rows = groups[_at(ends, generator)]
        some = _rows_of_group(path, group, rows, wanted, generator, images, column)
        yield Draw(weight=int(ends[-1]) / some.rows, samples=some.samples)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    rows: int
    samples: tuple[Drawn, ...]


def _at(ends: npt.NDArray[np.int64], generator: random.Random) -> int:
    """One of them, each as likely as it is long."""
    return int(np.searchsorted(ends, generator.randrange(int(ends[-1])), side="right"))


def _rows_by_group(path: str) -> list[int]:
    with open_parquet(path) as parquet:
        return [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]


def _some_rows(
    path: str, by_group: Sequence[int], wanted: int, generator: random.Random, images: DrawnImages, column: str
) -> _Rows:
    """Of a row group that is drawn as often as it has rows."""
    ends = np.cumsum(by_group, dtype=np.int64)
    if not len(ends) or not ends[-1]:
        return _Rows(rows=0, samples=())
    group = _at(ends, generator)
    return _rows_of_group(path, group, by_group[group], wanted, generator, images, column)


def _rows_of_group(
    path: str, group: int, rows: int, wanted: int, generator: random.Random, images: DrawnImages, column: str
) -> _Rows:
    chosen = sorted(generator.sample(range(rows), min(rows, wanted)))
    with open_parquet(path) as parquet:
        cells = parquet.read_row_group(group, columns=[column]).column(column).take(chosen)
    places = [one for cell in cells for one in images_of(cell.as_py(), path, "", "")]
    return _Rows(rows=len(chosen), samples=tuple(images.of_places(places)))


def _draw_windows(
    place: SourcePlace,
    files: Sequence[SourceFile],
    count: int,
    generator: random.Random,
    images: DrawnImages,
    column: str,
) -> Iterator[Draw]:
    """Wherever a window starts, a byte of any file is in it with the same probability: it goes on at the start."""
    lines = place.format == "jsonl"
    files = [file for file in files if file.size]
    ends = np.cumsum([file.size for file in files], dtype=np.int64)
    wanted = max(1, count // DRAWS)
    window = 0
    for _ in range(DRAWS if len(ends) else 0):
        file = files[_at(ends, generator)]
        path = os.path.join(place.root, file.path)
        if not window:  # how much is read at a time follows from how many samples are in a first piece
            pilot = min(file.size, PILOT_BYTES)
            found: Sequence[object] = (
                _lines_in(path, 0, pilot, column) if lines else samples_in_tar(path, 0, pilot, images, column)
            )
            window = max(1 if lines else MIN_WINDOW_BYTES, int(count / DRAWS * pilot / max(1, len(found))))
        if path.lower().endswith(GZIP_SUFFIXES):
            yield Draw(
                weight=int(ends[-1]) / file.size, samples=tuple(samples_in_tar(path, 0, 1 << 62, images, column))
            )
            continue
        start, length = generator.randrange(file.size), min(window, file.size)
        pieces = [(start, min(start + length, file.size)), (0, max(0, start + length - file.size))]
        pieces = [(first, last) for first, last in pieces if first < last]
        weight = int(ends[-1]) / length
        if lines:  # an image of its own file each: no more of them are read than are wanted
            places = [one for first, last in pieces for one in _lines_in(path, first, last, column)]
            chosen = generator.sample(places, min(len(places), 2 * wanted))
            samples = tuple(images.of_places(chosen))
            weight *= len(places) / max(1, len(chosen))
        else:
            samples = tuple(
                one for first, last in pieces for one in samples_in_tar(path, first, last, images, column)
            )  # fmt: skip
        yield Draw(weight=weight, samples=samples)


def _lines_in(path: str, first: int, last: int, column: str) -> list[Place]:
    """What the lines that begin in this range name."""
    places: list[Place] = []
    with open_input(path) as stream:
        if first:
            stream.seek(first - 1)
            stream.readline()
        while (position := stream.tell()) < last and (line := stream.readline()):
            if line.strip():
                places += line_places(line, path, "", 0, position, column, None)
    return places
