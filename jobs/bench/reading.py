"""Reading an output by two loader workers: against the same bytes raw, other loaders, and one request at a time."""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from jobs.bench.mixes import MAX_PIXELS, photos_of
from jobs.bench.slow_store import BUCKET

WORKERS = 2
REQUEST_SECONDS = 0.03
COPIES = 20  # of each photo


class Raw(IterableDataset[torch.Tensor]):
    """The bytes of files, one after the other, in pieces as large as rows: what no reader can be faster than."""

    def __init__(self, files: list[Path], piece_bytes: int) -> None:
        self._files, self._piece_bytes = files, piece_bytes

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        for path in self._files[worker.id :: worker.num_workers] if worker else self._files:
            with open(path, "rb", buffering=0) as stream:
                rest = path.stat().st_size
                while rest:
                    piece = torch.empty(min(rest, self._piece_bytes), dtype=torch.uint8)
                    rest -= stream.readinto(piece.numpy().data) or rest
                    yield piece


class OneAtATime:
    """An output whose rows are asked for one after the other."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.unit_lengths, self.token_counts = dataset.unit_lengths, dataset.token_counts

    def read_each(self, places: Iterable[tuple[int, int]]) -> Iterator[Any]:
        return itertools.starmap(self._dataset.read, places)


def loader_of(dataset: Any) -> Any:
    return DataLoader(dataset, batch_size=None, num_workers=WORKERS)


def bytes_per_second(loader: Iterable[Any]) -> float:
    """Bytes of tokens that a loader gives a second, from the first item to the last: workers come and go slowly."""
    sizes, moments = [], []
    for item in loader:
        sizes.append((item["image_embeds"] if isinstance(item, dict) else item).nbytes)
        moments.append(time.perf_counter())
    return sum(sizes[1:]) / (moments[-1] - moments[0])


def rates(loaders: dict[str, Callable[[], Iterable[Any]]], repeats: int) -> dict[str, float]:
    """The median of each loader's bytes a second; in turns, after one warm-up each."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(repeats + 1):
        for name, make in loaders.items():
            rate = bytes_per_second(make())
            if turn:
                found[name].append(rate)
    return {name: statistics.median(values) for name, values in found.items()}


def encode(photos: list[Path], folder: Path, **output: object) -> Path:
    """An output over links to photos, of rows of some megabytes or as `output` says."""
    from pipeline.config import parse_config
    from pipeline.run.runner import run

    source = folder / "photos"
    source.mkdir(exist_ok=True)
    for number, copy in itertools.product(range(min(24, len(photos))), range(COPIES)):
        link = source / f"{number:03d}-{copy:02d}{photos[number].suffix.lower()}"
        if not link.exists():
            link.symlink_to(photos[number].resolve())
    fields = {"dtype": "float32", "stage": "pre_merger", "shard_tokens": 16_384} | output
    tree: dict[str, Any] = {
        "source": {"uri": str(source)},
        "preprocess": {"max_pixels": MAX_PIXELS},
        "model": {"path": "random:tiny", "dtype": "float32"},
        "output": {"uri": str(folder / str(fields.pop("name"))), **fields},
        "cluster": {"engine": "inline"},
    }
    run(parse_config(tree), say=lambda line: None, report=lambda *_: None)
    return Path(tree["output"]["uri"])


def webdataset_of(tars: list[Path]) -> Any:
    import safetensors.torch
    import webdataset

    def tokens(sample: dict[str, bytes]) -> torch.Tensor:
        return safetensors.torch.load(sample["safetensors"])["image_embeds"]

    return webdataset.WebDataset([str(path) for path in tars], shardshuffle=False, empty_check=False).map(tokens)


def energon_loader(folder: Path) -> Any:
    """Energon's own loader over a folder of tars, which it prepares first."""
    import safetensors.torch
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )
    from megatron.energon.cli.main import main as energon

    options = ["--non-interactive", "--sample-type", "CrudeWebdataset", "--split-ratio", "1,0,0"]
    if not (folder / ".nv-meta").exists():
        energon(["prepare", str(folder), *options], standalone_mode=False)

    @stateless  # type: ignore[untyped-decorator]
    def tokens(sample: Any) -> Any:
        return safetensors.torch.load(sample["safetensors"])["image_embeds"]

    class Tokens(DefaultTaskEncoder[Any, Any, Any, Any]):  # type: ignore[misc]
        cookers = (Cooker(tokens),)

    dataset = get_train_dataset(
        folder,
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=WORKERS),
        task_encoder=Tokens(),
        repeat=False,
    )
    return get_savable_loader(dataset)


def bench_loaders(arguments: argparse.Namespace) -> dict[str, object]:
    """Two workers of a DataLoader, page cache warm: our stream, raw, WebDataset, Energon; then object storage."""
    from pipeline.read.reader import EmbeddingDataset

    with tempfile.TemporaryDirectory(dir=".") as name:
        folder, photos = Path(name).resolve(), photos_of(arguments.photos)
        output = encode(photos, folder, name="out")
        tars = sorted((encode(photos, folder, name="tars", format="webdataset") / "data").iterdir())
        dataset = EmbeddingDataset(output)
        size = sum(item["image_embeds"].nbytes for item in dataset.stream())
        raw = Raw(sorted((output / "data").iterdir()), size // len(dataset))
        loaders: dict[str, Callable[[], Iterable[Any]]] = {
            "ours": lambda: loader_of(dataset.stream()),
            "ours_shuffled": lambda: loader_of(dataset.stream(shuffle_seed=1)),
            "raw": lambda: loader_of(raw),
            "webdataset": lambda: loader_of(webdataset_of(tars)),
            "energon": lambda: energon_loader(tars[0].parent),
        }
        found = rates(loaders, arguments.repeats)
        results: dict[str, object] = {"bytes": size, "rows": len(dataset)}
        results |= {f"{name}_mb_per_second": rate / 1e6 for name, rate in found.items()}
        results |= {"ratio": found["ours"] / found["raw"], "asked": 0.9}
        return results | from_object_storage(encode(photos, folder, name="small", **SMALL), arguments.repeats)


SMALL = {"stage": "merged", "dtype": "bfloat16"}


def from_object_storage(output: Path, repeats: int) -> dict[str, object]:
    """The same by a store that takes 30 ms for each request."""
    from pipeline.read.reader import EmbeddingDataset
    from pipeline.read.stream import EmbeddingStream

    with slow_store(output) as uri:
        dataset = EmbeddingDataset(uri)
        loaders: dict[str, Callable[[], Iterable[Any]]] = {
            "ahead": lambda: loader_of(dataset.stream()),
            "one": lambda: loader_of(EmbeddingStream(OneAtATime(dataset))),
            "alone": lambda: dataset.stream(),
            "alone_one": lambda: EmbeddingStream(OneAtATime(dataset)),
        }
        found = rates(loaders, min(repeats, 3))
        row_bytes = sum(item["image_embeds"].nbytes for item in dataset.stream()) / len(dataset)
    return {
        "s3_row_bytes": row_bytes,
        "s3_rows_per_second": found["ahead"] / row_bytes,
        "s3_one_at_a_time_rows_per_second": found["one"] / row_bytes,
        "s3_ratio": found["ahead"] / found["one"],
        "s3_one_process_rows_per_second": found["alone"] / row_bytes,
        "s3_one_process_ratio": found["alone"] / found["alone_one"],
        "s3_asked": 5.0,
    }


@contextmanager
def slow_store(output: Path) -> Iterator[str]:
    """An output in a bucket of a process of its own, whose URI is given."""
    program = [sys.executable, "-m", "jobs.bench.slow_store", str(output), str(REQUEST_SECONDS)]
    server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        os.environ.update(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x")
        os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
        yield f"s3://{BUCKET}"
    finally:
        server.terminate()
        server.wait()
