"""Exit codes: 0 done; 1 the run failed or is incomplete; 2 the request is wrong. Catches: a failure that answers 0."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import config_for, encoded, make_tar, noise, run_here, write_config

from pipeline import errors
from pipeline.cli import main
from pipeline.cli import verify as verify_job
from pipeline.cli.commands import run_module
from pipeline.cli.signals import Interrupted
from pipeline.output.ledger import CommittedUnits


def command(error: BaseException | None, code: int = 0) -> Any:
    """A command that ends so."""

    def call(arguments: argparse.Namespace) -> int:
        if error is not None:
            raise error
        return code

    return SimpleNamespace(__doc__="made by the test", add_arguments=lambda parser: None, main=call)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RequestError("why"), 2),
        (errors.RunFailed("why"), 1),
        (errors.OutputError("why"), 1),
        (errors.OutputBusy("why"), 1),
        (errors.SourceError("why"), 1),
        (errors.SourceBusy("why"), 1),
        (errors.DamagedPart("why"), 1),
        (errors.EncodeError("why"), 1),
        (PermissionError("why"), 1),
        (Interrupted("why"), 1),
        (KeyboardInterrupt("why"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_raised_is_a_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_module("made-up", command(error), []) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("visionbake made-up: ") and captured.err.count("\n") == 1
    assert "why" in captured.err and not captured.out


def test_a_commands_own_code_is_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run_module("made-up", command(None, code), []) for code in (0, 1)] == [0, 1]


@pytest.fixture(scope="module")
def made(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration of three tars, of which the second is cut, and the output of the run, which is incomplete."""
    folder = tmp_path_factory.mktemp("codes")
    for number in range(3):
        members = [(f"{number}-{i}.png", encoded(noise(60 + 20 * i, 60, 3 * number + i))) for i in range(3)]
        make_tar(folder / "in" / f"{number}.tar", members)
    bad = folder / "in" / "1.tar"
    bad.write_bytes(bad.read_bytes()[:1500])
    config = config_for(folder / "in" / "*.tar", folder / "out", model_path)
    assert not run_here(config).complete
    return write_config(folder / "c.yaml", config), folder / "out"


@pytest.fixture
def complete(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, with the cut tar skipped: complete."""
    tree = json.loads(made[0].read_text())
    output = shutil.copytree(made[1], tmp_path / "out")
    tree["output"]["uri"], tree["source"]["on_damaged"] = str(output), "skip"
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps(tree))
    assert main(["run", str(config)]) == 0
    return config, output


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_an_incomplete_run_answers_1(
    words: list[str], made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = made
    assert main(["run", str(config), *words]) == 1
    captured = capsys.readouterr()
    assert "1 units or parts failed" in captured.err and "1.tar" in captured.out
    assert not words or json.loads(captured.out)["complete"] is False
    assert main(["verify", str(output), *words]) == 1
    captured = capsys.readouterr()
    assert "proven " not in captured.out
    assert not words or json.loads(captured.out)["proven"] is False


def test_a_run_over_its_limit_of_rejects_answers_1_and_takes_success_away(
    complete: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """One that allowed more had said so."""
    config, output = complete
    rows = pq.read_table(output / "samples").to_pylist()
    assert (output / "_SUCCESS").exists() and [row["status"] for row in rows] == ["ok"] * 6
    assert main(["run", str(config), "--set", "limits.max_rejected_fraction=0"]) == 0
    tar = Path(json.loads(config.read_text())["source"]["uri"]).parent / "3.tar"
    try:
        make_tar(tar, [("bad.png", b"bad")])
        assert main(["run", str(config)]) == 0
        assert (output / "_SUCCESS").exists()
        assert main(["run", str(config), "--set", "limits.max_rejected_fraction=0.1"]) == 1
    finally:
        tar.unlink()
    assert "1 of 7 samples are rejects, over limits.max_rejected_fraction 0.1" in capsys.readouterr().err
    assert not (output / "_SUCCESS").exists()


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_verify_answers_by_what_it_finds(
    words: list[str], complete: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = complete[1]
    assert main(["verify", str(output), *words]) == 0
    unit = next(CommittedUnits(output).unit_ids())
    shard = output / "data" / f"part-{unit}.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main(["verify", str(output), *words]) == 1
    (output / "_SUCCESS").unlink()
    shutil.rmtree(output / "samples")
    shutil.rmtree(output / "data")
    shutil.rmtree(output / "ledger")
    assert main(["verify", str(output), *words]) == 1  # nothing is wrong, and nothing is there
    assert words or "PROBLEM" not in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_a_sample_that_is_not_the_references_answers_1(
    words: list[str],
    complete: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(verifier: object, count: int) -> list[dict[str, Any]]:
        return [{"key": f"k{number}", "source": "a", "relative_rms": number / 2, "limit": 1} for number in range(count)]

    monkeypatch.setattr(verify_job, "compare_with_reference", away)
    assert main(["verify", str(complete[1]), "--sample", "3", *words]) == 0  # just at the limit
    assert main(["verify", str(complete[1]), "--sample", "4", *words]) == 1
    captured = capsys.readouterr()
    assert "k3: 1.5 from the reference, over 1" in captured.err + captured.out


@pytest.mark.parametrize(
    "words", [["--sample", "0"], ["--sample", "-3"], ["--parts", "0-3"], ["--parts", "3"]], ids=" ".join
)
def test_verify_refuses_what_there_is_not(
    words: list[str], made: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(made[1]), *words]) == 2
    assert words[0] in capsys.readouterr().err
