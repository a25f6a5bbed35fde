"""One data set of images, captions and keys, written in every source format."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
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


def as_folder(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    for (name, data), caption in zip(images.items(), captions(images), strict=True):
        (place / name).write_bytes(data)
        (place / name).with_suffix(".caption").write_text(caption)
    return place


def as_tars(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """Several of them, in a folder that is named itself."""
    items = list(images.items())
    for number, some in enumerate((items[:10], items[10:])):
        (place / f"{number}").mkdir()
        as_tar(dict(some), folder, place / f"{number}")
    return place


def as_data_values(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """Text that is the image itself, in Parquet."""
    table = pa.table({"id": list(images), "image": values_of(images), "caption": captions(images)})
    pq.write_table(table, place / "images.parquet", row_group_size=10)
    return place / "images.parquet"


def as_lists_of_structs(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """A list with one image, as data sets of several images a row have it."""
    cells = [[{"bytes": data, "path": name}] for name, data in images.items()]
    pq.write_table(
        pa.table({"id": list(images), "image": cells, "caption": captions(images)}), place / "images.parquet"
    )
    return place / "images.parquet"


def as_table_folder(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """A folder that is called like a file, as Spark and Delta write it, with a log that is no data."""
    table, names = place / "train.parquet", list(images)
    (table / "_delta_log").mkdir(parents=True)
    (table / "_delta_log" / "00000.json").write_text("{}")
    pq.write_table(pa.table({"add": ["part-0"]}), table / "_delta_log" / "00000.checkpoint.parquet")
    (table / "_SUCCESS").write_text("")
    (table / ".part-0.parquet.crc").write_bytes(b"crc")
    told = captions(images)
    for number, (first, last) in enumerate(((0, 10), (10, len(names)))):
        some = names[first:last]
        columns = {"id": some, "image": [{"bytes": images[name]} for name in some], "caption": told[first:last]}
        pq.write_table(pa.table(columns), table / f"part-{number}.snappy.parquet")
    return table


def as_saved(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """By `save_to_disk` of `datasets`, over one that had more files, with a table that `map` has left there."""
    import datasets

    features = datasets.Features(
        {"id": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
    )
    cells = [{"bytes": data, "path": name} for name, data in images.items()]
    rows = {"id": list(images), "image": cells, "caption": captions(images)}
    data_set = datasets.Dataset.from_dict(rows, features=features)
    data_set.save_to_disk(str(place / "saved"), num_shards=3)
    (place / "saved" / "cache-0123.arrow").write_bytes((place / "saved" / "data-00000-of-00003.arrow").read_bytes())
    data_set.save_to_disk(str(place / "saved"), num_shards=2)
    return place / "saved"


def as_feather(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """Record batches of five rows, and a column with a dictionary."""
    told = pa.array(captions(images)).dictionary_encode()
    table = pa.table({"id": list(images), "image": list(images.values()), "caption": told})
    pyarrow.feather.write_feather(table, place / "images.feather", chunksize=5)
    return place / "images.feather"


def values_of(images: dict[str, bytes]) -> list[str]:
    return [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in images.values()]


def records_of(images: dict[str, bytes], place: Path) -> list[dict[str, object]]:
    for name, data in images.items():
        (place / name).write_bytes(data)
    return [{"id": name, "image": name, "caption": told} for name, told in zip(images, captions(images), strict=True)]


def as_json(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    path = place / "images.json"
    path.write_text(json.dumps(records_of(images, place), indent=2), encoding="utf-8-sig")
    return path


def as_json_of_values(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """On one line; of two spellings of bytes one each in turn."""
    values = enumerate(values_of(images))
    cells = [value if number % 2 else {"bytes": value.partition(",")[2]} for number, value in values]
    rows = [
        {"caption": told, "images": [cell], "id": name}
        for name, cell, told in zip(images, cells, captions(images), strict=True)
    ]
    (place / "images.json").write_text(json.dumps(rows))
    return place / "images.json"


def as_csv(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    with open(place / "images.csv", "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["caption", "id", "image"])
        writer.writeheader()
        writer.writerows(records_of(images, place))
    return place / "images.csv"


def as_tsv_of_values(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    rows = zip(images, values_of(images), captions(images), strict=True)
    (place / "images.tsv").write_text("id\timage\tcaption\n" + "".join("\t".join(row) + "\n" for row in rows))
    return place / "images.tsv"


def as_text(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    names = [record["image"] for record in records_of(images, place)]
    (place / "images.txt").write_text("".join(f"{name}\r\n" for name in names))
    return place / "images.txt"


def as_plain_tar(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """As tar packs a folder: what stands before the first dot is one camera, and no sample."""
    members: list[tuple[str, bytes]] = []
    for (name, data), told in zip(images.items(), captions(images), strict=True):
        members += [(f"cam/photo.{name}", data), (f"cam/photo.{name.replace('.png', '.caption')}", told.encode())]
    return make_tar(place / "plain.tar", members)


def as_views(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    values = pa.array(images.values(), pa.binary_view())
    told = pa.array(captions(images), pa.string_view())
    pq.write_table(pa.table({"id": list(images), "image": values, "caption": told}), place / "images.parquet")
    return place / "images.parquet"


def as_categories(images: dict[str, bytes], folder: Path, place: Path) -> Path:
    """As pandas writes what it calls categories."""
    values, told = (pa.array(column).dictionary_encode() for column in (list(images.values()), captions(images)))
    pq.write_table(pa.table({"id": list(images), "image": values, "caption": told}), place / "images.parquet")
    return place / "images.parquet"


Door = Callable[[dict[str, bytes], Path, Path], Path]
DOORS: list[Door] = [as_bytes, as_large_bytes, as_hugging_face, as_paths, as_lists, as_jsonl, as_tar]
DOORS += [as_folder, as_tars, as_data_values, as_lists_of_structs, as_table_folder, as_saved, as_feather, as_json]
DOORS += [as_json_of_values, as_csv, as_tsv_of_values, as_text, as_plain_tar, as_views, as_categories]
BY_MEMBERS = (
    as_folder,
    as_tar,
    as_tars,
    as_plain_tar,
)  # what stands beside an image is carried, and there is no key column


def fields_of(door: Door) -> dict[str, object]:
    """What of `source` is to be said beside the URI: the format never."""
    if door is as_text:
        return {}
    fields: dict[str, object] = {"carry": ["caption"]}
    if door not in BY_MEMBERS:
        fields["key_column"] = "id"
    if door is as_json_of_values:
        fields["image_column"] = "images"
    return fields


def rows_of(door: Door, images: dict[str, bytes]) -> list[tuple[str, str | None]]:
    """Key and caption of every sample, in order."""
    keys, told = list(images), [*captions(images)]
    if door in (as_tar, as_tars):
        keys = [key.removesuffix(".png") for key in keys]
    if door is as_plain_tar:
        keys = [f"cam/photo.{key}" for key in keys]
    if door in (as_lists_of_structs, as_json_of_values):
        keys = [f"{key}/0" for key in keys]
    if door is as_lists:
        keys = [f"{keys[number - number % 2]}/{number % 2}" for number in range(len(keys))]
        told = [told[number - number % 2] for number in range(len(keys))]
    if door is as_text:
        return [(f"images.txt:{number}", None) for number in range(len(keys))]
    return list(zip(keys, told, strict=True))
