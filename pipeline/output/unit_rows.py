"""Unit rows: a prepared and encoded unit as the columns of its two shards, and its record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from .. import rejects
from ..encode.encoded import EncodedUnit
from ..prepare.unit import PreparedSample, PreparedUnit
from .layout import SCHEMA_VERSION
from .record import CommitRecord
from .settings import Encoding, ShardSettings
from .shard import DataShard, ShardRows, embedding_array
from .video_columns import OF_FRAMES, video_columns

EXAMPLES = 3  # of each reason
LONGEST_EXAMPLE = 300  # characters of an error's text
# Null in `samples` for a reject.
ONLY_OF_ROWS = ("norm_mean", "norm_max", "num_patches", "num_tokens", "grid_thw", *OF_FRAMES)
REJECTS = "rejects"  # in a data shard's metadata: what another process may not find again


@dataclass(frozen=True, kw_only=True)
class UnitOutcome:
    """The end that each sample of a unit came to, as one data shard has it.

    Attributes:
        statuses: `ok`, or a reason and what is wrong, of each sample.
        columns: those that data and samples shards share, of each sample.
    """

    statuses: list[tuple[str, str | None]]
    columns: dict[str, list[Any]]

    @property
    def accepted(self) -> list[int]:
        """The samples that are rows of the data shard, in its order."""
        return [index for index, (status, _) in enumerate(self.statuses) if status == rejects.OK]


@dataclass(frozen=True, kw_only=True)
class Making:
    """The circumstances of a commit, for its record.

    Attributes:
        seconds: by stage.
        adopted: whether the data shard was found published.
    """

    settings: ShardSettings
    encoding: Encoding
    seconds: dict[str, float]
    adopted: bool


class UnitRows:
    """The rows of one unit: all of its samples, and among them the accepted ones, in input order.

    Attributes:
        outcome: as this process has it.
    """

    def __init__(self, prepared: PreparedUnit, encoded: EncodedUnit) -> None:
        self.prepared, self._encoded = prepared, encoded
        self._starts = np.concatenate([[0], encoded.ends_N]).astype(np.int64)
        self._row_bytes = encoded.tokens_MO.shape[1] * encoded.tokens_MO.element_size()
        statuses = [_status(sample, encoded) for sample in prepared.samples]
        self.outcome = UnitOutcome(statuses=statuses, columns=self._columns(list(range(len(statuses)))))
        self._accepted = self.outcome.accepted

    def shard_rows(self, settings: ShardSettings) -> ShardRows:
        """Returns the rows of the data shard."""
        count = len(self._accepted)
        columns = self._columns(self._accepted)
        columns["dtype"], columns["hidden_size"] = [settings.dtype] * count, [settings.hidden_size] * count
        columns["scale"] = self._scales()
        carried = self.prepared.carried
        return ShardRows(
            columns=columns,
            embedding=self._embedding,
            metadata=settings.describe(self.prepared.unit.id, SCHEMA_VERSION)
            | _rejects_of(self.outcome, self.prepared.samples),
            carried=None if carried is None else carried.take(pa.array(self._accepted, pa.int64())),
        )

    def sample_columns(self, outcome: UnitOutcome, shard: DataShard, name: str) -> dict[str, list[object]]:
        """The columns of the samples shard.

        Args:
            outcome: as the data shard has it.
            name: of the data shard, relative to the output.
        """
        statuses = outcome.statuses
        columns = {column: list(values) for column, values in outcome.columns.items()}
        for column in columns.keys() & set(ONLY_OF_ROWS):
            for index, (status, _) in enumerate(statuses):
                if status != rejects.OK:
                    columns[column][index] = None
        row_of = {index: row for row, index in enumerate(outcome.accepted)}
        rows = [row_of.get(index) for index in range(len(statuses))]
        columns["status"] = [status for status, _ in statuses]
        columns["error"] = [error for _, error in statuses]
        columns["shard"] = [None if row is None else name for row in rows]
        columns["offset"] = [None if row is None else int(shard.offsets_N[row]) for row in rows]
        columns["length"] = [None if row is None else int(shard.lengths_N[row]) for row in rows]
        return columns

    def record(self, outcome: UnitOutcome, shard: DataShard, making: Making) -> CommitRecord:
        """Returns the record for the samples shard's footer."""
        encoded, settings = self._encoded, making.settings
        counts = Counter(status for status, _ in outcome.statuses if status != rejects.OK)
        no_image = counts.pop(rejects.NO_IMAGE, 0)
        examples: dict[str, list[str]] = {}
        errors: dict[str, str] = {}
        for sample, (status, error) in zip(self.prepared.samples, outcome.statuses, strict=True):
            if status in counts and len(examples.setdefault(status, [])) < EXAMPLES:
                examples[status].append(sample.facts.key)
                errors.setdefault(status, (error or "")[:LONGEST_EXAMPLE])
        return CommitRecord(
            schema_version=SCHEMA_VERSION,
            unit=self.prepared.unit.id,
            rows_in=len(outcome.statuses),
            rows_out=len(shard.lengths_N),
            no_image=no_image,
            rejects=dict(sorted(counts.items())),
            reject_examples=examples,
            reject_errors=errors,
            tokens=int(shard.lengths_N.sum()) // self._row_bytes,
            encoded_tokens=encoded.tokens_MO.shape[0],
            embedding_bytes=int(shard.lengths_N.sum()),
            data_size=shard.size,
            data_sha256=shard.sha256,
            fingerprint=settings.fingerprint,
            device=settings.device,
            halvings=encoded.halvings,
            overflows=encoded.overflows,
            nulled=dict(sorted(self.prepared.nulled.items())),
            packs=list(encoded.packs),
            adopted=making.adopted,
            seconds={key: round(value, 4) for key, value in making.seconds.items()},
            encoder=making.encoding.encoder,
            encoded_at=round(making.encoding.encoded_at, 3),
            errors=encoded.errors,
        )

    def _columns(self, chosen: list[int]) -> dict[str, list[Any]]:
        """The columns that data and samples shards share, for the chosen samples."""
        samples = [self.prepared.samples[index] for index in chosen]
        grids = [None if sample.image is None else self.prepared.grids[sample.image] for sample in samples]

        def of_image(values: npt.NDArray[np.generic]) -> list[object]:
            return [None if sample.image is None else values[sample.image].item() for sample in samples]

        columns: dict[str, list[Any]] = {
            "key": [sample.facts.key for sample in samples],
            "source": [sample.facts.source for sample in samples],
            "sha256": [sample.facts.sha256 for sample in samples],
            "width": [sample.facts.width for sample in samples],
            "height": [sample.facts.height for sample in samples],
            "resized_width": [sample.resized_width for sample in samples],
            "resized_height": [sample.resized_height for sample in samples],
            "grid_thw": [None if grid is None else list(grid) for grid in grids],
            "num_patches": [None if grid is None else grid[0] * grid[1] * grid[2] for grid in grids],
            "num_tokens": of_image(np.diff(self._starts)),
            "clamped": [sample.clamped for sample in samples],
            "norm_mean": of_image(self._encoded.norm_mean_N),
            "norm_max": of_image(self._encoded.norm_max_N),
        }
        if self.prepared.may_have_clips:
            columns |= video_columns(self.prepared, samples)
        return columns

    @property
    def _images(self) -> list[int]:
        """The image of each accepted sample, by its number among the unit's distinct ones."""
        return [image for index in self._accepted if (image := self.prepared.samples[index].image) is not None]

    @cached_property
    def _embedding(self) -> pa.LargeBinaryArray:
        """The accepted samples' tokens; no copy where every image stands once and in order."""
        images, starts, row_bytes = self._images, self._starts, self._row_bytes
        lengths_N = np.array([(starts[image + 1] - starts[image]) * row_bytes for image in images], np.int64)
        flat = self._encoded.tokens_MO.contiguous().view(-1).view(torch.uint8).numpy()
        if images != list(range(len(self._encoded.ends_N))):
            pieces = [flat[starts[image] * row_bytes : starts[image + 1] * row_bytes] for image in images]
            flat = np.concatenate(pieces) if pieces else flat[:0]
        return embedding_array(flat, lengths_N)

    def _scales(self) -> list[object]:
        """Returns the little-endian float32 scales of each accepted sample's tokens; of int8 and fp8 alone.

        One for each stream of a token, token after token.
        """
        if self._encoded.scale_MS is None:
            return [None] * len(self._accepted)
        scale_MS = self._encoded.scale_MS.astype("<f4")
        return [scale_MS[self._starts[image] : self._starts[image + 1]].tobytes() for image in self._images]


def _status(sample: PreparedSample, encoded: EncodedUnit) -> tuple[str, str | None]:
    if sample.status == rejects.OK and sample.image is not None and not encoded.finite_N[sample.image]:
        return rejects.NON_FINITE, "its tokens are not finite, in its pack and alone"
    return sample.status, sample.error


def _rejects_of(outcome: UnitOutcome, samples: Sequence[PreparedSample]) -> dict[str, object]:
    """The rejects of the moment, for the shard's metadata: reason → what is wrong → samples; nothing where none are."""
    found: dict[str, dict[str, list[int]]] = {}
    for index, (status, error) in enumerate(outcome.statuses):
        if status in rejects.OF_THE_MOMENT and samples[index].facts.status == rejects.OK:
            found.setdefault(status, {}).setdefault(error or "", []).append(index)
    return {REJECTS: found} if found else {}


def rejects_in(metadata: dict[str, Any]) -> dict[int, tuple[str, str | None]]:
    """Returns the rejects of the moment in a shard's metadata, by sample. Raises ValueError: it is none of ours."""
    found: dict[int, tuple[str, str | None]] = {}
    for reason, errors in dict(metadata.get(REJECTS, {})).items():
        if reason not in rejects.OF_THE_MOMENT:
            raise ValueError(f"its metadata names {reason}")
        found |= {int(index): (reason, error or None) for error, indices in dict(errors).items() for index in indices}
    return found
