"""Standing: a data shard that another process, or an earlier run, has published under a unit's name.

Whole and well-formed, it is what the unit's data is, whatever this process has made of the same unit: which samples are
rows, and with which facts, is taken from it. Two processes may disagree about a reject of the moment (a crash is one):
then both derive the same samples shard from the shard that was published first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .. import rejects
from ..encode.dtypes import STORED, is_scaled, norms_of, restore, scale_bytes, scale_of
from ..errors import DamagedShard
from ..grid import Geometry
from ..index.video_facts import plan_of
from ..prepare.patches import check_size, target_size
from ..rejects import Reject
from ..source.carried_values import same
from ..source.sample import IndexedSample
from .layout import SCHEMA_VERSION
from .metadata import reading_shard
from .settings import ShardSettings
from .shard import DataShard, ShardContent
from .shard_formats import shard_format
from .unit_rows import REJECTS, UnitOutcome, UnitRows, rejects_in

NORM_TOLERANCE = 1e-3
OF_A_GRID = ("resized_width", "resized_height", "clamped", "grid_thw", "num_patches", "num_tokens")
NORMS = ("norm_mean", "norm_max")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A whole, well-formed data shard of the unit, and the end that its samples came to."""

    shard: DataShard
    outcome: UnitOutcome


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """No shard of this unit: it may be replaced."""

    why: str


def examine(path: Path, rows: UnitRows, ours: DataShard, settings: ShardSettings) -> Standing | Damaged:
    """Judges a published shard.

    Args:
        path: a file that nobody changes meanwhile.
        rows: the same unit as this process has it.
        ours: the shard that it has made.

    Raises:
        OutputError: it cannot be read, which says nothing about it.
    """
    with reading_shard(path), open(path, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 == ours.sha256:
        return Standing(shard=replace(ours, path=path), outcome=rows.outcome)
    try:
        with reading_shard(path):
            return _Examination(path, rows, settings).standing(sha256)
    except DamagedShard as error:
        return Damaged(why=str(error))


class _Examination:
    """One look at a shard that this process has not made. Raises DamagedShard, ValueError, KeyError."""

    def __init__(self, path: Path, rows: UnitRows, settings: ShardSettings) -> None:
        self._path, self._rows, self._settings = path, rows, settings
        self._format = shard_format(settings.format)
        self._columns: list[dict[str, Any]] = self._format.rows(path)
        carried = rows.prepared.carried
        self._carried: dict[str, list[Any]] = {} if carried is None else carried.to_pydict()

    def standing(self, sha256: str) -> Standing:
        row_bytes = self._settings.hidden_size * STORED[self._settings.dtype].itemsize
        lengths_N = np.array([row["num_tokens"] * row_bytes for row in self._columns], np.int64)
        content = self._format.read(self._path, lengths_N)
        metadata = {name: value for name, value in content.metadata.items() if name != REJECTS}
        if metadata != self._settings.describe(self._rows.prepared.unit.id, SCHEMA_VERSION):
            raise ValueError("it is of another unit or another run")
        outcome = self._outcome(rejects_in(content.metadata))
        self._check_values(content, lengths_N)
        size = self._path.stat().st_size
        offsets_N = content.offsets_N
        shard = DataShard(path=self._path, size=size, sha256=sha256, offsets_N=offsets_N, lengths_N=lengths_N)
        return Standing(shard=shard, outcome=outcome)

    def _outcome(self, stated: dict[int, tuple[str, str | None]]) -> UnitOutcome:
        """Finds each row's sample, in order. `stated`: the publisher's rejects of the moment."""
        own = self._rows.outcome
        statuses = list(own.statuses)
        columns = {name: list(values) for name, values in own.columns.items()}
        waiting = iter(self._columns)
        row = next(waiting, None)
        for index, sample in enumerate(self._rows.prepared.samples):
            facts = sample.facts
            name = (facts.key, facts.source, facts.sha256)
            if row is not None and (row["key"], row["source"], row["sha256"]) == name:
                if facts.status != rejects.OK or index in stated:
                    raise ValueError(f"{facts.key} is a row, and a reject")
                self._check_row(index, row)
                statuses[index] = (rejects.OK, None)
                for column, values in columns.items():
                    values[index] = row[column]
                row = next(waiting, None)
            elif index in stated and facts.status == rejects.OK:
                statuses[index] = stated.pop(index)
            elif own.statuses[index][0] == rejects.OK:
                raise ValueError(f"{facts.key} is no row, without a reason")
        if row is not None or stated:
            raise ValueError("it holds what is not of this unit, or not in its order")
        return UnitOutcome(statuses=statuses, columns=columns)

    def _check_row(self, index: int, row: dict[str, Any]) -> None:
        """A row's facts are those of the source's index."""
        prepared, own = self._rows.prepared, self._rows.outcome
        facts = prepared.samples[index].facts
        expected: dict[str, Any] = {name: own.columns[name][index] for name in OF_A_GRID}
        if own.columns["grid_thw"][index] is None:  # a reject here: what the header says
            expected = {name: row[name] for name in OF_A_GRID}
            if prepared.geometry is not None:
                expected = _of_header(facts, prepared.geometry)
        expected |= {"width": facts.width, "height": facts.height}
        expected |= {"dtype": self._settings.dtype, "hidden_size": self._settings.hidden_size}
        for name, value in expected.items():
            if row[name] != value:
                raise ValueError(f"{facts.key}: its {name} is {row[name]}, not {value}")
        for name, values in self._carried.items():
            if not _same_carried(values[index], row.get(name)):
                raise ValueError(f"{facts.key}: what is carried of it as {name} is not what the source has")
        if row["num_tokens"] * self._settings.merge_size**2 != np.prod(row["grid_thw"]):
            raise ValueError(f"{facts.key}: {row['num_tokens']} tokens are not those of its grid")

    def _check_values(self, content: ShardContent, lengths_N: npt.NDArray[np.int64]) -> None:
        """Every value of every row is a number, and the norms of its main stream are those that the row states."""
        for row, norms_MS in zip(self._columns, self._norms(content, lengths_N), strict=True):
            if not bool(torch.isfinite(norms_MS).all()):
                raise ValueError(f"{row['key']}: its tokens are not finite")
            norms = norms_MS[:, 0]
            found = (float(norms.double().mean()), float(norms.max()))
            if not np.allclose(found, [row[name] for name in NORMS], rtol=NORM_TOLERANCE):
                raise ValueError(f"{row['key']}: its norms are not those of its tokens")

    def _norms(self, content: ShardContent, lengths_N: npt.NDArray[np.int64]) -> Iterator[torch.Tensor]:
        """Yields each row's [M, S]."""
        dtype, streams = self._settings.dtype, self._settings.streams
        with open(self._path, "rb") as stream:
            for row, first, length in zip(range(len(lengths_N)), content.offsets_N, lengths_N, strict=True):
                stream.seek(first)
                values = torch.frombuffer(_exactly(stream.read(length), length), dtype=STORED[dtype])
                values_MO = values.view(-1, self._settings.hidden_size)
                scale_MS = None
                if is_scaled(dtype):
                    size = scale_bytes(len(values_MO), streams)
                    scale_MS = scale_of(_exactly(content.scales[row] or stream.read(size), size), streams)
                yield norms_of(restore(values_MO, scale_MS), streams)


def _same_carried(value: Any, stored: Any) -> bool:
    """Whether a shard has a carried value; a WebDataset shard has text as its UTF-8, and a null as nothing."""
    if isinstance(value, str) and isinstance(stored, bytes):
        value = value.encode()
    return same(value, stored)


def _exactly(data: bytes, length: int) -> bytearray:
    if len(data) != length:
        raise ValueError(f"{len(data)} bytes, where {length} belong")
    return bytearray(data)


def _of_header(facts: IndexedSample, geometry: Geometry) -> dict[str, Any]:
    """The columns that a sample's header and the configuration decide. Raises ValueError: they make it a reject."""
    assert facts.width is not None and facts.height is not None
    if facts.video is not None:
        return _of_clip(facts, geometry)
    try:
        check_size(facts.width, facts.height, geometry)
        height, width, clamped = target_size(facts.width, facts.height, geometry)
    except Reject as reject:
        raise ValueError(f"{facts.key} is a row: {reject.message}") from reject
    grid = [1, height // geometry.patch_size, width // geometry.patch_size]
    patches = grid[1] * grid[2]
    values = (width, height, clamped, grid, patches, patches // geometry.merge_size**2)
    return dict(zip(OF_A_GRID, values, strict=True))


def _of_clip(facts: IndexedSample, geometry: Geometry) -> dict[str, Any]:
    """The same of a clip. Raises ValueError."""
    assert facts.video is not None and facts.width is not None and facts.height is not None
    try:
        plan = plan_of(facts.video, facts.width, facts.height, geometry)
    except Reject as reject:
        raise ValueError(f"{facts.key} is a row: {reject.message}") from reject
    values = (plan.width, plan.height, plan.clamped, list(plan.grid), plan.patches)
    return dict(zip(OF_A_GRID, (*values, plan.patches // geometry.merge_size**2), strict=True))
