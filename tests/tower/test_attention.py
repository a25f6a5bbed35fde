"""The ways of attention that `model.attention` names: which is taken where, and that each attends to the same."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
import torch
from stand_in_gpu import eager_kernels, stand_in_gpu, varlen
from test_tower import GRIDS, random_patches, relative_rms
from torch.nn.attention import SDPBackend

from pipeline.config import parse_config
from pipeline.errors import RequestError
from pipeline.output.fingerprint import config_facts
from pipeline.tower import attention
from pipeline.tower.attention import choose_kernel, kernel_version
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.tower import Tower

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def _on_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    with stand_in_gpu():
        eager_kernels(monkeypatch)
        yield


def test_auto_is_what_it_was_and_no_fact_of_the_configuration() -> None:
    """Outputs of earlier versions are continued."""
    assert choose_kernel(CUDA, torch.bfloat16) == choose_kernel(CUDA, torch.bfloat16, "fa2") == "varlen"
    assert choose_kernel(CPU, torch.bfloat16) == choose_kernel(CUDA, torch.float32) == "dense"
    tree: dict[str, Any] = {"source": {"uri": "in"}, "output": {"uri": "out"}}
    assert "model.attention" not in config_facts(parse_config(tree | {"model": {"path": "m"}}))
    named = parse_config(tree | {"model": {"path": "m", "attention": "cudnn"}})
    assert config_facts(named)["model.attention"] == "cudnn"


@pytest.mark.parametrize("wanted", ["fa2", "cudnn", "fa4"])
def test_where_there_is_no_such_kernel_the_setting_is_named(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for device, dtype in ((CPU, torch.bfloat16), (CUDA, torch.float32)):
        with pytest.raises(RequestError, match=rf"model\.attention: {wanted}: needs a GPU since Ampere"):
            choose_kernel(device, dtype, wanted)
    if wanted == "fa4":
        with pytest.raises(RequestError, match=r"model\.attention: fa4: .*pip install flash-attn-4"):
            choose_kernel(CUDA, torch.bfloat16, wanted)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
        with pytest.raises(RequestError, match=r"model\.attention: fa4: stand-in has no kernel of it"):
            choose_kernel(CUDA, torch.bfloat16, wanted)


def test_fa4_is_torchs_varlen_with_another_kernel_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    activated: list[str] = []
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", activated.append)
    assert choose_kernel(CUDA, torch.bfloat16, "fa4") == "fa4"
    assert activated == ["FA4"]
    monkeypatch.setattr(metadata, "version", lambda name: f"1 of {name}")
    assert kernel_version("fa4") == "fa4 1 of flash-attn-4"
    assert kernel_version("varlen") == "varlen" and kernel_version("cudnn").startswith("cudnn ")


@pytest.mark.parametrize("grids", [GRIDS, [(1, 22, 14)]])
def test_cudnn_attends_to_whole_frames_and_the_rest_is_as_ever(
    grids: Any, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several frames by the kernel for unequal lengths, a lone one by the dense kernel; windows by FA2."""
    calls: list[str] = []
    schema = torch.ops.aten._cudnn_attention_forward.default._schema

    def forward(*given: Any) -> tuple[torch.Tensor]:
        names = dict(zip([one.name for one in schema.arguments], given, strict=False))
        assert names["attn_bias"] is None and names["compute_log_sumexp"] is False
        assert names["cum_seq_q"] is names["cum_seq_k"] and names["max_q"] == names["max_k"]
        assert names["max_q"] == int(names["cum_seq_q"].diff().max())
        calls.append("cudnn")
        return (varlen(names["query"], names["key"], names["value"], names["cum_seq_q"]),)

    def by(backend: SDPBackend) -> Any:
        assert backend is SDPBackend.CUDNN_ATTENTION
        calls.append("dense")
        return real(SDPBackend.MATH)

    real = attention.sdpa_kernel
    monkeypatch.setattr(attention, "sdpa_kernel", by)
    monkeypatch.setattr(attention, "cudnn_varlen", lambda: forward)
    patches = random_patches(grids)
    usual, ours = (Tower(checkpoint, torch.bfloat16, CUDA, attention=one) for one in ("auto", "cudnn"))
    expected = usual.forward(patches, usual.plan(grids))
    assert calls == []
    tokens = ours.forward(patches, ours.plan(grids))
    full = sum(map(ours.config.attends_fully, range(ours.config.depth)))
    assert 0 < full < ours.config.depth  # the others are windows
    assert calls == ["cudnn" if len(grids) > 1 else "dense"] * full
    assert relative_rms(tokens, expected) < 0.02
