"""The ledger in object storage: how many requests what it serves costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from ledger_outputs import PARTS, UNITS, write_output
from s3_server import BUCKET, Request, S3Server

from pipeline.estimate.written import ExitStack, read_written
from pipeline.output.ledger import CommittedUnits, fold_part, folded_parts, records_of, totals_of
from pipeline.output.ledger_file import ledger_path
from pipeline.output.totals import Totals
from pipeline.read.reader import EmbeddingDataset
from pipeline.storage.files import as_path, names_in
from pipeline.storage.remote import RemotePath
from pipeline.storage.scratch import Scratch

pytestmark = pytest.mark.slow

URI = f"s3://{BUCKET}/out"
UNFOLDED = 2


@pytest.fixture
def output(s3: S3Server, tmp_path: Path) -> RemotePath:
    """All units committed, and all parts but the last two folded."""
    local = write_output(tmp_path / "out")
    committed = CommittedUnits(local)
    with Scratch(local) as scratch:
        for part in range(PARTS - UNFOLDED):
            fold_part(local, part, {}, committed.numbers(part), scratch)
    fsspec.filesystem("s3", use_listings_cache=False).put(f"{local}/", f"{BUCKET}/out/", recursive=True)
    s3.reset()
    path = as_path(URI)
    assert isinstance(path, RemotePath)
    return path


def by_totals(output: RemotePath) -> int:
    return totals_of(output, CommittedUnits(output, PARTS), folded_parts(output)).units


def by_records(output: RemotePath) -> int:
    return sum(1 for _ in records_of(output, CommittedUnits(output, PARTS), folded_parts(output)))


def by_statistics(output: RemotePath) -> int:
    with ExitStack() as files:
        return read_written(output, CommittedUnits(output, PARTS), folded_parts(output), files).totals.units


def by_reader(output: RemotePath) -> int:
    return len(EmbeddingDataset(output.uri, allow_incomplete=True).unit_lengths())


def in_folder(s3: S3Server, folder: str) -> int:
    return sum(count for (_, key), count in s3.counts.requests.items() if key.startswith(f"out/{folder}/"))


@pytest.mark.parametrize("work", [by_totals, by_records, by_statistics, by_reader])
def test_requests_grow_with_parts_and_with_units_of_parts_that_are_not_folded(
    work: Callable[[RemotePath], int], output: RemotePath, s3: S3Server
) -> None:
    assert work(output) == PARTS * UNITS
    assert in_folder(s3, "ledger") == PARTS - UNFOLDED
    assert in_folder(s3, "samples") == UNFOLDED * UNITS
    assert sum(s3.counts.requests.values()) - PARTS + UNFOLDED - UNFOLDED * UNITS <= 10  # names, the plan, dataset.json


def test_a_long_ledger_is_read_in_one_request_more_than_its_end(
    output: RemotePath, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.remote_read.TAIL_BYTES", 3000)
    monkeypatch.setattr("pipeline.storage.remote_read.read_tail.__defaults__", (3000,))
    expected = totals_of(output, CommittedUnits(output, PARTS), set())
    s3.reset()
    assert totals_of(output, CommittedUnits(output, PARTS), folded_parts(output)) == expected
    assert PARTS - UNFOLDED < in_folder(s3, "ledger") <= 5 * (PARTS - UNFOLDED)


def test_a_ledger_that_the_storage_does_not_give_is_left_out(output: RemotePath, s3: S3Server) -> None:
    expected = totals_of(output, CommittedUnits(output, PARTS), set())
    forbidden = str(ledger_path(output, 1)).removeprefix(f"s3://{BUCKET}/")

    def fault(request: Request) -> str | None:
        return "403" if request.key == forbidden else None

    s3.fault = fault
    totals: Totals = totals_of(output, CommittedUnits(output, PARTS), folded_parts(output))
    assert s3.counts.faults == 1
    assert totals == expected


def test_folding_in_object_storage_asks_for_what_is_not_at_hand(output: RemotePath, s3: S3Server) -> None:
    expected = list(records_of(output, CommittedUnits(output, PARTS), set()))
    last = PARTS - 1
    records = {number: expected[last * UNITS + number] for number in range(UNITS)}
    del records[3]
    s3.reset()
    with Scratch(output) as scratch:
        fold_part(output, last, records, range(UNITS), scratch)
    assert {key for _, key in s3.counts.requests if "samples" in key} == {f"out/samples/part-{last:06d}-0003.parquet"}
    assert list(records_of(output, CommittedUnits(output, PARTS), folded_parts(output))) == expected


def test_names_are_listed_a_page_at_a_time(output: RemotePath, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client keeps of an entry is 1.5 KB: nobody may hold all of them before the first name is known."""
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    names = iter(names_in(output / "samples", "part-"))
    first = next(names)
    assert sum(s3.counts.requests.values()) == 1
    assert len({first, *names}) == PARTS * UNITS
    assert sum(s3.counts.requests.values()) == PARTS * UNITS // 10
    assert CommittedUnits(output, PARTS).count == PARTS * UNITS
