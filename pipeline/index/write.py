"""Index: read each part once and keep the facts about its samples' bytes. No pixel is decoded.

One index serves every configuration of preprocessing and model. It is Parquet, a file per part, published when it is
complete: `plan/index/part-NNNNNN.parquet`. Rows stand in the order of the images' bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
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
from ..source.sample import IndexedSample
from ..storage.files import AnyPath
from ..storage.publish import publish_new, sync_file
from ..storage.scratch import Scratch, writing_scratch
from .headers import HeaderReader, PlainReader

INDEX_VERSION = 2
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
        try:
            count = _write(path, index_samples(part, columns, images), damaged="")
        except DamagedPart as error:
            if not skip_damaged:
                raise
            path.unlink(missing_ok=True)
            count = _write(path, iter(()), damaged=str(error))
        format_named(part.format).check_unchanged(part)
        if not publish_new(path, final):
            path.unlink()
    return count


def _write(path: Path, samples: Iterator[IndexedSample], *, damaged: str) -> int:
    facts = {"version": str(INDEX_VERSION), "damaged": damaged}
    schema = INDEX_SCHEMA.with_metadata({"visionbake.index": json.dumps(facts)})
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
    for sample in format_named(part.format).samples(part, columns, partial(_facts, images or PlainReader())):
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
