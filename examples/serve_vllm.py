"""Answers a question about images of an output with vLLM, offline; its tower does not run, and no pixels are read.

    python examples/serve_vllm.py --model Qwen/Qwen2.5-VL-7B-Instruct --output out/photos "What is this?" a.jpg b.jpg

With `--images FOLDER` the same from the pixels, without the output: to compare.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--output")
    parser.add_argument("--images", type=Path, help="ask about the files of this folder, by their pixels")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--engine", type=json.loads, default={}, help="further arguments of vllm.LLM, as JSON")
    parser.add_argument("question")
    parser.add_argument("keys", nargs="+")
    words = parser.parse_args()

    from vllm import LLM, SamplingParams

    served: dict[str, Any] = {}
    if not words.images:
        served["ec_transfer_config"] = {
            "ec_connector": "VisionbakeConnector",
            "ec_connector_module_path": "visionbake.read.vllm_connector",
            "ec_role": "ec_consumer",
            "ec_connector_extra_config": {"output": words.output},
        }
    llm = LLM(words.model, **served, **words.engine)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words.question}]}
    prompt = llm.get_tokenizer().apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    sampling = SamplingParams(temperature=0, max_tokens=words.max_tokens, logprobs=0)
    prompts = [one | {"prompt": prompt} for one in (pixels if words.images else rows)(words)]
    for key, answer in zip(words.keys, llm.generate(prompts, sampling, use_tqdm=False), strict=True):
        best = answer.outputs[0]
        print(json.dumps({"key": key, "text": best.text, "logprob": best.cumulative_logprob}))


def rows(words: argparse.Namespace) -> list[dict[str, Any]]:
    """Each image by its grid, of which the prompt's length follows, and its key."""
    from visionbake import EmbeddingDataset

    grids = [item["grid_thw"][None] for item in EmbeddingDataset(words.output)[words.keys]]
    data = [{"image": {"image_grid_thw": grid}} for grid in grids]
    return [
        {"multi_modal_data": one, "multi_modal_uuids": {"image": [key]}}
        for one, key in zip(data, words.keys, strict=True)
    ]


def pixels(words: argparse.Namespace) -> list[dict[str, Any]]:
    from PIL import Image

    return [{"multi_modal_data": {"image": Image.open(words.images / key)}} for key in words.keys]


if __name__ == "__main__":
    main()
