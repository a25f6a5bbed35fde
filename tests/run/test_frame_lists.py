"""Videos that rows name, in every kind of manifest and table: files, spans of them, and lists of frame images.

Catches: a list of frames taken for several videos, or the other way round; a frame that is lost, doubled or out of
order; times of another row; a clip that is encoded once a question; and a format that reads rows in its own way.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from clips import clip_of, drawing
from conftest import config_for, encoded, run_here, run_in_a_fork
from PIL import Image

from pipeline.cli.compare import compared
from pipeline.config import Config
from pipeline.index.read import read_index_arrays
from pipeline.index.units import cut_units
from pipeline.output.verify import Verifier
from pipeline.read.reader import EmbeddingDataset
from pipeline.run.indexing import make_plan
from pipeline.run.request import check_request
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.reference import reference_tower, run_reference

pytestmark = pytest.mark.slow

FRAMES = [drawing(index, 64, 48) for index in range(5)]
NAMES = [f"{index}.png" for index in range(5)]
ROWS: list[dict[str, Any]] = [
    {"id": "file", "video": "h264.mp4"},
    {"id": "span", "video": "h264.mp4", "start": 1.0, "end": 1.5},
    {"id": "late", "video": "h264.mp4", "start": 7.0},
    {"id": "backwards", "video": "h264.mp4", "start": 1.0, "end": 0.5},
    {"id": "before", "video": "h264.mp4", "start": -1.0, "end": 1.0},
    {"id": "files", "video": ["h264.mp4", "vp9.webm"]},
    {"id": "rate", "video": NAMES, "fps": 4.0},
    {"id": "times", "video": NAMES, "times": [0.0, 0.5, 2.0, 2.5, 3.5], "image": "0.png"},
    {"id": "again", "video": NAMES},
    {"id": "two", "video": [NAMES[:2], NAMES[2:]], "fps": 1.0},
    {"id": "one", "video": NAMES[:1]},
    {"id": "hole", "video": [*NAMES[:2], "none.png"]},
    {"id": "cut", "video": ["0.png", "cut.png", "1.png"]},
    {"id": "sizes", "video": ["0.png", "1.png", "small.png"]},
    {"id": "spanned", "video": NAMES, "end": 3.0},
    {"id": "miscounted", "video": NAMES, "times": [0.0, 1.0]},
    {"id": "image", "image": "0.png"},
    {"id": "neither"},
]
WRONG = {
    "late": ("missing_image", "the span begins at 7 s, behind the clip's end; the clip is 2.00 s long (50 frames)"),
    "backwards": ("missing_image", "begins at 1 s and ends at 0.5 s, before it begins; the clip is 2.00 s"),
    "hole": ("missing_image", "frame 2: there is no file"),
    "cut": ("truncated", "frame 1: "),
    "sizes": ("corrupt", "frame 2 is 32x32, the first one 64x48"),
    "spanned": ("missing_image", "a list of frames has none"),
    "miscounted": ("missing_image", "one for each of its 5 frames, not 2 of them"),
    "neither": ("no_image", "names no image"),
}
RIGHT = [
    "file",
    "span",
    "before",
    "files/0",
    "files/1",
    "rate",
    "times",
    "times/video",
    "again",
    "two/0",
    "two/1",
    "one",
    "image",
]


def contents() -> dict[str, bytes]:
    """The files that the rows name."""
    files = {name: encoded(pixels) for name, pixels in zip(NAMES, FRAMES, strict=True)}
    files |= {name: clip_of(name) for name in ("h264.mp4", "vp9.webm")}
    return files | {"cut.png": files["0.png"][: len(files["0.png"]) // 2], "small.png": encoded(FRAMES[0][:32, :32])}


def jsonl(folder: Path) -> Path:
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder / "list.jsonl"


def array(folder: Path) -> Path:
    (folder / "list.json").write_text(json.dumps(ROWS))
    return folder / "list.json"


def in_csv(folder: Path) -> Path:
    """Lists as text in JSON."""
    with open(folder / "list.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "video", "image", "start", "end", "fps", "times"])
        writer.writeheader()
        texts = [
            {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
            for row in ROWS
        ]
        writer.writerows(texts)
    return folder / "list.csv"


def parquet(folder: Path) -> Path:
    texts = [
        row | {"video": json.dumps(row["video"]) if isinstance(row.get("video"), list) else row.get("video")}
        for row in ROWS
    ]
    rows = [{"image": None, "start": None, "end": None, "fps": None, "times": None} | row for row in texts]
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    return folder / "list.parquet"


def arrow(folder: Path) -> Path:
    texts = pq.read_table(parquet(folder))
    pyarrow.feather.write_feather(texts, folder / "list.feather")
    return folder / "list.feather"


PREPROCESS: dict[str, object] = {"max_pixels": 20_000, "video": {"fps": 2.0, "max_pixels": 20_000}}


def config_of(source: Path, output: Path, model: Path) -> Config:
    sections: dict[str, dict[str, object]] = {"preprocess": PREPROCESS, "source": {"key_column": "id"}}
    sections["output"] = {"shard_tokens": 4096}  # one unit: packs are part of what decides bits
    return config_for(source, output, model, **sections)


def place(folder: Path) -> Path:
    folder.mkdir()
    for name, data in contents().items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def whole(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the JSONL file."""
    folder = tmp_path_factory.mktemp("frames")
    config = config_of(jsonl(place(folder / "in")), folder / "out", model_path)
    assert run_here(config).complete
    return folder / "out"


def samples_of(output: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for path in (output / "samples").iterdir() for row in pq.read_table(path).to_pylist()}


def data_of(output: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for path in (output / "data").iterdir() for row in pq.read_table(path).to_pylist()}


def assert_same(row: dict[str, Any], twin: dict[str, Any], *names: str) -> None:
    """They may lie in different units, and so in different packs."""
    assert row["norm_mean"] == pytest.approx(twin["norm_mean"], rel=1e-5)
    assert {name: row[name] for name in ("status", "sha256", *names)} == {
        name: twin[name] for name in ("status", "sha256", *names)
    }


def test_every_row_is_a_video_or_a_reject_that_says_why(whole: Path) -> None:
    rows = samples_of(whole)
    assert {key: row["status"] for key, row in rows.items()} == dict.fromkeys(RIGHT, "ok") | {
        key: reason for key, (reason, _) in WRONG.items()
    }
    for key, (_, says) in WRONG.items():
        assert says in rows[key]["error"]
    assert Verifier(whole).verify().proven


def test_frame_images_have_the_times_that_stand_beside_them(whole: Path) -> None:
    rows = samples_of(whole)
    rate, times, untold = rows["rate"], rows["times/video"], rows["again"]
    assert (rate["frames"], rate["media"], rate["width"], rate["height"]) == ([0, 1, 2, 3, 4], "video", 64, 48)
    assert rate["times"] == [0, 0.25, 0.5, 0.75, 1] and rate["timestamps"] == [0.125, 0.625, 1]
    assert (rate["fps"], rate["duration"], rate["second_per_grid"]) == (4, 1.25, 0.5)
    assert times["times"] == [0, 0.5, 2, 2.5, 3.5] and times["timestamps"] == [0.25, 2.25, 3.5]
    assert np.allclose(
        [times["fps"], times["duration"], times["second_per_grid"]], [4 / 3.5, 3.5 + 3.5 / 4, 2 * 3.5 / 4]
    )
    assert untold["times"] is untold["fps"] is untold["duration"] is None
    assert np.allclose(untold["timestamps"], [0.5 / 24, 2.5 / 24, 4 / 24]) and np.isclose(
        untold["second_per_grid"], 2 / 24
    )
    assert rows["two/1"]["times"] == [0, 1, 2]


def test_tokens_are_the_references_from_the_same_images(whole: Path, model_path: Path) -> None:
    from transformers import Qwen2VLVideoProcessor

    processor = Qwen2VLVideoProcessor(size={"shortest_edge": 3136, "longest_edge": 20_000})
    tower = reference_tower(Checkpoint(str(model_path)), torch.float32, torch.device("cpu"))
    stored = EmbeddingDataset(whole)
    for key, frames in (("rate", FRAMES), ("two/0", FRAMES[:2]), ("two/1", FRAMES[2:])):
        images = [Image.fromarray(pixels) for pixels in frames]
        values = processor(videos=[images], do_sample_frames=False, return_tensors="pt")
        grid = tuple(values["video_grid_thw"][0].tolist())
        item = stored[key]
        assert tuple(item["grid_thw"].tolist()) == grid
        expected = run_reference(tower, values["pixel_values_videos"], [grid])
        assert (item["image_embeds"] - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("family", "video"),
    [
        ("qwen2", {"fps": 2.0, "max_pixels": 20_000}),
        ("qwen3", {"fps": 2.0, "max_pixels": 60_000}),
        ("qwen3", {"num_frames": 3, "max_pixels": 60_000}),
        ("qwen2", {"sampler": "qwen_vl_utils", "fps": 2.0, "min_pixels": 7840, "max_pixels": 20_000}),
    ],
)
def test_verify_compares_clips_with_the_references_processor(
    family: str, video: dict[str, Any], model_path: Path, streamed_path: Path, tmp_path: Path
) -> None:
    rows = [row for row in ROWS if row["id"] in ("file", "span", "rate", "one", "image")]
    source = place(tmp_path / "in") / "list.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pixels = {"min_pixels": 4096, "max_pixels": 20_000, "video": video}
    model = model_path if family == "qwen2" else streamed_path
    config = config_for(source, tmp_path / "out", model, preprocess=pixels, source={"key_column": "id"})
    run_here(config)
    found = {row["key"]: row["relative_rms"] for row in compared(Verifier(tmp_path / "out"), 10)}
    assert found.keys() == {row["id"] for row in rows} and max(found.values()) < 1e-5


def test_clips_of_the_same_bytes_are_encoded_once(whole: Path) -> None:
    rows, totals = data_of(whole), json.loads((whole / "_SUCCESS").read_text())
    assert rows["rate"]["embedding"] == rows["times/video"]["embedding"] == rows["again"]["embedding"]
    assert rows["rate"]["sha256"] == rows["again"]["sha256"] != rows["two/0"]["sha256"]
    records = [pq.read_metadata(path).metadata[b"visionbake"] for path in (whole / "samples").iterdir()]
    distinct = ("file", "span", "before", "files/1", "rate", "two/0", "two/1", "one", "image")
    assert sum(json.loads(record)["encoded_tokens"] for record in records) == sum(
        rows[key]["num_tokens"] for key in distinct
    )
    assert totals["rows"] == len(RIGHT)


@pytest.mark.parametrize("write", [array, in_csv, parquet, arrow])
def test_every_format_gives_the_same(
    write: Callable[[Path], Path], whole: Path, model_path: Path, tmp_path: Path
) -> None:
    run_here(config_of(write(place(tmp_path / "in")), tmp_path / "out", model_path))
    expected, found = samples_of(whole), samples_of(tmp_path / "out")
    assert list(found) == list(expected)
    told = ("status", "frames", "times", "timestamps", "second_per_grid", "grid_thw", "sha256", "start", "end", "fps")
    for key, row in found.items():
        assert {name: row[name] for name in told} == {name: expected[key][name] for name in told}
    tokens, expected_tokens = data_of(tmp_path / "out"), data_of(whole)
    assert {key: row["embedding"] for key, row in tokens.items()} == {
        key: row["embedding"] for key, row in expected_tokens.items()
    }
    assert Verifier(tmp_path / "out").verify().proven


@pytest.mark.parametrize("write", [pq.write_table, pyarrow.feather.write_feather])
@pytest.mark.parametrize("as_struct", [True, False])
def test_frames_that_a_table_holds_are_those_of_files(
    write: Callable[[pa.Table, Path], None], as_struct: bool, whole: Path, model_path: Path, tmp_path: Path
) -> None:
    """Lists, and lists of lists, of bytes or of `{bytes, path}`."""
    files = contents()
    held = [{"bytes": files[name], "path": None} if as_struct else files[name] for name in NAMES]
    broken = [held[0], {"bytes": b"no image", "path": None} if as_struct else b"no image"]
    flat = {"id": ["rate", "bad"], "video": [held, broken], "fps": [4.0, 4.0]}
    nested = {"id": ["two"], "video": [[held[:2], held[2:]]], "times": [[[0.0, 1.0], [0.0, 1.0, 2.0]]]}
    expected = samples_of(whole)
    for name, columns in (("flat", flat), ("nested", nested)):
        write(pa.table(columns), tmp_path / f"{name}.{'parquet' if write is pq.write_table else 'arrow'}")
        (path,) = tmp_path.glob(f"{name}.*")
        run_here(config_of(path, tmp_path / f"out-{name}", model_path))
        found = samples_of(tmp_path / f"out-{name}")
        for key in found.keys() - {"bad"}:
            assert_same(found[key], expected[key], "times", "timestamps", "second_per_grid")
        if name == "flat":
            assert list(found) == ["rate", "bad"] and found["bad"]["status"] == "unidentified"
            assert found["bad"]["error"].startswith("frame 1: ")
        else:
            assert list(found) == ["two/0", "two/1"]


def test_the_index_knows_every_token(whole: Path) -> None:
    """All but what decoding alone finds out: `cut` is whole by its headers."""
    verifier = Verifier(whole)
    units = cut_units(0, read_index_arrays(verifier.plan.index_path(0)), verifier.geometry, 4096)
    totals = json.loads((whole / "_SUCCESS").read_text())
    assert sum(unit.tokens for unit in units) == totals["tokens"] + 8 and len(units) == totals["units"]


def test_lines_of_text_name_videos(model_path: Path, whole: Path, tmp_path: Path) -> None:
    folder = place(tmp_path / "in")
    (folder / "list.txt").write_text("h264.mp4\n0.png\nvp9.webm\n")
    config = config_for(folder / "list.txt", tmp_path / "out", model_path, preprocess=PREPROCESS)
    run_here(config)
    rows, expected = samples_of(tmp_path / "out"), samples_of(whole)
    keys = {"list.txt:0": "file", "list.txt:1": "image", "list.txt:2": "files/1"}
    for key, twin in keys.items():
        assert_same(rows[key], expected[twin], "media", "frames", "times", "timestamps", "grid_thw")
    assert rows.keys() == keys.keys()


@pytest.mark.parametrize("fault", ["header=rate:exit", "decode=rate:exit"])
def test_a_frame_that_kills_its_decoder_costs_its_clip(
    fault: str, whole: Path, model_path: Path, tmp_path: Path
) -> None:
    """Twice alone in a fresh process, as an image does it."""
    rows = [{"id": "rate", "video": NAMES[:2]}, {"id": "two/1", "video": NAMES[2:], "fps": 1.0}]
    source = place(tmp_path / "in") / "list.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(source, tmp_path / "out", model_path)
    assert run_in_a_fork(config, VISIONBAKE_FAULT=f"{fault}@+{tmp_path / 'fired'}") == 0
    assert (tmp_path / "fired").read_bytes() == b"..."
    found = samples_of(tmp_path / "out")
    assert found["rate"]["status"] == "crash"
    assert found["two/1"]["norm_mean"] == pytest.approx(samples_of(whole)["two/1"]["norm_mean"])


def test_frames_that_change_after_they_were_indexed(model_path: Path, tmp_path: Path) -> None:
    folder = place(tmp_path / "in")
    frames = {"kept": NAMES[:2], "changed": NAMES[2:4], "gone": NAMES[3:]}
    rows = [{"id": key, "video": names} for key, names in frames.items()]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_of(folder / "list.jsonl", tmp_path / "out", model_path)
    config = config.model_copy(update={"limits": config.limits.model_copy(update={"attempts": 1})})
    make_plan(check_request(config), say=lambda line: None)
    (folder / "2.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "4.png").unlink()
    summary = run_here(config)
    assert not summary.complete and "a frame of gone, named by list.jsonl, has vanished" in summary.problems[0]
    source = config.source.model_copy(update={"on_changed": "reject"})
    run_here(config.model_copy(update={"source": source}))
    found = {key: row["status"] for key, row in samples_of(tmp_path / "out").items()}
    assert found == {"kept": "ok", "changed": "checksum", "gone": "missing_image"}
