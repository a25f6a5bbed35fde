"""`verify --ray`: ranges of parts as tasks on two nodes; the report is that of one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import config_for, connected, encoded, make_tar, noise, run_here

from pipeline.cli import main
from pipeline.errors import RequestError
from pipeline.output.ledger import CommittedUnits, fold_part
from pipeline.output.ledger_file import ledger_path
from pipeline.output.verify import Verifier
from pipeline.storage.scratch import Scratch

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PARTS = 9


def test_the_report_is_that_of_one_process_damage_and_all(
    ray_nodes: dict[str, str], model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in range(PARTS):
        images = [(f"{n}.png", encoded(noise(64, 60 + 30 * n, 10 * part + n), "PNG")) for n in range(3)]
        make_tar(tmp_path / "in" / f"{part}.tar", [*images, ("9.png", b"broken")])
    output = tmp_path / "out"
    assert run_here(config_for(f"{tmp_path}/in/*.tar", output, model_path)).complete
    committed = CommittedUnits(output)
    with Scratch(output) as scratch:
        for part in range(PARTS):
            fold_part(output, part, {}, committed.numbers(part), scratch)
    with connected(ray_nodes):
        assert main(["verify", str(output), "--ray", "--json"]) == 0
        good = json.loads(capsys.readouterr().out)
        assert good == Verifier(output).verify().as_dict()
        assert good["units"] == committed.count

        next((output / "data").glob("part-000003-*")).write_bytes(b"damaged")
        shutil.copy(str(ledger_path(output, 1)), str(ledger_path(output, 2)))
        (output / "data" / "part-000007-0099.parquet").write_bytes(b"a stranger")
        next((output / "samples").glob("part-000005-*")).unlink()
        assert main(["verify", str(output), "--ray", "--json"]) == 1
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found == Verifier(output).verify().as_dict()
        assert len(found["problems"]) > 3
        assert found["missing"]

        assert main(["verify", str(output), "--ray", "--parts", "6-8", "--json"]) == 1
        some = json.loads(capsys.readouterr().out)
        assert some == Verifier(output).verify(parts=range(6, 9)).as_dict()
        assert some["problems"] == ["data/part-000007-0099.parquet belongs to no unit of the plan"]


def test_a_cluster_that_is_not_there_is_named(model_path: Path, source: Path, tmp_path: Path) -> None:
    from pipeline.run.verify_ray import checker_on

    with pytest.raises(RequestError, match=r"127\.0\.0\.1:1: no Ray cluster is there"):
        checker_on("127.0.0.1:1", str(tmp_path), lambda line: None)
