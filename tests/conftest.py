"""Fixtures: a small checkpoint in the real format, images made in code, and a Ray cluster of two nodes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.random_tower import family_config, random_config, write_random_checkpoint

if TYPE_CHECKING:  # what lies below the Ray layer is tested where the configuration's packages are not
    from pipeline.config import Config
    from pipeline.run.summary import Summary

REPOSITORY = Path(__file__).parent.parent
IMAGES = 14
PHOTOS = REPOSITORY / "tests" / "data" / "photos"
# Two windowed and two full blocks, a width and an MLP that are no powers of two, as in the real tower.
TINY = random_config(depth=4, width=64, num_heads=2, intermediate=100, out_width=48, full=(1, 3))
# A tower with two further streams, and few learned positions.
STREAMED = replace(family_config("qwen3_vl", 3, 48, 2, 72, 40), deepstack_blocks=(0, 2), positions=36)
STREAMED_PIXELS = {"min_pixels": 4096, "max_pixels": 20_000}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("own_cluster") is None)  # there must never be two at once


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # One token for every cluster that the tests start or join: Ray reads the mode once, when it is imported.
    assert "ray" not in sys.modules
    folder = tempfile.TemporaryDirectory(prefix="visionbake-tests-")
    config.add_cleanup(folder.cleanup)
    token = Path(folder.name) / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(folder, TINY, shard_bytes=40_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="session")
def checkpoint(model_path: Path) -> Checkpoint:
    return Checkpoint(str(model_path))


@pytest.fixture(scope="session")
def streamed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    write_random_checkpoint(folder, STREAMED)
    return folder


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


EVERYTHING = "everything.jsonl"
TWINS = {5: 4, 20: 1}  # within a unit, and in two of them
TURNED, LARGE, BROKEN, MISSING, LIST = 7, 11, 9, 15, 17


def make_everything(folder: Path, count: int = 24) -> Path:
    """A manifest with what may become of a sample: the whole runs, and those with faults, are about it.

    Twins in one unit and in two, rejects in the middle of units, a list of images, a photo that lies on its side, one
    over the pack's budget, and carried values of which some are null.
    """
    lines = []
    for number in range(count):
        seed = TWINS.get(number, number)
        height, width = (400, 400) if number == LARGE else (60 + 17 * (seed % 5), 60 + 31 * (seed % 7))
        key = f"{number % 2}/{number:04d}.{'jpg' if number % 3 else 'png'}"
        options: dict[str, object] = {}
        if number == TURNED:
            options["exif"] = Image.Exif()
            options["exif"][274] = 6
        data = encoded(noise(height, width, seed), "JPEG" if seed % 3 else "PNG", **options)
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        if number != MISSING:
            (folder / key).write_bytes(data[: len(data) // 2] if number == BROKEN else data)
        line: dict[str, object] = {"key": key, "image": [key, "0/0000.png"] if number == LIST else key}
        line["caption"] = None if number % 5 == 3 else f"photo {number}"
        if number % 4:
            line["score"] = number
        lines.append(json.dumps(line))
    (folder / EVERYTHING).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / EVERYTHING


def lines_of(source: Path) -> dict[str, dict[str, object]]:
    """What stands in the manifest of `make_everything`, by the key that each image has in an output."""
    lines: dict[str, dict[str, object]] = {}
    for text in source.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        images = line["image"]
        keys = [f"{line['key']}/{n}" for n in range(len(images))] if isinstance(images, list) else [line["key"]]
        lines |= dict.fromkeys(keys, line)
    return lines


def config_for(source: Path | str, output: Path, model: Path, /, **sections: dict[str, object]) -> Config:
    """A configuration of many small units, inline unless a test says otherwise."""
    has_all = Path(source).name == EVERYTHING
    tree: dict[str, dict[str, object]] = {
        "source": {"uri": str(source)} | ({"key_column": "key", "carry": ["caption", "score"]} if has_all else {}),
        "preprocess": {"max_pixels": 20_000},
        "model": {"path": str(model), "dtype": "float32"},
        "pack": {"max_patches": 96},
        "output": {"uri": str(output), "dtype": "float32", "shard_tokens": 48},
        "cluster": {"engine": "inline"},
        "limits": {"max_rejected_fraction": 0.9},
    }
    for section, fields in sections.items():
        tree[section] = tree.get(section, {}) | fields
    from pipeline.config import parse_config

    return parse_config(tree)


def fork(call: Callable[[], object], **environment: str) -> multiprocessing.process.BaseProcess:
    """Calls it in a process of its own, which has everything imported already; what it returns is the exit code."""

    def run() -> None:
        os.environ.update(environment)
        sys.exit(call())

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def end_of(child: multiprocessing.process.BaseProcess) -> int:
    child.join(200)
    assert child.exitcode is not None
    return child.exitcode


def run_in_a_fork(config: Config, **environment: str) -> int:
    """Runs in a child that may be killed; returns its exit code."""
    return end_of(fork(lambda: not run_here(config).complete, **environment))


def run_two_at_once(config: Config) -> None:
    """Two processes on one output; both must end well."""
    twins = [fork(lambda: not run_here(config).complete) for _ in range(2)]
    assert [end_of(twin) for twin in twins] == [0, 0]


def run_here(config: Config) -> Summary:
    """Runs in this process, silently."""
    from pipeline.run.runner import run

    return run(config, say=lambda line: None, report=lambda *_: None)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_everything(tmp_path_factory.mktemp("source") / "in")


@pytest.fixture(scope="session")
def undisturbed(source: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    summary = run_here(config_for(source, output, model_path))
    assert summary.complete
    assert summary.totals.units > 5
    return output


@pytest.fixture(scope="session")
def images() -> dict[str, bytes]:
    return {
        f"{number:03d}.png": encoded(noise(60 + 17 * (number % 5), 60 + 31 * (number % 7), number))
        for number in range(IMAGES)
    }


@pytest.fixture(scope="session")
def folder(images: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    for name, data in images.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def expected(folder: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    output = tmp_path_factory.mktemp("expected") / "out"
    assert run_here(config_for(folder, output, model_path)).complete
    return embeddings(output)


def rows_of(output: Path) -> list[dict[str, object]]:
    return [row for path in sorted((output / "samples").iterdir()) for row in pq.read_table(path).to_pylist()]


def assert_whole(output: Path, keys: list[str]) -> None:
    """Every key once in samples, and in data exactly when it is ok; the records agree; nothing else is there."""
    rows = rows_of(output)
    assert sorted(row["key"] for row in rows) == sorted(keys)
    data = [row for path in sorted((output / "data").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert sorted(row["key"] for row in data) == sorted(row["key"] for row in rows if row["status"] == "ok")
    success = json.loads((output / "_SUCCESS").read_text())
    assert (success["samples"], success["rows"]) == (len(rows), len(data))
    assert success["samples"] == success["rows"] + success["rejected"]
    assert success["tokens"] == sum(row["num_tokens"] for row in data)
    assert not (output / "_tmp").exists()
    from pipeline.output.verify import Verifier

    report = Verifier(output).verify()
    assert report.proven, report
    assert {path.stem for path in (output / "data").iterdir()} == {path.stem for path in (output / "samples").iterdir()}


def assert_stands(config: Config) -> list[dict[str, Any]]:
    """A run is whole: samples = rows + rejects + no_image, `verify` proves it, a second run changes no file.

    Returns:
        The samples, in order.
    """
    from pipeline.output.verify import Verifier

    output = Path(config.output.uri)
    summary = run_here(config)
    assert summary.complete, summary.problems
    rows: list[dict[str, Any]] = [
        row for path in files_below(output, "samples") for row in pq.read_table(path).to_pylist()
    ]
    counts, totals = Counter(row["status"] for row in rows), summary.totals
    assert (totals.samples, totals.rows, totals.no_image) == (len(rows), counts["ok"], counts["no_image"])
    assert totals.samples == totals.rows + totals.rejected + totals.no_image
    assert all(row["error"] for row in rows if row["status"] != "ok")
    before = {path: stamp(path) for path in files_below(output, "data", "samples")}
    again = run_here(config)
    assert again.complete
    assert again.this_run.units == 0
    assert before == {path: stamp(path) for path in files_below(output, "data", "samples")}
    report = Verifier(output).verify()
    assert report.proven, report
    return rows


def files_below(output: Path, *folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((output / folder).iterdir())]


def keys_of(source: Path) -> list[str]:
    if source.name == EVERYTHING:
        return list(lines_of(source))
    return [
        path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".png")
    ]


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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


RAY = str(Path(sys.executable).parent / "ray")


def _start_node(words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A node as a user starts it; `--block`, so that ending the process ends the node and nobody else's."""
    with open(log, "wb") as stream:
        node = subprocess.Popen(
            [RAY, "start", "--block", "--num-cpus", "1", "--object-store-memory", str(300 << 20), *words],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 120
    while "Ray runtime started" not in log.read_text():
        assert node.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return node


@pytest.fixture(scope="session")
def ray_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A cluster of two nodes of one CPU each on this machine, dashboard on, with a token, as docs/cluster.md has it.

    One for all tests, because there must never be two at once. Yields the environment in which a driver joins it.
    """
    folder = tmp_path_factory.mktemp("ray")
    mine = {
        # A job's `python` is then this one, and its workers find the tests' modules.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    os.environ.update(mine)
    environment = {name: value for name, value in os.environ.items() if not re.match("RAY_(?!AUTH)", name)} | mine
    port, dashboard = free_port(), free_port()
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        head = ["--head", "--port", str(port), "--dashboard-port", str(dashboard)]
        nodes.append(_start_node(head, environment, folder / "head.log"))
        nodes.append(_start_node(["--address", f"127.0.0.1:{port}"], environment, folder / "node.log"))
        yield mine | {"RAY_ADDRESS": f"127.0.0.1:{port}", "DASHBOARD": f"http://127.0.0.1:{dashboard}"}
    finally:
        import ray

        ray.shutdown()
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(timeout=60)


@contextmanager
def connected(nodes: dict[str, str], **environment: str) -> Iterator[None]:
    """This process as the driver, with the given variables in every actor."""
    import ray

    environment = {"PYTHONPATH": str(REPOSITORY)} | environment
    ray.init(address=nodes["RAY_ADDRESS"], runtime_env={"env_vars": environment}, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def on_ray(source: Path, output: Path, model: Path, **cluster: object) -> Config:
    return config_for(source, output, model, cluster={"engine": "ray", "device": "cpu", **cluster})


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Any]:
    """An S3-compatible server, and the environment in which every client finds it."""
    import s3fs
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

    s3fs.S3FileSystem.clear_instance_cache()  # one of another module's server
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
def asked_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients that ask again without a pause, and once: what is tested is what comes of it."""
    import s3fs

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Any]]:
    """Serves folders as a data set of the Hub to the Hub's own client, without a token."""
    import fsspec
    import huggingface_hub
    from hub_server import HubServer

    servers: list[HubServer] = []

    def serve(folder: Path) -> HubServer:
        servers.append(HubServer(folder))
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": servers[-1].url, "token": False})
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
    huggingface_hub.HfFileSystem.clear_instance_cache()
