"""`stats`: the numbers of what was written, and queries. Those of docs/query.md are run by tests/test_pages.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import config_for, make_folder

from pipeline.cli import stats as stats_job
from pipeline.errors import RequestError
from pipeline.run.runner import run


@pytest.fixture(scope="module")
def output(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("folder"), 16)
    (folder / "1" / "broken.jpg").write_bytes(b"\xff\xd8broken")
    (folder / "1" / "copy.png").write_bytes((folder / "0" / "0000.png").read_bytes())
    output = tmp_path_factory.mktemp("output") / "out"
    assert run(config_for(folder, output, model_path), say=lambda line: None, report=lambda *_: None).complete
    return output


def call(output: Path, capsys: pytest.CaptureFixture[str], **fields: object) -> str:
    arguments = argparse.Namespace(**{"output": str(output), "sql": None, "html": None, "json": False} | fields)
    assert stats_job.main(arguments) == 0
    return capsys.readouterr().out


def test_the_numbers_are_those_of_the_rows(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(call(output, capsys, json=True))
    rows = [row for row in pq.read_table(output / "samples").to_pylist() if row["status"] == "ok"]
    tokens = sorted(row["num_tokens"] for row in rows)
    assert result["tokens"] == sum(tokens)
    assert result["rejects"] == {"unidentified": 1}
    assert result["tokens_max"] == tokens[-1]
    assert result["tokens_p50"] == tokens[(len(tokens) - 1) // 2]
    assert result["duplicates"] == 1
    assert result["language_model_tokens"] == sum(tokens) + 2 * len(tokens)
    assert result["share_clamped_max"] == pytest.approx(sum(row["clamped"] == "max" for row in rows) / len(rows))
    assert "tokens_p95" in call(output, capsys)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("SELECT status, count(*) AS images FROM samples GROUP BY status", 2),
        ("SELECT key FROM samples WHERE status = 'ok'", 17),
        ("SELECT sha256, count(*) AS copies FROM data GROUP BY 1 HAVING copies > 1", 1),
    ],
)
def test_a_query_has_a_line_for_each_row(
    query: str, count: int, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = json.loads(call(output, capsys, sql=query, json=True))
    assert len(rows) == count
    assert len(call(output, capsys, sql=query).splitlines()) == 1 + min(len(rows), stats_job.TEXT_ROWS)


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"sql": "SELECT nothing FROM samples"}, "--sql: .*nothing")],
)
def test_wrong_requests(fields: dict[str, object], says: str, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match=says):
        call(output, capsys, **fields)


def test_what_is_no_output_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RequestError):
            call(place, capsys)
