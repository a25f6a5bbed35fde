"""Lines: manifests in which a record is a line, so that reading may begin anywhere."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from ..storage.files import open_input
from .drawing import Draw, Drawing, Draws, wrapped
from .format import Columns, columns_drawn
from .listing import Listing
from .manifest import Manifest, images_of
from .manifest_file import ManifestFile, Record
from .named_image import NamedImage

BOM = b"\xef\xbb\xbf"
PILOT_BYTES = 4 << 20
FIRST_BYTES = 4096
WIDER = 3  # times as many lines as are wanted are in a window, as a rule: some of them are longer, or name nothing


class LineFile(ManifestFile):
    """An open manifest of a line a record; lines of white space alone are none."""

    noun = "line"

    def records(self, offset: int = 0, row: int = 0) -> Iterator[Record]:
        self.stream.seek(offset)
        while line := self.stream.readline():
            text = line if offset else line.removeprefix(BOM)
            if text.strip():
                try:
                    yield Record(row=row, offset=offset, fields=self.fields_of(text))
                except ValueError as error:
                    yield Record(row=row, offset=offset, fields={}, problem=str(error))
            offset += len(line)
            row += 1

    def starts(self) -> Iterator[tuple[int, int]]:
        offset = 0
        for row, line in enumerate(self.stream):
            yield offset, row
            offset += len(line)

    @abstractmethod
    def fields_of(self, line: bytes) -> dict[str, Any]:
        """The fields of a line. Raises ValueError: what is wrong with it, to stand behind its number."""


class LineManifest(Manifest):
    """A format whose files are manifests of a line a record."""

    opened: ClassVar[type[LineFile]]

    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """The lines that begin in a window of bytes, anywhere in any of the manifests."""
        return Draws(draws=tuple(self._draws(listing, drawing)), files=listing.count)

    def _draws(self, listing: Listing, drawing: Drawing) -> Iterator[Draw]:
        files = [file for file in listing if file.size]
        ends = np.cumsum([file.size for file in files], dtype=np.int64)
        columns = self.columns(columns_drawn(drawing))
        window = 0
        for size in drawing.sizes if len(ends) else ():
            file = files[drawing.one_of(ends)]
            path = os.path.join(listing.place.root, file.path)
            if not window:  # how much is read at a time follows from how many images are in a first piece
                pilot = min(file.size, PILOT_BYTES)
                found = len(self._images_in_range(path, 0, pilot, columns))
                window = max(1, int(WIDER * max(drawing.sizes) * pilot / max(1, found)))
            start, length = drawing.generator.randrange(file.size), min(window, file.size)
            images = [
                one
                for first, last in wrapped(start, length, file.size)
                for one in self._images_in_range(path, first, last, columns)
            ]
            # An image of its own file each: no more of them are read than are wanted.
            chosen = drawing.generator.sample(images, min(len(images), size))
            weight = int(ends[-1]) / length * len(images) / max(1, len(chosen))
            yield Draw(weight=weight, samples=tuple(drawing.headers.drawn_of(chosen)))

    def _images_in_range(self, path: str, first: int, last: int, columns: Columns) -> list[NamedImage]:
        """Lists the images of the lines that begin in this range."""
        images: list[NamedImage] = []
        with self.opened(path) as manifest:
            if first:
                manifest.stream.seek(first - 1)
                manifest.stream.readline()
                first = manifest.stream.tell()
            for record in manifest.records(first):
                if record.offset >= last:
                    break
                images += images_of(record, manifest, "", columns)
        return images


def starts_with(path: str, character: bytes) -> bool:
    """Whether a text file's first character, of those that are no white space, is this one. Raises OSError."""
    with open_input(path, forwards=False) as stream:
        start: bytes = stream.read(FIRST_BYTES)
    return start.removeprefix(BOM).lstrip().startswith(character)
