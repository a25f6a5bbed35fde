"""What consumers take, against the real consumer where it installs: transformers, with the tower deleted."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import config_for, noise
from PIL import Image
from torch import Tensor

from pipeline import CachedProcessor, EmbeddingDataset
from pipeline.errors import RequestError
from pipeline.read.adapters import (
    base64_tensor,
    from_llava,
    image_names,
    run_merger,
    sglang_image,
    transformers_inputs,
    video_names,
    vllm_embeds,
    vllm_message_part,
)
from pipeline.run.runner import run

MAX_PIXELS = 20_000
WORDS = ["the", "a", "cat", "dog", "sits", "on", "mat", "what", "is", "this", "photo", "of", "yes", "no", "and", "then"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>", "<unk>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, (height, width) in enumerate([(60, 90), (120, 84), (200, 60), (140, 140)]):
        Image.fromarray(noise(height, width, number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def processor() -> Any:
    """The model's own, with a vocabulary of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, "user", "assistant", "system"])}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[1:7],
    )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=3136, max_pixels=MAX_PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="module")
def model_folder(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Qwen2.5-VL of random weights, as `save_pretrained` writes it."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    ids = {name: processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "vocab_size": len(processor.tokenizer),
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0},
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 100,
            "out_hidden_size": 48,
            "fullatt_block_indexes": [1, 3],
            "patch_size": 14,
            "in_channels": 3,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=processor.tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=processor.tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "visual" in name and parameter.dim() > 1:
                parameter.mul_(4)  # the tokens must matter to the language model
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def cached(photos: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EmbeddingDataset]:
    outputs = {}
    for stage in ("merged", "pre_merger"):
        output = tmp_path_factory.mktemp("cached") / stage
        config = config_for(
            photos, output, model_folder, preprocess={"max_pixels": MAX_PIXELS}, output={"stage": stage}
        )
        assert run(config, say=lambda line: None, report=lambda *_: None).complete
        outputs[stage] = EmbeddingDataset(output)
    return outputs


def chat(*images: object, question: str = "what is this", answer: str = "a cat") -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image} for image in images]
    return [
        {"role": "user", "content": [*content, {"type": "text", "text": f" {question} "}]},
        {"role": "assistant", "content": [{"type": "text", "text": f"{answer} "}]},
    ]


CHATS = [("0.png",), ("1.png", "3.png"), (), ("2.png", "0.png", "2.png")]


def from_pixels(processor: Any, photos: Path, chats: list[tuple[str, ...]] = CHATS) -> dict[str, Any]:
    texts = [processor.apply_chat_template(chat(*names), tokenize=False) for names in chats]
    images = [Image.open(photos / name) for names in chats for name in names]
    return dict(processor(images=images or None, text=texts, padding=True, return_tensors="pt"))


def from_cache(processor: Any, dataset: EmbeddingDataset, chats: list[tuple[str, ...]] = CHATS) -> dict[str, Any]:
    ours = CachedProcessor(processor, dataset)
    texts = [ours.apply_chat_template(chat(*names), tokenize=False) for names in chats]
    return dict(ours(images=[list(names) for names in chats], text=texts, padding=True, return_tensors="pt"))


def test_the_processor_gives_the_same_ids_without_opening_an_image(
    processor: Any, photos: Path, cached: dict[str, EmbeddingDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = from_pixels(processor, photos)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    ours = from_cache(processor, cached["merged"])
    for name in ("input_ids", "attention_mask", "image_grid_thw", "mm_token_type_ids"):
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(expected[name])), name
    assert "pixel_values" not in ours
    whole = CachedProcessor(processor, cached["merged"]).apply_chat_template(
        [chat(*names) for names in CHATS], tokenize=True, return_dict=True, padding=True, return_tensors="pt"
    )
    assert torch.equal(whole["input_ids"], ours["input_ids"])


@pytest.mark.parametrize("kind", [None, "np"])
def test_lists_and_arrays_are_the_processors_own(
    kind: str | None, processor: Any, photos: Path, cached: dict[str, EmbeddingDataset]
) -> None:
    """Without tensors too, token types say where the images are: without them positions are silently wrong."""
    ours = CachedProcessor(processor, cached["merged"])
    texts = [ours.apply_chat_template(chat(*names), tokenize=False) for names in CHATS]
    images = [name for names in CHATS for name in names]
    opened = [Image.open(photos / name) for name in images]
    expected = processor(images=opened, text=texts, return_tensors=kind, padding=True, return_mm_token_type_ids=True)
    found = ours(images=images, text=texts, return_tensors=kind, padding=True)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        assert isinstance(found[name], type(expected[name])), name
        assert np.array_equal(found[name], expected[name]), name
    assert sum(map(sum, np.asarray(found["mm_token_type_ids"]).tolist())) == sum(
        len(one) for one in found["mm_encoder_outputs"]["image"].pooler_output
    )
    ragged = ours(images=images, text=texts, return_tensors=kind) if kind is None else found
    plain = processor(images=opened, text=texts, return_mm_token_type_ids=True) if kind is None else expected
    for name in ("input_ids", "mm_token_type_ids"):
        assert list(map(list, ragged[name])) == list(map(list, plain[name])), name


def test_templates_are_the_processors_own(processor: Any, cached: dict[str, EmbeddingDataset]) -> None:
    ours = CachedProcessor(processor, cached["merged"])
    for asked in (True, False):
        one = ours.apply_chat_template(chat("0.png")[:1], add_generation_prompt=asked)
        assert one == processor.apply_chat_template(chat("0.png")[:1], tokenize=False, add_generation_prompt=asked)
    several = ours.apply_chat_template([chat(*names) for names in CHATS])
    assert several == [processor.apply_chat_template(chat(*names), tokenize=False) for names in CHATS]
    ids = ours.apply_chat_template(chat("0.png"), tokenize=True)
    assert torch.equal(ids, from_cache(processor, cached["merged"], CHATS[:1])["input_ids"])


def test_an_image_part_names_its_image_in_three_ways() -> None:
    by = [{"type": "image", field: field} for field in ("image", "path", "url")]
    by += [{"type": "image_url", "url": "u"}, {"type": "text", "text": "x"}]
    assert image_names([{"role": "system", "content": "x"}, {"role": "user", "content": by}]) == [
        "image",
        "path",
        "url",
        "u",
    ]
    with pytest.raises(RequestError, match="without image, path or url"):
        image_names([{"role": "user", "content": [{"type": "image", "image": b"bytes"}]}])


def test_logits_and_loss_without_the_tower(
    processor: Any, photos: Path, model_folder: Path, cached: dict[str, EmbeddingDataset]
) -> None:
    """Mixed text and several images a sequence. From the same tokens to the bit; from ours, as near as the tower is."""
    model = load(model_folder)
    pixels = from_pixels(processor, photos)
    labels = pixels["input_ids"].masked_fill(pixels["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected = model(**pixels, labels=labels)
        reference = model.model.get_image_features(pixels["pixel_values"], pixels["image_grid_thw"]).pooler_output
    del model.model.visual
    inputs = from_cache(processor, cached["merged"])
    tokens = inputs["mm_encoder_outputs"]["image"].pooler_output
    assert [len(one) for one in tokens] == [len(one) for one in reference]
    with torch.no_grad():
        ours = model(**inputs, labels=labels)
        items = [
            {"image_embeds": one, "grid_thw": grid}
            for one, grid in zip(reference, pixels["image_grid_thw"], strict=True)
        ]
        exact = model(**inputs | transformers_inputs(items), labels=labels)
    assert torch.equal(exact.logits, expected.logits)
    assert torch.equal(exact.loss, expected.loss)
    assert float((ours.logits - expected.logits).abs().max()) < 2e-5 * float(expected.logits.abs().max())
    assert float(ours.loss) == pytest.approx(float(expected.loss), rel=1e-5)
    inputs["mm_encoder_outputs"]["image"].pooler_output = [one.flip(0) for one in tokens]
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits, expected.logits, atol=1e-3)  # the tokens do matter


def test_without_token_types_positions_are_wrong(
    processor: Any, model_folder: Path, cached: dict[str, EmbeddingDataset]
) -> None:
    """Why the processor must give them: nothing else would say so."""
    model = load(model_folder)
    inputs = from_cache(processor, cached["merged"], CHATS[:2])
    bare = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
    with torch.no_grad():
        assert not torch.allclose(model(**bare).logits, model(**inputs).logits, atol=1e-4)


@pytest.mark.slow
def test_a_trainer_takes_the_same_steps(
    processor: Any, photos: Path, model_folder: Path, cached: dict[str, EmbeddingDataset], tmp_path: Path
) -> None:
    """transformers' Trainer, with the processor wrapped and nothing else changed."""
    from transformers import Trainer, TrainingArguments

    def losses(name: str, encode: Any, without_tower: bool) -> list[float]:
        model = load(model_folder)
        model.model.visual.requires_grad_(False)
        if without_tower:
            del model.model.visual

        def batch(rows: list[tuple[str, ...]]) -> dict[str, Any]:
            inputs = encode(rows)
            inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
            return inputs

        arguments = TrainingArguments(
            output_dir=str(tmp_path / name),
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            remove_unused_columns=False,
            use_cpu=True,
            seed=3,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=CHATS * 3, data_collator=batch)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    pixels = losses("pixels", lambda rows: from_pixels(processor, photos, rows), without_tower=False)
    ours = losses("cache", lambda rows: from_cache(processor, cached["merged"], rows), without_tower=True)
    assert len(pixels) == len(ours) == 4
    assert pixels[-1] < pixels[0]
    assert ours == pytest.approx(pixels, rel=2e-4)


def test_a_live_merger_with_gradients(model_folder: Path, cached: dict[str, EmbeddingDataset]) -> None:
    merger = load(model_folder).model.visual.merger
    before, merged = cached["pre_merger"], cached["merged"]
    items = before.get_many(["3.png", "0.png"])
    ours = run_merger(merger, items)
    for tokens, item in zip(ours, merged.get_many(["3.png", "0.png"]), strict=True):
        wanted: Tensor = item["image_embeds"]
        assert float((tokens.detach() - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    sum(tokens.square().mean() for tokens in ours).backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in merger.parameters())
    with pytest.raises(RequestError, match="was stage pre_merger"):
        run_merger(merger, merged.get_many(["0.png"]))


def test_wrong_conversations_are_refused(processor: Any, cached: dict[str, EmbeddingDataset]) -> None:
    ours = CachedProcessor(processor, cached["merged"])
    with pytest.raises(RequestError, match=r"1 image tokens .*, 0 images were given"):
        ours(text="<|image_pad|> what")
    with pytest.raises(KeyError, match="nothing"):
        ours(text="<|image_pad|>", images=["nothing.png"])
    assert ours.tokenizer is processor.tokenizer


def test_llava_records(processor: Any, cached: dict[str, EmbeddingDataset]) -> None:
    record = {
        "id": "1",
        "image": "data/0.png",
        "conversations": [
            {"from": "human", "value": "<image>\n what is this "},
            {"from": "gpt", "value": "a cat "},
        ],
    }
    assert from_llava(json.loads(json.dumps(record))) == [
        {
            "role": "user",
            "content": [{"type": "image", "image": "data/0.png"}, {"type": "text", "text": " what is this "}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a cat "}]},
    ]
    ours = CachedProcessor(processor, cached["merged"], key_of=lambda path: path.removeprefix("data/"))
    inputs = ours.apply_chat_template([record], tokenize=True, return_dict=True, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], from_cache(processor, cached["merged"], CHATS[:1])["input_ids"])
    for images in ([], ["a", "b"]):
        with pytest.raises(RequestError, match="LLaVA record has more"):
            from_llava(record | {"image": images})


def test_llava_turns_of_several_images() -> None:
    several = {
        "image": ["a", "b"],
        "conversations": [
            {"from": "system", "value": "be kind"},
            {"from": "human", "value": "this <image>\nand <image>"},
        ],
    }
    assert from_llava(several) == [
        {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "this "},
                {"type": "image", "image": "a"},
                {"type": "text", "text": "and "},
                {"type": "image", "image": "b"},
            ],
        },
    ]


def test_a_llava_turn_of_an_image_and_a_clip() -> None:
    mixed = {
        "id": "7",
        "image": "a",
        "video": ["b", "c"],
        "conversations": [{"from": "human", "value": "<video>\nthen <image>\nthen <video>?"}],
    }
    (message,) = from_llava(mixed)
    assert message["content"] == [
        {"type": "video", "video": "b"},
        {"type": "text", "text": "then "},
        {"type": "image", "image": "a"},
        {"type": "text", "text": "then "},
        {"type": "video", "video": "c"},
        {"type": "text", "text": "?"},
    ]
    assert (image_names([message]), video_names([message])) == (["a"], ["b", "c"])
    with pytest.raises(RequestError, match="more <image> than images: 7"):
        from_llava(mixed | {"image": []} | {"video": []} | {"conversations": [{"from": "human", "value": "<image>"}]})
    with pytest.raises(RequestError, match="more <video> than videos: 7"):
        from_llava(mixed | {"video": "b"})
    with pytest.raises(RequestError, match="more images than places for them: 7"):
        from_llava(mixed | {"image": ["a", "d"]})


def test_a_view_is_sent_without_what_it_is_a_view_of() -> None:
    whole = torch.zeros(100_000, 4)
    sent = base64_tensor(whole[:2])
    assert len(sent) < 10_000
    assert torch.equal(torch.load(io.BytesIO(base64.b64decode(sent))), whole[:2])


def test_vllm_and_sglang_shapes(cached: dict[str, EmbeddingDataset]) -> None:
    items = cached["merged"].get_many(["0.png", "1.png"])
    tokens = sum(len(item["image_embeds"]) for item in items)
    image = vllm_embeds(items)["image"]
    assert image["image_embeds"].shape == (tokens, 48)
    assert image["image_grid_thw"].shape == (2, 3)
    assert image["image_grid_thw"].dtype == torch.int64
    part = vllm_message_part(items)
    read = torch.load(io.BytesIO(base64.b64decode(part["image_embeds"]["image_embeds"])))
    assert torch.equal(read, image["image_embeds"])
    assert torch.equal(image["image_embeds"], torch.cat([item["image_embeds"] for item in items]))
    one = sglang_image(items)
    assert one["format"] == "precomputed_embedding"
    assert torch.equal(one["feature"], image["image_embeds"])
    assert np.array_equal(one["image_grid_thw"], image["image_grid_thw"])
    with pytest.raises(RequestError, match="several widths"):
        vllm_embeds([items[0], cached["pre_merger"]["0.png"]])
