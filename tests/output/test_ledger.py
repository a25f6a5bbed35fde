"""The ledger: whatever is folded, damaged or missing, every answer is the footers'."""

from __future__ import annotations

import json
import os
import shutil
import signal
import zlib
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from ledger_outputs import PARTS, UNITS, make_record, write_output

from pipeline.errors import OutputError
from pipeline.fault import VARIABLE
from pipeline.output import ledger_file
from pipeline.output.layout import samples_path
from pipeline.output.ledger import (
    CommittedUnits,
    fold_part,
    folded_parts,
    read_committed,
    read_ledger,
    records_of,
    totals_of,
)
from pipeline.output.ledger_file import WHOLE, ledger_path, write_ledger
from pipeline.output.record import CommitRecord, read_record
from pipeline.output.totals import Totals
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


def as_json(records: list[CommitRecord]) -> list[str]:
    """Statistics are no part of a record's equality."""
    return [json.dumps(record.to_json(), sort_keys=True) for record in records]


def fold(output: Path, parts: list[int] | None = None) -> None:
    committed = CommittedUnits(output)
    with Scratch(output) as scratch:
        for part in range(PARTS) if parts is None else parts:
            fold_part(output, part, {}, committed.numbers(part), scratch)


def close_samples(output: Path, pattern: str = "*") -> None:
    """Whoever opens one of these now fails."""
    for path in (output / "samples").glob(pattern):
        path.write_bytes(b"never opened")


def assert_same_as_footers(output: Path, folded: set[int]) -> None:
    committed = CommittedUnits(output)
    assert folded_parts(output) == folded
    assert as_json(list(records_of(output, committed, folded))) == as_json(footers(output))
    assert totals_of(output, committed, folded) == totals_of(output, committed, set())


@pytest.mark.parametrize("parts", [[], [1], list(range(0, PARTS, 2)), list(range(PARTS))])
def test_records_and_totals_are_the_same_whatever_is_folded(parts: list[int], output: Path) -> None:
    fold(output, parts)
    assert_same_as_footers(output, set(parts))


def test_totals_are_the_sums_of_the_records_in_any_order(output: Path) -> None:
    records = [
        replace(record, rows_in=7, halvings=index % 3, seconds={"encode": round(0.1 + index / 7, 4)})
        for index, record in enumerate(footers(output))
    ]
    totals, backwards = Totals(), Totals()
    for record in records:
        totals.add(record)
    for record in reversed(records):
        backwards.add(record)
    reasons = {reason for record in records for reason in record.rejects}
    assert totals.as_dict() == {
        "units": PARTS * UNITS,
        "samples": 7 * PARTS * UNITS,
        "rows": sum(record.rows_out for record in records),
        "rejected": sum(sum(record.rejects.values()) for record in records),
        "rejects": {reason: sum(one.rejects.get(reason, 0) for one in records) for reason in sorted(reasons)},
        "no_image": 0,
        "carried_nulled": {},
        "tokens": sum(record.tokens for record in records),
        "embedding_bytes": sum(record.embedding_bytes for record in records),
        "data_bytes": sum(record.data_size for record in records),
        "halvings": sum(record.halvings for record in records),
    }
    assert totals.seconds == backwards.seconds
    assert totals.seconds["encode"] == pytest.approx(sum(record.seconds["encode"] for record in records))
    assert Totals.from_json(json.loads(json.dumps(totals.to_json()))) == totals


def test_three_examples_of_a_reason_are_the_first_three_in_unit_order(output: Path) -> None:
    fold(output, [1, 2, 4])
    totals = totals_of(output, CommittedUnits(output), folded_parts(output))
    expected: dict[str, list[str]] = {}
    for record in footers(output):
        for reason, keys in record.reject_examples.items():
            expected.setdefault(reason, []).extend(keys)
    assert totals.reject_examples == {reason: keys[:3] for reason, keys in expected.items()}
    assert all(len(keys) == 3 for keys in totals.reject_examples.values())


def test_a_folded_part_is_read_from_its_ledger_alone(output: Path) -> None:
    fold(output)
    before, totals = footers(output), totals_of(output, CommittedUnits(output), set())
    close_samples(output)
    committed, folded = CommittedUnits(output), folded_parts(output)
    assert as_json(list(records_of(output, committed, folded))) == as_json(before)
    assert totals_of(output, committed, folded) == totals


def test_records_at_hand_are_not_read_again(output: Path) -> None:
    records = dict(enumerate(footers(output)[:UNITS]))
    close_samples(output, "part-000000-*")
    with Scratch(output) as scratch:
        fold_part(output, 0, records, range(UNITS), scratch)
    assert as_json(read_ledger(output, 0)) == as_json(list(records.values()))


def test_a_record_without_statistics_is_read_again_for_them(output: Path) -> None:
    records = {number: replace(record, statistics={}) for number, record in enumerate(footers(output)[:UNITS])}
    with Scratch(output) as scratch:
        fold_part(output, 0, records, range(UNITS), scratch)
    assert as_json(read_ledger(output, 0)) == as_json(footers(output)[:UNITS])


@pytest.mark.parametrize(
    "fields",
    [
        {"errors": {}, "seconds": {}, "rejects": {}, "reject_examples": {}, "packs": []},
        {"statistics": {"of": "a later version"}},
        {"statistics": {"hashes": "not base64", "tokens": ""}},
        {"unit_of_a_later_version": [1, None, {"a": 2.5}]},
        {"encoder": 0, "encoded_at": 0.0, "data_size": 2**62},
    ],
)
def test_unusual_records_are_restored_exactly(fields: dict[str, Any], output: Path) -> None:
    records = [make_record(0, 0), make_record(0, 1, **fields)]
    path = Path(str(ledger_path(output, 0)))
    path.parent.mkdir()
    write_ledger(path, 0, records)
    assert as_json(read_ledger(output, 0)) == as_json(records)


def test_records_of_two_runs_or_of_another_part_are_not_folded(output: Path) -> None:
    with Scratch(output) as scratch:
        with pytest.raises(OutputError, match="of 2 runs"):
            write_ledger(scratch.path("a"), 0, [make_record(0, 0), make_record(0, 1, fingerprint="0")])
        with pytest.raises(OutputError, match="000001-0000"):
            write_ledger(scratch.path("a"), 0, [make_record(1, 0)])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit_of_a_page(path: Path) -> None:
    """Where rows_out lies: without a checksum it would read as another number."""
    import pyarrow.parquet as pq

    column = ledger_file.SCHEMA.get_field_index("rows_out")
    chunk = pq.read_metadata(path).row_group(0).column(column)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 2] ^= 1
    path.write_bytes(data)


def another_sum(path: Path) -> None:
    """Well-formed, but for the checksum of what the footer says."""
    data = path.read_bytes()
    at = data.index(b'"samples": ') + len(b'"samples": ')
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def of_another_run(path: Path) -> None:
    rewrite(path, fingerprint="0" * 64)


def of_another_part(path: Path) -> None:
    rewrite(path, part=5)


def of_a_later_version(path: Path) -> None:
    rewrite(path, version=ledger_file.LEDGER_VERSION + 1)


def of_fewer_units(path: Path) -> None:
    write_again(path, [make_record(1, number) for number in range(UNITS - 1)])


def of_more_units(path: Path) -> None:
    write_again(path, [make_record(1, number) for number in range(UNITS + 1)])


def of_a_data_set_of_somebody_else(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), path)


def write_again(path: Path, records: list[CommitRecord]) -> None:
    path.unlink()
    write_ledger(path, 1, records)


def rewrite(path: Path, **fields: Any) -> None:
    """The same with other facts in its footer, checksum and all."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    facts = json.dumps(json.loads(table.schema.metadata[ledger_file.METADATA_KEY]) | fields).encode()
    metadata = {ledger_file.METADATA_KEY: facts, ledger_file.CHECKSUM_KEY: str(zlib.crc32(facts))}
    pq.write_table(table.replace_schema_metadata(metadata), path)


DAMAGES = [
    cut,
    empty,
    flip_a_bit_of_a_page,
    another_sum,
    of_another_run,
    of_another_part,
    of_a_later_version,
    of_fewer_units,
    of_more_units,
    of_a_data_set_of_somebody_else,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_ledger_that_cannot_be_used_is_left_out_and_replaced_when_next_folded(
    damage: Callable[[Path], None], output: Path
) -> None:
    fold(output)
    path = Path(str(ledger_path(output, 1)))
    good = path.read_bytes()
    damage(path)
    assert path.read_bytes() != good
    close_samples(output, "part-000000-*")  # the other parts' ledgers still serve
    committed, folded = CommittedUnits(output), folded_parts(output)
    records = list(records_of(output, committed, folded))
    assert as_json(records[UNITS : 2 * UNITS]) == as_json(
        [read_record(samples_path(output, f"000001-{number:04d}")) for number in range(UNITS)]
    )
    assert totals_of(output, committed, folded).units == PARTS * UNITS
    unusable: set[int] = set()
    assert len(list(read_committed(output, committed, folded, WHOLE, unusable=unusable))) == PARTS
    assert unusable == {1}
    fold(output, [1])
    close_samples(output)
    assert as_json(list(records_of(output, committed, folded))) == as_json(records)


def test_a_unit_that_is_committed_or_lost_after_its_part_was_folded_makes_the_ledger_stale(output: Path) -> None:
    fold(output)
    shutil.copy(str(samples_path(output, "000001-0000")), str(samples_path(output, f"000001-{UNITS:04d}")))
    Path(str(samples_path(output, "000003-0002"))).unlink()
    assert_same_as_footers(output, set(range(PARTS)))


def test_a_kill_between_writing_and_publishing_leaves_all_as_it_was(output: Path, tmp_path: Path) -> None:
    marker = tmp_path / "fired"

    def killed() -> None:
        os.environ[VARIABLE] = f"before_ledger_publish:kill@{marker}"
        fold(output)

    child = get_context("fork").Process(target=killed)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert marker.exists()
    assert_same_as_footers(output, set())
    fold(output)
    assert_same_as_footers(output, set(range(PARTS)))


def test_committed_units_are_told_by_part(output: Path) -> None:
    committed = CommittedUnits(output)
    assert committed.parts() == list(range(PARTS))
    assert committed.numbers(3) == list(range(UNITS))
    assert committed.count == PARTS * UNITS
    Path(str(samples_path(output, "000003-0002"))).unlink()
    now = CommittedUnits(output)
    assert now.numbers(3) == [0, 1, 3, 4]
    assert committed.numbers(3, without=now) == [2]
    assert list(committed.unit_ids(without=now)) == ["000003-0002"]
    now.add(3, 2)
    now.add(3, 2)
    assert now.count == now.count_of(3) * PARTS == PARTS * UNITS
    assert now.has(3, 2)
    assert not now.has(3, UNITS)
    assert now.numbers(PARTS) == []


def test_names_of_others_among_the_samples_are_no_units(output: Path) -> None:
    for name in ("part-000000-0099.tar", "part-000000-009x.parquet", "notes.parquet", "part-000000-0098.parquet.tmp"):
        (output / "samples" / name).write_text("")
    assert CommittedUnits(output).count == PARTS * UNITS


def test_names_of_others_in_the_ledger_folder_are_no_folded_parts(output: Path) -> None:
    fold(output, [2])
    for name in ("part-000003.parquet.tmp", "part-3.parquet", "part-00000x.parquet", "notes", "part-000004"):
        (output / "ledger" / name).write_text("")
    assert folded_parts(output) == {2}
