"""An encoder on a GPU before its first unit: each thread that will be called has met a full pack."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from stand_in_gpu import stand_in_gpu

from pipeline.encode.pinned import ROUND_TO
from pipeline.encode.unit import UnitEncoder
from pipeline.run.encode_stage import EncodeStage
from pipeline.run.settings import StageSettings
from pipeline.tower.tower import Tower


def settings_of(tmp_path: Path, model_path: Path, **changes: Any) -> StageSettings:
    facts: dict[str, Any] = dict.fromkeys(StageSettings.__dataclass_fields__)
    facts |= {"output": str(tmp_path), "nonce": "n", "carry": pa.schema([]), "model_path": str(model_path)}
    facts |= {
        "dtype": "float32",
        "compile": "off",
        "linear": "exact",
        "attention": "auto",
        "stage": "merged",
        "deepstack": True,
    }
    facts |= {"max_patches": 1000, "stored_dtype": "float32", "on_overflow": "fail", "threads": 1}
    return StageSettings(**facts | {"shard_tokens": 200_000} | changes)


def test_each_thread_of_a_gpu_is_warm_before_the_first_unit(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handles and pinned memory are a thread's own, and large products are not computed as small ones are."""
    packs: list[tuple[int, int]] = []
    forward = Tower.forward_in_window_order

    def told(self: Tower, patches_PC: torch.Tensor, *rest: Any) -> torch.Tensor:
        packs.append((threading.get_ident(), len(patches_PC)))
        return forward(self, patches_PC, *rest)

    monkeypatch.setattr(Tower, "forward_in_window_order", told)
    monkeypatch.setattr("pipeline.encode.unit.WARM_UP_SIDE", 14)  # of small images, as the tower is
    called: list[int] = []
    monkeypatch.setattr(UnitEncoder, "encode", _watched(UnitEncoder.encode, called))
    with stand_in_gpu() as gpu:
        stage = EncodeStage(settings_of(tmp_path, model_path), "cuda", calls=3)
        assert len({thread for thread, _ in packs}) == len(packs) == 3
        assert min(patches for _, patches in packs) > 0.8 * 1000
        row_bytes = 4 * stage._encoder.tower.config.out_width
        assert gpu.pinned == [-(-200_000 * row_bytes // ROUND_TO) * ROUND_TO] * 3
        warm = set(called)
        # Those are the threads that units are encoded by.
        monkeypatch.setattr(stage, "_encode", lambda *a: threading.get_ident())
        assert stage.encode(None, None) in warm and threading.get_ident() not in warm
        assert stage._warm_up_seconds > 0


def _watched(real: Any, called: list[int]) -> Any:
    def encode(self: UnitEncoder, *rest: Any) -> Any:
        called.append(threading.get_ident())
        return real(self, *rest)

    return encode


def test_a_cpu_is_not_warmed_up_and_encodes_in_the_thread_that_calls(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    monkeypatch.setattr(UnitEncoder, "encode", _watched(UnitEncoder.encode, called))
    stage = EncodeStage(settings_of(tmp_path, model_path), "cpu", calls=2)
    assert called == []
    monkeypatch.setattr(stage, "_encode", lambda *a: threading.get_ident())
    assert stage.encode(None, None) == threading.get_ident()
