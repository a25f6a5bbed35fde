"""Unit reader: the encoded bytes of a unit's images, in as few requests as their source allows."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..errors import SourceError
from ..source.listing import check_unchanged, read_planned
from ..source.part import Part, SourceFile
from ..source.rows import read_rows
from ..source.sample import IndexedSample
from ..source.tar import GZIP_SUFFIXES, TarStream
from ..storage.files import READS_AT_ONCE, map_ahead, read_input
from ..storage.remote import is_remote

# How far from a unit's images a carried member may stand to be read in one range with them.
BESIDE_BYTES = 16 << 20


class UnitReader:
    """Reads the encoded bytes of units. Keeps a compressed tar open, so that the next unit reads on."""

    def __init__(self, image_column: str = "image") -> None:
        self._image_column = image_column
        self._tar: TarStream | None = None

    def read(self, part: Part, samples: Sequence[IndexedSample]) -> list[bytes | None]:
        """Bytes of every sample, None for those without an image; one range of a tar per unit.

        Raises:
            SourceError: a file changed since it was planned, or cannot be read.
        """
        wanted = [sample for sample in samples if sample.sha256 is not None]
        if part.format == "folder":
            files = {file.path: file for file in part.files}

            def read(sample: IndexedSample) -> bytes:
                return read_planned(part.root, files[sample.source])

            with ThreadPoolExecutor(READS_AT_ONCE) as pool:
                data = map_ahead(pool, read, wanted, READS_AT_ONCE if is_remote(part.root) else 0)
                found = {id(sample): one for sample, one in zip(wanted, data, strict=True)}
            return [found.get(id(sample)) for sample in samples]
        if part.format in ("parquet", "jsonl"):
            return read_rows(part, samples, self._image_column)
        return self.read_with_members(part, samples, ())[0]

    def read_with_members(
        self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str]
    ) -> tuple[list[bytes | None], list[dict[str, bytes]]]:
        """As `read`; of a tar also each sample's members of these suffixes, of the same range where they are near.

        Of a folder, the files beside an image, where there are such.
        """
        if part.format == "folder":
            return self.read(part, samples), [_read_beside(part, sample, suffixes) for sample in samples]
        if part.format != "webdataset":
            return self.read(part, samples), [{} for _ in samples]
        (file,) = part.files
        members = [[member for member in sample.members or () if member["suffix"] in suffixes] for sample in samples]
        images = [(sample.offset, sample.length) for sample in samples if sample.sha256 is not None]
        places = images + [(member["offset"], member["length"]) for some in members for member in some]
        if not places:
            check_unchanged(part.root, file)
            return [None] * len(samples), [{} for _ in samples]
        start, end = _range(images or places[:1], places)
        data = memoryview(self._read_range(part.root, file, start, end))

        def bytes_at(offset: int, length: int) -> bytes:
            if start <= offset and offset + length <= end:
                return bytes(data[offset - start :][:length])
            return self._read_range(part.root, file, offset, offset + length)  # a member that stands far from its image

        found = [
            {member["suffix"]: bytes_at(member["offset"], member["length"]) for member in some} for some in members
        ]
        encoded = [None if sample.sha256 is None else bytes_at(sample.offset, sample.length) for sample in samples]
        return encoded, found

    def _read_range(self, root: str, file: SourceFile, start: int, end: int) -> bytes:
        """Raises SourceError: the file has changed, cannot be read, or ends before."""
        path = os.path.join(root, file.path)
        if path.lower().endswith(GZIP_SUFFIXES):
            check_unchanged(root, file)
            try:
                tar = self._open(path, start)
                tar.seek(start)
                return tar.read_exactly(end - start, "a unit's range")
            except SourceError as error:
                self.close()  # where the stream stands is not known any more
                raise SourceError(str(error)) from error  # the part was whole when it was indexed
        data = read_planned(root, file, start, end)
        if len(data) != end - start:
            raise SourceError(f"{path}: ends at byte {start + len(data)}, inside a unit's range")
        return data

    def _open(self, path: str, start: int) -> TarStream:
        if self._tar is not None and (self._tar.path != path or self._tar.position > start):
            self.close()
        if self._tar is None:
            self._tar = TarStream(path)
        return self._tar

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def _read_beside(part: Part, sample: IndexedSample, suffixes: Collection[str]) -> dict[str, bytes]:
    stem = os.path.splitext(os.path.join(part.root, sample.source))[0]
    found: dict[str, bytes] = {}
    for suffix in suffixes:
        try:
            found[suffix] = read_input(f"{stem}.{suffix}")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SourceError(f"{stem}.{suffix}: cannot be read: {error}") from error
    return found


def _range(images: Sequence[tuple[int, int]], places: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """From the first to the last byte of the images, and of what stands beside them."""
    start = min(offset for offset, _ in images)
    end = max(offset + length for offset, length in images)
    near = [
        (offset, offset + length)
        for offset, length in places
        if start - BESIDE_BYTES <= offset and offset + length <= end + BESIDE_BYTES
    ]
    return min(start, *(first for first, _ in near)), max(end, *(last for _, last in near))
