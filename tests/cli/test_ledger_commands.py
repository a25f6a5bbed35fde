"""Every command and the reader say the same of an output whatever of it is folded; and ranges of parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import config_for, encoded, make_tar, noise, run_here
from ledger_outputs import hashes

from pipeline.cli import main
from pipeline.cli.status import Status
from pipeline.estimate import written
from pipeline.estimate.estimate import SourceFacts
from pipeline.output.card import data_set_card
from pipeline.output.info import read_dataset
from pipeline.output.ledger import CommittedUnits, fold_part, folded_parts, totals_of
from pipeline.output.ledger_file import ledger_path
from pipeline.output.metadata import METADATA_KEY
from pipeline.output.verify import Verifier
from pipeline.read.reader import EmbeddingDataset
from pipeline.storage.scratch import Scratch

pytestmark = pytest.mark.slow

PARTS = 4
NOW = ("pace", "seconds_left", "encoders")


@pytest.fixture(scope="module")
def made(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tars, some units each; a broken image, copies within a unit and between parts. Nothing is folded."""
    folder = tmp_path_factory.mktemp("tars")
    for part in range(PARTS):
        images = [encoded(noise(60 + 20 * (n % 3), 60 + 31 * (n % 4), 10 * part + n), "PNG") for n in range(7)]
        images = [images[0], *images, encoded(noise(64, 64, 1), "PNG"), b"\xff\xd8broken"]
        make_tar(folder / "in" / f"{part}.tar", [(f"{part}-{n:02d}.png", data) for n, data in enumerate(images)])
    output = folder / "out"
    assert run_here(config_for(f"{folder}/in/*.tar", output, model_path, output={"shard_tokens": 24})).complete
    shutil.rmtree(output / "ledger", ignore_errors=True)
    return output


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def fold(output: Path, parts: list[int]) -> None:
    committed = CommittedUnits(output)
    with Scratch(output) as scratch:
        for part in parts:
            fold_part(output, part, {}, committed.numbers(part), scratch)


def cut_a_ledger(output: Path) -> None:
    path = Path(str(ledger_path(output, 2)))
    path.write_bytes(path.read_bytes()[:-9])


def answers(output: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """All that is said of an output, but for `verify` and what changes with the clock and the copy's name."""
    result: dict[str, Any] = {}
    for command in ("status", "stats"):
        assert main([command, str(output), "--json"]) == 0
        tree = json.loads(capsys.readouterr().out)
        result[command] = {name: value for name, value in tree.items() if name not in (*NOW, "output")}
    dataset = EmbeddingDataset(output)
    result["rows"] = [(item["key"], item["image_embeds"].numpy().tobytes()) for item in dataset.stream()]
    result["lengths"] = dataset.unit_lengths()
    totals = totals_of(output, CommittedUnits(output), folded_parts(output))
    result["card"] = data_set_card(read_dataset(output), totals)
    return result


@pytest.mark.parametrize("parts", [list(range(PARTS)), [0, 2]], ids=["all", "half"])
def test_all_commands_and_the_reader_say_the_same_with_and_without_a_ledger(
    parts: list[int], made: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold(output, parts)
    assert answers(output, capsys) == answers(made, capsys)
    assert Verifier(output).verify() == Verifier(made).verify()
    assert Verifier(output).verify().proven


def test_with_a_damaged_ledger_all_say_the_same_and_verify_names_it(
    made: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fold(output, [1, 2])
    cut_a_ledger(output)
    assert answers(output, capsys) == answers(made, capsys)
    problems = Verifier(output).verify().problems
    assert len(problems) == 1
    assert "ledger/part-000002.parquet: not a ledger that can be used" in problems[0]
    fold(output, [2])
    assert Verifier(output).verify().proven


def test_verify_names_a_ledger_that_disagrees_with_the_footers(output: Path) -> None:
    fold(output, [0, 1])
    path = output / "samples" / "part-000001-0000.parquet"
    table = pq.read_table(path)
    record = json.loads(table.schema.metadata[METADATA_KEY])
    record["seconds"]["encode"] += 1.0
    pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(record)}), path)
    problems = Verifier(output).verify().problems
    assert len(problems) == 1
    assert "ledger/part-000001.parquet does not say what the footers of its units do" in problems[0]


def test_verify_names_a_ledger_of_no_part_of_the_plan(output: Path) -> None:
    fold(output, [0])
    shutil.copy(ledger_path(output, 0), str(ledger_path(output, PARTS)))
    assert Verifier(output).verify().problems == [f"ledger/part-{PARTS:06d}.parquet belongs to no part of the plan"]


def test_the_numbers_are_those_that_sql_over_the_samples_gives(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(made), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    connection = duckdb.connect()
    shards = f"read_parquet('{made}/samples/*.parquet')"
    connection.execute(f"CREATE VIEW samples AS SELECT * FROM {shards} WHERE status = 'ok'")

    def ask(query: str) -> Any:
        return connection.execute(query).fetchone()

    images = ask("SELECT count(*) FROM samples")[0]
    assert said["rows"] == images > 30
    tokens = np.array(connection.execute("SELECT num_tokens FROM samples").fetchall())
    for one in said["tokens_histogram"]:
        assert one["images"] == int(((tokens >= one["from"]) & (tokens < one["to"])).sum())
    for name, which in (
        ("share_clamped_min", "clamped = 'min'"),
        ("share_clamped_max", "clamped = 'max'"),
        ("share_scaled_up", "resized_width * resized_height > width * height"),
    ):
        assert said[name] == ask(f"SELECT count_if({which}) FROM samples")[0] / images
    norms = ask("SELECT avg(norm_mean), max(norm_max) FROM samples")
    assert (said["norm_mean"], said["norm_max"]) == (pytest.approx(norms[0], rel=1e-12), norms[1])
    for by, names in (
        ("sha256", ("duplicates", "duplicate_tokens")),
        ("sha256, shard", ("duplicates_within_units", "duplicate_tokens_within_units")),
    ):
        again = ask(
            "SELECT sum(copies - 1), sum((copies - 1) * tokens) FROM (SELECT count(*) AS copies, any_value(num_tokens) "
            f"AS tokens FROM samples GROUP BY {by} HAVING copies > 1)"
        )
        assert tuple(said[name] for name in names) == tuple(int(value or 0) for value in again)
    assert said["duplicates"] > said["duplicates_within_units"] > 0
    facts = SourceFacts()
    facts.add_sizes(*np.array(connection.execute("SELECT height, width FROM samples").fetchall(), np.int64).T)
    assert facts.as_dict().items() <= said.items()


def test_records_of_an_earlier_version_have_no_statistics_and_stats_says_the_same(
    made: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (output / "samples").iterdir():
        table = pq.read_table(path)
        record = json.loads(table.schema.metadata[METADATA_KEY])
        del record["statistics"]
        pq.write_table(table.replace_schema_metadata({METADATA_KEY: json.dumps(record)}), path)
    fold(output, [0, 2])
    assert answers(output, capsys) == answers(made, capsys)
    assert Verifier(output).verify().proven


@pytest.mark.parametrize("in_memory", [1 << 20, 1])
def test_equal_images_are_found_in_memory_and_in_files(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "SHARE_IN_MEMORY_BYTES", in_memory)
    hash_N = hashes(5000, seed=3)
    hash_N[1000:1500] = hash_N[:500]
    hash_N[4000:4010] = hash_N[7]
    tokens_N = (hash_N % np.uint64(1000)).astype(np.int32)
    with written.ExitStack() as files:
        equal = written.EqualImages(files)
        for first in range(0, 5000, 700):
            equal.add(hash_N[first : first + 700], tokens_N[first : first + 700])
        copies = np.unique(hash_N, return_counts=True)[1]
        first_N = np.unique(hash_N, return_index=True)[1]
        assert equal.again() == ((copies - 1).sum(), tokens_N.sum() - tokens_N[first_N].sum())


def test_status_reads_a_folded_part_once_and_cuts_none(output: Path) -> None:
    fold(output, [1, 3])
    for path in [*(output / "samples").glob("part-000001-*"), *(output / "samples").glob("part-000003-*")]:
        path.write_bytes(b"never opened")
    for part in (1, 3):
        (output / "plan" / "index" / f"part-{part:06d}.parquet").write_bytes(b"never opened")
    status = Status(output)
    first = status.look()
    assert first["units_known"] == first["units_committed"] == first["units"]
    assert first["tokens_left"] == 0
    fold(output, [0, 2])
    for path in (output / "ledger").iterdir():
        path.write_bytes(b"never opened")
    again = status.look()
    assert {name: again[name] for name in first if name not in NOW} == {
        name: first[name] for name in first if name not in NOW
    }


def test_status_sees_units_come_and_their_part_folded(output: Path, made: Path) -> None:
    """A part that is half committed, then done and folded between two looks."""
    hidden = [*(output / "samples").glob("part-000001-000[1-9]*"), *(output / "samples").glob("part-000002-*")]
    assert len(hidden) > 3
    kept = [(path, path.read_bytes()) for path in hidden]
    for path in hidden:
        path.unlink()
    (output / "_SUCCESS").unlink()
    status = Status(output)
    before = status.look()
    assert before["tokens_left"] > 0
    for path, data in kept:
        path.write_bytes(data)
    fold(output, [1, 2])
    (output / "_SUCCESS").write_text("{}")
    after, whole = status.look(), Status(made).look()
    differing = {name for name in whole if name not in NOW and after[name] != whole[name]}
    assert differing == {"output"}
    assert after["units_known"] == before["units_known"]


def test_a_range_of_parts_is_checked_and_its_strangers_only(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold(output, [0, 1])
    victim = next((output / "data").glob("part-000002-0001.*"))
    victim.write_bytes(b"damaged")
    for part in (0, 3):
        (output / "data" / f"part-{part:06d}-0777.parquet").write_bytes(b"a stranger")
    (output / "_SUCCESS").write_text("no totals at all")
    assert main(["verify", str(output), "--parts", "1", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert main(["verify", str(output), "--parts", "1-2", "--json"]) == 1
    two = json.loads(capsys.readouterr().out)
    assert not one["problems"]
    assert 0 < one["units"] < two["units"]
    assert len(two["problems"]) == 1
    assert "part-000002-0001" in two["problems"][0]
    assert main(["verify", str(output), "--parts", f"0-{PARTS - 1}", "--json"]) == 1
    everything = json.loads(capsys.readouterr().out)
    assert everything == Verifier(output).verify().as_dict()
    assert [line for line in everything["problems"] if "0777" in line]
    assert [line for line in everything["problems"] if "_SUCCESS" in line]


@pytest.mark.parametrize("parts", ["3-2", "x", "-1", "1-", "0-99"])
def test_ranges_that_are_none_are_refused(parts: str, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(["verify", str(made), f"--parts={parts}"])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert "--parts" in capsys.readouterr().err
