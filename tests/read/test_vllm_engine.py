"""vLLM itself, on a CPU, with a small model: answers from an output are those from pixels, with and without a tower.

Runs where vLLM's build for CPUs is installed (`make vllm`); it is no part of `make test`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import consumers
import pytest
from conftest import REPOSITORY, config_for, noise, run_here
from PIL import Image
from vllm_interface import REAL

pytestmark = pytest.mark.skipif(not REAL, reason="vLLM is not installed: make vllm")
KEYS = ["0.png", "1.png", "2.png"]
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_batched_tokens": 512}
LIMITS = {"min_pixels": 3136, "max_pixels": 12_000}
HEADS_OF_32 = {"qwen2_5_vl": [4, 6, 6], "qwen3_vl": [6, 5, 5]}  # vLLM's kernels have no smaller ones


@pytest.fixture(params=list(HEADS_OF_32))
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A folder with photos, a whole model, and an output of its tower."""
    from vllm.platforms import current_platform

    if current_platform.device_type != "cpu":
        pytest.skip("this build of vLLM has no kernels for a CPU")
    text = consumers._text

    def wider(model_type: str, tokenizer: Any) -> dict[str, Any]:
        fields = text(model_type, tokenizer) | {"head_dim": 32}
        fields["rope_parameters"]["mrope_section"] = HEADS_OF_32[model_type]
        return fields

    monkeypatch.setattr(consumers, "_text", wider)
    monkeypatch.setattr(consumers, "WIDTH", 128)
    processor = consumers.processor_of(request.param, **LIMITS)
    for folder in ("photos", "model"):
        (tmp_path / folder).mkdir()
    consumers.save_model(tmp_path / "model", request.param, processor)
    processor.save_pretrained(tmp_path / "model")
    for number, (height, width) in enumerate([(60, 90), (120, 84), (200, 64)]):
        Image.fromarray(noise(height, width, number)).save(tmp_path / "photos" / KEYS[number])
    config = config_for(tmp_path / "photos", tmp_path / "out", tmp_path / "model", preprocess={"max_pixels": None})
    assert run_here(config).complete
    return request.param, tmp_path


def answers(folder: Path, images: int, *words: str) -> list[dict[str, Any]]:
    """What the example prints. `images`: how many of a prompt vLLM's tower is there for; with none it is not loaded."""
    engine = ENGINE | {"limit_mm_per_prompt": {"image": images, "video": 0}}
    command = [sys.executable, str(REPOSITORY / "examples" / "serve_vllm.py"), "--model", str(folder / "model")]
    command += ["--engine", json.dumps(engine), "--max-tokens", "5", *words, "what is this ", *KEYS]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in lines]


def test_answers_from_an_output_are_those_from_pixels(kind: tuple[str, Path]) -> None:
    model_type, folder = kind
    from_pixels = answers(folder, 1, "--images", str(folder / "photos"))
    assert [one["key"] for one in from_pixels] == KEYS
    assert len({one["logprob"] for one in from_pixels}) == len(KEYS)  # the images matter
    # vLLM 0.32 takes a Qwen3-VL without its tower for one without further streams.
    for images in (1, 0) if model_type == "qwen2_5_vl" else (1,):
        from_rows = answers(folder, images, "--output", str(folder / "out"))
        for served, seen in zip(from_rows, from_pixels, strict=True):
            assert served["text"] == seen["text"]
            assert served["logprob"] == pytest.approx(seen["logprob"], abs=1e-4)
