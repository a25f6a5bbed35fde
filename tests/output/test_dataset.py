"""An output that cannot be one. Catches: a traceback, or an error late in the run, where the request is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from pipeline.errors import OutputError, RequestError
from pipeline.output.dataset import check_output, write_dataset, write_success
from pipeline.output.info import DatasetInfo, read_dataset
from pipeline.output.layout import OUTPUT_NAMES, PLAN_NAMES
from pipeline.output.totals import Totals
from pipeline.output.verify import Verifier
from pipeline.read.reader import EmbeddingDataset
from pipeline.source.plan import Plan
from pipeline.storage.remote import RemotePath
from pipeline.storage.scratch import Scratch

NAMES = [*OUTPUT_NAMES, *(f"plan/{name}" for name in PLAN_NAMES)]
FOLDERS = [name.rstrip("/") for name in NAMES if name.endswith("/")]
FILES = [name for name in NAMES if not name.endswith("/")]


@pytest.fixture(params=["new", "begun"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An output before its first run, and one that an earlier run has begun."""
    output = tmp_path / "out"
    output.mkdir()
    if request.param == "begun":
        (output / "dataset.json").write_text("{}")
    return output


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_where_a_folder_belongs_is_refused_by_name(name: str, output: Path) -> None:
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("mine")
    with pytest.raises(RequestError, match=rf"out/{name} is a file"):
        check_output(output, {})
    assert (output / name).read_text() == "mine"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_that_leads_nowhere_is_refused_by_name(name: str, output: Path) -> None:
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).symlink_to("nowhere")
    with pytest.raises(RequestError, match=rf"out/{name} is a file"):
        check_output(output, {})


@pytest.mark.parametrize("name", FILES)
def test_a_folder_where_a_file_belongs_is_refused_by_name(name: str, output: Path) -> None:
    (output / name).unlink(missing_ok=True)
    (output / name).mkdir(parents=True)
    with pytest.raises(RequestError, match=rf"out/{name} is a folder"):
        check_output(output, {})


def test_a_plan_that_is_a_folder_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "plan" / "plan.json").mkdir(parents=True)
    with pytest.raises(RequestError, match=r"plan\.json is not a plan"):
        Plan(tmp_path)


@pytest.mark.parametrize("name", ["plan", "data", "plan/index"])
def test_the_same_of_remote_storage(name: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/out/{name}", b"mine")
    try:
        with pytest.raises(RequestError, match=rf"out/{name} is a file"):
            check_output(RemotePath("memory://out"), {})
    finally:
        memory.rm("/", recursive=True)


def test_what_runs_leave_behind_before_their_first_shard_is_taken(tmp_path: Path) -> None:
    check_output(tmp_path / "nothing", {})
    for folder in ("plan", "_tmp"):
        (tmp_path / folder).mkdir()
    check_output(tmp_path, {})
    (tmp_path / "plan" / "index").mkdir()
    with pytest.raises(RequestError, match=r"not an output of visionbake \(plan\)"):
        check_output(tmp_path, {})
    (tmp_path / "plan" / "plan.json").write_text("{}")
    check_output(tmp_path, {})


@pytest.fixture
def described(undisturbed: Path) -> dict[str, object]:
    return dict(json.loads((undisturbed / "dataset.json").read_text()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": []}, "config is not an object"),
        ({"config": {}}, r"config lacks output\.dtype"),
        ({"config": {"output": None}}, r"config lacks output\.dtype"),
        ({"hidden_size": "64"}, "hidden_size is not a number"),
        ({"merge_size": None}, "merge_size is not a number"),
        ({"fingerprint": 7}, "fingerprint is not text"),
        ({"fingerprint_facts": "x"}, "fingerprint_facts is not an object"),
    ],
)
def test_a_damaged_description_is_named(
    change: dict[str, object], says: str, described: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert read_dataset(tmp_path).hidden_size
    (tmp_path / "dataset.json").write_text(json.dumps(described | change))
    for look in (read_dataset, Verifier, EmbeddingDataset):
        with pytest.raises(RequestError, match=f"dataset.json: {says}"):
            look(tmp_path)


@pytest.mark.parametrize("text", ["", "7", "[]", "[1]", "[" * 100_000, "\x00"], ids=range(6))
def test_a_description_that_is_none_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(RequestError, match=r"is not an output of visionbake: dataset\.json"):
        read_dataset(tmp_path)


def test_success_is_the_last_word(described: dict[str, object], tmp_path: Path) -> None:
    """Whatever cannot be written before it: then there is none."""
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    (tmp_path / "README.md").mkdir()
    with Scratch(tmp_path) as scratch:
        with pytest.raises(OutputError, match=r"README\.md"):
            write_success(tmp_path, Totals(), [], scratch)
        assert not (tmp_path / "_SUCCESS").exists()
        (tmp_path / "README.md").rmdir()
        write_success(tmp_path, Totals(), ["a.tar"], scratch)
    success = json.loads((tmp_path / "_SUCCESS").read_text())
    assert (success["fingerprint"], success["skipped_parts"]) == (described["fingerprint"], ["a.tar"])


def test_of_two_runs_that_begin_at_once_the_second_must_agree(described: dict[str, object], tmp_path: Path) -> None:
    """Both have found an empty output."""
    info = DatasetInfo.from_json(described)
    other = DatasetInfo.from_json(described | {"fingerprint_facts": info.fingerprint_facts | {"output.dtype": "int8"}})
    with Scratch(tmp_path) as scratch:
        write_dataset(tmp_path, info, scratch)
        write_dataset(tmp_path, info, scratch)
        with pytest.raises(RequestError, match=r"output\.dtype is 'float32' there and 'int8' here"):
            write_dataset(tmp_path, other, scratch)
    assert read_dataset(tmp_path) == info
