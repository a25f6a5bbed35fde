"""Index: read each part once and keep the facts about its samples' bytes. No pixel is decoded.

One index serves every configuration of preprocessing and model. It is Parquet, a file per part, published when it is
complete: `plan/index/part-NNNNNN.parquet`. Rows stand in the order of the images' bytes.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .. import rejects
from ..errors import DamagedPart
from ..rejects import Reject
from ..source.format import Columns
from ..source.formats import format_named
from ..source.part import Part
from ..source.planned import lost_reject
from ..source.sample import IndexedSample
from ..storage.files import AnyPath
from ..storage.publish import publish_new, sync_file
from ..storage.scratch import Scratch, writing_scratch
from .changes import part_digest
from .headers import HeaderReader, PlainReader

INDEX_VERSION = 3
ROWS_PER_GROUP = 16_384

MEMBER = pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])
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
    ]
)


def index_part(
    part: Part, columns: Columns, final: AnyPath, scratch: Scratch, images: HeaderReader, *, skip_damaged: bool = False
) -> int:
    """Reads a part and publishes its index, unless another process has done so already.

    Args:
        columns: what of a row is its image, and what its key.
        final: the index's name.
        images: reads the headers.
        skip_damaged: of a part whose list of samples cannot be trusted an index without samples is written.

    Returns:
        The number of samples.

    Raises:
        SourceError: a file changed since it was planned, or cannot be read.
        DamagedPart: its list of samples cannot be trusted, and that is not to be skipped.
        OutputError: the index cannot be written.
    """
    path = scratch.path(final.name)
    with writing_scratch(path):  # the source's failures, and the guard's, are SourceError
        kept = replace(part, files=tuple(file for file in part.files if not file.fate))
        try:
            lost = _lost_whole(part)
            samples = iter(()) if lost else index_samples(part, columns, images)
            facts = IndexedFacts(damaged=lost, is_lost=bool(lost), digest=part_digest(kept))
            count = _write(path, samples, facts)
        except DamagedPart as error:
            if not skip_damaged:
                raise
            path.unlink(missing_ok=True)
            count = _write(path, iter(()), IndexedFacts(damaged=str(error)))
        format_named(part.format).check_unchanged(kept)
        if not publish_new(path, final):
            path.unlink()
    return count


@dataclass(frozen=True, kw_only=True)
class IndexedFacts:
    """Facts about a part as a whole, in its index's metadata.

    Attributes:
        damaged: why it has no samples, or "".
        is_lost: whether that is because its file is gone, which was accepted.
        digest: see `changes.part_digest`.
    """

    damaged: str = ""
    is_lost: bool = False
    digest: str = ""


def _lost_whole(part: Part) -> str:
    """Why nothing of a part is there any more: its only file is not an image, and of its samples none is known."""
    if not format_named(part.format).is_of_images and all(file.fate for file in part.files):
        return f"{part.files[0].path} was planned and has vanished or changed before it was indexed"
    return ""


def _write(path: Path, samples: Iterator[IndexedSample], facts: IndexedFacts) -> int:
    text = json.dumps({"version": str(INDEX_VERSION)} | asdict(facts))
    schema = INDEX_SCHEMA.with_metadata({"visionbake.index": text})
    count = 0
    with pq.ParquetWriter(path, schema) as writer:  # scratch: nobody sees it before it is published
        rows: list[dict[str, object]] = []
        for sample in samples:
            rows.append(asdict(sample))
            if len(rows) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                count += len(rows)
                rows = []
        if rows or not count:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            count += len(rows)
    sync_file(path)
    return count


def index_samples(part: Part, columns: Columns, images: HeaderReader | None = None) -> Iterator[IndexedSample]:
    """Reads every image of a part and yields its facts. Raises SourceError and DamagedPart as `index_part` does."""
    kept = replace(part, files=tuple(file for file in part.files if not file.fate))
    samples = format_named(part.format).samples(kept, columns, partial(_facts, images or PlainReader()))
    gone = (
        IndexedSample(key=file.path, source=file.path).rejected(*lost_reject(file)) for file in part.files if file.fate
    )
    for sample in heapq.merge(samples, gone, key=lambda sample: sample.source):
        yield sample if sample.key else sample.rejected(rejects.MISSING_IMAGE, "its key is empty")


def _facts(images: HeaderReader, sample: IndexedSample, data: bytes) -> IndexedSample:
    """Completes a sample by what its bytes are."""
    sample = replace(sample, sha256=hashlib.sha256(data).hexdigest())
    try:
        header = images.header(sample.key, data)
    except Reject as reject:
        return sample.rejected(reject.reason, reject.message)
    return replace(
        sample, format=header.format, width=header.width, height=header.height, orientation=header.orientation
    )
