"""Index: read each part once and keep the facts about its samples' bytes. No pixel is decoded.

One index serves every configuration of preprocessing and model. It is Parquet, a file per part, published when it is
complete: `plan/index/part-NNNNNN.parquet`. Rows stand in the order of the images' bytes.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .. import rejects
from ..errors import DamagedPart
from ..rejects import Reject
from ..source.format import Columns
from ..source.formats import format_named
from ..source.listing import name_of_ignored
from ..source.media import video_named
from ..source.part import Part
from ..source.planned import lost_reject
from ..source.sample import IndexedSample
from ..storage.files import AnyPath
from ..storage.large import Encoded, sha256_of
from ..storage.publish import publish_new, sync_file
from ..storage.scratch import Scratch, writing_scratch
from .changes import part_digest
from .header_reader import HeaderReader, PlainReader
from .video_facts import RecentVideos

INDEX_VERSION = 3
ROWS_PER_GROUP = 16_384

MEMBER = pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
VIDEO_FACTS = pa.struct(
    [
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("codec", pa.string()),
        ("turns", pa.int8()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("duration", pa.float64()),
        ("time_base_numerator", pa.int64()),
        ("time_base_denominator", pa.int64()),
        ("zero", pa.int64()),
        ("pts", pa.binary()),
        ("entries", pa.binary()),
        ("is_frames", pa.bool_()),
        ("times", pa.list_(pa.float64())),
        ("sizes", pa.list_(pa.list_(pa.int32()))),
    ]
)
INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("orientation", pa.int8()),
        pa.field("path", pa.string()),
        pa.field("item", pa.int32()),
        pa.field("group", pa.int32(), nullable=False),
        pa.field("members", pa.list_(MEMBER)),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("video", VIDEO_FACTS),
    ]
)


def index_part(
    part: Part, columns: Columns, final: AnyPath, scratch: Scratch, images: HeaderReader, *, on_damaged: str = "fail"
) -> int:
    """Reads a part and publishes its index, unless another process has done so already.

    Args:
        columns: what of a row is its image, and what its key.
        final: the index's name.
        images: reads the headers.
        on_damaged: of a part whose list of samples cannot be trusted, `skip` writes an index without samples,
            `salvage` one of those that stand whole before the damage.

    Returns:
        The number of samples.

    Raises:
        SourceError: a file changed since it was planned, or cannot be read.
        DamagedPart: its list of samples cannot be trusted, and that is to fail.
        OutputError: the index cannot be written.
    """
    path = scratch.path(final.name)
    facts = ByteFacts(images)
    with writing_scratch(path):  # the source's failures, and the guard's, are SourceError
        kept = replace(part, files=tuple(file for file in part.files if not file.fate))
        lost = _lost_whole(part)
        samples = iter(()) if lost else _samples(part, columns, facts)
        about = IndexedFacts(damaged=lost, is_lost=bool(lost), digest=part_digest(kept), of=part.of)
        count, damage = _write(path, samples, facts, about)
        if damage is not None:
            if on_damaged == "fail":
                raise damage
            count = _write_kept(path, damage, facts, about, keep=on_damaged == "salvage")
        sync_file(path)
        format_named(part.format).check_unchanged(kept)
        if not publish_new(path, final):
            path.unlink()
    return count


@dataclass(frozen=True, kw_only=True)
class IndexedFacts:
    """Facts about a part as a whole, in its index's metadata.

    Attributes:
        damaged: what is wrong with it, and what came of that, or "".
        is_lost: whether that is because its file is gone, which was accepted.
        digest: see `changes.part_digest`.
        of: how many parts the source had when this one was read: one of few is cut finer.
    """

    damaged: str = ""
    is_lost: bool = False
    digest: str = ""
    of: int = 0


def _lost_whole(part: Part) -> str:
    """Why nothing of a part is there any more: its only file is not an image, and of its samples none is known."""
    if not format_named(part.format).is_of_images and all(file.fate for file in part.files):
        return f"{part.files[0].path} was planned and has vanished or changed before it was indexed"
    return ""


def _write(
    path: Path, samples: Iterator[IndexedSample], facts: ByteFacts, about: IndexedFacts
) -> tuple[int, DamagedPart | None]:
    """Writes samples as they come, up to the end or to where the part is damaged. Returns their number, and how it is.

    Of a part that is damaged the file says nothing yet of its facts.
    """
    count = 0
    damage: DamagedPart | None = None
    with pq.ParquetWriter(path, INDEX_SCHEMA) as writer:  # scratch: nobody sees it before it is published
        rows: list[dict[str, object]] = []
        try:
            for sample in samples:
                rows.append(asdict(sample))
                if len(rows) == ROWS_PER_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA))
                    count += len(rows)
                    rows = []
        except DamagedPart as error:
            damage = error
        if rows or not count:
            writer.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA))
            count += len(rows)
        if damage is None:
            writer.add_key_value_metadata(facts.metadata(about))
    return count, damage


def _write_kept(path: Path, damage: DamagedPart, facts: ByteFacts, about: IndexedFacts, *, keep: bool) -> int:
    """Writes a damaged part's index again, of those samples that are to be kept; returns their number."""
    table = pq.read_table(path)
    if not keep:
        table = table.slice(0, 0)
    elif damage.group >= 0:
        table = table.filter(pc.less(table.column("group"), damage.group))
    said = str(damage)
    if keep:
        said += (
            f"; salvaged: {table.num_rows} samples that stand whole before it"
            if len(table)
            else ("; nothing can be salvaged, no sample stands whole before it")
        )
    with pq.ParquetWriter(path, INDEX_SCHEMA) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        writer.add_key_value_metadata(facts.metadata(replace(about, damaged=said)))
    return int(table.num_rows)


def index_samples(part: Part, columns: Columns, images: HeaderReader | None = None) -> Iterator[IndexedSample]:
    """Reads every image of a part and yields its facts. Raises SourceError and DamagedPart as `index_part` does."""
    return _samples(part, columns, ByteFacts(images or PlainReader()))


def _samples(part: Part, columns: Columns, facts: ByteFacts) -> Iterator[IndexedSample]:
    kept = replace(part, files=tuple(file for file in part.files if not file.fate))
    samples = format_named(part.format).samples(kept, columns, facts)
    gone = (
        replace(lost, video=video_named(file.path, columns.media)).rejected(*lost_reject(file))
        for file in part.files
        if file.fate and (lost := IndexedSample(key=file.path, source=file.path))
    )
    for sample in heapq.merge(samples, gone, key=lambda sample: sample.source):
        yield sample if sample.key else sample.rejected(rejects.MISSING_IMAGE, "its key is empty")


class ByteFacts:
    """Finds the facts about images' bytes, and counts what of a part is left alone, by extension."""

    def __init__(self, images: HeaderReader) -> None:
        self._images = images
        self._video_headers = RecentVideos(images)
        self.left_alone: Counter[str] = Counter()
        self.videos = 0

    def __call__(self, sample: IndexedSample, data: Encoded, /) -> IndexedSample:
        """Completes a sample by what its bytes are."""
        sample = replace(sample, sha256=sha256_of(data))
        if sample.video is not None:
            self.videos += 1
            return self._video_headers.completed(sample, data)
        assert isinstance(data, bytes)
        try:
            header = self._images.header(sample.key, data)
        except Reject as reject:
            return sample.rejected(reject.reason, reject.message)
        return replace(
            sample, format=header.format, width=header.width, height=header.height, orientation=header.orientation
        )

    def leave(self, name: str, /) -> None:
        self.left_alone[name_of_ignored(name, ())] += 1

    def metadata(self, about: IndexedFacts) -> dict[str, str]:
        """Says what an index's footer has of its part."""
        facts = {"version": str(INDEX_VERSION), "left_alone": self.left_alone} | asdict(about)
        facts |= {"videos": self.videos} if self.videos else {}
        return {"visionbake.index": json.dumps(facts)}
