"""An output on the Hub: pushed by the Hub's own client, read by `datasets` and by the reader.

Catches: a card that the Hub's tools cannot read, a configuration without its files, a file that is not pushed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import config_for, make_folder, run_here
from hub_server import REPOSITORY, HubServer
from huggingface_hub import DatasetCard

from pipeline import EmbeddingDataset
from pipeline.output.card import _size_category

pytestmark = pytest.mark.slow

PUSH = """
import sys
from huggingface_hub import HfApi
api = HfApi(token="hf_of_nobody")
api.create_repo(sys.argv[1], repo_type="dataset", exist_ok=True)
api.upload_folder(repo_id=sys.argv[1], repo_type="dataset", folder_path=sys.argv[2])
"""
LOAD = """
import json, sys
from datasets import load_dataset
rows = load_dataset(sys.argv[1], split="train")
assert rows.column_names[0] == "key", rows.column_names
samples = load_dataset(sys.argv[1], "samples", split="train")
keys = [[key, len(data)] for key, data in zip(rows["key"], rows["embedding"])]
print("LOADED", json.dumps([keys, [[one["key"], one["status"]] for one in samples]]))
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    source = make_folder(folder / "in", 6)
    (source / "0" / "broken.png").write_bytes(b"no image")
    assert run_here(config_for(source, folder / "out", model_path)).complete
    return folder / "out"


def call(code: str, server: HubServer, home: Path, *words: object) -> str:
    """Runs a program whose Hub is the stand-in."""
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_an_output_is_pushed_and_loaded_again(output: Path, hub: Callable[[Path], HubServer], tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    server = hub(tmp_path / "repository")
    call(PUSH, server, tmp_path / "home", REPOSITORY, output)
    pushed = {path.relative_to(server.folder) for path in server.folder.rglob("*") if path.is_file()}
    assert pushed == {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    assert server.objects  # Parquet files went as large ones

    text = call(LOAD, server, tmp_path / "home", REPOSITORY).rpartition("LOADED ")[2]
    data = pq.read_table(output / "data").select(["key", "embedding"]).to_pylist()
    samples = pq.read_table(output / "samples").select(["key", "status"]).to_pylist()
    expected: list[Any] = [[[row["key"], len(row["embedding"])] for row in data]]
    expected += [[[row["key"], row["status"]] for row in samples]]
    assert json.loads(text) == expected
    assert len(data) == len(samples) - 1

    reader = EmbeddingDataset(f"hf://datasets/{REPOSITORY}")
    for item, same in zip(reader.stream(), EmbeddingDataset(output).stream(), strict=True):
        assert item["key"] == same["key"]
        assert torch.equal(item["image_embeds"], same["image_embeds"])
    assert torch.equal(reader[data[0]["key"]]["image_embeds"], reader[0]["image_embeds"])


def test_the_card_is_one_of_a_data_set(output: Path) -> None:
    card = DatasetCard.load(output / "README.md").data.to_dict()
    assert [(one["config_name"], one.get("default", False)) for one in card["configs"]] == [
        ("tokens", True),
        ("samples", False),
    ]
    assert all(list(output.glob(one["data_files"])) for one in card["configs"])
    assert card["tags"][0] == "visionbake"
    assert card["size_categories"] == ["n<1K"]
    assert "license" not in card  # the user's to say


@pytest.mark.parametrize(
    ("rows", "name"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12 - 1, "100B<n<1T"), (10**12, "n>1T")],
)
def test_sizes_have_the_hubs_names(rows: int, name: str) -> None:
    assert _size_category(rows) == name
