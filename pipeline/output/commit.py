"""Commit: publish a unit's data shard, then its samples shard; the second is the commit.

    data/part-PPPPPP-UUUU.parquet      published first, never over another
    samples/part-PPPPPP-UUUU.parquet   then this one; its footer records what the data shard must be

A data shard without a samples shard is left from a crash or belongs to a twin at work. It is adopted if it is what this
unit must give, else replaced. Nothing that is committed is written again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .. import rejects
from ..encode.dtypes import STORED
from ..encode.encoded import EncodedUnit
from ..errors import OutputError
from ..fault import fault_point
from ..prepare.unit import PreparedSample, PreparedUnit
from ..storage.files import AnyPath
from ..storage.publish import publish_new, publish_over
from ..storage.scratch import Scratch, local_copy
from .committed import Committed
from .layout import SCHEMA_VERSION, data_path, samples_path
from .settings import ShardSettings
from .shard import DataShard, embedding_array, embedding_offsets, read_metadata, write_data_shard, write_samples_shard
from .shard_tar import read_tar_shard, tar_offsets, write_tar_shard


def commit_unit(
    prepared: PreparedUnit,
    encoded: EncodedUnit,
    output: AnyPath,
    scratch: Scratch,
    settings: ShardSettings,
    encoder: int = 0,
    encoded_at: float = 0.0,
) -> Committed:
    """Writes, checks and publishes one unit.

    Args:
        encoder: a number for the one that encoded it.
        encoded_at: when it had; Unix seconds.

    Raises:
        OutputError: the output cannot be written.
    """
    started = time.perf_counter()
    unit = prepared.unit
    final_data, final_samples = data_path(output, unit.id, settings.format), samples_path(output, unit.id)
    statuses = [_status(sample, encoded) for sample in prepared.samples]
    accepted = [index for index, (status, _) in enumerate(statuses) if status == rejects.OK]
    data_columns = _columns(prepared, encoded, accepted)
    embedding = _embedding(prepared, encoded, accepted)
    metadata: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "unit": unit.id,
        "fingerprint": settings.fingerprint,
        "tower_sha256": settings.tower_sha256,
        "stage": settings.stage,
        "dtype": settings.dtype,
        "hidden_size": settings.hidden_size,
        "merge_size": settings.merge_size,
    }
    data_columns["dtype"] = [settings.dtype] * len(accepted)
    data_columns["hidden_size"] = [settings.hidden_size] * len(accepted)
    data_columns["scale"] = _scales(prepared, encoded, accepted)
    fault_point("before_data_write")
    place = scratch.path(final_data.name)
    carried = None if prepared.carried is None else prepared.carried.take(accepted)
    if settings.format == "webdataset":
        shard = write_tar_shard(place, data_columns, embedding, metadata, carried)
    else:
        shard = write_data_shard(place, data_columns, embedding, metadata, settings.row_group_bytes, carried)
    fault_point("after_data_write")
    adopted = False
    if not publish_new(shard.path, final_data):
        with local_copy(final_data) as copy:
            existing = _adoptable(copy, metadata, data_columns, shard)
        if existing is not None:
            shard.path.unlink()
            shard, adopted = existing, True
        elif final_samples.exists():
            stands = read_metadata(final_samples)
            if _is_as_recorded(final_data, stands):  # another driver's, to whom an image was a reject that is none here
                shard.path.unlink()
                return Committed(unit=unit, record=stands, fresh=False)
            raise OutputError(
                f"{final_data} does not hold what its committed record says; `visionbake verify` tells more"
            )
        else:
            publish_over(shard.path, final_data)
    fault_point("after_data_publish")

    seconds = prepared.seconds | encoded.seconds | {"write": time.perf_counter() - started}
    record = _record(prepared, encoded, statuses, shard, settings, adopted) | {
        "seconds": {key: round(value, 4) for key, value in seconds.items()},
        "encoder": encoder,
        "encoded_at": round(encoded_at, 3),
    }
    sample_columns = _columns(prepared, encoded, list(range(len(statuses))))
    for name in ("norm_mean", "norm_max", "num_patches", "num_tokens", "grid_thw"):
        for index, (status, _) in enumerate(statuses):
            if status != rejects.OK:
                sample_columns[name][index] = None
    row_of = {index: row for row, index in enumerate(accepted)}
    rows = [row_of.get(index) for index in range(len(statuses))]
    sample_columns["status"] = [status for status, _ in statuses]
    sample_columns["error"] = [error for _, error in statuses]
    sample_columns["shard"] = [None if row is None else f"data/{final_data.name}" for row in rows]
    sample_columns["offset"] = [None if row is None else int(shard.offsets_N[row]) for row in rows]
    sample_columns["length"] = [None if row is None else int(shard.lengths_N[row]) for row in rows]
    path = scratch.path(final_samples.name)
    write_samples_shard(path, sample_columns, record, prepared.carried)
    fault_point("after_samples_write")
    if not publish_new(path, final_samples):
        path.unlink()
        stands = read_metadata(final_samples)
        # Our own record, where the storage's answer to its publication was lost.
        return Committed(unit=unit, record=stands, fresh=stands == json.loads(json.dumps(record)))
    fault_point("after_samples_publish")
    return Committed(unit=unit, record=record, fresh=True)


def _status(sample: PreparedSample, encoded: EncodedUnit) -> tuple[str, str | None]:
    if sample.status == rejects.OK and sample.image is not None and not encoded.finite_N[sample.image]:
        return rejects.NON_FINITE, "its tokens are not finite, in its pack and alone"
    return sample.status, sample.error


def _columns(prepared: PreparedUnit, encoded: EncodedUnit, chosen: list[int]) -> dict[str, list[object]]:
    """The columns that data and samples shards share, for the chosen samples."""
    samples = [prepared.samples[index] for index in chosen]
    grids = [None if sample.image is None else prepared.grids[sample.image] for sample in samples]
    starts = np.concatenate([[0], encoded.ends_N]).astype(np.int64)

    def of_image(values: np.ndarray) -> list[object]:
        return [None if sample.image is None else values[sample.image].item() for sample in samples]

    return {
        "key": [sample.facts.key for sample in samples],
        "source": [sample.facts.source for sample in samples],
        "sha256": [sample.facts.sha256 for sample in samples],
        "width": [sample.facts.width for sample in samples],
        "height": [sample.facts.height for sample in samples],
        "resized_width": [sample.resized_width for sample in samples],
        "resized_height": [sample.resized_height for sample in samples],
        "grid_thw": [None if grid is None else list(grid) for grid in grids],
        "num_patches": [None if grid is None else grid[0] * grid[1] * grid[2] for grid in grids],
        "num_tokens": of_image(np.diff(starts)),
        "clamped": [sample.clamped for sample in samples],
        "norm_mean": of_image(encoded.norm_mean_N),
        "norm_max": of_image(encoded.norm_max_N),
    }


def _embedding(prepared: PreparedUnit, encoded: EncodedUnit, accepted: list[int]) -> pa.LargeBinaryArray:
    """The accepted samples' tokens, one after the other; no copy where every image stands once and in order."""
    images = [image for index in accepted if (image := prepared.samples[index].image) is not None]
    starts = np.concatenate([[0], encoded.ends_N]).astype(np.int64)
    row_bytes = encoded.tokens_MO.shape[1] * encoded.tokens_MO.element_size()
    lengths_N = np.array([(starts[image + 1] - starts[image]) * row_bytes for image in images], np.int64)
    flat = encoded.tokens_MO.contiguous().view(-1).view(torch.uint8).numpy()
    if images != list(range(len(encoded.ends_N))):
        pieces = [flat[starts[image] * row_bytes : starts[image + 1] * row_bytes] for image in images]
        flat = np.concatenate(pieces) if pieces else flat[:0]
    return embedding_array(flat, lengths_N)


def _scales(prepared: PreparedUnit, encoded: EncodedUnit, accepted: list[int]) -> list[object]:
    """Of int8 and fp8: the little-endian float32 scales of each accepted sample's tokens."""
    if encoded.scale_M is None:
        return [None] * len(accepted)
    scale_M = encoded.scale_M.astype("<f4")
    starts = np.concatenate([[0], encoded.ends_N]).astype(np.int64)
    images = [image for index in accepted if (image := prepared.samples[index].image) is not None]
    return [scale_M[starts[image] : starts[image + 1]].tobytes() for image in images]


def _record(
    prepared: PreparedUnit, encoded: EncodedUnit, statuses: list[tuple[str, str | None]], shard: DataShard,
    settings: ShardSettings, adopted: bool,
) -> dict[str, object]:  # fmt: skip
    counts = Counter(status for status, _ in statuses if status != rejects.OK)
    examples: dict[str, list[str]] = {}
    for sample, (status, _) in zip(prepared.samples, statuses, strict=True):
        if status != rejects.OK and len(examples.setdefault(status, [])) < 3:
            examples[status].append(sample.facts.key)
    row_bytes = encoded.tokens_MO.shape[1] * encoded.tokens_MO.element_size()
    return {
        "schema_version": SCHEMA_VERSION,
        "unit": prepared.unit.id,
        "rows_in": len(statuses),
        "rows_out": len(shard.lengths_N),
        "rejects": dict(sorted(counts.items())),
        "reject_examples": examples,
        "tokens": int(shard.lengths_N.sum()) // row_bytes,
        "encoded_tokens": encoded.tokens_MO.shape[0],
        "embedding_bytes": int(shard.lengths_N.sum()),
        "data_size": shard.size,
        "data_sha256": shard.sha256,
        "fingerprint": settings.fingerprint,
        "device": settings.device,
        "halvings": encoded.halvings,
        "overflows": encoded.overflows,
        "packs": list(encoded.packs),
        **encoded.errors,
        "adopted": adopted,
    }


def _is_as_recorded(path: AnyPath, record: dict[str, object]) -> bool:
    with local_copy(path) as copy, open(copy, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == record["data_sha256"]


def _adoptable(
    path: Path, metadata: dict[str, object], columns: dict[str, list[object]], ours: DataShard
) -> DataShard | None:
    """The published shard if it is what this unit must give: metadata, rows, lengths, finite values; else None."""
    try:
        if path.suffix == ".tar":
            found, places = read_tar_shard(path)
            keys, offsets_N = [key for key, _, _ in places], tar_offsets(path, ours.lengths_N)
        else:
            found, offsets_N = read_metadata(path), embedding_offsets(path, ours.lengths_N)
            table = pq.read_table(path, columns=["key", "norm_max"])
            keys = table.column("key").to_pylist()
            if not np.isfinite(table.column("norm_max").to_numpy()).all():
                return None
        if found != metadata or keys != columns["key"]:
            return None
        data = path.read_bytes()
    except (OSError, OutputError, pa.ArrowException):
        return None
    digest = hashlib.sha256(data).hexdigest()
    if digest != ours.sha256 and not _all_finite(data, offsets_N, ours, str(metadata["dtype"])):
        return None
    return DataShard(path=path, size=len(data), sha256=digest, offsets_N=offsets_N, lengths_N=ours.lengths_N)


def _all_finite(data: bytes, offsets_N: np.ndarray, ours: DataShard, dtype: str) -> bool:
    for offset, length in zip(offsets_N.tolist(), ours.lengths_N.tolist(), strict=True):
        values = torch.frombuffer(bytearray(data[offset : offset + length]), dtype=STORED[dtype])
        if not bool(torch.isfinite(values.float()).all()):
            return False
    return True
