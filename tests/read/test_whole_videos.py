"""Videos, from files to the language model that takes their tokens: transformers' own models, with the tower deleted.

Catches: times that are told wrongly or not at all, a clip's tokens at another's place, images and videos exchanged, and
a prompt that is not the family's.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import safetensors.torch
import torch
from clips import clip_of
from conftest import REPOSITORY, config_for, noise, run_here
from consumers import FACTORS, OMNIS, STREAMS, WIDTH, load_model, processor_of, save_model
from PIL import Image

from pipeline import CachedProcessor, EmbeddingDataset
from pipeline.errors import RequestError
from pipeline.read.adapters import from_llava, sglang_image, transformers_inputs, vllm_embeds, vllm_message_part
from pipeline.read.items import collate, medium_of, rows_of
from pipeline.read.ray_data import blocks_of

pytestmark = pytest.mark.slow

KINDS = ["qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl", "qwen3_omni_moe", "qwen3_5", "qwen4_exp"]
PIXELS = {"min_pixels": 3136, "max_pixels": 12_000}
NAMES = ("h264.mp4", "uneven.mp4", "carphone_pristine.mp4")
CHATS: list[tuple[str, ...]] = [("uneven.mp4",), (), ("0.png", "carphone_pristine.mp4", "1.png", "h264.mp4")]
FPS = 2.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number, (height, width) in enumerate([(60, 90), (120, 84)]):
        Image.fromarray(noise(height, width, number)).save(folder / f"{number}.png")
    for name in NAMES:
        (folder / name).write_bytes(clip_of(name))
    return folder


def limits(model_type: str) -> dict[str, int]:
    """Of a frame, or of all frames of a clip."""
    whole = FACTORS[model_type] == 32 and model_type not in OMNIS
    return {"min_pixels": 4096, "max_pixels": 80_000} if whole else {"min_pixels": 3136, "max_pixels": 8_000}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A type's model, its processor, and an output of its tower."""
    model_type, folder = request.param, tmp_path_factory.mktemp(request.param)
    processor = processor_of(model_type, **PIXELS)
    (folder / "model").mkdir()
    save_model(folder / "model", model_type, processor)
    preprocess = {"max_pixels": None, "video": {"fps": FPS} | limits(model_type)}
    config = config_for(source, folder / "out", folder / "model", preprocess=preprocess)
    assert run_here(config).complete
    return SimpleNamespace(
        model_type=model_type,
        processor=processor,
        folder=folder / "model",
        source=source,
        config=config,
        dataset=EmbeddingDataset(folder / "out"),
        load=lambda **options: load_model(folder / "model", model_type, **options),
    )


def chat(*names: str) -> list[dict[str, Any]]:
    parts = [{"type": medium, medium: name} for name in names for medium in [medium_by_name(name)]]
    return [
        {"role": "user", "content": [*parts, {"type": "text", "text": " what is this "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat "}]},
    ]


def medium_by_name(name: str) -> str:
    return "image" if name.endswith(".png") else "video"


@cache
def frames_of(path: Path) -> torch.Tensor:
    """All frames [T, C, H, W], as PyAV decodes them."""
    with av.open(str(path)) as container:
        return torch.from_numpy(
            np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        ).permute(0, 3, 1, 2)


def from_pixels(kind: Any, return_tensors: str | None = "pt") -> dict[str, Any]:
    """What the model's own processor gives of the same frames, by count and rate."""
    names = [name for one in CHATS for name in one]
    videos = [name for name in names if medium_by_name(name) == "video"]
    low, high = limits(kind.model_type).values()
    return dict(
        kind.processor(
            text=[kind.processor.apply_chat_template(chat(*one), tokenize=False) for one in CHATS],
            images=[Image.open(kind.source / name) for name in names if medium_by_name(name) == "image"],
            videos=[frames_of(kind.source / name) for name in videos],
            videos_kwargs={
                "video_metadata": [metadata_of(kind, name) for name in videos],
                "do_sample_frames": True,
                "fps": FPS,
                "size": {"shortest_edge": low, "longest_edge": high},
            },
            padding=True,
            return_tensors=return_tensors,
        )
    )


def metadata_of(kind: Any, name: str) -> dict[str, Any]:
    total, fps = len(frames_of(kind.source / name)), kind.dataset[name]["fps"]
    return {"total_num_frames": total, "fps": fps, "duration": total / fps}


def from_cache(kind: Any, **options: Any) -> dict[str, Any]:
    ours = CachedProcessor(kind.processor, kind.dataset)
    chats = [chat(*one) for one in CHATS]
    return dict(ours.apply_chat_template(chats, tokenize=True, return_dict=True, padding=True, **options))


def test_a_language_model_says_the_same_of_clips_from_an_output_as_from_pixels(kind: Any) -> None:
    """Several clips, images between them, text alone: from equal tokens to the bit, from ours as near as they are."""
    pixels, inputs = from_pixels(kind), from_cache(kind)
    assert inputs.keys() == {name for name in pixels if "pixel" not in name} | {"mm_encoder_outputs"}
    for name in inputs.keys() - {"mm_encoder_outputs"}:
        assert torch.equal(inputs[name], pixels[name]) and inputs[name].dtype == pixels[name].dtype, name
    whole, bare = kind.load(), kind.load(without_tower=True)
    with torch.no_grad():
        expected = whole(**pixels).logits
        ours = bare(**inputs).logits
        exact = bare(**inputs | of_the_reference(whole, pixels)).logits
    scale = float(expected.abs().max())
    assert torch.equal(exact, expected)
    assert float((ours - expected).abs().max()) < 2e-5 * scale
    for spoiled in spoilings(inputs):  # all of it does matter
        with torch.no_grad():
            assert not torch.allclose(bare(**inputs | spoiled).logits, expected, atol=1e-4 * scale), spoiled.keys()


def of_the_reference(whole: Any, pixels: dict[str, Any]) -> dict[str, Any]:
    """What the adapter gives of the model's own tokens; videos before images, which does not matter."""
    owner = whole if hasattr(whole, "visual") else whole.model
    items = []
    for medium, values in (("video", "pixel_values_videos"), ("image", "pixel_values")):
        features = getattr(owner, f"get_{medium}_features")(pixels[values], pixels[f"{medium}_grid_thw"])
        for number, grid in enumerate(pixels[f"{medium}_grid_thw"]):
            item = {"media": medium, "image_embeds": features.pooler_output[number], "grid_thw": grid}
            if levels := getattr(features, "deepstack_features", None):
                item["deepstack_embeds"] = [level[number] for level in levels]
            items.append(item)
    return transformers_inputs(items)


def spoilings(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs with the clips' tokens, one of their streams, or their time changed."""
    outputs = inputs["mm_encoder_outputs"]

    def with_(**changed: Any) -> dict[str, Any]:
        video = outputs["video"]
        return {"mm_encoder_outputs": outputs | {"video": type(video)(**dict(video) | changed)}}

    spoiled = [with_(pooler_output=[one.flip(0) for one in outputs["video"].pooler_output])]
    for level in range(len(getattr(outputs["video"], "deepstack_features", None) or ())):
        features = list(outputs["video"].deepstack_features)
        features[level] = [one.flip(0) for one in features[level]]
        spoiled.append(with_(deepstack_features=features))
    spoiled += [{name: inputs[name] * 3} for name in inputs if "second_per_grid" in name]
    return spoiled


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"], indirect=True)
@pytest.mark.parametrize("form", [None, "np"])
def test_lists_and_arrays_of_clips_are_the_processors_own(kind: Any, form: str | None) -> None:
    expected, found = from_pixels(kind, form), from_cache(kind, return_tensors=form)
    texts = [name for name in expected if "pixel" not in name and "grid_thw" not in name]
    assert {"input_ids", "mm_token_type_ids"} < set(texts)
    for name in texts:
        assert isinstance(found[name], type(expected[name])), name
        assert np.array_equal(found[name], expected[name]), name
    assert 2 in np.asarray(found["mm_token_type_ids"])


@pytest.mark.parametrize("kind", ["qwen3_vl"], indirect=True)
def test_times_are_the_references_to_the_bit(kind: Any) -> None:
    """In float32 one in thirty of a prompt's times would round to another tenth of a second."""
    from transformers import Qwen3VLProcessor

    rows = kind.dataset.get_many(list(NAMES))
    assert rows[1]["fps"] != float(np.float32(rows[1]["fps"]))
    for row in rows:
        assert row["timestamps"] == Qwen3VLProcessor._calculate_timestamps(None, list(row["frames"]), row["fps"], 2)
        sampled = len(row["frames"]) / len(frames_of(kind.source / row["key"])) * row["fps"]
        assert row["second_per_grid"] == 2 / sampled


def test_a_key_of_the_other_medium_is_refused_by_name(kind: Any) -> None:
    ours = CachedProcessor(kind.processor, kind.dataset)
    with pytest.raises(RequestError, match=r"h264\.mp4 was given among the images, and is one of the videos of .*out"):
        ours.apply_chat_template([{"role": "user", "content": [{"type": "image", "image": "h264.mp4"}]}], tokenize=True)
    with pytest.raises(RequestError, match=r"0\.png was given among the videos, .* in a part of type image"):
        ours(text="<|video_pad|>", videos=["0.png"])
    with pytest.raises(RequestError, match=r"has 2 video tokens \(<\|video_pad\|>\), 1 videos were given"):
        ours(text="<|video_pad|> and <|video_pad|>", videos="h264.mp4")
    with pytest.raises(RequestError, match="load_audio_from_video: an output has no sound"):
        ours(text="<|video_pad|>", videos="h264.mp4", load_audio_from_video=True)


@pytest.mark.parametrize("kind", ["qwen3_vl"], indirect=True)
def test_a_processor_of_another_model_is_refused_by_key(kind: Any) -> None:
    """Its patches are merged by more, so that its prompt has fewer tokens than the output."""
    other = processor_of("qwen3_vl", **PIXELS)
    other.video_processor.merge_size = 4
    with pytest.raises(RequestError, match=r"h264\.mp4 has \d+ tokens in .*: they are of different models"):
        CachedProcessor(other, kind.dataset)(text="<|video_pad|>", videos="h264.mp4")


def test_vllm_takes_clips_with_their_times_and_what_takes_images_alone_refuses_them(kind: Any) -> None:
    items = kind.dataset.get_many(["0.png", *NAMES])
    clips = items[1:]
    data = vllm_embeds(items)
    assert data.keys() == {"image", "video"}
    assert torch.equal(data["image"]["image_embeds"], rows_of(items[0]))
    video = data["video"]
    assert torch.equal(video["video_embeds"], torch.cat([rows_of(one) for one in clips]))
    assert video["video_embeds"].shape[1] == WIDTH * (3 if kind.model_type in STREAMS else 1)
    assert video["video_grid_thw"].tolist() == [one["grid_thw"].tolist() for one in clips]
    assert [len(times) for times in video["timestamps"]] == video["video_grid_thw"][:, 0].tolist()
    assert video["timestamps"] == [one["timestamps"] for one in clips]
    assert video["second_per_grid_ts"].tolist() == [float(np.float32(one["second_per_grid"])) for one in clips]
    for refuse in (sglang_image, vllm_message_part):
        with pytest.raises(RequestError, match=r"^h264\.mp4 is a video: .*`vllm_embeds`"):
            refuse(items)


@pytest.mark.parametrize("kind", ["qwen3_vl"], indirect=True)
@pytest.mark.parametrize("placeholder", ["<video>", "<image>"])
def test_llava_records_of_clips(kind: Any, placeholder: str) -> None:
    """ShareGPT4Video writes <video>, LLaVA-Video <image> for a clip."""
    record = {
        "id": "q1",
        "video": "clips/uneven.mp4",
        "conversations": [
            {"from": "human", "value": f"{placeholder}\n what is this "},
            {"from": "gpt", "value": "a cat "},
        ],
    }
    assert from_llava(record) == chat("clips/uneven.mp4")
    ours = CachedProcessor(kind.processor, kind.dataset, key_of=lambda path: path.removeprefix("clips/"))
    found = ours.apply_chat_template([record], tokenize=True, return_dict=True)
    expected = ours.apply_chat_template([chat("uneven.mp4")], tokenize=True, return_dict=True)
    assert torch.equal(found["input_ids"], expected["input_ids"]) and found["video_grid_thw"].shape == (1, 3)


@pytest.mark.parametrize("kind", ["qwen3_vl"], indirect=True)
def test_batches_and_streams_hold_clips_among_images(kind: Any) -> None:
    batch = collate(list(kind.dataset.stream(shuffle_seed=3)))
    assert sorted(batch["key"]) == sorted(["0.png", "1.png", *NAMES]) and batch["key"] != sorted(batch["key"])
    assert batch["media"] == ["image" if key.endswith(".png") else "video" for key in batch["key"]]
    ends = np.cumsum([grid.prod() // 4 for grid in batch["image_grid_thw"].numpy()])
    assert ends[-1] == len(batch["image_embeds"])
    for number, key in enumerate(batch["key"]):
        item, rows = kind.dataset[key], slice(ends[number - 1] if number else 0, ends[number])
        assert torch.equal(batch["image_embeds"][rows], item["image_embeds"])
        assert all(
            torch.equal(a[rows], b) for a, b in zip(batch["deepstack_embeds"], item["deepstack_embeds"], strict=True)
        )
        assert len(batch["timestamps"][number] or ()) == item["grid_thw"][0] * (medium_of(item) == "video")


@pytest.mark.parametrize("kind", ["qwen3_vl"], indirect=True)
def test_blocks_for_ray_have_the_streams_and_the_times_of_clips(kind: Any) -> None:
    dataset = kind.dataset
    blocks = [block for unit in range(len(dataset.unit_lengths())) for block in blocks_of(dataset, unit, 1 << 30)]
    assert sum(map(len, blocks)) == len(dataset) and len({tuple(block.schema) for block in blocks}) == 1
    for block in blocks:
        tokens, streams, grids = (
            block[name].combine_chunks().to_numpy(zero_copy_only=False)
            for name in ("image_embeds", "deepstack_embeds", "grid_thw")
        )
        for row, item in enumerate(dataset.get_many(block["key"].to_pylist())):
            assert np.array_equal(tokens[row], item["image_embeds"])
            assert np.array_equal(streams[row], torch.stack(item["deepstack_embeds"]))
            assert grids[row].tolist() == item["grid_thw"].tolist()
            assert block["timestamps"][row].as_py() == item["timestamps"]


@pytest.mark.parametrize("kind", ["qwen3_vl"], indirect=True)
def test_clips_of_tars_are_what_they_are_in_parquet(kind: Any, tmp_path: Path) -> None:
    """By webdataset and safetensors, and by our reader."""
    import webdataset

    config = kind.config.model_copy(
        update={"output": kind.config.output.model_copy(update={"uri": str(tmp_path / "out"), "format": "webdataset"})}
    )
    assert run_here(config).complete
    shards = sorted(str(path) for path in (tmp_path / "out" / "data").iterdir())
    found = {}
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        facts, tensors = json.loads(sample["json"]), safetensors.torch.load(sample["safetensors"])
        found[facts["key"]] = facts, tensors
    for item in kind.dataset.stream():
        medium = medium_of(item)
        facts, tensors = found.pop(item["key"])
        assert tensors.keys() == {f"{medium}_embeds", f"{medium}_grid_thw"}
        assert torch.equal(tensors[f"{medium}_embeds"], rows_of(item))
        assert tensors[f"{medium}_grid_thw"].tolist() == [item["grid_thw"].tolist()]
        assert all(facts[name] == item[name] for name in ("media", "timestamps", "second_per_grid", "fps", "frames"))
    assert not found
    tars = CachedProcessor(kind.processor, str(tmp_path / "out"))(text="<|video_pad|>", videos="uneven.mp4")
    parquet = CachedProcessor(kind.processor, kind.dataset)(text="<|video_pad|>", videos="uneven.mp4")
    assert torch.equal(tars["input_ids"], parquet["input_ids"])
    pairs = [one["mm_encoder_outputs"]["video"] for one in (tars, parquet)]
    assert torch.equal(pairs[0].pooler_output[0], pairs[1].pooler_output[0])
    assert torch.equal(pairs[0].deepstack_features[1][0], pairs[1].deepstack_features[1][0])


@pytest.mark.parametrize("kind", ["qwen3_vl"], indirect=True)
def test_the_lines_of_the_documentation_train(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs" / "video.md").read_text("utf-8")
    code = page.partition("## Training\n")[2].partition("```python\n")[2].partition("```")[0]
    code = code.replace("Qwen/Qwen2.5-VL-7B-Instruct", str(kind.folder))
    kind.processor.save_pretrained(kind.folder)
    (tmp_path / "out").symlink_to(kind.dataset.uri)
    turns = [{"from": "human", "value": "<video>\n what is this "}, {"from": "gpt", "value": "a cat "}]
    lines = [
        json.dumps({"id": str(number), "video": name, "conversations": turns}) for number, name in enumerate(NAMES)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    before, after = kind.load().lm_head.weight, names["model"].lm_head.weight
    assert names["start"] == 2 and names["inputs"]["video_grid_thw"].shape == (1, 3)
    assert not torch.equal(before, after.float())
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 11
