"""Outputs that an earlier version began. Catches: a field that has come since, and makes another output of each.

The constants are what the code before the families said, of `random:tiny` and a configuration that names no more than
it must, and the dtype that was the default (`config_facts`, `Checkpoint.sha256`): that is the same on every machine.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import config_for, files_of, run_here

from pipeline.config import parse_config
from pipeline.errors import RequestError
from pipeline.output.fingerprint import config_facts, fingerprint_of
from pipeline.output.settings import ShardSettings
from pipeline.output.verify import Verifier
from pipeline.run.request import check_request

FINGERPRINT = "2d8267fe5e5353a2e94bde714445334b0e7b998f4af6be6e6e65796b7488ebc9"
TOWER_SHA256 = "c465b597daccb81046094fdc508808a72070e0be225de71c7e0b76fc851a9af1"
LATER = ("streams", "stream_width")  # of dataset.json
LATER_FIELDS = {"output": ("deepstack",)}  # of its configuration


def test_a_default_configuration_has_the_fingerprint_that_it_had(folder: Path, tmp_path: Path) -> None:
    tree = {
        "source": {"uri": str(folder)},
        "model": {"path": "random:tiny", "dtype": "bfloat16"},
        "output": {"uri": str(tmp_path / "out")},
    }
    request = check_request(parse_config(tree))
    facts = config_facts(request.config)
    assert (facts["preprocess.min_pixels"], facts["preprocess.max_pixels"]) == (3136, 12_845_056)
    assert request.checkpoint.sha256() == TOWER_SHA256
    assert fingerprint_of(facts | {"tower_sha256": TOWER_SHA256}) == FINGERPRINT


def test_a_shard_of_one_stream_says_of_itself_what_it_said() -> None:
    settings = ShardSettings(
        fingerprint="f",
        tower_sha256="t",
        stage="merged",
        dtype="float32",
        hidden_size=48,
        merge_size=2,
        row_group_bytes=1,
        device="cpu",
    )
    assert list(settings.describe("000000-0000", 1)) == [
        *("schema_version", "unit", "fingerprint", "tower_sha256"),
        *("stage", "dtype", "hidden_size", "merge_size"),
    ]


def as_it_was_begun(output: Path) -> None:
    """An output of the version before: without what has come since, and with a part of its units."""
    tree = json.loads((output / "dataset.json").read_text())
    for name in LATER:
        del tree[name]
    for section, names in LATER_FIELDS.items():
        for name in names:
            del tree["config"][section][name]
    (output / "dataset.json").write_text(json.dumps(tree))
    (output / "_SUCCESS").unlink()
    shutil.rmtree(output / "ledger", ignore_errors=True)
    samples, data = (sorted((output / name).iterdir()) for name in ("samples", "data"))
    samples[1].unlink()  # its data shard stands, and is adopted
    for path in (samples[2], data[2]):
        path.unlink()


@pytest.mark.parametrize("fields", [{}, {"format": "webdataset", "dtype": "int8"}], ids=["parquet", "webdataset"])
def test_it_is_continued_with_the_same_bytes(
    fields: dict[str, Any], folder: Path, model_path: Path, tmp_path: Path
) -> None:
    config = config_for(folder, tmp_path / "out", model_path, output=fields)
    assert run_here(config).complete
    before = files_of(tmp_path / "out" / "data")
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out" / "samples").iterdir())]
    as_it_was_begun(tmp_path / "out")
    summary = run_here(config)
    assert summary.complete and summary.this_run.units == 2 < summary.totals.units
    assert files_of(tmp_path / "out" / "data") == before
    again = [pq.read_table(path) for path in sorted((tmp_path / "out" / "samples").iterdir())]
    assert all(one.equals(other) for one, other in zip(tables, again, strict=True))
    assert Verifier(tmp_path / "out").verify().proven


def test_a_checkpoint_of_other_budgets_is_refused_by_name(folder: Path, model_path: Path, tmp_path: Path) -> None:
    """The budgets that were the same for all are another output's where the checkpoint says otherwise."""
    config = config_for(folder, tmp_path / "out", model_path, preprocess={"max_pixels": None})
    assert run_here(config).complete
    other = tmp_path / "model"
    shutil.copytree(model_path, other)
    tree = json.loads((other / "preprocessor_config.json").read_text()) | {"max_pixels": 1_003_520}
    (other / "preprocessor_config.json").write_text(json.dumps(tree))
    with pytest.raises(RequestError, match=r"preprocess\.max_pixels is 12845056 there and 1003520 here"):
        run_here(config_for(folder, tmp_path / "out", other, preprocess={"max_pixels": None}))
