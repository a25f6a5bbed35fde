"""Whole models of each type, of random weights and a few layers, with their processors: what an output is made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["the", "a", "cat", "dog", "sits", "on", "mat", "what", "is", "this", "photo", "of", "yes", "no", "and", "then"]
WORDS += ["<", ".", "seconds>", *"0123456789"]  # the times between a clip's frames
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>", "<|audio_pad|>", "<|audio_start|>", "<|audio_end|>", "<unk>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
# transformers' module, its model, and its processor's module and class.
CLASSES = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
    "qwen2_5_omni": ("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniProcessor"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLProcessor"),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", "Qwen3VLProcessor"),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3OmniMoeProcessor"),
    "qwen3_5": ("Qwen3_5ForConditionalGeneration", "Qwen3VLProcessor"),
    "qwen3_5_moe": ("Qwen3_5MoeForConditionalGeneration", "Qwen3VLProcessor"),
    "qwen4_exp": ("Qwen4ExpForConditionalGeneration", "Qwen3VLProcessor"),
}
FACTORS = {name: 28 if name.startswith("qwen2") else 32 for name in CLASSES}
STREAMS = ("qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe")
OMNIS = ("qwen2_5_omni", "qwen3_omni_moe")
WIDTH = 48


def processor_of(model_type: str, min_pixels: int, max_pixels: int) -> Any:
    """The type's own processor, with a vocabulary of a few words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, "user", "assistant", "system"])}
    bare = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(True)])
    named = {f"{kind}_token": f"<|{kind}_pad|>" for kind in ("image", "video", "audio")}
    named |= {f"{kind}_bos_token": f"<|{name}_start|>" for kind, name in (("vision", "vision"), ("audio", "audio"))}
    named |= {f"{kind}_eos_token": f"<|{name}_end|>" for kind, name in (("vision", "vision"), ("audio", "audio"))}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[1:-1],
        **({"extra_special_tokens": named} if model_type in OMNIS else {}),
    )
    third = FACTORS[model_type] == 32
    images: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    form = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3} if third else {}
    parts = {
        "image_processor": transformers.Qwen2VLImageProcessor(**images, **form),
        "tokenizer": tokenizer,
        "video_processor": (
            transformers.Qwen3VLVideoProcessor()
            if third and model_type not in OMNIS
            else transformers.Qwen2VLVideoProcessor(**form)
        ),
        "chat_template": TEMPLATE,
    }
    if model_type in OMNIS:
        parts["feature_extractor"] = transformers.WhisperFeatureExtractor(feature_size=8)
    return getattr(transformers, CLASSES[model_type][1])(**parts)


def _vision(model_type: str) -> dict[str, Any]:
    """A small tower, under the names of the type's own configuration."""
    if model_type == "qwen2_vl":
        return {"depth": 3, "embed_dim": 64, "num_heads": 2, "hidden_size": WIDTH, "mlp_ratio": 2}
    small = {"depth": 4, "hidden_size": 64, "num_heads": 2, "intermediate_size": 100, "out_hidden_size": WIDTH}
    if FACTORS[model_type] == 28:
        return small | {"fullatt_block_indexes": [1, 3]}
    return small | ({"deepstack_visual_indexes": [0, 2]} if model_type in STREAMS else {})


def _text(model_type: str, tokenizer: Any) -> dict[str, Any]:
    """A language model of two layers, or four where two would all be of one kind."""
    text: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0},
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if FACTORS[model_type] == 32:
        text |= {"head_dim": 16}
        text["rope_parameters"] |= {"mrope_section": [4, 2, 2], "mrope_interleaved": True}
    if model_type in ("qwen3_5", "qwen3_5_moe", "qwen4_exp"):
        text |= {"head_dim": 32, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
        text |= {"linear_num_value_heads": 2, "full_attention_interval": 2}
        text["rope_parameters"] |= {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
    if model_type.endswith(("_moe", "_exp")):
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        text |= {"shared_expert_intermediate_size": 32}
    if model_type == "qwen4_exp":
        text |= {"hc_count": 2, "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16}
        text |= {"indexer_budget": 2048, "indexer_compress_ratio": 4}
    return text


def save_model(folder: Path, model_type: str, processor: Any) -> None:
    """Writes a whole model as it is published: an Omni's thinker under its name."""
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, CLASSES[model_type][0])
    config_class = model_class.config_class
    tokenizer = processor.tokenizer
    ids = {kind: tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video", "audio")}
    fields = {"text_config": _text(model_type, tokenizer), "vision_config": _vision(model_type)}
    fields |= {f"{kind}_token_id": number for kind, number in ids.items()}
    fields |= {
        f"vision_{end}_token_id": tokenizer.convert_tokens_to_ids(f"<|vision_{end}|>") for end in ("start", "end")
    }
    if model_type in OMNIS:
        fields |= {f"{kind}_token_index": number for kind, number in ids.items()}
        fields["audio_config"] = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
        fields["audio_config"] |= {
            "encoder_ffn_dim": 16,
            "output_dim": WIDTH,
            "num_mel_bins": 8,
            "max_source_positions": 100,
        }
    config = config_class(**fields)
    model = model_class(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "visual" in name and parameter.dim() > 1:
                parameter.mul_(4)  # the tokens must matter to the language model
    model.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    if model_type in OMNIS:
        tree = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "thinker_config": tree}))


def load_model(folder: Path, model_type: str, without_tower: bool = False) -> Any:
    """The model in float32, from what `save_model` wrote."""
    import transformers

    model_class = getattr(transformers, CLASSES[model_type][0])
    model = model_class.from_pretrained(folder, dtype=torch.float32)
    if without_tower:
        owner = model if hasattr(model, "visual") else model.model
        del owner.visual
    return model.float().eval()
