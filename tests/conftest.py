"""Fixtures: a small checkpoint in the real format, images made in code, and a Ray cluster of two nodes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.checkpoint import Checkpoint
from pipeline.random_tower import random_config, write_random_checkpoint

if TYPE_CHECKING:  # what lies below the Ray layer is tested where the configuration's packages are not
    from pipeline.config import Config
    from pipeline.runner import Summary

REPOSITORY = Path(__file__).parent.parent
IMAGES = 14
PHOTOS = REPOSITORY / "tests" / "data" / "photos"
# Two windowed and two full blocks, a width and an MLP that are no powers of two, as in the real tower.
TINY = random_config(depth=4, width=64, num_heads=2, intermediate=100, out_width=48, full=(1, 3))


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(folder, TINY, shard_bytes=40_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="session")
def checkpoint(model_path: Path) -> Checkpoint:
    return Checkpoint(str(model_path))


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random pixels, so that JPEG keeps them small and resizing has something to do."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def make_folder(folder: Path, count: int = 12, first: int = 0) -> Path:
    """A folder of small images of many sizes, two of them equal, in two subfolders."""
    for number in range(first, first + count):
        height, width = 60 + 17 * (number % 5), 60 + 31 * (number % 7)
        path = folder / f"{number % 2}" / f"{number:04d}.{'jpg' if number % 3 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = 1 if number == first + 2 else number
        path.write_bytes(encoded(noise(height, width, seed), "JPEG" if number % 3 else "PNG"))
    (folder / "notes.txt").write_text("not an image")
    return folder


def make_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def config_for(source: Path | str, output: Path, model: Path, /, **sections: dict[str, object]) -> Config:
    """A configuration of many small units, inline unless a test says otherwise."""
    tree: dict[str, dict[str, object]] = {
        "source": {"uri": str(source)},
        "preprocess": {"max_pixels": 20_000},
        "model": {"path": str(model), "dtype": "float32"},
        "pack": {"max_patches": 200},
        "output": {"uri": str(output), "dtype": "float32", "shard_tokens": 48},
        "cluster": {"engine": "inline"},
        "limits": {"max_rejected_fraction": 0.9},
    }
    for section, fields in sections.items():
        tree[section] = tree.get(section, {}) | fields
    from pipeline.config import parse_config

    return parse_config(tree)


def run_here(config: Config) -> Summary:
    """Runs in this process, silently."""
    from pipeline.runner import run

    return run(config, say=lambda line: None, report=lambda *_: None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("source") / "in", 24)


@pytest.fixture(scope="module")
def undisturbed(source: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    summary = run_here(config_for(source, output, model_path))
    assert summary.complete
    assert summary.totals.units > 5
    return output


@pytest.fixture(scope="module")
def images() -> dict[str, bytes]:
    return {
        f"{number:03d}.png": encoded(noise(60 + 17 * (number % 5), 60 + 31 * (number % 7), number))
        for number in range(IMAGES)
    }


@pytest.fixture(scope="module")
def folder(images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    output = tmp_path_factory.mktemp("expected") / "out"
    assert run_here(config_for(folder, output, model_path)).complete
    return embeddings(output)


def embeddings(output: Path) -> list[bytes]:
    return pq.read_table(output / "data").column("embedding").to_pylist()


def write_config(path: Path, config: Config) -> Path:
    path.write_text(json.dumps(config.model_dump()), encoding="utf-8")  # JSON is YAML
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written again; not its time of reading."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", *map(str, words)]


@pytest.fixture
def run_job() -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words), capture_output=True, text=True, cwd=REPOSITORY, env=os.environ | environment, timeout=300
        )

    return call


@pytest.fixture(scope="module")
def ray_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster of two nodes of one CPU each on this machine, dashboard on, with a token. Never two at once.

    Yields the environment in which a driver joins it.
    """
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    mine = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # A job's `python` is then this one, and its workers find the tests' modules.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    os.environ.update(mine)
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": True, "object_store_memory": 300 << 20},
    )
    cluster.add_node(num_cpus=1, object_store_memory=300 << 20)
    try:
        yield mine | {"RAY_ADDRESS": cluster.address, "DASHBOARD": f"http://{cluster.head_node.webui_url}"}
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Any]:
    """An S3-compatible server, and the environment in which every client finds it."""
    from s3_server import S3Server

    server = S3Server()
    mine = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    try:
        yield server
    finally:
        server.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.fixture
def s3(s3_server: Any) -> Iterator[Any]:
    """The server with an empty bucket, without faults."""
    import fsspec

    s3_server.reset()
    files = fsspec.filesystem("s3", use_listings_cache=False)
    if files.exists("bucket"):
        files.rm("bucket", recursive=True)
    files.mkdir("bucket")
    s3_server.reset()
    yield s3_server
    s3_server.reset()
