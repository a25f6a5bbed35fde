"""The fingerprint. Catches: a field that decides bytes and is forgotten, and a fingerprint that differs for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, parse_config
from pipeline.index.video_rules import resolve_sampling
from pipeline.output.fingerprint import config_facts, fingerprint_of
from pipeline.output.info import read_dataset

FIELDS = [f"{section}.{name}" for section, one in Config.model_fields.items() for name in one.annotation.model_fields]  # type: ignore[union-attr]
# Two values of each field that may decide a byte; what decides none is in `FREE`, with the reason.
VALUES: dict[str, tuple[Any, Any]] = {
    "source.image_column": ("image", "picture"),
    "source.key_column": (None, "id"),
    "source.carry": ([], ["caption"]),
    "preprocess.min_pixels": (3136, 6272),
    "preprocess.max_pixels": (20_000, 30_000),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "cudnn"),
    "model.linear": ("exact", "fp8"),
    "model.compile": ("on", "off"),
    "pack.max_patches": (200, 300),
    "pack.deduplicate": (True, False),
    "output.format": ("parquet", "webdataset"),
    "output.stage": ("merged", "pre_merger"),
    "output.deepstack": (True, False),
    "output.dtype": ("float32", "float16"),
    "output.on_overflow": ("fail", "clamp"),
    "output.shard_tokens": (48, 49),
    "output.row_group_bytes": (1000, 2000),
    "cluster.threads_per_encoder": (1, 2),
    "limits.max_image_pixels": (1000, 2000),
}
FREE: dict[str, tuple[Any, Any]] = {
    # The plan holds the source itself.
    "source.uri": ("in", "elsewhere"),
    "source.format": ("auto", "parquet"),
    "source.on_damaged": ("fail", "skip"),
    "source.on_changed": ("fail", "reject"),
    "source.members": ("grouped", "each"),
    # Its tensors count, by their sha256.
    "model.path": ("m", "n"),
    "model.revision": (None, "main"),
    # Where, by whom, and how patiently.
    "output.uri": ("a", "b"),
    "cluster.engine": ("ray", "inline"),
    "cluster.address": ("auto", "local"),
    "cluster.device": ("auto", "cpu"),  # what it comes to is the encoders' own word
    "cluster.encoders": ("auto", 3),
    "cluster.preprocessors": ("auto", 3),
    "cluster.mixed_devices": (False, True),
    "cluster.in_flight": ("auto", 1000),
    "limits.max_rejected_fraction": (0.1, 0.2),
    "limits.attempts": (3, 4),
    "limits.sample_seconds": (60.0, 7.0),
    "limits.unit_seconds": ("auto", 7.0),
}


# What decides a byte of clips, and no fact where there are none.
OF_CLIPS: dict[str, tuple[Any, Any]] = {
    "preprocess.video": ({}, {"fps": 2.0}),
    "source.media": ("auto", "video"),
    "source.video_column": ("video", "clip"),
}


def fingerprint(name: str, value: object, *, clips: bool = False) -> str:
    tree: dict[str, dict[str, object]] = {
        "source": {"uri": "in"},
        "model": {"path": "m", "dtype": "bfloat16"},
        "output": {"uri": "out"},
    }
    section, _, field = name.partition(".")
    tree[section] = tree.get(section, {}) | {field: value}
    config = parse_config(tree)
    sampling = resolve_sampling(config.preprocess.video, "qwen2_5_vl", 14, 2) if clips else None
    return fingerprint_of(config_facts(config, sampling))


def test_every_field_is_said_to_decide_bytes_or_not_to() -> None:
    assert sorted([*VALUES, *FREE, *OF_CLIPS]) == sorted(FIELDS)


@pytest.mark.parametrize("name", VALUES)
def test_what_decides_bytes_changes_the_fingerprint(name: str) -> None:
    first, second = VALUES[name]
    assert first != second and fingerprint(name, first) != fingerprint(name, second)


@pytest.mark.parametrize("name", OF_CLIPS)
def test_what_decides_clips_counts_where_there_are_some(name: str) -> None:
    first, second = OF_CLIPS[name]
    assert fingerprint(name, first, clips=True) != fingerprint(name, second, clips=True)
    assert fingerprint(name, first) == fingerprint(name, second)


@pytest.mark.parametrize("name", FREE)
def test_what_decides_none_does_not(name: str) -> None:
    first, second = FREE[name]
    assert first != second and fingerprint(name, first) == fingerprint(name, second)


def test_the_order_of_facts_is_none_of_them() -> None:
    facts: dict[str, object] = {"a": 1, "b": [2, 3]}
    assert fingerprint_of(facts) == fingerprint_of(dict(reversed(facts.items()))) != fingerprint_of(facts | {"a": 2})


def test_an_output_knows_what_its_machine_and_libraries_were(undisturbed: Path) -> None:
    info = read_dataset(undisturbed)
    machine = {"tower_sha256", "torch", "cuda", "pyarrow", "device", "attention", "compiled", "linear", "pillow"}
    assert machine <= info.fingerprint_facts.keys()
    assert fingerprint_of(info.fingerprint_facts) == info.fingerprint
