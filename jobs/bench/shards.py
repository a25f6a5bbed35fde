"""Writing a data shard and reading it again, against raw writes and reads of the same bytes."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from jobs.bench.mixes import MAX_PIXELS, interleaved, photos_of

SEED = 7


def bench_write(arguments: argparse.Namespace) -> dict[str, object]:
    import os

    from pipeline.output.shard import ShardRows, embedding_array, write_data_shard

    rows, row_bytes = 96, 600 * 3584 * 2
    payload = np.random.default_rng(SEED).integers(0, 256, rows * row_bytes, dtype=np.uint8)
    lengths = np.full(rows, row_bytes, np.int64)
    names = ["key", "source", "sha256", "clamped", "dtype"]
    columns: dict[str, list[object]] = {name: ["x"] * rows for name in names}
    for name in ("width", "height", "resized_width", "resized_height", "num_patches", "num_tokens", "hidden_size"):
        columns[name] = [1] * rows
    columns |= {
        "norm_mean": [1.0] * rows,
        "norm_max": [1.0] * rows,
        "grid_thw": [[1, 2, 2]] * rows,
        "scale": [None] * rows,
    }
    with tempfile.TemporaryDirectory(dir=".") as folder:

        def ours() -> None:
            path = Path(folder, "shard")
            rows = ShardRows(columns=columns, embedding=embedding_array(payload, lengths), metadata={})
            write_data_shard(path, rows, 32 << 20)
            path.unlink()

        def raw() -> None:
            path = Path(folder, "raw")
            with open(path, "wb", buffering=0) as stream:
                stream.write(payload.data)
                os.fsync(stream.fileno())
            path.unlink()

        seconds = interleaved({"ours": ours, "raw": raw}, arguments.repeats)
    return {
        "bytes": payload.nbytes,
        "ours_mb_per_second": payload.nbytes / seconds["ours"] / 1e6,
        "raw_mb_per_second": payload.nbytes / seconds["raw"] / 1e6,
        "ratio": seconds["raw"] / seconds["ours"],
        "asked": 0.5,
    }


def bench_read(arguments: argparse.Namespace) -> dict[str, object]:
    """The reader against reading the same shards raw; page cache warm for both."""
    from pipeline.config import parse_config
    from pipeline.read.reader import EmbeddingDataset
    from pipeline.run.runner import run

    with tempfile.TemporaryDirectory(dir=".") as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        for number, path in enumerate(photos_of(arguments.photos)[:24]):
            for copy in range(4):
                target = photos / f"{number:03d}-{copy}{path.suffix.lower()}"
                target.symlink_to(path.resolve())
        config = parse_config(
            {
                "source": {"uri": str(photos)},
                "preprocess": {"max_pixels": MAX_PIXELS},
                "model": {"path": "random:tiny", "dtype": "float32"},
                "output": {"uri": f"{folder}/out", "dtype": "float32", "stage": "pre_merger", "shard_tokens": 16_384},
                "cluster": {"engine": "inline"},
            }
        )
        run(config, say=lambda line: None, report=lambda *_: None)
        dataset = EmbeddingDataset(f"{folder}/out")
        shards = sorted(Path(folder, "out", "data").iterdir())

        def ours() -> int:
            return sum(item["image_embeds"].nbytes for item in dataset.stream())

        def raw() -> int:
            return sum(len(path.read_bytes()) for path in shards)

        size = ours()
        seconds = interleaved({"ours": ours, "raw": raw}, arguments.repeats)
    return {
        "bytes": size,
        "ours_mb_per_second": size / seconds["ours"] / 1e6,
        "raw_mb_per_second": size / seconds["raw"] / 1e6,
        "ratio": seconds["raw"] / seconds["ours"],
        "asked": 0.7,
    }
