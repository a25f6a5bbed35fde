"""Published configurations of each type at their real size, as far as `plan`: what a run would take; no weights."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import pytest
from conftest import encoded, noise

from pipeline.cli.commands import main
from pipeline.tower.config import tower_config
from pipeline.tower.families import MODEL_TYPES

AREAS = {"min_pixels": 3136, "max_pixels": 12_845_056}
EDGES = {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
SECOND = {"depth": 32, "num_heads": 16, "in_chans": 3, "spatial_merge_size": 2, "spatial_patch_size": 14}
SECOND |= {"patch_size": 14, "temporal_patch_size": 2}
HALF = SECOND | {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584, "hidden_act": "silu"}
HALF |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
THIRD = {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304, "patch_size": 16}
THIRD |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "gelu_pytorch_tanh"}
LEARNED = THIRD | {"in_channels": 3, "num_position_embeddings": 2304}
STREAMS = {"deepstack_visual_indexes": [8, 16, 24]}
OMNI = THIRD | STREAMS | {"in_chans": 3, "spatial_patch_size": 16, "image_size": 768, "out_hidden_size": 2048}
# The tower's part of config.json, the image processor's, tokens of an 800×600 photo, streams, and bytes of a token.
REAL: dict[str, tuple[dict[str, Any], dict[str, Any], int, int, int]] = {
    "qwen2_vl": (SECOND | {"embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4}, AREAS, 609, 1, 7168),
    "qwen2_5_vl": (HALF, AREAS, 609, 1, 7168),
    "qwen2_5_omni": (HALF, AREAS, 609, 1, 7168),
    "qwen3_vl": (LEARNED | STREAMS | {"out_hidden_size": 4096, "model_type": "qwen3_vl"}, EDGES, 475, 4, 32_768),
    "qwen3_vl_moe": (LEARNED | STREAMS | {"out_hidden_size": 2048}, EDGES, 475, 4, 16_384),
    "qwen3_omni_moe": (OMNI, EDGES, 475, 4, 16_384),
    "qwen3_5": (LEARNED | {"out_hidden_size": 4096, "deepstack_visual_indexes": []}, EDGES, 475, 1, 8192),
    "qwen3_5_moe": (LEARNED | {"out_hidden_size": 2048, "deepstack_visual_indexes": []}, EDGES, 475, 1, 4096),
    "qwen4_exp": (LEARNED | {"out_hidden_size": 3584}, EDGES, 475, 1, 7168),
}


def write_without_weights(folder: Path, model_type: str) -> None:
    """A checkpoint whose one file of tensors has a header and a hole: `plan` reads no value."""
    vision, preprocessor, *_ = REAL[model_type]
    tree: dict[str, Any] = {"model_type": model_type, "vision_config": vision}
    if "omni" in model_type:
        tree = {"model_type": model_type, "thinker_config": {"vision_config": vision}}
    (folder / "config.json").write_text(json.dumps(tree))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    form = MODEL_TYPES[model_type].form(model_type)
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tower_config(tree, preprocessor, "").shapes().items():
        pieces = form.pieces(name)
        for piece in pieces:
            size = [shape[0] // len(pieces), *shape[1:]]
            header[form.prefix + piece] = {"dtype": "BF16", "shape": size, "data_offsets": [end, end + 2 * prod(size)]}
            end += 2 * prod(size)
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


@pytest.mark.parametrize("model_type", REAL)
def test_a_plan_of_a_published_model(model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, tokens, streams, token_bytes = REAL[model_type]
    for name in ("model", "in"):
        (tmp_path / name).mkdir()
    write_without_weights(tmp_path / "model", model_type)
    (tmp_path / "in" / "photo.jpg").write_bytes(encoded(noise(600, 800), "JPEG"))
    (tmp_path / "in" / "icon.png").write_bytes(encoded(noise(40, 40)))
    sections = {"source": "in", "model": "model", "output": "out"}
    keys = {"source": "uri", "model": "path", "output": "uri"}
    config = {name: {keys[name]: str(tmp_path / place)} for name, place in sections.items()}
    (tmp_path / "c.yaml").write_text(json.dumps(config | {"cluster": {"engine": "inline"}}))
    assert main(["plan", str(tmp_path / "c.yaml"), "--json"]) == 0
    (budget,) = json.loads(capsys.readouterr().out)["budgets"]
    least = 4 if REAL[model_type][1] is AREAS else 64  # of an icon, enlarged to the checkpoint's least area
    assert (budget["samples"], budget["tokens"], budget["tokens_max"]) == (2, tokens + least, tokens)
    assert budget["embedding_bytes"] == (tokens + least) * token_bytes
    assert budget.get("deepstack_bytes", 0) * streams == budget["embedding_bytes"] * (streams - 1)
    assert budget["max_pixels"] == (12_845_056 if least == 4 else 16_777_216)
    assert main(["plan", str(tmp_path / "c.yaml"), "--json", "--max-pixels", "783"]) == 2
    assert "must be integers of at least" in capsys.readouterr().err
