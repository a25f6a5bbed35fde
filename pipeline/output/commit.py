"""Commit: publish a unit's data shard, then its samples shard; the second is the commit.

    data/part-PPPPPP-UUUU.parquet      published first, never over a whole one
    samples/part-PPPPPP-UUUU.parquet   then this one; its footer records what the data shard must be

A data shard without a samples shard is left from a crash or belongs to a twin at work. Whole and well-formed it stands,
and the samples shard is derived from what it holds, whoever commits; only a damaged one is replaced. Nothing that is
committed is written again. `docs/commits.md` says why no order of two commits, and no kill, ends in another record.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..encode.encoded import EncodedUnit
from ..errors import OutputBusy, OutputError, output_error
from ..fault import fault_point
from ..prepare.unit import PreparedUnit
from ..storage.files import AnyPath
from ..storage.publish import publish_new
from ..storage.replace import make_durable, replace_same, snapshot
from ..storage.scratch import Scratch
from .committed import Committed
from .layout import data_path, samples_path
from .record import CommitRecord, read_record, same_json
from .settings import Encoding, ShardSettings
from .shard import DataShard, write_samples_shard
from .shard_formats import shard_format
from .standing import Standing, examine
from .unit_rows import Making, UnitOutcome, UnitRows

UNKNOWN_ENCODER = Encoding()
LOOKS = 5  # at a name that means something else each time; twice is one twin


@dataclass(frozen=True, kw_only=True)
class Published:
    """This process's data shard stands under its final name."""

    shard: DataShard
    outcome: UnitOutcome


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """A data shard that was there already is a whole one of this unit: what it holds is what became of the unit."""

    shard: DataShard
    outcome: UnitOutcome


@dataclass(frozen=True, kw_only=True)
class CommittedByOther:
    """Another process has committed the unit."""

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
        OutputError: the output cannot be written (OutputBusy: at the moment).
    """
    started = time.perf_counter()
    rows = UnitRows(prepared, encoded)
    fault_point("before_data_write")
    commit = _Commit(rows, output, scratch, settings)
    ours = commit.write_data()
    fault_point("after_data_write")
    published = commit.publish_data(ours)
    if isinstance(published, CommittedByOther):
        return Committed(unit=prepared.unit, record=published.record, fresh=False)
    fault_point("after_data_publish")
    seconds = prepared.seconds | encoded.seconds | {"write": time.perf_counter() - started}
    adopted = isinstance(published, Adopted)
    making = Making(settings=settings, encoding=encoding, seconds=seconds, adopted=adopted)
    return commit.publish_samples(published, making)


class _Commit:
    """The steps of one unit's commit by one process."""

    def __init__(self, rows: UnitRows, output: AnyPath, scratch: Scratch, settings: ShardSettings) -> None:
        self._rows, self._scratch, self._settings = rows, scratch, settings
        self._data = data_path(output, rows.prepared.unit.id, settings.format)
        self._samples = samples_path(output, rows.prepared.unit.id)

    def write_data(self) -> DataShard:
        path, settings = self._scratch.path(self._data.name), self._settings
        return shard_format(settings.format).write(path, self._rows.shard_rows(settings), settings.row_group_bytes)

    def publish_data(self, ours: DataShard) -> Published | Adopted | CommittedByOther:
        """Publishes the data shard, unless its name is taken: a whole one that stands there is adopted, else replaced.

        Raises:
            OutputError: it cannot be published, or a committed shard is not what its record says.
        """
        mine = Published(shard=ours, outcome=self._rows.outcome)
        for _ in range(LOOKS):
            if publish_new(ours.path, self._data):
                return mine
            try:
                with snapshot(self._data, self._scratch) as old:
                    found = examine(old.path, self._rows, ours, self._settings)
                    if isinstance(found, Standing):
                        ours.path.unlink()
                        return self._adopt(found)
                    if self._samples.exists():
                        raise self._is_not_as_recorded()
                    fault_point("before_data_replace")
                    if replace_same(ours.path, self._data, old):
                        return mine
            except FileNotFoundError:  # it was replaced by storage that first removes: what is there now is looked at
                pass
            except OSError as error:
                raise output_error(f"{self._data} cannot be read: {error}", error) from error
        raise OutputBusy(f"{self._data} is another one whenever it is looked at")

    def _adopt(self, standing: Standing) -> Adopted | CommittedByOther:
        make_durable(self._data)  # before a record of it is
        if not self._samples.exists():
            return Adopted(shard=standing.shard, outcome=standing.outcome)
        record = read_record(self._samples)
        if record.data_sha256 != standing.shard.sha256:
            raise self._is_not_as_recorded()
        return CommittedByOther(record=record)

    def _is_not_as_recorded(self) -> OutputError:
        return OutputError(f"{self._data} does not hold what its committed record says; `visionbake verify` tells more")

    def publish_samples(self, data: Published | Adopted, making: Making) -> Committed:
        """Publishes the samples shard: the commit. Raises OutputError."""
        rows, unit = self._rows, self._rows.prepared.unit
        record = rows.record(data.outcome, data.shard, making)
        columns = rows.sample_columns(data.outcome, data.shard, f"data/{self._data.name}")
        path = self._scratch.path(self._samples.name)
        record = write_samples_shard(path, columns, record, rows.prepared.carried)
        fault_point("after_samples_write")
        if not publish_new(path, self._samples):
            path.unlink()
            stands = read_record(self._samples)
            # Our own record, where the storage's answer to its publication was lost.
            return Committed(unit=unit, record=stands, fresh=same_json(record, stands))
        fault_point("after_samples_publish")
        return Committed(unit=unit, record=record, fresh=True)
