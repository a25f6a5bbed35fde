"""Catches: a checkpoint that is not what it says it is, taken all the same."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, TINY
from safetensors.torch import load_file, save_file

from pipeline.errors import RequestError
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.config import INDEX_NAME, MAX_PIXELS, MIN_PIXELS, tower_config
from pipeline.tower.families import MODEL_TYPES
from pipeline.tower.random_tower import SIZES, write_random_checkpoint
from pipeline.tower.tensors import PREFIXES


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
        ({"model_type": "qwen2_vl"}, "hidden_act is 'silu', not 'quick_gelu'"),
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


# `random:tiny` and `random:small`, as the version before there were other families took them.
EARLIER = {
    "tiny": "c465b597daccb81046094fdc508808a72070e0be225de71c7e0b76fc851a9af1",
    "small": "937b5f0edcffcb5f19b7fbf11c48c1d041d762bace727543f74ed1e34868fd6c",
}


@pytest.mark.parametrize("size", EARLIER)
def test_the_digests_of_earlier_versions_stand(size: str, tmp_path: Path) -> None:
    """An output that an earlier version began goes on: what its checkpoint is must not have another name."""
    write_random_checkpoint(tmp_path, SIZES[size])
    assert Checkpoint(str(tmp_path)).sha256() == EARLIER[size]
    edit(tmp_path / "preprocessor_config.json", min_pixels=None, max_pixels=50_176)  # pinned by the configuration
    assert Checkpoint(str(tmp_path)).sha256() == EARLIER[size]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def write(model_type: str) -> Path:
        folder = tmp_path_factory.mktemp(model_type)
        config = SIZES[f"{model_type}_tiny"]
        streams = config.deepstack_blocks[:2]
        write_random_checkpoint(folder, replace(config, depth=2, deepstack_blocks=streams, out_width=16))
        return folder

    return write


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_prefix_of_every_type_is_the_same_tower(
    model_type: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    first = Checkpoint(str(written(model_type)))
    assert first.config.model_type == model_type
    for prefix in PREFIXES:
        write_random_checkpoint(tmp_path, first.config, prefix=prefix)
        assert Checkpoint(str(tmp_path)).sha256() == first.sha256()


@pytest.mark.parametrize(
    ("model_type", "part"),
    [("qwen2_5_omni", "_thinker"), ("qwen3_omni_moe", "_thinker"), ("qwen3_vl", "_vision"), ("qwen2_vl", "_vision")],
)
def test_a_part_that_was_saved_by_itself(
    model_type: str, part: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written(model_type), tmp_path / "part"))
    tree = json.loads((folder / "config.json").read_text())
    tree = tree.get("thinker_config", tree)
    tree = tree["vision_config"] if part == "_vision" else tree
    (folder / "config.json").write_text(json.dumps(tree | {"model_type": model_type + part}))
    assert Checkpoint(str(folder)).config == Checkpoint(str(written(model_type))).config


def test_queries_keys_and_values_may_be_one_tensor_or_three(written: Callable[[str], Path], tmp_path: Path) -> None:
    apart = Checkpoint(str(written("qwen2_5_omni")))
    assert any(name.endswith("attn.k.weight") for name, _ in apart.stored_tensors())
    write_random_checkpoint(tmp_path, replace(apart.config, model_type="qwen2_5_vl"))
    fused = Checkpoint(str(tmp_path))
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(apart.tensors(), fused.tensors(), strict=True))
    assert apart.sha256() == fused.sha256()
    edit(tmp_path / "config.json", model_type="qwen2_5_omni")  # one tensor, although the type has three
    assert Checkpoint(str(tmp_path)).sha256() == fused.sha256()


@pytest.mark.parametrize(
    ("model_type", "changes", "fields"),
    [
        ("qwen2_vl", {"mlp_ratio": None}, {"intermediate": 640}),
        ("qwen3_vl", {"num_position_embeddings": None, "deepstack_visual_indexes": [0, 1]}, {"positions": 2304}),
        ("qwen3_5", {"deepstack_visual_indexes": None}, {"deepstack_blocks": ()}),
        ("qwen3_omni_moe", {"image_size": 512}, {"positions": 1024}),
        ("qwen3_omni_moe", {"image_size": None}, {"positions": 2304}),
        ("qwen3_vl", {"patch_size": None}, {"patch_size": 16}),
        ("qwen3_5", {"rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0}}, {}),
    ],
)
def test_what_real_configurations_leave_out(
    model_type: str, changes: dict[str, object], fields: dict[str, object], written: Callable[[str], Path]
) -> None:
    folder = written(model_type)
    tree = json.loads((folder / "config.json").read_text())
    vision = tree.get("thinker_config", tree)["vision_config"]
    for name, value in changes.items():
        vision[name] = value
    vision = {name: value for name, value in vision.items() if value is not None}
    expected = replace(Checkpoint(str(folder)).config, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, **fields)
    assert tower_config({"model_type": model_type, "vision_config": vision}, {}, "it") == expected


@pytest.mark.parametrize(
    ("preprocessor", "limits"),
    [
        ({}, (3136, 1_003_520)),
        ({"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}}, (65_536, 16_777_216)),
        ({"size": {"min_pixels": 5000, "max_pixels": 70_000}}, (5000, 70_000)),
        ({"min_pixels": 4000, "max_pixels": 80_000, "size": {"longest_edge": 9}}, (4000, 80_000)),
        ({"min_pixels": None, "max_pixels": None, "size": {"longest_edge": 90_000}}, (3136, 90_000)),
    ],
)
def test_the_checkpoints_own_pixel_limits(
    preprocessor: dict[str, object], limits: tuple[int, int], written: Callable[[str], Path]
) -> None:
    tree = json.loads((written("qwen3_vl") / "config.json").read_text())
    config = tower_config(tree, preprocessor, "it")
    assert (config.min_pixels, config.max_pixels) == limits
    assert (config.factor, config.image_mean, config.image_std) == (32, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(RequestError, match="max_pixels is 'many', not an area"):
        tower_config(tree, {"max_pixels": "many"}, "it")


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("qwen3_vl", {"deepstack_visual_indexes": [1, 0]}, "not in increasing order"),
        ("qwen3_vl", {"deepstack_visual_indexes": [0, 2]}, "not one of a Qwen3-VL tower"),
        ("qwen3_vl", {"deepstack_visual_indexes": 1}, "not a list of block numbers"),
        ("qwen3_5", {"deepstack_visual_indexes": [1]}, "in a type that has none"),
        ("qwen3_5", {"num_position_embeddings": 2000}, "2000, not a square"),
        ("qwen3_vl", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu', not 'gelu_pytorch_tanh'"),
        ("qwen2_vl", {"embed_dim": None}, "embed_dim is missing"),
        ("qwen2_vl", {"hidden_act": "gelu"}, "hidden_act is 'gelu', not 'quick_gelu'"),
        ("qwen3_vl", {"rope_parameters": {"rope_theta": 5000.0}}, "rope_theta must be 10000"),
        ("qwen3_vl", {"num_heads": 5}, "not one of a Qwen3-VL tower"),
    ],
)
def test_a_wrong_config_of_another_family_is_named(
    model_type: str, changes: dict[str, object], says: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written(model_type), tmp_path / "model"))
    edit(folder / "config.json", **{f"vision_config__{name}": value for name, value in changes.items()})
    with pytest.raises(RequestError, match=says):
        Checkpoint(str(folder))


@pytest.mark.parametrize("model_type", ["qwen9_vl", "qwen3_vl_next", "llava", None, 7])
def test_a_type_that_is_not_known_is_named_with_those_that_are(model_type: object) -> None:
    with pytest.raises(RequestError) as error:
        tower_config({"model_type": model_type, "vision_config": {}}, {}, "it")
    assert repr(model_type) in str(error.value)
    assert all(known in str(error.value) for known in MODEL_TYPES)
    assert ("Qwen types that this version knows are" in str(error.value)) == str(model_type).startswith("qwen")


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrites a checkpoint of one shard, and its index."""
    (file,) = folder.glob("*.safetensors")
    tensors = change(load_file(file))
    save_file(tensors, file)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, file.name)}))


SCHEMES = {
    "awq": ["qweight", "qzeros", "scales"],
    "gptq": ["qweight", "qzeros", "scales", "g_idx"],
    "fp8": ["weight_scale_inv"],
    "compressed-tensors": ["weight_packed", "weight_scale"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_language_model_beside_a_whole_tower(
    scheme: str, written: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(written("qwen3_vl"), tmp_path / "model"))
    whole = Checkpoint(str(folder)).sha256()
    name = "model.language_model.layers.0.mlp.up_proj"
    language = {f"{name}.{kind}": torch.zeros(4, 4, dtype=torch.int32) for kind in SCHEMES[scheme]}
    change_tensors(folder, lambda tensors: tensors | language)
    edit(folder / "config.json", quantization_config={"quant_method": scheme, "modules_to_not_convert": ["visual"]})
    assert Checkpoint(str(folder)).sha256() == whole


@pytest.mark.parametrize("kept", [None, torch.float8_e4m3fn, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tower_quantized_in_any_way_is_refused(
    scheme: str, kept: torch.dtype | None, written: Callable[[str], Path], tmp_path: Path
) -> None:
    """By what stands beside the weight, or in its place."""
    folder = Path(shutil.copytree(written("qwen3_vl"), tmp_path / "model"))
    name = "model.visual.blocks.1.mlp.linear_fc1"

    def quantize(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weight = tensors.pop(f"{name}.weight")
        tensors |= {f"{name}.{kind}": torch.zeros(4, 4, dtype=torch.int32) for kind in SCHEMES[scheme]}
        return tensors | ({f"{name}.weight": weight.to(kept)} if kept else {})

    change_tensors(folder, quantize)
    edit(folder / "config.json", quantization_config={"quant_method": scheme})
    with pytest.raises(RequestError, match=rf"visual.blocks.1.mlp.linear_fc1.weight is quantized \({scheme}\)"):
        Checkpoint(str(folder))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.uint8])
def test_a_weight_of_another_dtype_is_refused(dtype: torch.dtype, copy: Path) -> None:
    name = "visual.blocks.1.mlp.up_proj.weight"
    file = copy / json.loads((copy / INDEX_NAME).read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].to(dtype)}, file)
    with pytest.raises(RequestError, match=rf"{name} is quantized: it is (I8|U8|F8_E4M3)"):
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
    with pytest.raises(RequestError, match=r"owner/other is no folder .*HF_HUB_OFFLINE is set; .*a local folder"):
        Checkpoint("owner/other")
