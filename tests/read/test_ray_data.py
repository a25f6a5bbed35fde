"""An output as a Ray data set, and the tower as a step of one. Catches: rows that a cut of units or blocks loses.

What needs no cluster is tested without one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from clips import clip_of
from conftest import config_for, connected, encoded, noise, run_here
from PIL import Image

from pipeline import BatchEncoder, EmbeddingDataset, VisionEncoder
from pipeline.config import Video
from pipeline.errors import RequestError
from pipeline.read.ray_data import blocks_of, runs_of

OPTIONS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_pixels": 20_000}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("lengths", [[3, 1, 4, 1, 5], [0, 0, 7, 0], [1], [0], []])
def test_runs_have_every_unit_with_rows_once_and_are_of_about_one_size(count: int, lengths: list[int]) -> None:
    runs = runs_of(lengths, count)
    assert len(runs) <= count
    units = [unit for run in runs for unit in run]
    assert units == sorted(set(units)) and sum(lengths[unit] for unit in units) == sum(lengths)
    sizes = [sum(lengths[unit] for unit in run) for run in runs]
    assert all(0 < size <= sum(lengths) / count + max(lengths) for size in sizes)


def test_blocks_hold_the_rows_in_order_and_are_no_larger_than_asked(undisturbed: Path) -> None:
    dataset = EmbeddingDataset(undisturbed)
    sizes = [item["image_embeds"].nbytes for item in dataset.stream()]
    first = next(number for number, length in enumerate(dataset.unit_lengths()) if length > 1)
    start = sum(dataset.unit_lengths()[:first])
    for limit in (1, sizes[start] + sizes[start + 1] - 1, 1 << 30):
        blocks = [block for unit in range(len(dataset.unit_lengths())) for block in blocks_of(dataset, unit, limit)]
        assert [key for block in blocks for key in block["key"].to_pylist()] == list(dataset.keys())
        assert all(len(block) == 1 or sum_of_bytes(block) <= limit for block in blocks)
        assert len({tuple(block.schema) for block in blocks}) == 1
        captions = [caption for block in blocks for caption in block["caption"].to_pylist()]
        assert captions == [item["caption"] for item in dataset.stream()]


def sum_of_bytes(block: pa.Table) -> int:
    return sum(one.nbytes for one in block["image_embeds"].combine_chunks().to_numpy(zero_copy_only=False))


def test_a_batch_gets_what_the_encoder_gives_and_a_damaged_image_costs_its_row(streamed_path: Path) -> None:
    picture, clip = noise(90, 60, 1), clip_of("h264.mp4")
    batch = {"bytes": np.array([encoded(picture), b"neither", clip], object), "id": np.arange(3)}
    options = OPTIONS | {"video": Video(fps=2, max_pixels=400_000), "max_pixels": None}
    out = BatchEncoder(str(streamed_path), **options)(batch)
    image, video = VisionEncoder.from_pretrained(str(streamed_path), **options).encode([encoded(picture), clip])
    assert out["id"].tolist() == [0, 1, 2] and out["error"][0] == out["error"][2] == ""
    assert out["error"][1].startswith("unidentified: ")
    assert out["grid_thw"].tolist() == [list(image.grid_thw), [0, 0, 0], list(video.grid_thw)]
    for found, expected in ((0, image), (2, video)):
        assert np.array_equal(out["image_embeds"][found], expected.image_embeds.numpy())
        assert np.array_equal(
            out["deepstack_embeds"][found], np.stack([one.numpy() for one in expected.deepstack_embeds])
        )
    width, streams = image.image_embeds.shape[1], len(image.deepstack_embeds)
    assert out["image_embeds"][1].shape == (0, width) and out["deepstack_embeds"][1].shape == (streams, 0, width)
    assert out["timestamps"][2].tolist() == list(video.video.timestamps) and not len(out["timestamps"][0])
    assert np.isnan(out["second_per_grid"][:2]).all() and out["second_per_grid"][2] == video.video.second_per_grid


def test_pixels_and_paths_are_images_too_and_a_file_that_is_gone_stops(model_path: Path, tmp_path: Path) -> None:
    picture = noise(90, 60, 1)
    Image.fromarray(picture).save(tmp_path / "a.png")
    by = {
        "image": np.array([picture]),
        "path": np.array([str(tmp_path / "a.png")]),
        "bytes": np.array([encoded(picture, "PNG")], object),
    }
    half = OPTIONS | {"dtype": "bfloat16"}
    found = [BatchEncoder(str(model_path), column=name, **half)({name: values}) for name, values in by.items()]
    expected = VisionEncoder.from_pretrained(str(model_path), **half).encode([tmp_path / "a.png"])[0].image_embeds
    for one in found:
        assert torch.equal(torch.from_numpy(one["image_embeds"][0]).view(torch.bfloat16), expected)
        assert one.keys() - by.keys() == {"image_embeds", "grid_thw", "error"}
    with pytest.raises(RequestError, match=r"gone\.png does not exist"):
        BatchEncoder(str(model_path), column="path", **OPTIONS)({"path": np.array([str(tmp_path / "gone.png")])})


@pytest.mark.ray
@pytest.mark.slow
def test_ray_reads_an_output_and_encodes_what_it_has_not(
    ray_nodes: dict[str, str], folder: Path, model_path: Path, tmp_path: Path
) -> None:
    """Rows in bfloat16 from two nodes, as views; and the tower as a step, which gives the same tokens."""
    import ray

    from pipeline.read import ray_dataset

    run_here(config_for(folder, tmp_path / "out", model_path, output={"dtype": "bfloat16"}))
    dataset = EmbeddingDataset(tmp_path / "out")
    with connected(ray_nodes):
        rows = ray_dataset(str(tmp_path / "out"), block_bytes=20_000)
        assert rows.count() == len(dataset)
        found = {row["key"]: row for row in rows.iter_rows()}
        batch = next(iter(rows.iter_batches(batch_size=3)))
        paths = ray.data.from_items([{"path": str(folder / key)} for key in list(dataset.keys())[:4]])
        step = {"fn_constructor_args": [str(model_path)], "fn_constructor_kwargs": OPTIONS | {"column": "path"}}
        made = paths.map_batches(BatchEncoder, batch_size=2, concurrency=1, **step).take_all()
    assert found.keys() == set(dataset.keys())
    for key, row in found.items():
        assert torch.equal(
            torch.from_numpy(row["image_embeds"].copy()).view(torch.bfloat16), dataset[key]["image_embeds"]
        )
        assert row["grid_thw"].tolist() == dataset[key]["grid_thw"].tolist()
        assert not row["image_embeds"].flags.writeable and not row["image_embeds"].flags.owndata
    assert len(batch["image_embeds"]) == 3 and batch["grid_thw"].shape == (3, 3)
    for row in made:
        expected = dataset[Path(row["path"]).relative_to(folder).as_posix()]["image_embeds"]
        assert np.allclose(row["image_embeds"], expected.float().numpy(), atol=0.02 * float(expected.abs().max()))
