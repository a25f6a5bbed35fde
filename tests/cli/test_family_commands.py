"""Families through the commands and the library: further streams, and budgets that are the checkpoint's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PHOTOS, STREAMED, STREAMED_PIXELS, config_for, make_folder, run_here, write_config
from safetensors.torch import load_file

from pipeline import EmbeddingDataset, VisionEncoder
from pipeline.cli import compare
from pipeline.cli.commands import main
from pipeline.cli.verify import compare_with_reference
from pipeline.errors import RequestError
from pipeline.output.verify import Verifier
from pipeline.read.items import rows_of
from pipeline.run.request import check_request
from pipeline.tower.checkpoint import Checkpoint

WIDTH, STREAMS = STREAMED.out_width, STREAMED.streams


@pytest.fixture(scope="module")
def output(streamed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    config = config_for(
        make_folder(folder / "in", 5),
        folder / "out",
        streamed_path,
        preprocess=dict(STREAMED_PIXELS),
        pack={"max_patches": 4},
    )
    assert run_here(config).complete
    return folder / "out"


def test_the_library_gives_the_streams_that_a_run_writes(output: Path, streamed_path: Path) -> None:
    encoder = VisionEncoder.from_pretrained(str(streamed_path), "float32", "cpu", **STREAMED_PIXELS, max_patches=4)
    items = list(EmbeddingDataset(output))
    found = encoder.encode([output.parent / "in" / item["key"] for item in items])
    for item, embedding in zip(items, found, strict=True):
        assert isinstance(embedding.deepstack_embeds, tuple) and len(embedding.deepstack_embeds) == STREAMS
        assert torch.equal(embedding.image_embeds, item["image_embeds"])
        assert all(map(torch.equal, embedding.deepstack_embeds, item["deepstack_embeds"]))
        assert embedding.image_embeds.is_contiguous() and embedding.image_embeds.shape[1] == WIDTH


def test_encode_saves_the_streams(streamed_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, saved = [str(path) for path in sorted(PHOTOS.glob("*.jpg"))[:2]], tmp_path / "x.safetensors"
    words = ["--model", str(streamed_path), "--dtype", "float32", "--max-pixels", "70000", "--save", str(saved)]
    assert main(["encode", *photos, *words, "--json"]) == 0
    told, tensors = json.loads(capsys.readouterr().out), load_file(saved)
    assert [one["streams"] for one in told] == [STREAMS] * 2
    count = sum(one["num_tokens"] for one in told)
    assert tensors["image_embeds"].shape == (count, WIDTH)
    assert tensors["deepstack_embeds"].shape == (STREAMS, count, WIDTH)
    encoder = VisionEncoder.from_pretrained(str(streamed_path), "float32", "cpu", max_pixels=70_000)
    for level in range(STREAMS):
        expected = torch.cat([one.deepstack_embeds[level] for one in encoder.encode(photos)])
        assert torch.equal(tensors["deepstack_embeds"][level], expected)


@pytest.mark.parametrize("level", range(1 + STREAMS))
def test_a_wrong_stream_is_found_by_the_reference(level: int, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of small values would not be seen among the others: each is compared by itself."""
    verifier, real = Verifier(output), compare.run_reference
    (right,) = compare_with_reference(verifier, 1)
    assert right["relative_rms"] == max(right["relative_rms_by_stream"]) < right["limit"]

    def planted(*arguments: Any) -> torch.Tensor:
        rows = real(*arguments).clone()
        rows[:, level * WIDTH : (level + 1) * WIDTH] *= -1e-3
        return rows

    monkeypatch.setattr(compare, "run_reference", planted)
    (wrong,) = compare_with_reference(verifier, 1)
    over = [away > wrong["limit"] for away in wrong["relative_rms_by_stream"]]
    assert over == [number == level for number in range(1 + STREAMS)] and wrong["relative_rms"] > wrong["limit"]


def test_budgets_are_the_checkpoints_own_unless_asked_for(folder: Path, streamed_path: Path, tmp_path: Path) -> None:
    config = Checkpoint(str(streamed_path)).config
    assert (config.min_pixels, config.max_pixels) == (65_536, 16_777_216)

    def budgets(**asked: int | None) -> tuple[int | None, int | None]:
        asked = {"min_pixels": None, "max_pixels": None} | asked
        request = check_request(config_for(folder, tmp_path / "out", streamed_path, preprocess=dict(asked)))
        geometry, written = request.geometry, request.config.preprocess
        assert (written.min_pixels, written.max_pixels) == (geometry.min_pixels, geometry.max_pixels)
        assert geometry.factor == 32
        own = VisionEncoder.from_pretrained(str(streamed_path), "float32", "cpu", **asked).geometry
        assert (own.min_pixels, own.max_pixels) == (geometry.min_pixels, geometry.max_pixels)
        return written.min_pixels, written.max_pixels

    assert budgets() == (65_536, 16_777_216)
    assert budgets(max_pixels=100_000) == (65_536, 100_000)
    assert budgets(min_pixels=1, max_pixels=1024) == (1, 1024)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"min_pixels": 1, "max_pixels": 1023}, "max_pixels: 1023 is less than one token of qwen3_vl, which is 32x32"),
        ({"max_pixels": 65_535}, r"max_pixels (65535) must be at least {}min_pixels (65536); {}min_pixels is the"),
        (
            {"min_pixels": 16_777_217},
            r"max_pixels (16777216) must be at least {}min_pixels (16777217); {}max_pixels is",
        ),
    ],
)
def test_a_budget_that_cannot_be_is_refused_by_name(
    asked: dict[str, int], says: str, folder: Path, streamed_path: Path, tmp_path: Path, capsys: Any
) -> None:
    fields = {"min_pixels": None, "max_pixels": None} | asked
    with pytest.raises(RequestError) as error:
        check_request(config_for(folder, tmp_path / "out", streamed_path, preprocess=dict(fields)))
    assert ("preprocess." + says).replace("{}", "preprocess.") in str(error.value)
    with pytest.raises(RequestError) as error:
        VisionEncoder.from_pretrained(str(streamed_path), "float32", "cpu", **asked)
    assert says.replace("{}", "") in str(error.value)
    words = [word for name, value in asked.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["encode", str(next(PHOTOS.glob("*.jpg"))), "--model", str(streamed_path), *words]) == 2
    assert "max_pixels" in capsys.readouterr().err


def test_a_plan_may_ask_for_any_budget_of_a_token(
    folder: Path, streamed_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"min_pixels": 1, "max_pixels": None}
    config = write_config(tmp_path / "c.yaml", config_for(folder, tmp_path / "out", streamed_path, preprocess=fields))
    assert main(["plan", str(config), "--max-pixels", "1023"]) == 2
    assert "must be integers of at least 1024" in capsys.readouterr().err
    assert main(["plan", str(config), "--json", "--max-pixels", "1024,16777216"]) == 0
    small, large = json.loads(capsys.readouterr().out)["budgets"]
    assert small["tokens"] == small["samples"] == 14 < large["tokens"]


def test_a_rate_is_measured_on_whole_rows(
    folder: Path, streamed_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(folder, tmp_path / "out", streamed_path, preprocess=dict(STREAMED_PIXELS))
    path = write_config(tmp_path / "c.yaml", config)
    assert main(["plan", str(path), "--calibrate", "--json", "--sample", "5"]) == 0
    (budget,) = json.loads(capsys.readouterr().out)["budgets"]
    assert budget["tokens_per_second"] > 0
    whole, further = budget["embedding_bytes"]["estimate"], budget["deepstack_bytes"]["estimate"]
    assert further * (1 + STREAMS) == whole * STREAMS
    assert rows_of({"image_embeds": torch.zeros(2, 3)}).shape == (2, 3)
