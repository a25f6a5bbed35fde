"""The made-up output of `bench ledger` is one that every reader takes for real."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jobs.bench.ledger import IMAGES_PER_UNIT, UNITS_PER_PART, fold_cost, write_output
from pipeline.cli.stats import statistics_of
from pipeline.cli.status import Status
from pipeline.output.ledger import CommittedUnits, folded_parts, records_of, totals_of
from pipeline.output.statistics import UnitStatistics
from pipeline.output.totals import Totals


def test_the_made_up_output_is_read_as_a_real_one(tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_output(output, 3)
    committed, folded = CommittedUnits(output), folded_parts(output)
    records = list(records_of(output, committed, folded))
    assert [record.unit for record in records] == list(committed.unit_ids())
    sums = Totals()
    for record in records:
        sums.add(record)
    assert totals_of(output, committed, folded) == sums
    assert sums.rows == 3 * UNITS_PER_PART * IMAGES_PER_UNIT
    said, look = statistics_of(output), Status(output).look()
    assert said["tokens"] == look["tokens"] == sums.tokens
    hash_N = np.concatenate([UnitStatistics.from_json(record.statistics).hash_N for record in records])
    assert said["duplicates"] == len(hash_N) - len(np.unique(hash_N)) == 2


def test_folding_is_measured_both_ways() -> None:
    assert set(fold_cost(repeats=1)) == {"at_hand_ms", "from_footers_ms"}
