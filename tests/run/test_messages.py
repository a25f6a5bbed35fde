"""The last lines of a run. Catches: a count without a cause, `Run again` where it cannot help."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import config_for, make_folder, make_tar, run_here, write_config

from pipeline.cli.run import _way_on
from pipeline.errors import DamagedPart, EncodeError, SourceError
from pipeline.output.record import CommitRecord
from pipeline.output.totals import Totals


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    source = make_folder(tmp_path / "in", 3)
    (source / "a.jpg").write_bytes(b"<html><body>404</body></html>")
    (source / "b.jpg").write_bytes(b"%PDF-1.4")
    (source / "c.png").write_bytes(b"")
    return source


def test_each_reason_has_its_first_error_beside_its_count(
    odd: Path, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli.commands import run_command

    config = write_config(tmp_path / "c.json", config_for(odd, tmp_path / "out", model_path))
    assert run_command("run", [str(config)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (said,) = [line for line in lines if "unidentified" in line]
    assert "unidentified 2 (such as a.jpg, b.jpg): an HTML page" in said
    assert any("truncated" in line and "the file has no bytes" in line for line in lines)
    assert run_command("run", [str(config), "--json"]) == 0  # as the ledger has it
    tree = json.loads(capsys.readouterr().out)
    assert tree["reject_errors"]["unidentified"].startswith("an HTML page")
    assert tree["reject_examples"]["unidentified"] == ["a.jpg", "b.jpg"]


def test_a_record_of_an_earlier_version_has_no_errors() -> None:
    numbers = dict.fromkeys(("schema_version", "rows_in", "rows_out", "tokens", "encoded_tokens"), 1)
    numbers |= dict.fromkeys(("embedding_bytes", "data_size", "halvings"), 1)
    texts = dict.fromkeys(("unit", "data_sha256", "fingerprint", "device"), "x")
    tables = {"rejects": {"corrupt": 1}, "reject_examples": {"corrupt": ["k"]}, "seconds": {}}
    totals = Totals()
    totals.add(CommitRecord.from_json({**numbers, **texts, **tables}))
    assert totals.reject_lines() == ["corrupt 1 (such as k)"]


@pytest.mark.parametrize(
    ("problems", "lasting", "says", "never"),
    [
        (2, 0, "Run again to try them again", "would fail again"),
        (2, 2, "They would fail again", "Run again"),
        (3, 1, "1 of them would fail again: .*Run again to try the others again", "nothing"),
    ],
)
def test_running_again_is_said_where_it_can_help(problems: int, lasting: int, says: str, never: str) -> None:
    line = _way_on(SimpleNamespace(problems=["x"] * problems, beyond_help=lasting))  # type: ignore[arg-type]
    assert re.search(says, line)
    assert never not in line


def test_a_damaged_tar_is_beyond_help_on_every_run(model_path: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", 2)
    members = [(path.name, path.read_bytes()) for path in sorted(folder.rglob("*.*g"))]
    whole = make_tar(tmp_path / "in" / "0.tar", members)
    (tmp_path / "in" / "1.tar").write_bytes(whole.read_bytes()[:1500])
    config = config_for(tmp_path / "in" / "*.tar", tmp_path / "out", model_path)
    for _ in range(2):
        summary = run_here(config)
        assert (len(summary.problems), summary.beyond_help) == (1, 1)


@pytest.mark.parametrize(("error", "lasting"), [(DamagedPart("x"), 1), (EncodeError("x"), 1), (SourceError("x"), 0)])
def test_which_failures_are_beyond_help(error: Exception, lasting: int) -> None:
    from pipeline.run.events import Blame, CallFailed, Stage
    from pipeline.run.failures import Failures
    from pipeline.run.fleet import Fleet, Process
    from pipeline.run.progress import Progress

    progress = Progress(parts=1)
    failures = Failures(progress, Fleet(), 1, lambda line: None)
    process = Process(kind="preparer", number=0)
    failure = CallFailed(process=process, stage=Stage.INDEX, part=0, unit=None, error=error, blame=Blame.CALL)
    failures.judge(failure, 0.0)
    assert (len(progress.failed_parts), progress.beyond_help) == (1, lasting)
