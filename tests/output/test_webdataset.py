"""The WebDataset sink: read back by webdataset and by our reader; the same bytes every time; committed as any shard."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import webdataset as wds
from conftest import config_for, encoded, files_of, make_folder, make_tar, noise, run_here

from pipeline import EmbeddingDataset
from pipeline.errors import OutputError
from pipeline.output.shard_tar import member_key, read_tar_shard, true_key
from pipeline.output.verify import Verifier


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("folder"))
    (folder / "0" / "broken.jpg").write_bytes(b"\xff\xd8broken")
    return folder


@pytest.fixture(scope="module")
def parquet(folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("parquet") / "out"
    assert run_here(config_for(folder, output, model_path)).complete
    return output


def tars(output: Path) -> list[str]:
    return sorted(str(path) for path in (output / "data").iterdir())


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_unit_of_rejects_alone(kind: str, model_path: Path, tmp_path: Path) -> None:
    """Its shard is one that every reader opens, and finds nothing in; beside it are others."""
    import webdataset

    for name in ("a/0.jpg", "a/1.png", "b/2.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(encoded(noise(60, 70, 1)) if name[0] == "b" else b"no image")
        (tmp_path / "in" / name).with_suffix(".txt").write_text(f"beside {name}")
    for uri, rows in ((tmp_path / "in" / "a", 0), (tmp_path / "in", 1)):
        output = tmp_path / f"out{rows}"
        fields = {"output": {"format": kind, "shard_tokens": 2}, "source": {"uri": str(uri), "carry": ["txt"]}}
        config = config_for(uri, output, model_path, limits={"max_rejected_fraction": 1.0}, **fields)
        summary = run_here(config)
        assert (summary.complete, summary.totals.rejected, summary.totals.rows) == (True, 2, rows)
        if kind == "webdataset":
            with tarfile.open(tars(output)[0]) as tar:
                assert not [member for member in tar if member.isfile()]
            assert len(list(webdataset.WebDataset(tars(output), shardshuffle=False, empty_check=False))) == rows
        assert len(EmbeddingDataset(str(output))) == rows
        assert Verifier(output).verify().proven
        assert run_here(config).this_run.units == 0


def test_read_back_by_webdataset(folder: Path, parquet: Path, model_path: Path, tmp_path: Path) -> None:
    import webdataset

    output = tmp_path / "out"
    summary = run_here(config_for(folder, output, model_path, output={"format": "webdataset"}))
    assert summary.complete
    assert summary.totals.rejected == 1
    found: dict[str, torch.Tensor] = {}
    for sample in webdataset.WebDataset(tars(output), shardshuffle=False):
        facts = json.loads(sample["json"])
        tensors = safetensors.torch.load(sample["safetensors"])
        assert tensors["image_grid_thw"].tolist() == [facts["grid_thw"]]
        assert "." not in sample["__key__"]
        found[facts["key"]] = tensors["image_embeds"]
    rows = pq.read_table(parquet / "data").to_pylist()
    assert list(found) == [row["key"] for row in rows]
    for row in rows:
        assert found[row["key"]].numpy().tobytes() == row["embedding"]
    # The samples tables agree but for the place; the reader finds every embedding at its place.
    dataset = EmbeddingDataset(output)
    for item, row in zip(dataset.stream(), rows, strict=True):
        assert item["image_embeds"].numpy().tobytes() == row["embedding"]
    assert dataset[rows[2]["key"]]["grid_thw"].tolist() == rows[2]["grid_thw"]


@pytest.mark.slow
def test_the_same_bytes_again_and_after_a_lost_record(folder: Path, model_path: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        run_here(config_for(folder, output, model_path, output={"format": "webdataset"}))
    assert files_of(outputs[0] / "data") == files_of(outputs[1] / "data")
    with tarfile.open(tars(outputs[0])[0]) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    # A crash between the two publications: a good shard is adopted, a damaged one is replaced.
    good, bad = (Path(path) for path in tars(outputs[0])[:2])
    whole, before = bad.read_bytes(), good.stat()
    for shard in (good, bad):
        (outputs[0] / "samples" / f"{shard.stem}.parquet").unlink()
    bad.write_bytes(whole[: len(whole) // 2])
    config = config_for(folder, outputs[0], model_path, output={"format": "webdataset"})
    assert run_here(config).this_run.units == 2
    assert good.stat().st_mtime_ns == before.st_mtime_ns
    assert bad.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "fp8"])
def test_dtypes(dtype: str, folder: Path, parquet: Path, model_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run_here(config_for(folder, output, model_path, output={"format": "webdataset", "dtype": dtype})).complete
    for ours, exact in zip(EmbeddingDataset(output).stream(), EmbeddingDataset(parquet).stream(), strict=True):
        wanted = exact["image_embeds"]
        assert float((ours["image_embeds"].float() - wanted).norm() / wanted.norm()) < 0.04
    tensors = [
        safetensors.torch.load(tar.extractfile(member).read())
        for path in tars(output)
        for tar in [tarfile.open(path)]
        for member in tar
        if member.name.endswith(".safetensors")
    ]
    assert {name for one in tensors for name in one} == {
        "image_embeds",
        "image_grid_thw",
        *(["scale"] if dtype in ("int8", "fp8") else []),
    }


def test_carried_values_and_hostile_keys(model_path: Path, tmp_path: Path) -> None:
    keys = ["../../etc/x", "/root", "a.b", "a%2Eb", "é ü", "a\\b", ".."]
    source = tmp_path / "a.parquet"
    cells = [encoded(noise(60 + 10 * number, 60, number)) for number in range(len(keys))]
    table = {
        "image": cells,
        "id": keys,
        "caption": [f"of {key}" for key in keys],
        "n": range(len(keys)),
        "raw": [bytes([number]) for number in range(len(keys))],
    }
    pq.write_table(pa.table(table), source)
    fields: dict[str, Any] = {"key_column": "id", "carry": ["caption", "n", "raw"]}
    config = config_for(
        source, tmp_path / "out", model_path, source=fields, output={"format": "webdataset", "shard_tokens": 9999}
    )
    assert run_here(config).complete
    (path,) = tars(tmp_path / "out")
    _, places = read_tar_shard(Path(path))
    assert [key for key, _, _ in places] == keys
    with tarfile.open(path) as tar:
        for member in tar:
            assert ".." not in member.name.split("/")
            assert not member.name.startswith("/")
            assert tarfile.data_filter(member, str(tmp_path)) is not None
        name = member_key(keys[2])
        assert name == "a%2Eb"
        assert tar.extractfile(f"{name}.caption").read() == b"of a.b"
        assert tar.extractfile(f"{name}.raw").read() == b"\2"
        facts = json.loads(tar.extractfile(f"{name}.json").read())
    assert (facts["key"], facts["n"]) == ("a.b", 2)
    assert EmbeddingDataset(tmp_path / "out")["a.b"]["caption"] == "of a.b"


ODD_KEYS = ["a.b", "/a/b", "a\0b", "a/", "__a__/b", "a\nb", "__MACOSX/x.y", "\x7f"]


def test_webdataset_finds_every_key_but_the_empty_one(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [(f"{member_key(key)}.txt", b"x") for key in ODD_KEYS])
    found = [true_key(sample["__key__"]) for sample in wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)]
    assert found == ODD_KEYS


@pytest.mark.parametrize("key", [*ODD_KEYS, "%", "%2E", "%252F", "/", "a\\.b%", "%2F"])
def test_keys_come_back(key: str) -> None:
    assert true_key(member_key(key)) == key
    assert "." not in member_key(key)


def test_a_cut_shard_is_no_shard(folder: Path, model_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_here(config_for(folder, output, model_path, output={"format": "webdataset"}))
    path = Path(tars(output)[0])
    data = path.read_bytes()
    read_tar_shard(path)
    for length in np.linspace(0, len(data) - 1, 40).astype(int):
        path.write_bytes(data[:length])
        with pytest.raises(OutputError, match=r"part-000000-0000\.tar: not a complete shard"):
            read_tar_shard(path)


JOINER = """
from megatron.energon import CrudeSample


def join(captions, tokens):
    return CrudeSample(dict(captions) | {"tokens": dict(tokens)})
"""
JOINED = """
__module__: megatron.energon
__class__: MetadatasetV2
splits:
  train:
    join: {captions: {path: captions}, tokens: {path: tokens}}
    joiner: {__module__: visionbake_joiner, __function__: join}
"""


@pytest.mark.slow
def test_joined_by_key_in_energon(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's tar has captions by the keys of the tar that was encoded, in another order."""
    from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset
    from megatron.energon.cli.main import main as energon

    keys = [f"{number:03d}" for number in range(9)]
    source = make_tar(tmp_path / "in.tar", [(f"{key}.png", encoded(noise(60, 70, int(key)))) for key in keys])
    run_here(config_for(source, tmp_path / "out", model_path, output={"format": "webdataset"}))
    (tmp_path / "out" / "data").rename(tmp_path / "tokens")
    captions = [(f"{key}.txt", f"a caption of {key}".encode()) for key in reversed(keys)]
    make_tar(tmp_path / "captions" / "0.tar", captions)
    (tmp_path / "visionbake_joiner.py").write_text(JOINER)
    (tmp_path / "joined.yaml").write_text(JOINED)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = ["--non-interactive", "--sample-type", "CrudeWebdataset", "--split-ratio", "1,0,0"]
    for words in (["captions", *options], ["tokens", *options], ["joined.yaml"]):
        energon(["prepare", *words], standalone_mode=False)

    class AsTheyCome(DefaultTaskEncoder[Any, Any, Any, Any]):
        cookers = (Cooker(lambda sample: sample),)

    dataset = get_train_dataset(
        tmp_path / "joined.yaml",
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=AsTheyCome(),
        repeat=False,
    )
    found = {}
    for sample in get_loader(dataset):
        assert sample["txt"] == f"a caption of {sample['__key__']}"
        assert sample["tokens"]["__key__"] == sample["__key__"]
        found[sample["__key__"]] = safetensors.torch.load(sample["tokens"]["safetensors"])["image_embeds"]
    assert sorted(found) == keys
    run_here(config_for(source, tmp_path / "parquet", model_path))
    for row in pq.read_table(tmp_path / "parquet" / "data").to_pylist():
        assert found[row["key"]].numpy().tobytes() == row["embedding"]
