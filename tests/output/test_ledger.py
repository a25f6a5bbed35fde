"""The ledger: whatever is folded, damaged or missing, every answer is the footers'."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ledger_outputs import PARTS, UNITS, write_output

from pipeline.output.ledger import CommittedUnits, fold_part, folded_parts, read_ledger, records_of, totals_of
from pipeline.output.record import CommitRecord, read_record
from pipeline.storage.scratch import Scratch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of made-up commits, nothing folded."""
    return write_output(tmp_path_factory.mktemp("made") / "out")


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def footers(output: Path) -> list[CommitRecord]:
    return [read_record(path) for path in sorted((output / "samples").iterdir())]


def fold(output: Path, parts: range | list[int] = range(PARTS)) -> None:
    committed = CommittedUnits(output)
    with Scratch(output) as scratch:
        for part in parts:
            fold_part(output, part, {}, committed.numbers(part), scratch)


def assert_same(output: Path, folded: set[int]) -> None:
    committed = CommittedUnits(output)
    assert folded_parts(output) == folded
    assert list(records_of(output, committed, folded)) == footers(output)
    assert totals_of(output, committed, folded) == totals_of(output, committed, set())


@pytest.mark.parametrize("parts", [[], [1], list(range(0, PARTS, 2)), list(range(PARTS))])
def test_records_and_totals_are_the_same_whatever_is_folded(parts: list[int], output: Path) -> None:
    fold(output, parts)
    assert_same(output, set(parts))


def test_a_folded_part_is_read_from_its_ledger_alone(output: Path) -> None:
    fold(output)
    before = footers(output)
    totals = totals_of(output, CommittedUnits(output), set())
    for path in (output / "samples").iterdir():
        path.write_bytes(b"never opened")
    committed, folded = CommittedUnits(output), folded_parts(output)
    assert list(records_of(output, committed, folded)) == before
    assert totals_of(output, committed, folded) == totals


def test_records_at_hand_are_not_read_again(output: Path) -> None:
    records = dict(enumerate(footers(output)[:UNITS]))
    for path in (output / "samples").glob("part-000000-*"):
        path.write_bytes(b"never opened")
    with Scratch(output) as scratch:
        fold_part(output, 0, records, range(UNITS), scratch)
    assert read_ledger(output, 0) == list(records.values())
