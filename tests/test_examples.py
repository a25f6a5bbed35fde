"""The examples, with the real TRL and transformers. Catches: a training that sees other images than it names."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import PHOTOS, REPOSITORY
from PIL import Image

pytestmark = pytest.mark.slow
EXAMPLES = REPOSITORY / "examples"
TRAINING = ["train_trl", "train_trainer", "train_merger"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports an example as its own command does, with its folder in the path."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("photos")
    for name in ("cat.jpg", "orange.jpg", "castle.jpg", "building.jpg"):
        with Image.open(PHOTOS / name) as photo:
            photo.thumbnail((200, 200))
            photo.save(folder / name)
    return str(folder)


@pytest.mark.parametrize("name", TRAINING)
def test_an_output_trains_as_pixels_do(name: str, load: Any, photos: str, capsys: pytest.CaptureFixture[str]) -> None:
    losses = load(name).main(photos)
    assert len(losses) == 6
    assert all(ours == pytest.approx(pixels, rel=1e-4) for ours, pixels in losses), losses
    assert losses[-1][0] < losses[0][0] - 0.1  # it does learn
    assert "step 5: " in capsys.readouterr().out


@pytest.mark.parametrize("name", TRAINING)
def test_tokens_in_another_order_are_seen(name: str, load: Any, photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: ModuleType = load(name)
    read = module.EmbeddingDataset.read

    def turned(self: Any, unit: int, row: int) -> Any:
        item = read(self, unit, row)
        return item | {"image_embeds": item["image_embeds"].flip(0)}

    monkeypatch.setattr(module.EmbeddingDataset, "read", turned)
    assert any(abs(ours - pixels) > 1e-3 * pixels for ours, pixels in module.main(photos))


def test_the_first_steps_plot_every_photo(
    load: Any, photos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = load("quickstart").main(photos, str(tmp_path / "out"))
    assert len(counts) == 4
    assert f"{sum(counts):,} tokens of 4 photos" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "tokens.png") as plot:
        assert plot.width > 800


def test_each_is_short_and_is_shown() -> None:
    """And none is left out here, but what needs vLLM: `make vllm`."""
    found = {path.stem for path in EXAMPLES.glob("*.py")}
    assert found == {*TRAINING, "quickstart", "shared", "serve_vllm"}
    lengths = {
        name: len((EXAMPLES / f"{name}.py").read_text("utf-8").splitlines()) for name in [*TRAINING, "quickstart"]
    }
    assert max(lengths.values()) < 60, lengths
    page = (REPOSITORY / "docs" / "train.md").read_text("utf-8")
    assert [name for name in TRAINING if f"../examples/{name}.py" not in page] == []
