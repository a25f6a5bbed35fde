"""Changes: what became of planned files that are no more in the state that they were planned in.

A file is known by its bytes. Another mtime or ETag over the same bytes is noted and read on. With other bytes, or none,
a file is a failure, or (`source.on_changed: reject`) its samples that are not committed are rejects. Bytes are read
only where mtime or ETag differ, and are compared with

    the sample's sha256         where a file is an image
    the digests of its parts    of a local file, taken while they were indexed; each of an equal share of its bytes
    every sample of its parts   of an object, and where there are no digests: place, key and sha256

Of a part that is not indexed nothing is known but where it begins and ends: that must be as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DamagedPart, RequestError, SourceBusy, SourceError, reading
from ..source.format import NoFacts
from ..source.formats import format_named
from ..source.listing import Listing
from ..source.part import Part, SourceFile
from ..source.plan import Plan, spans_of_file
from ..source.planned import KnownFile, refusal
from ..source.sample import IndexedSample
from ..source.states import CHANGED, MISSING
from ..storage.files import READS_AT_ONCE, map_ahead, open_input, small_file
from ..storage.large import Encoded, sha256_of
from ..storage.scratch import Scratch

BLOCK_BYTES = 4 << 20
PARTS_KEPT = 8  # whose samples' digests are in memory
PLACES = ("key", "source", "offset", "length", "path", "item", "sha256")
_DIFFERENCE = (DamagedPart, RequestError, SourceError)


class SourceChanged(RequestError):
    """A planned file vanished or holds other bytes, and that is not to be made rejects of."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """How many files were found in another state: with the same bytes, or lost."""

    same: int = 0
    lost: int = 0


def digest_of(path: str, start: int, end: int) -> str:
    """The sha256 of a range of a file. Raises SourceError."""
    digest = hashlib.sha256()
    with reading(path), open_input(path) as stream:
        stream.seek(start)
        while start < end and (block := stream.read(min(BLOCK_BYTES, end - start))):
            digest.update(block)
            start += len(block)
    return digest.hexdigest()


def part_digest(part: Part) -> str:
    """The sha256 of the bytes that a part's index vouches for; "" where its samples do, or where it would cost a second
    download. Raises SourceError."""
    if len(part.files) != 1 or part.files[0].etag or format_named(part.format).is_of_images:
        return ""
    (file,) = part.files
    return digest_of(os.path.join(part.root, file.path), file.from_byte, file.to_byte)


def settle_changes(plan: Plan, listing: Listing, on_changed: str, scratch: Scratch) -> Settled:
    """Finds what became of every planned file that is in another state, and notes it in the plan.

    Args:
        on_changed: fail or reject.

    Raises:
        SourceChanged: naming a file that vanished or holds other bytes, where that is a failure.
        SourceBusy, SourceError: a file cannot be read.
    """
    judge = _Judge(plan, listing)
    while True:
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            found: list[SourceFile] = []
            for change, now in map_ahead(pool, judge.judged, plan.changes(listing), READS_AT_ONCE):
                known, listed = change
                if now.fate and on_changed == "fail":
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise SourceChanged(refusal(known.planned, listed))
                found.append(now)
        lost = sum(bool(now.fate) for now in found)
        if not found or plan.states.write(found, scratch):
            plan.reload()
            return Settled(same=len(found) - lost, lost=lost)
        plan.reload()  # another run has looked meanwhile


class _Judge:
    """Compares planned files with what is there now."""

    def __init__(self, plan: Plan, listing: Listing) -> None:
        assert plan.planned is not None
        self._plan, self._place = plan, listing.place
        self._format = format_named(plan.planned.format)
        self._columns = plan.planned.columns
        self._indexed = plan.indexed_parts()
        self._digests = lru_cache(PARTS_KEPT)(self._digests_of_images)

    def judged(
        self, change: tuple[KnownFile, SourceFile | None]
    ) -> tuple[tuple[KnownFile, SourceFile | None], SourceFile]:
        """A planned file that is in another state, with that state and its fate. Raises SourceBusy, SourceError."""
        known, listed = change
        if listed is None:
            return change, replace(known.now, fate=MISSING)
        return change, replace(listed, fate="" if self._is_same(known, listed) else CHANGED)

    def _is_same(self, known: KnownFile, listed: SourceFile) -> bool:
        indexed = [part for part in known.parts if part in self._indexed]
        if not indexed and self._format.is_of_images:
            return True  # nothing is known of it yet
        if indexed and known.planned.size != listed.size:
            return False
        if len(indexed) < len(known.parts) and not self._has_same_parts(known, listed):
            return False
        return all(self._part_is_same(part, listed) for part in indexed)

    def _has_same_parts(self, known: KnownFile, listed: SourceFile) -> bool:
        """Whether a file would be cut into the same parts."""
        planned = [self._plan.part(part).files[0] for part in known.parts]
        try:
            spans = spans_of_file(self._place, listed, "skip")
        except RequestError:
            return False
        return [(file.first, file.last, file.row) for file in spans] == [
            (file.first, file.last, file.row) for file in planned
        ]

    def _part_is_same(self, number: int, listed: SourceFile) -> bool:
        """Whether the bytes that a part's index vouches for are there. Raises SourceBusy, SourceError."""
        path = os.path.join(self._place.root, listed.path)
        if self._format.is_of_images:
            return self._digests(number).get(listed.path) == digest_of(path, 0, listed.size)
        part = self._plan.part(number)
        (file,) = part.files
        metadata = pq.ParquetFile(small_file(self._plan.index_path(number))).metadata.metadata
        if digest := json.loads(metadata[b"visionbake.index"]).get("digest"):
            return bool(digest == digest_of(path, file.from_byte, file.to_byte))
        state = replace(file, size=listed.size, mtime_ns=listed.mtime_ns, etag=listed.etag, fate="")
        return self._has_same_samples(replace(part, files=(state,)))

    def _digests_of_images(self, number: int) -> dict[str, str]:
        table = pq.read_table(small_file(self._plan.index_path(number)), columns=["source", "sha256"])
        return dict(zip(*(table.column(name).to_pylist() for name in ("source", "sha256")), strict=True))

    def _has_same_samples(self, part: Part) -> bool:
        """Whether a part, read anew, has the samples that its index has. Raises SourceBusy."""
        table = pq.read_table(small_file(self._plan.index_path(part.number)), columns=list(PLACES))
        rows = zip(*(table.column(name).to_pylist() for name in PLACES), strict=True)
        try:
            return list(rows) == list(self._places(part))
        except SourceBusy:
            raise
        except (*_DIFFERENCE, pa.ArrowException):
            return False

    def _places(self, part: Part) -> Iterator[tuple[object, ...]]:
        for sample in self._format.samples(part, self._columns, _Digests()):
            yield tuple(getattr(sample, name) for name in PLACES)


class _Digests(NoFacts):
    def __call__(self, sample: IndexedSample, data: Encoded, /) -> IndexedSample:
        return replace(sample, sha256=sha256_of(data))
