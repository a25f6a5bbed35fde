"""Catches: a checkpoint that is not what it says it is, taken all the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY
from safetensors.torch import load_file, save_file

from pipeline.errors import RequestError
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.config import INDEX_NAME, tower_config
from pipeline.tower.random_tower import write_random_checkpoint


@pytest.fixture
def copy(model_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_path, tmp_path / "model"))


def edit(file: Path, **changes: object) -> None:
    tree = json.loads(file.read_text())
    for name, value in changes.items():
        target = tree
        *parents, last = name.split("__")
        for parent in parents:
            target = target[parent]
        if value is None:
            target.pop(last)
        else:
            target[last] = value
    file.write_text(json.dumps(tree))


def test_both_prefixes_and_any_sharding_are_the_same_tower(model_path: Path, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, TINY, prefix="model.visual.", shard_bytes=1 << 30)
    other, first = Checkpoint(str(tmp_path)), Checkpoint(str(model_path))
    assert other.sha256() == first.sha256()
    (tmp_path / INDEX_NAME).unlink()  # a single file needs no index
    assert Checkpoint(str(tmp_path)).sha256() == first.sha256()
    write_random_checkpoint(tmp_path, TINY, seed=5)
    assert Checkpoint(str(tmp_path)).sha256() != first.sha256()


def test_the_hash_is_of_all_that_decides_a_value(copy: Path) -> None:
    before = Checkpoint(str(copy)).sha256()
    name = "visual.blocks.1.mlp.up_proj.weight"
    file = copy / json.loads((copy / INDEX_NAME).read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file({"a": torch.zeros(99)} | tensors, file)  # the same tensors at other places of the file
    assert Checkpoint(str(copy)).sha256() == before
    hashes = [before]
    for changed in (tensors[name].view(torch.float16), tensors[name].flip(0)):
        save_file(tensors | {name: changed.contiguous()}, file)  # the same bytes as another dtype; other bytes
        hashes.append(Checkpoint(str(copy)).sha256())
    save_file(tensors, file)
    for fields in ({"image_std": [0.5, 0.5, 0.5]}, {"vision_config__fullatt_block_indexes": [0, 3]}):
        edit(copy / ("config.json" if "vision" in next(iter(fields)) else "preprocessor_config.json"), **fields)
        hashes.append(Checkpoint(str(copy)).sha256())
    assert len(set(hashes)) == 5


def test_a_hash_under_way_does_not_keep_the_process_from_ending(copy: Path) -> None:
    """An error found while the tower is hashed in the background: the command ends, whatever the disk is doing."""
    script = """
import os, sys
from pathlib import Path
from pipeline.process import in_background
from pipeline.tower.checkpoint import Checkpoint
checkpoint = Checkpoint(sys.argv[1])
shard = sorted(Path(sys.argv[1]).glob("*.safetensors"))[0]
shard.unlink()
os.mkfifo(shard)  # a file that is never read to its end
in_background(checkpoint.sha256)
with open(shard, "wb") as stream:  # waits until it is being read
    kept = os.dup(stream.fileno())
print("being read", flush=True)
raise SystemExit(2)
"""
    words = [sys.executable, "-c", script, str(copy)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (2, "being read\n"), done.stderr


def test_only_the_tower_is_read(checkpoint: Checkpoint) -> None:
    names = [name for name, _ in checkpoint.tensors()]
    assert sorted(names) == sorted(TINY.shapes())


@pytest.mark.parametrize(
    ("old", "new"),
    [("in_chans", "in_channels"), ("num_heads", "num_attention_heads"), ("depth", "num_hidden_layers")],
)
def test_spellings_of_config_json(copy: Path, old: str, new: str) -> None:
    tree = json.loads((copy / "config.json").read_text())
    tree["vision_config"][new] = tree["vision_config"].pop(old)
    (copy / "config.json").write_text(json.dumps(tree))
    assert Checkpoint(str(copy)).config == TINY


def test_defaults_of_what_old_checkpoints_leave_out(copy: Path) -> None:
    (copy / "preprocessor_config.json").unlink()
    edit(copy / "config.json", vision_config__window_size=None, vision_config__temporal_patch_size=None)
    assert Checkpoint(str(copy)).config == replace(TINY, max_pixels=1_003_520)  # the image processor's own limit
    tree = json.loads((copy / "config.json").read_text())
    del tree["vision_config"]["fullatt_block_indexes"]
    assert tower_config(tree, {}, "old").full_attention_blocks == (7, 15, 23, 31)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "qwen2_vl"}, "embed_dim is missing"),
        ({"model_type": "qwen9_vl"}, "type 'qwen9_vl'; Qwen types that this version knows are qwen2_vl, qwen2_5_vl"),
        ({"model_type": "llama", "vision_config": None}, "type 'llama'"),
        ({"vision_config": None}, "no vision_config"),
        ({"vision_config__hidden_size": None}, "hidden_size is missing"),
        ({"vision_config__hidden_size": "64"}, "not an integer from 1"),
        ({"vision_config__depth": 5}, "visual.blocks.4.attn.qkv.weight is missing"),
        ({"vision_config__out_hidden_size": 50}, "visual.merger.mlp.2"),
        ({"vision_config__num_heads": 3}, "not one of a Qwen2.5-VL tower"),
        ({"vision_config__hidden_act": "gelu"}, "hidden_act"),
        ({"vision_config__fullatt_block_indexes": 3}, "fullatt_block_indexes"),
    ],
)
def test_a_wrong_config_is_named(copy: Path, changes: dict[str, object], says: str) -> None:
    edit(copy / "config.json", **changes)
    with pytest.raises(RequestError) as error:
        Checkpoint(str(copy))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resample": 2}, "resample"),
        ({"image_mean": [1, 2]}, "image_mean"),
        ({"image_std": [0.2, 0, 0.2]}, "image_std.*divides"),
        ({"patch_size": 16}, "patch_size"),
        ({"merge_size": 4}, "merge_size"),
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
    ],
)
def test_another_preprocessing_is_refused(copy: Path, changes: dict[str, object], says: str) -> None:
    edit(copy / "preprocessor_config.json", **changes)
    with pytest.raises(RequestError, match=says):
        Checkpoint(str(copy))


def test_another_mean_is_used(copy: Path) -> None:
    edit(copy / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert Checkpoint(str(copy)).config.image_mean == (0.5, 0.5, 0.5)


def test_a_quantized_tower_is_refused(copy: Path) -> None:
    name = "visual.blocks.1.mlp.up_proj.weight"
    file = copy / json.loads((copy / INDEX_NAME).read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file)
    with pytest.raises(RequestError, match=rf"{name} is I8"):
        Checkpoint(str(copy))


def test_missing_and_misshapen_tensors_are_named(copy: Path) -> None:
    name = "visual.blocks.1.mlp.up_proj.weight"
    index = json.loads((copy / INDEX_NAME).read_text())
    file = copy / index["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: torch.zeros(3, 3)}, file)
    with pytest.raises(RequestError, match=rf"{name} is \[3, 3\], config.json says \[100, 64\]"):
        Checkpoint(str(copy))
    tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(RequestError, match=f"{name} is missing"):
        Checkpoint(str(copy))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(RequestError, match=file.name):
        Checkpoint(str(copy))


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "pickle.bin", ""])
def test_an_index_cannot_name_other_files(copy: Path, place: str) -> None:
    tree = json.loads((copy / INDEX_NAME).read_text())
    tree["weight_map"]["visual.merger.ln_q.weight"] = place
    (copy / INDEX_NAME).write_text(json.dumps(tree))
    with pytest.raises(RequestError, match="not a shard of this folder"):
        Checkpoint(str(copy))


def test_a_checkpoint_without_the_tower(copy: Path) -> None:
    for file in copy.glob("*.safetensors"):
        file.unlink()
    (copy / INDEX_NAME).unlink()
    save_file({"lm_head.weight": torch.zeros(2, 2)}, copy / "model.safetensors")
    with pytest.raises(RequestError, match="no vision tower"):
        Checkpoint(str(copy))


@pytest.mark.parametrize(
    ("path", "says"),
    [("nowhere", "does not exist"), ("./a/b", "does not exist"), ("random:huge", "known are tiny")],
)
def test_a_path_that_is_nothing(path: str, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Checkpoint(path)


def test_a_hub_id_is_read_from_the_hubs_cache(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, from the cache layout that huggingface_hub keeps; and a clear error for what is not in it."""
    import huggingface_hub.constants as constants

    commit = "a" * 40
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    shutil.copytree(model_path, snapshot)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Checkpoint("owner/name").sha256() == Checkpoint(str(model_path)).sha256()
    assert Checkpoint("owner/name").revision == commit  # all processes of a run see the same one
    with pytest.raises(RequestError, match=r"owner/other.*cannot be fetched"):
        Checkpoint("owner/other")
