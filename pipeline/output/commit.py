"""Commit: publish a unit's data shard, then its samples shard; the second is the commit.

    data/part-PPPPPP-UUUU.parquet      published first, never over another
    samples/part-PPPPPP-UUUU.parquet   then this one; its footer records what the data shard must be

A data shard without a samples shard is left from a crash or belongs to a twin at work. It is adopted if it is what this
unit must give, else replaced. Nothing that is committed is written again.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..encode.dtypes import STORED, is_scaled
from ..encode.encoded import EncodedUnit
from ..errors import OutputError
from ..fault import fault_point
from ..prepare.unit import PreparedUnit
from ..storage.files import AnyPath
from ..storage.publish import publish_new, publish_over
from ..storage.scratch import Scratch, local_copy
from .committed import Committed
from .layout import data_path, samples_path
from .record import CommitRecord, read_record, same_json
from .settings import Encoding, ShardSettings
from .shard import DataShard, ShardContent, ShardRows, write_samples_shard
from .shard_formats import shard_format
from .unit_rows import UnitRows

UNKNOWN_ENCODER = Encoding()


@dataclass(frozen=True, kw_only=True)
class Published:
    """This process's data shard stands under its final name."""

    shard: DataShard


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """A data shard that was there already is what this unit must give."""

    shard: DataShard


@dataclass(frozen=True, kw_only=True)
class CommittedByOther:
    """Another process has committed the unit, with other rows: an image was a reject there that is none here."""

    record: CommitRecord


def commit_unit(
    prepared: PreparedUnit,
    encoded: EncodedUnit,
    output: AnyPath,
    scratch: Scratch,
    settings: ShardSettings,
    encoding: Encoding = UNKNOWN_ENCODER,
) -> Committed:
    """Writes, checks and publishes one unit: its data shard, then its samples shard.

    Raises:
        OutputError: the output cannot be written.
    """
    started = time.perf_counter()
    rows = UnitRows(prepared, encoded)
    fault_point("before_data_write")
    final = data_path(output, prepared.unit.id, settings.format)
    ours = _write_data(rows, scratch.path(final.name), settings)
    fault_point("after_data_write")
    published = _publish_data(ours, rows.shard_rows(settings), final, samples_path(output, prepared.unit.id), settings)
    if isinstance(published, CommittedByOther):
        return Committed(unit=prepared.unit, record=published.record, fresh=False)
    fault_point("after_data_publish")
    seconds = prepared.seconds | encoded.seconds | {"write": time.perf_counter() - started}
    record = rows.record(published.shard, settings, encoding, seconds, adopted=isinstance(published, Adopted))
    return _publish_record(rows, published.shard, record, output, scratch, final.name)


def _write_data(rows: UnitRows, path: Path, settings: ShardSettings) -> DataShard:
    return shard_format(settings.format).write(path, rows.shard_rows(settings), settings.row_group_bytes)


def _publish_data(
    ours: DataShard, rows: ShardRows, final: AnyPath, final_samples: AnyPath, settings: ShardSettings
) -> Published | Adopted | CommittedByOther:
    """Publishes the data shard, unless its name is taken: then what stands there is adopted or replaced.

    Raises:
        OutputError: it cannot be published, or a committed shard is not what its record says.
    """
    if publish_new(ours.path, final):
        return Published(shard=ours)
    with local_copy(final) as copy:
        existing = _adoptable(copy, rows, ours, settings)
    if existing is not None:
        ours.path.unlink()
        return Adopted(shard=existing)
    if not final_samples.exists():
        publish_over(ours.path, final)
        return Published(shard=ours)
    stands = read_record(final_samples)
    if not _is_as_recorded(final, stands):
        raise OutputError(f"{final} does not hold what its committed record says; `visionbake verify` tells more")
    ours.path.unlink()
    return CommittedByOther(record=stands)


def _publish_record(
    rows: UnitRows, shard: DataShard, record: CommitRecord, output: AnyPath, scratch: Scratch, data_name: str
) -> Committed:
    """Publishes the samples shard: the commit. Raises OutputError."""
    unit, final = rows.prepared.unit, samples_path(output, rows.prepared.unit.id)
    path = scratch.path(final.name)
    record = write_samples_shard(path, rows.sample_columns(shard, f"data/{data_name}"), record, rows.prepared.carried)
    fault_point("after_samples_write")
    if not publish_new(path, final):
        path.unlink()
        stands = read_record(final)
        # Our own record, where the storage's answer to its publication was lost.
        return Committed(unit=unit, record=stands, fresh=same_json(record, stands))
    fault_point("after_samples_publish")
    return Committed(unit=unit, record=record, fresh=True)


def _is_as_recorded(path: AnyPath, record: CommitRecord) -> bool:
    with local_copy(path) as copy, open(copy, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == record.data_sha256


def _adoptable(path: Path, rows: ShardRows, ours: DataShard, settings: ShardSettings) -> DataShard | None:
    """The published shard if it is what this unit must give: metadata, rows, lengths, finite values; else None."""
    try:
        content = shard_format(settings.format).read(path, ours.lengths_N)
        data = path.read_bytes()
    except (OSError, OutputError):
        return None
    if content.metadata != rows.metadata or content.keys != rows.columns["key"]:
        return None
    digest = hashlib.sha256(data).hexdigest()
    if digest != ours.sha256 and not _all_finite(data, content, rows, ours):
        return None
    return DataShard(path=path, size=len(data), sha256=digest, offsets_N=content.offsets_N, lengths_N=ours.lengths_N)


def _all_finite(data: bytes, content: ShardContent, rows: ShardRows, ours: DataShard) -> bool:
    """Whether every value of every row is a number, and every scale."""
    dtype = str(rows.metadata["dtype"])
    for row, (first, length) in enumerate(zip(content.offsets_N.tolist(), ours.lengths_N.tolist(), strict=True)):
        values = torch.frombuffer(bytearray(data[first : first + length]), dtype=STORED[dtype])
        if not bool(torch.isfinite(values.float()).all()):
            return False
        if is_scaled(dtype):
            behind = data[first + length : first + length + 4 * rows.columns["num_tokens"][row]]
            scales = np.frombuffer(content.scales[row] or behind, "<f4")
            if not np.isfinite(scales).all():
                return False
    return True
