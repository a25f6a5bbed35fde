"""Damaged and hostile bytes in tars, manifests and checkpoints: the named errors or rejects, never another exception.

Seeded, so that CI tries the same examples every time; `VISIONBAKE_FUZZ=5000` tries as many others.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import encoded, make_tar, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import rejects
from pipeline.errors import DamagedPart, RequestError
from pipeline.index.write import index_samples
from pipeline.source.format import Columns
from pipeline.source.part import Part, SourceFile
from pipeline.source.sample import IndexedSample
from pipeline.storage.local import state_of
from pipeline.tower.checkpoint import Checkpoint

EXAMPLES = int(os.environ.get("VISIONBAKE_FUZZ", "0"))
fuzzed = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]), st.floats(0, 1), st.binary(max_size=40)),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    result = bytearray(data)
    for kind, place, extra in edits:
        at = int(place * len(result))
        if kind == "flip" and at < len(result):
            result[at] ^= 1 + (extra[0] if extra else 0) % 255
        elif kind == "cut":
            del result[at:]
        elif kind == "insert":
            result[at:at] = extra
        elif kind == "zero":
            result[at : at + 512] = bytes(min(512, len(result) - at))
        elif kind == "repeat":
            result[at:at] = result[at : at + 512]
    return bytes(result)


def indexed(path: Path, kind: str, **fields: int) -> list[IndexedSample]:
    size, mtime_ns, _ = state_of(str(path))
    file = SourceFile(path=path.name, size=size, mtime_ns=mtime_ns, **fields)
    part = Part(number=0, format=kind, root=str(path.parent), files=(file,))
    return list(index_samples(part, Columns()))


def assert_sane(samples: list[IndexedSample]) -> None:
    for sample in samples:
        assert sample.status in rejects.STATUSES
        assert sample.status != rejects.OK or (sample.width and sample.height and sample.sha256)
        sample.key.encode()
        (sample.error or "").encode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    members = [(f"{'deep/' * (number * 20)}{number:03d}.png", encoded(noise(20, 30, number))) for number in range(4)]
    members.insert(1, ("000.txt", b"a caption"))
    return make_tar(tmp_path_factory.mktemp("whole") / "a.tar", members).read_bytes()


@pytest.mark.slow
@fuzzed
@given(edits=EDITS)
def test_tars(whole: bytes, edits: list[tuple[str, float, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.tar")
        path.write_bytes(edited(whole, edits))
        try:
            assert_sane(indexed(path, "webdataset"))
        except DamagedPart as error:
            named = "a.tar" in str(error)
            assert named, error  # noqa: PT017 - both endings are right
        assert [entry.name for entry in Path(folder).iterdir()] == ["a.tar"]  # nothing is extracted


@pytest.mark.slow
@fuzzed
@given(lines=st.lists(st.binary(max_size=60) | JSON | st.fixed_dictionaries({"image": JSON}), max_size=6))
def test_manifests(lines: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        path.write_bytes(b"\n".join(raw))
        samples = indexed(path, "jsonl", last=path.stat().st_size)
        assert_sane(samples)
        written = path.read_bytes().split(b"\n")
        assert len({sample.offset for sample in samples}) == sum(bool(line.strip()) for line in written)


@pytest.mark.slow
@fuzzed
@given(edits=EDITS)
def test_images(edits: list[tuple[str, float, bytes]]) -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"a.{kind.lower()}")
            path.write_bytes(edited(encoded(noise(24, 40, 3), kind), edits))
            samples = indexed(path, "folder")
            assert len(samples) == 1
            assert_sane(samples)


def opened(folder: Path) -> None:
    """Either a checkpoint that can be read whole, or an error that names it."""
    try:
        checkpoint = Checkpoint(str(folder))
        checkpoint.sha256()
    except RequestError as error:
        named = str(folder) in str(error)
        assert named, error  # noqa: PT017 - both endings are right


FIELDS = (
    "depth",
    "hidden_size",
    "num_heads",
    "intermediate_size",
    "out_hidden_size",
    "patch_size",
    "window_size",
    "spatial_merge_size",
    "fullatt_block_indexes",
    "in_channels",
    "temporal_patch_size",
    "hidden_act",
)


@pytest.mark.slow
@fuzzed
@given(field=st.sampled_from(FIELDS), value=JSON | st.integers(min_value=1))
def test_vision_configs(model_path: Path, field: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = shutil.copytree(model_path, Path(place, "model"))
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"][field] = value
        (folder / "config.json").write_text(json.dumps(config))
        opened(folder)


@pytest.mark.slow
@fuzzed
@given(
    name=st.sampled_from(["config.json", "preprocessor_config.json", "model.safetensors.index.json"]),
    field=st.sampled_from(
        [
            "vision_config",
            "model_type",
            "weight_map",
            "image_mean",
            "image_std",
            "rescale_factor",
            "image_processor",
            "patch_size",
            "do_resize",
            "resample",
        ]
    ),
    value=JSON,
    whole=st.booleans(),
    edits=EDITS,
)
def test_json_files(
    model_path: Path, name: str, field: str, value: Any, whole: bool, edits: list[tuple[str, float, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = shutil.copytree(model_path, Path(place, "model"))
        path = folder / name
        tree = json.loads(path.read_text())
        tree[field] = value
        text = json.dumps(tree).encode()
        path.write_bytes(text if whole else edited(text, edits))
        opened(folder)


@pytest.mark.slow
@fuzzed
@given(edits=EDITS, length=st.integers(0, 2**64 - 1) | st.none())
def test_safetensors(model_path: Path, edits: list[tuple[str, float, bytes]], length: int | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = shutil.copytree(model_path, Path(place, "model"))
        path = min(folder.glob("*.safetensors"))
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = edited(data[8 : 8 + size], edits)
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data[8 + size :])
        opened(folder)
