"""Index: read each part once and keep the facts about its samples' bytes. No pixel is decoded.

One index serves every configuration of preprocessing and model. It is Parquet, a file per part, published when it is
complete: `plan/index/part-NNNNNN.parquet`. Rows stand in the order of the images' places.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .. import rejects
from ..errors import DamagedPart, OutputError
from ..rejects import Reject
from ..source.image_formats import EXTENSIONS
from ..source.listing import check_unchanged, read_planned
from ..source.part import Part, SourceFile
from ..source.places import places, read_place
from ..source.sample import IndexedSample
from ..source.tar import Member, TarStream, walk
from ..storage.files import READS_AT_ONCE, as_path, map_ahead
from ..storage.publish import publish_new, sync_file
from ..storage.remote import is_remote
from ..storage.scratch import Scratch
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
    part: Part, image_column: str, on_damaged: str, output: str, scratch: Scratch, key_column: str | None = None,
    images: HeaderReader | None = None,
) -> int:  # fmt: skip
    """Reads a part and publishes its index, unless another process has done so already.

    Returns:
        The number of samples.

    Raises:
        SourceError: a file changed since it was planned, or cannot be read.
        DamagedPart: a tar is damaged in its structure, and `on_damaged` is `fail`.
    """
    final = as_path(output) / "plan" / "index" / f"part-{part.number:06d}.parquet"
    path = scratch.path(final.name)
    damaged = ""
    try:
        count = _write(path, index_samples(part, image_column, key_column, images), damaged)
    except DamagedPart as error:
        if on_damaged == "fail":
            raise
        damaged = str(error)
        path.unlink(missing_ok=True)
        count = _write(path, iter(()), damaged)
    except OSError as error:  # of the index's own file: the source's, and the guard's, are SourceError
        raise OutputError(f"cannot write {path}: {error}") from error
    for file in part.files:
        if part.format != "folder" or not is_remote(part.root):  # an object that is read whole has the ETag that it had
            check_unchanged(part.root, file)
    if not publish_new(path, final):
        path.unlink()
    return count


def _write(path: Path, samples: Iterator[IndexedSample], damaged: str) -> int:
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


def index_samples(
    part: Part, image_column: str, key_column: str | None = None, images: HeaderReader | None = None
) -> Iterator[IndexedSample]:
    """Reads every image of a part and yields its facts. Raises SourceError and DamagedPart as `index_part` does."""
    images = images or PlainReader()
    if part.format == "folder":
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            read = map_ahead(
                pool, partial(read_planned, part.root), part.files, READS_AT_ONCE if is_remote(part.root) else 0
            )
            for file, data in zip(part.files, read, strict=True):
                yield _facts(IndexedSample(key=file.path, source=file.path, length=len(data)), data, images)
    elif part.format in ("parquet", "jsonl"):
        yield from _index_rows(part, image_column, key_column, images)
    else:
        for file in part.files:
            check_unchanged(part.root, file)
            yield from _index_tar(part, file, image_column, images)


def _facts(sample: IndexedSample, data: bytes, images: HeaderReader) -> IndexedSample:
    sample = replace(sample, sha256=hashlib.sha256(data).hexdigest())
    try:
        header = images.header(sample.key, data)
    except Reject as reject:
        return replace(sample, status=reject.reason, error=reject.message)
    return replace(
        sample, format=header.format, width=header.width, height=header.height, orientation=header.orientation
    )


def _index_rows(part: Part, image_column: str, key_column: str | None, images: HeaderReader) -> Iterator[IndexedSample]:
    """Rows and lines; a second one with a key is a duplicate."""
    keys: set[str] = set()
    source = part.files[0].path
    for place in places(part, image_column, key_column):
        sample = IndexedSample(
            key=place.key, source=source, offset=place.offset, path=place.path, item=place.item, group=place.group
        )
        data = None if place.problem else read_place(place)
        if place.key in keys:
            message = f"the key {place.key} stands in this part more than once"
            sample = replace(sample, status=rejects.DUPLICATE_KEY, error=message)
        elif data is None:
            problem = place.problem or f"there is no file {place.path}"
            sample = replace(sample, status=rejects.MISSING_IMAGE, error=problem[:1000])
        else:
            sample = _facts(replace(sample, length=len(data)), data, images)
        keys.add(place.key)
        yield sample


@dataclass
class _Group:
    """The members of a tar that share a key, gathered while walking."""

    first: int
    names: set[str]
    images: list[IndexedSample]
    duplicates: list[IndexedSample]
    links: list[IndexedSample]
    others: list[dict[str, Any]]


def split_key(name: str) -> tuple[str, str]:
    """A member's key and the rest: up to the first dot of its last path component, and what follows that dot."""
    folder, slash, last = name.rpartition("/")
    key, _, suffix = last.partition(".")
    return folder + slash + key, suffix


def is_named(suffix: str, image_column: str) -> bool:
    """Whether `image_column` (`png`, `left`, `left.png`) names the member of this suffix."""
    return image_column in (suffix, suffix.rpartition(".")[0])


def _index_tar(part: Part, file: SourceFile, image_column: str, images: HeaderReader) -> Iterator[IndexedSample]:
    """Members need not be adjacent to form a sample; a second member of the same name is a duplicate."""
    groups: dict[str, _Group] = {}
    wanted = (*EXTENSIONS, "." + image_column.lower())
    with TarStream(os.path.join(part.root, file.path)) as stream:
        for member, data in walk(stream, wanted):
            key, suffix = split_key(member.name)
            if not suffix:
                continue  # webdataset knows no member without an extension
            group = groups.setdefault(key, _Group(member.offset, set(), [], [], [], []))
            if member.link is not None and member.name.lower().endswith(wanted):
                message = f"member {member.name} is a link to {member.link}, not an image"
                place = _place(member, key, file)
                group.links.append(replace(place, status=rejects.MISSING_IMAGE, error=message[:1000]))
            if data is not None:
                sample = _facts(_place(member, key, file), data, images)
                (group.duplicates if member.name in group.names else group.images).append(sample)
            elif member.link is None and member.name not in group.names:
                group.others.append({"suffix": suffix, "offset": member.offset, "length": member.length})
            group.names.add(member.name)
    samples: list[IndexedSample] = []
    for key, group in groups.items():
        samples.append(replace(_choose(key, group, file, image_column), members=group.others or None))
        for duplicate in group.duplicates:
            message = f"member {duplicate.member} stands in the tar more than once"
            samples.append(replace(duplicate, status=rejects.DUPLICATE_KEY, error=message))
    yield from sorted(samples, key=lambda sample: sample.offset)


def _place(member: Member, key: str, file: SourceFile) -> IndexedSample:
    return IndexedSample(key=key, source=file.path, member=member.name, offset=member.offset, length=member.length)


def _choose(key: str, group: _Group, file: SourceFile, image_column: str) -> IndexedSample:
    """The image of a sample: the only one, or the one that `image_column` names (`png`, `left`, `left.png`)."""
    chosen = group.images
    if len(chosen) > 1:
        suffixes = [(split_key(str(sample.member))[1], sample) for sample in chosen]
        chosen = [
            sample
            for suffix, sample in suffixes
            if is_named(suffix, image_column)
        ]  # fmt: skip
    if len(chosen) == 1:
        return chosen[0]
    if group.links and not group.images:
        return group.links[0]
    if group.images:
        names = ", ".join(split_key(str(sample.member))[1] for sample in group.images)
        error = f"{len(group.images)} images ({names}): choose one with source.image_column"
    else:
        error = f"no image among its members: {', '.join(sorted(group.names))}"
    return IndexedSample(
        key=key, source=file.path, offset=group.first, status=rejects.MISSING_IMAGE, error=error[:1000]
    )
