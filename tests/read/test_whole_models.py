"""Every model type, from a checkpoint as it is saved to the language model that takes the tokens: plan, run, verify,
reader, consumer. transformers' own models, with the tower deleted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import config_for, noise, run_here
from consumers import CLASSES, FACTORS, STREAMS, WIDTH, load_model, processor_of, save_model
from PIL import Image

from pipeline import CachedProcessor, EmbeddingDataset
from pipeline.cli.verify import compare_with_reference
from pipeline.encode.dtypes import split_streams
from pipeline.errors import RequestError
from pipeline.estimate.estimate import Case, Writing
from pipeline.estimate.estimate_plan import estimate_plan
from pipeline.output.verify import Verifier
from pipeline.read.adapters import run_merger, sglang_image, transformers_inputs, vllm_embeds
from pipeline.read.items import rows_of
from pipeline.run.request import check_request
from pipeline.source.plan import Plan
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.reference import reference_processor, reference_tower, run_reference

pytestmark = pytest.mark.slow

LIMITS = {"min_pixels": 3136, "max_pixels": 12_000}
CHATS: list[tuple[str, ...]] = [("0.png",), (), ("2.png", "0.png", "2.png")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate([(60, 90), (120, 84), (200, 64)]):
        Image.fromarray(noise(height, width, number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module", params=CLASSES)
def kind(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A type's model, its processor, and an output of its tower."""
    model_type, folder = request.param, tmp_path_factory.mktemp(request.param)
    processor = processor_of(model_type, **LIMITS)
    (folder / "model").mkdir()
    save_model(folder / "model", model_type, processor)
    config = config_for(photos, folder / "out", folder / "model", preprocess={"max_pixels": None})
    assert run_here(config).complete
    return SimpleNamespace(
        model_type=model_type,
        processor=processor,
        folder=folder / "model",
        photos=photos,
        output=folder / "out",
        config=config,
        load=lambda **options: load_model(folder / "model", model_type, **options),
    )


def chat(*images: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image} for image in images]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": " what is this "}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat "}]},
    ]


def from_pixels(kind: Any) -> dict[str, Any]:
    texts = [kind.processor.apply_chat_template(chat(*names), tokenize=False) for names in CHATS]
    images = [Image.open(kind.photos / name) for names in CHATS for name in names]
    return dict(kind.processor(images=images, text=texts, padding=True, return_tensors="pt"))


def from_cache(kind: Any, chats: list[tuple[str, ...]] = CHATS) -> dict[str, Any]:
    ours = CachedProcessor(kind.processor, EmbeddingDataset(kind.output))
    texts = [ours.apply_chat_template(chat(*names), tokenize=False) for names in chats]
    return dict(ours(images=[list(names) for names in chats], text=texts, padding=True, return_tensors="pt"))


def test_an_output_is_what_was_planned_and_what_the_reference_gives(kind: Any) -> None:
    """The budgets are the checkpoint's own, as nobody asked for others."""
    verifier = Verifier(kind.output)
    assert verifier.verify().proven
    compared = compare_with_reference(verifier, 3)
    assert len(compared) == 3
    streams = 2 if kind.model_type in STREAMS else 0
    assert all(max(one.get("relative_rms_by_stream", [one["relative_rms"]])) < 5e-6 for one in compared), compared
    assert all(len(one.get("relative_rms_by_stream", [0])) == 1 + streams for one in compared)
    info = verifier.dataset
    assert (info.hidden_size, info.streams, info.stream_width) == (WIDTH * (1 + streams), streams, WIDTH)
    assert info.patch_size * info.merge_size == FACTORS[kind.model_type]
    assert info.config["preprocess"] | LIMITS == info.config["preprocess"]
    request = check_request(kind.config, weights=False)
    writing = Writing.of(request.config, info.hidden_size, streams)
    (planned,), _ = estimate_plan(Plan(kind.output), [Case(geometry=request.geometry, writing=writing)])
    sizes = [len(rows_of(item)) for item in EmbeddingDataset(kind.output)]
    assert planned.tokens == sum(sizes) and planned.images == 3


def test_a_language_model_says_the_same_from_an_output_as_from_pixels(kind: Any) -> None:
    """Mixed text and several images a sequence: from equal tokens to the bit, from ours as near as the tower is."""
    pixels, inputs = from_pixels(kind), from_cache(kind)
    labels = pixels["input_ids"].masked_fill(pixels["attention_mask"] == 0, -100)
    assert inputs.keys() == pixels.keys() - {"pixel_values"} | {"mm_encoder_outputs"}
    for name in inputs.keys() - {"mm_encoder_outputs"}:
        assert torch.equal(inputs[name], pixels[name]), name
    whole, bare = kind.load(), kind.load(without_tower=True)
    with torch.no_grad():
        expected = whole(**pixels, labels=labels)
        ours = bare(**inputs, labels=labels)
        exact = bare(**inputs | of_the_reference(kind), labels=labels)
    assert torch.equal(exact.logits, expected.logits)
    assert torch.equal(exact.loss, expected.loss)
    assert float((ours.logits - expected.logits).abs().max()) < 2e-5 * float(expected.logits.abs().max())
    assert float(ours.loss) == pytest.approx(float(expected.loss), rel=1e-5)
    for spoiled in spoilings(inputs["mm_encoder_outputs"]["image"]):  # all of it does matter
        with torch.no_grad():
            wrong = bare(**inputs | {"mm_encoder_outputs": {"image": spoiled}}).logits
        assert not torch.allclose(wrong, expected.logits, atol=1e-4 * float(expected.logits.abs().max()))


def of_the_reference(kind: Any) -> dict[str, Any]:
    """What the adapter gives of the reference's tokens, all images in one forward as the model encodes them."""
    checkpoint = Checkpoint(str(kind.folder))
    processor = reference_processor(checkpoint.config, **LIMITS)
    images = [Image.open(kind.photos / name) for names in CHATS for name in names]
    values = processor(images=images, return_tensors="pt")
    grids = [tuple(grid) for grid in values["image_grid_thw"].tolist()]
    tower = reference_tower(checkpoint, torch.float32, torch.device("cpu"))
    rows = run_reference(tower, values["pixel_values"], grids).split([t * h * w // 4 for t, h, w in grids])
    items = []
    for grid, rows_MO in zip(values["image_grid_thw"], rows, strict=True):
        main, *further = split_streams(rows_MO, checkpoint.config.streams).unbind(1)
        items.append({"image_embeds": main, "grid_thw": grid} | ({"deepstack_embeds": further} if further else {}))
    return transformers_inputs(items)


def spoilings(image: Any) -> list[Any]:
    """The features with one stream turned round, or two exchanged."""

    def with_(**changed: Any) -> Any:
        return type(image)(**dict(image) | changed)

    flipped = [one.flip(0) for one in image.pooler_output]
    levels = getattr(image, "deepstack_features", None)
    if levels is None:
        return [with_(pooler_output=flipped)]
    turned = [[[one.flip(0) for one in level] if level is other else level for level in levels] for other in levels]
    return [with_(pooler_output=flipped), *(with_(deepstack_features=one) for one in [*turned, levels[::-1]])]


def test_a_training_step_without_the_tower_moves_the_same_weights(kind: Any) -> None:
    pixels, inputs = from_pixels(kind), from_cache(kind)
    labels = pixels["input_ids"].masked_fill(pixels["attention_mask"] == 0, -100)
    after = []
    for model, batch in ((kind.load(), pixels), (kind.load(without_tower=True), inputs)):
        model.requires_grad_(False)
        model.lm_head.requires_grad_(True)
        text = model.model.language_model if hasattr(model.model, "language_model") else model.model
        text.layers[0].requires_grad_(True)
        optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        after.append(torch.cat([one.detach().flatten() for one in optimizer.param_groups[0]["params"]]))
    assert len(after[0]) > 1000
    assert torch.allclose(after[1], after[0], rtol=1e-4, atol=1e-6)


def test_text_alone_needs_no_output(kind: Any) -> None:
    texts = [chat(), chat()]
    ours = CachedProcessor(kind.processor, EmbeddingDataset(kind.output))
    inputs = dict(ours.apply_chat_template(texts, tokenize=True, return_dict=True, padding=True, return_tensors="pt"))
    assert "mm_encoder_outputs" not in inputs
    with torch.no_grad():
        found, expected = (kind.load(without_tower=bare)(**inputs).logits for bare in (True, False))
    assert torch.equal(found, expected)


def test_engines_take_whole_rows_or_are_refused(kind: Any) -> None:
    """vLLM splits [main | stream 0 | …] by width; SGLang has no way in for further streams."""
    items = EmbeddingDataset(kind.output).get_many(["1.png", "0.png"])
    image = vllm_embeds(items)["image"]
    further = zip(*(one.get("deepstack_embeds", ()) for one in items), strict=True)
    streams = [[one["image_embeds"] for one in items], *further]
    assert torch.equal(image["image_embeds"], torch.cat([torch.cat(list(one)) for one in streams], 1))
    assert image["image_embeds"].shape == (sum(len(one) for one in streams[0]), WIDTH * len(streams))
    if kind.model_type in STREAMS:
        with pytest.raises(RequestError, match="takes no precomputed tokens of a model with further streams"):
            sglang_image(items)
    else:
        assert torch.equal(sglang_image(items)["feature"], image["image_embeds"])


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl", "qwen3_omni_moe"], indirect=True)
def test_live_mergers_take_what_is_before_them(kind: Any, tmp_path: Path) -> None:
    config = config_for(
        kind.photos, tmp_path / "out", kind.folder, preprocess={"max_pixels": None}, output={"stage": "pre_merger"}
    )
    assert run_here(config).complete
    before = EmbeddingDataset(tmp_path / "out").get_many(["1.png", "0.png"])
    merged = EmbeddingDataset(kind.output).get_many(["1.png", "0.png"])
    model = kind.load()
    visual = model.visual if hasattr(model, "visual") else model.model.visual
    further = getattr(visual, "deepstack_merger_list", getattr(visual, "merger_list", []))
    assert len(further) == len(before[0].get("deepstack_embeds", ()))
    for stream, merger in [(None, visual.merger), *enumerate(further)]:
        for tokens, item in zip(run_merger(merger, before, stream), merged, strict=True):
            wanted = item["image_embeds"] if stream is None else item["deepstack_embeds"][stream]
            assert float((tokens.detach() - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
            assert tokens.requires_grad
        with pytest.raises(RequestError, match="was stage pre_merger"):
            run_merger(merger, merged, stream)
    with pytest.raises(RequestError, match=f"stream {len(further)}: these items have {len(further)} further streams"):
        run_merger(visual.merger, before, len(further))
