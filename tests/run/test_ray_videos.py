"""Clips on Ray: two preparers, a death at each point, and the bytes of one process.

Catches: a clip whose frames depend on who decodes it, or on how often its unit was tried.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from clips import MADE, NAMES, SHIPPED, made
from conftest import assert_whole, config_for, connected, files_of, keys_of, make_folder, rows_of, run_here

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COUNT = 50
POINTS = ["index", "prepare", "frame=made/07.mkv", "before_encode", "after_data_publish"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped clips, fifty made ones of many codecs and containers, and some images."""
    folder = make_folder(tmp_path_factory.mktemp("clips") / "in", 6)
    (folder / "made").mkdir()
    for name in NAMES:
        (folder / name).write_bytes((SHIPPED / name).read_bytes())
    kinds = sorted(name for name in MADE if not name.endswith(".gif"))
    for number in range(COUNT):
        kind = kinds[number % len(kinds)]
        suffix = ".mkv" if number == 7 else Path(kind).suffix
        (folder / "made" / f"{number:02d}{suffix}").write_bytes(made("h264.mkv" if number == 7 else kind))
    return folder


def test_killed_at_every_point_two_preparers_make_the_bytes_of_one_process(
    ray_nodes: dict[str, str], clips: Path, model_path: Path, tmp_path: Path
) -> None:
    video = {"preprocess": {"max_pixels": 20_000, "video": {"fps": 2.0, "max_pixels": 20_000}}}
    whole = config_for(clips, tmp_path / "inline", model_path, output={"shard_tokens": 400}, **video)
    assert run_here(whole).complete
    markers = {point: tmp_path / point.replace("/", "-") for point in POINTS}
    cluster = {"engine": "ray", "device": "cpu", "encoders": 2, "preprocessors": 2}
    config = config_for(
        clips,
        tmp_path / "ray",
        model_path,
        output={"shard_tokens": 400},
        cluster=cluster,
        limits={"attempts": len(POINTS)},
        **video,
    )
    with connected(ray_nodes, VISIONBAKE_FAULT=",".join(f"{point}:kill@{path}" for point, path in markers.items())):
        summary = run_here(config)
    assert summary.complete
    assert all(path.exists() for path in markers.values())
    assert summary.retries >= len(POINTS) - 1  # a decoder that is killed is started again within its call
    rows = rows_of(tmp_path / "ray")
    assert [row["status"] for row in rows if row["media"] == "video"] == ["ok"] * (COUNT + len(NAMES))
    assert_whole(tmp_path / "ray", [*keys_of(clips), *(row["key"] for row in rows if row["media"] == "video")])
    assert files_of(tmp_path / "ray" / "data") == files_of(tmp_path / "inline" / "data")
