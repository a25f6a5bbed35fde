"""One data set of images, captions and keys, written in every source format."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import make_tar


def captions(images: dict[str, bytes]) -> list[str]:
    return [f"a caption of {name}" for name in images]


def as_bytes(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    table = pa.table({"id": list(images), "image": list(images.values()), "caption": captions(images)})
    pq.write_table(table, place / "images.parquet")
    return place / "images.parquet"


def as_large_bytes(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    table = pa.table(
        {"id": list(images), "image": pa.array(images.values(), pa.large_binary()), "caption": captions(images)}
    )
    pq.write_table(table, place / "images.parquet")
    return place  # a folder of Parquet files


def as_hugging_face(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """Written by `datasets` itself."""
    import datasets

    features = datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
    )
    rows = {
        "id": list(images),
        "image": [{"bytes": data, "path": name} for name, data in images.items()],
        "caption": captions(images),
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(place / "images.parquet"))
    assert "struct<bytes: binary, path: string>" in str(pq.read_schema(place / "images.parquet").field("image").type)
    return place / "*.parquet"


def as_paths(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    names = [str(folder / name) for name in images]
    pq.write_table(
        pa.table({"id": list(images), "image": names, "caption": captions(images)}), place / "images.parquet"
    )
    return place / "images.parquet"


def as_lists(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    pairs = list(zip(list(images.items())[::2], list(images.items())[1::2], strict=True))
    table = pa.table(
        {
            "id": [first[0] for first, _ in pairs],
            "image": [[first[1], second[1]] for first, second in pairs],
            "caption": captions(images)[::2],
        }
    )
    pq.write_table(table, place / "images.parquet")
    return place / "images.parquet"


def as_jsonl(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    (place / "deeper").mkdir()
    lines = [
        {"id": name, "image": f"../{name}" if number % 2 else str(folder / name), "caption": caption}
        for number, (name, caption) in enumerate(zip(images, captions(images), strict=True))
    ]
    for name, data in images.items():
        (place / name).write_bytes(data)
    path = place / "deeper" / "images.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))  # no newline at the end
    return path


def as_tar(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    members = []
    for (name, data), caption in zip(images.items(), captions(images), strict=True):
        members += [(name, data), (name.replace(".png", ".caption"), caption.encode())]
    return make_tar(place / "images.tar", members)


DOORS = [as_bytes, as_large_bytes, as_hugging_face, as_paths, as_lists, as_jsonl, as_tar]
