"""Clips from end to end, beside images: tokens as the reference has them, the same bytes after kills, every reject.

Catches: a clip's pack with an image's weights, a clip cut wrongly along time, images that change for the clips beside
them, a span that takes another's frames, and a kind of source that loses its clips.
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from clips import BROKEN, clip_of
from conftest import (
    REPOSITORY,
    STREAMED_PIXELS,
    assert_whole,
    command,
    config_for,
    files_of,
    make_folder,
    make_tar,
    rows_of,
    run_here,
    run_in_a_fork,
)

from pipeline.cli.compare import compared
from pipeline.config import Config, Video
from pipeline.errors import RequestError
from pipeline.output.info import read_dataset
from pipeline.output.verify import Verifier
from pipeline.read.reader import EmbeddingDataset
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.vision_encoder import VisionEncoder

pytestmark = pytest.mark.slow

CLIPS = ("h264.mp4", "vp9.webm", "turned.mp4", "mpeg4.avi", "uneven.mp4", "one.mp4", "carphone_pristine.mp4")
NO_CLIPS = ("cut.mkv", "empty.mp4", "text.mp4", "none.mkv", "codec.mp4", "rubbish.mp4")
VIDEO: dict[str, Any] = {"fps": 2.0, "max_pixels": 20_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, clips, one of them twice, and what is no clip."""
    folder = make_folder(tmp_path_factory.mktemp("videos") / "in", 6)
    for name in (*CLIPS, *NO_CLIPS):
        (folder / name).write_bytes(clip_of(name))
    (folder / "twin.mp4").write_bytes(clip_of("h264.mp4"))
    return folder


def config_of(source: Path, output: Path, model: Path, /, **sections: dict[str, object]) -> Config:
    return config_for(source, output, model, **{"preprocess": {"max_pixels": 20_000, "video": VIDEO}} | sections)


@pytest.fixture(scope="module")
def whole(folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    assert run_here(config_of(folder, output, model_path)).complete
    return output


def by_key(output: Path) -> dict[str, dict[str, Any]]:
    return {str(row["key"]): row for row in rows_of(output)}


def tokens_of(output: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(output / "data", columns=["key", "embedding"])
    pairs = zip(table.column("key").to_pylist(), table.column("embedding").to_pylist(), strict=True)
    return {key: np.frombuffer(data, np.float32) for key, data in pairs}


def test_clips_and_images_are_rows_and_the_broken_ones_rejects(whole: Path) -> None:
    rows = by_key(whole)
    assert_whole(whole, list(rows))
    wrong = {key: row["status"] for key, row in rows.items() if row["status"] != "ok"}
    assert wrong == {name: BROKEN[name][0] for name in NO_CLIPS}
    assert {key for key, row in rows.items() if row["media"] == "video"} == {*CLIPS, *NO_CLIPS, "twin.mp4"}
    clip = rows["h264.mp4"]
    assert (clip["frames"], clip["grid_thw"]) == ([0, 12, 25, 37], [2, 4, 4])
    assert np.allclose(clip["times"], [0, 0.48, 1, 1.48]) and np.allclose(clip["timestamps"], [0.24, 1.24])
    assert (clip["second_per_grid"], clip["fps"], clip["duration"]) == (1.0, 25.0, 2.0)
    assert rows["uneven.mp4"]["times"] != rows["h264.mp4"]["times"]
    assert all(rows[key]["frames"] is None and rows[key]["timestamps"] is None for key in wrong)


def test_equal_clips_of_a_unit_are_encoded_once(whole: Path) -> None:
    data = {row["key"]: row for path in (whole / "data").iterdir() for row in pq.read_table(path).to_pylist()}
    assert data["twin.mp4"]["embedding"] == data["h264.mp4"]["embedding"]
    totals = json.loads((whole / "_SUCCESS").read_text())
    encoded = sum(
        json.loads(pq.read_metadata(path).metadata[b"visionbake"])["encoded_tokens"]
        for path in (whole / "samples").iterdir()
    )
    assert encoded < totals["tokens"]


def test_images_have_the_bytes_that_they_have_alone(
    folder: Path, whole: Path, model_path: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    run_here(config_of(folder, alone, model_path, source={"media": "image"}))
    assert "media" not in pq.read_schema(next((alone / "samples").iterdir())).names
    assert not {"preprocess.video", "video_decoder", "source.media"} & read_dataset(alone).fingerprint_facts.keys()
    items, beside = EmbeddingDataset(alone), EmbeddingDataset(whole)
    assert len(items) == 6
    for key in list(items.keys()):
        assert torch.equal(items[key]["image_embeds"], beside[key]["image_embeds"])
    # What is decided is kept: clips that are found later are left alone where only images were looked for.
    assert run_here(config_of(folder, alone, model_path)).ignored[".mp4"] == 10


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_tokens_are_the_references_from_its_own_processor(
    family: str, model_path: Path, streamed_path: Path, tmp_path: Path
) -> None:
    """Frames, patches and tokens: transformers' video processor and tower against a run, a clip cut into packs."""
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    model = model_path if family == "qwen2" else streamed_path
    low, high = (3136, 20_000) if family == "qwen2" else (4096, 400_000)
    size = {"shortest_edge": low, "longest_edge": high}
    processor = Qwen2VLVideoProcessor(size=size) if family == "qwen2" else Qwen3VLVideoProcessor(size=size)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bikes.mp4").write_bytes(clip_of("bikes.mp4"))
    video = {"fps": 2.0, "min_pixels": low, "max_pixels": high}
    pixels = STREAMED_PIXELS if family == "qwen3" else {"max_pixels": 20_000}
    config = config_for(folder, tmp_path / "out", model, preprocess=pixels | {"video": video})
    run_here(config)
    with av.open(str(folder / "bikes.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    metadata = [{"total_num_frames": len(frames), "fps": 25.0, "duration": len(frames) / 25.0}]
    values = processor(videos=[stacked], video_metadata=metadata, do_sample_frames=True, fps=2.0, return_tensors="pt")
    grid = tuple(values["video_grid_thw"][0].tolist())
    item = EmbeddingDataset(tmp_path / "out")["bikes.mp4"]
    assert tuple(item["grid_thw"].tolist()) == grid
    record = json.loads(pq.read_metadata(next((tmp_path / "out" / "samples").iterdir())).metadata[b"visionbake"])
    assert len(record["packs"]) > 1 and max(record["packs"]) <= max(96, grid[1] * grid[2])
    tower = reference_tower(Checkpoint(str(model)), torch.float32, torch.device("cpu"))
    expected = run_reference(tower, values["pixel_values_videos"], [grid])
    ours = torch.cat([item["image_embeds"], *item.get("deepstack_embeds", ())], 1)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()
    assert len(compared(Verifier(tmp_path / "out"), 1)) == 1


@pytest.mark.parametrize("point", ["index", "before_encode", "after_data_publish"])
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    point: str, folder: Path, whole: Path, model_path: Path, tmp_path: Path
) -> None:
    marker, output = tmp_path / "fired", tmp_path / "out"
    config = config_of(folder, output, model_path)
    assert run_in_a_fork(config, VISIONBAKE_FAULT=f"{point}:kill@{marker}") == -signal.SIGKILL
    assert marker.exists()
    assert run_here(config).complete
    assert files_of(output / "data") == files_of(whole / "data")
    assert Verifier(output).verify().proven


def test_a_decoder_that_is_killed_amid_a_clip_costs_nothing(
    folder: Path, whole: Path, model_path: Path, tmp_path: Path
) -> None:
    marker, output = tmp_path / "fired", tmp_path / "out"
    config = config_of(folder, output, model_path)
    assert run_in_a_fork(config, VISIONBAKE_FAULT=f"frame=h264.mp4:kill@{marker}") == 0
    assert marker.exists()
    assert files_of(output / "data") == files_of(whole / "data")


def test_what_decides_a_clips_bytes_is_in_the_fingerprint(folder: Path, whole: Path, model_path: Path) -> None:
    facts = read_dataset(whole).fingerprint_facts
    assert facts["preprocess.video"]["fps"] == 2.0 and facts["preprocess.video"]["max_frames"] == 768
    assert facts["video_decoder"].startswith("av ")
    with pytest.raises(RequestError, match=r"preprocess\.video is"):
        run_here(config_of(folder, whole, model_path, preprocess={"max_pixels": 20_000, "video": {"fps": 1.0}}))


def jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "h264.mp4").write_bytes(clip_of("h264.mp4"))
    (folder / "a.png").write_bytes((folder / "in" / "0" / "0000.png").read_bytes())
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    held = [row | ({"video": clip_of("h264.mp4")} if row.get("video") else {}) for row in rows]
    image = (folder / "in" / "0" / "0000.png").read_bytes()
    held = [row | ({"image": {"bytes": image, "path": None}} if row.get("image") else {}) for row in held]
    path = folder / "list.parquet"
    pq.write_table(pa.Table.from_pylist([{"image": None, "start": None, "end": None} | row for row in held]), path)
    return path


ROWS: list[dict[str, Any]] = [
    {"id": "all", "video": "h264.mp4"},
    {"id": "late", "video": "h264.mp4", "start": 1.0, "end": 1.5},
    {"id": "again", "video": "h264.mp4", "start": 1.0, "end": 1.5},
    {"id": "behind", "video": "h264.mp4", "start": 9.0},
    {"id": "image", "image": "a.png"},
    {"id": "both", "image": "a.png", "video": "h264.mp4"},
    {"id": "neither"},
]


@pytest.mark.parametrize("write", [jsonl, parquet])
def test_rows_name_clips_and_spans_of_them(write: Any, model_path: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "in", 1)
    config = config_of(write(tmp_path, ROWS), tmp_path / "out", model_path, source={"key_column": "id"})
    run_here(config)
    rows = by_key(tmp_path / "out")
    assert {key: row["status"] for key, row in rows.items()} == {
        **dict.fromkeys(["all", "late", "again", "image", "both", "both/video"], "ok"),
        "behind": "missing_image",
        "neither": "no_image",
    }
    assert rows["late"]["frames"] == rows["again"]["frames"] and rows["late"]["frames"][0] == 25
    assert (rows["late"]["start"], rows["late"]["end"]) == (1.0, 1.5)
    assert rows["all"]["frames"] == rows["both/video"]["frames"] == [0, 12, 25, 37]
    assert "the span begins at 9 s" in rows["behind"]["error"]
    assert Verifier(tmp_path / "out").verify().proven


@pytest.mark.slow
def test_clips_in_object_storage_are_those_of_a_disk(
    s3: Any, folder: Path, whole: Path, model_path: Path, tmp_path: Path
) -> None:
    """Named by a folder and by a manifest there, while every first request for a key is answered by a 503."""
    import fsspec

    files = fsspec.filesystem("s3", use_listings_cache=False)
    files.put(f"{folder}/", "bucket/in/", recursive=True)
    rows = [{"id": name, "video": f"../in/{name}"} for name in CLIPS]
    files.pipe("bucket/rows/a.jsonl", "\n".join(map(json.dumps, rows)).encode())
    s3.fault = lambda request: (
        "503" if request.first and request.method == "GET" and request.key.startswith("in/") else None
    )
    expected = tokens_of(whole)
    for uri, keys in (("in", None), ("rows/a.jsonl", "id")):
        output = tmp_path / str(keys)
        source = {"uri": f"s3://bucket/{uri}", "key_column": keys}
        assert run_here(config_of(folder, output, model_path, source=source)).complete
        found = tokens_of(output)
        assert found.keys() == (set(CLIPS) if keys else expected.keys())
        for key, tokens in found.items():  # of other packs: fp32 within 1e-5
            assert np.abs(tokens - expected[key]).max() <= 1e-5 * np.abs(expected[key]).max()
    assert s3.counts.faults >= len(CLIPS)


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_members_of_tars_are_clips(form: str, model_path: Path, tmp_path: Path) -> None:
    names = ("h264.mp4", "vp9.webm", "cut.mkv")
    source = make_tar(tmp_path / "a.tar", [(f"{number}/{name}", clip_of(name)) for number, name in enumerate(names)])
    run_here(config_of(source, tmp_path / "out", model_path, output={"format": form}))
    rows = by_key(tmp_path / "out")
    assert {row["status"] for row in rows.values()} == {"ok", "truncated"} and len(rows) == 3
    assert Verifier(tmp_path / "out").verify().proven
    item = EmbeddingDataset(tmp_path / "out")["0/h264"]
    assert item["timestamps"] and item["second_per_grid"] == 1.0 and len(item["image_embeds"]) == 8


def test_the_encoder_takes_clips_and_gives_what_a_run_does(whole: Path, model_path: Path, folder: Path) -> None:
    encoder = VisionEncoder.from_pretrained(
        str(model_path), "float32", "cpu", max_pixels=20_000, max_patches=96, video=Video(**VIDEO)
    )
    clip, image, held = encoder.encode(
        [folder / "h264.mp4", folder / "0" / "0000.png", (folder / "vp9.webm").read_bytes()]
    )
    stored = EmbeddingDataset(whole)
    for embedding, key in ((clip, "h264.mp4"), (image, "0/0000.png"), (held, "vp9.webm")):
        expected = stored[key]["image_embeds"]
        assert torch.allclose(embedding.image_embeds, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert clip.video is not None and clip.video.frames == (0, 12, 25, 37) and image.video is None
    assert clip.video.timestamps == (0.24, 1.24) and clip.video.second_per_grid == 1.0
    with pytest.raises(RequestError, match=r"cut\.mkv: truncated"):
        encoder.encode([folder / "cut.mkv"])
    with pytest.raises(RequestError, match=r"image 0: unidentified: .*one of JPEG"):
        encoder.encode([b"neither"])


def test_a_plan_counts_what_a_run_makes(folder: Path, whole: Path, model_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(config_of(folder, tmp_path / "out", model_path).model_dump()))
    told = subprocess.run(
        command("pipeline", "plan", config, "--json"), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    (budget,) = json.loads(told.stdout)["budgets"]
    totals = json.loads((whole / "_SUCCESS").read_text())
    assert (budget["tokens"], budget["samples"], budget["units"]) == (
        totals["tokens"],
        totals["samples"],
        totals["units"],
    )
    assert budget["rejects"] == totals["rejects"]


def test_a_page_shows_clips(whole: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    told = subprocess.run(
        command("pipeline", "stats", whole, "--html", page), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert "norms of its tokens" in page.read_text()
