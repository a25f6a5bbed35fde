"""The reader: every row once, over ranks, workers and resumption; one range for one row; other engines' readers."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPOSITORY, config_for, encoded, make_tar, noise

import pipeline.read.keys as keys_module
from pipeline import EmbeddingDataset
from pipeline.errors import OutputError, RequestError
from pipeline.read import stored
from pipeline.read.reader import collate
from pipeline.read.stream import EmbeddingStream
from pipeline.run.runner import run

pytestmark = pytest.mark.slow


def run_here(config: Any) -> None:
    assert run(config, say=lambda line: None, report=lambda *_: None).complete


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "a.parquet"
    # A reject in the middle of a unit: what stands behind it must not be shifted.
    cells = [encoded(noise(60 + 17 * (n % 5), 60 + 31 * (n % 7), n)) if n != 2 else b"broken" for n in range(23)]
    pq.write_table(pa.table({"image": cells, "id": [f"k{n}" for n in range(23)], "n": range(23)}), path)
    return path


def make_output(source: Path, output: Path, model_path: Path, dtype: str = "float32") -> Path:
    fields = {"key_column": "id", "carry": ["n"]}
    run_here(config_for(source, output, model_path, source=fields, output={"dtype": dtype}))
    return output


@pytest.fixture(scope="module")
def output(source: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_output(source, tmp_path_factory.mktemp("output") / "out", model_path)


@pytest.fixture(scope="module")
def rows(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "data").to_pylist()


@pytest.fixture(scope="module", autouse=True)
def _reject_in_the_middle(output: Path) -> None:
    statuses = pq.read_table(output / "samples" / "part-000000-0000.parquet").column("status").to_pylist()
    assert statuses == ["ok", "ok", "unidentified", "ok"]


def same(item: dict[str, Any], row: dict[str, Any]) -> bool:
    tokens = np.frombuffer(row["embedding"], np.float32).reshape(row["num_tokens"], row["hidden_size"])
    return (
        np.array_equal(item["image_embeds"].numpy(), tokens)
        and item["grid_thw"].tolist() == row["grid_thw"]
        and (item["key"], item["source"], item["n"]) == (row["key"], row["source"], row["n"])
    )


def test_every_row_by_number_and_key(output: Path, rows: list[dict[str, Any]]) -> None:
    dataset = EmbeddingDataset(output)
    assert len(dataset) == len(rows) == 22
    assert all(same(dataset[number], row) for number, row in enumerate(rows))
    assert same(dataset[-1], rows[-1])
    assert same(dataset["k7"], rows[6])
    assert same(dataset["a.parquet", "k7"], rows[6])
    assert [item["key"] for item in dataset.get_many(["k9", "k3", 0, "k9"])] == ["k9", "k3", "k0", "k9"]
    for missing in ("k2", "nothing", ("b.parquet", "k7")):
        with pytest.raises(KeyError):
            dataset[missing]
    for missing in (22, -23):
        with pytest.raises(IndexError, match=f"row {missing} of 22"):
            dataset[missing]
    assert all(same(item, rows[number]) for number, item in enumerate(pickle.loads(pickle.dumps(dataset)).stream()))


def test_a_key_in_several_files_is_refused_by_name(model_path: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_tar(tmp_path / f"{name}.tar", [("x.png", encoded(noise(60, 60)))])
    run_here(config_for(tmp_path / "*.tar", tmp_path / "out", model_path))
    dataset = EmbeddingDataset(tmp_path / "out")
    with pytest.raises(RequestError, match=r"'x' stands 2 times: in a\.tar, b\.tar; ask by \(source, key\)"):
        dataset["x"]
    assert dataset["b.tar", "x"]["source"] == "b.tar"


def test_random_access_reads_little_more_than_the_embedding(
    output: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One range read a row, of exactly its bytes: a reader of row groups would take every neighbour's as well."""
    dataset = EmbeddingDataset(output)
    read: list[int] = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: read.append(preadv(fd, buffers, offset)) or read[-1])
    for number, row in enumerate(rows):
        read.clear()
        assert same(dataset[number], row)
        assert read == [len(row["embedding"])]


def test_keys_of_equal_hashes_are_told_apart(
    output: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "hash", lambda key: hash(key) % 3, raising=False)
    dataset = EmbeddingDataset(output)
    assert all(same(dataset[row["key"]], row) for row in rows)
    with pytest.raises(KeyError):
        dataset["nothing"]


def test_a_short_read_is_read_on(output: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may give fewer bytes than were asked for; a shard that ends within a row is an error."""
    dataset = EmbeddingDataset(output)
    read: list[int] = []
    preadv = os.preadv

    def short(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        read.append(offset)
        return preadv(descriptor, [buffers[0][:1000]], offset)

    monkeypatch.setattr(os, "preadv", short)
    assert all(same(dataset[number], row) for number, row in enumerate(rows))
    assert len(read) > 2 * len(rows)
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(OutputError, match=r"part-000000-0000\.parquet ends at byte \d+, inside an embedding"):
        dataset[0]


def test_what_is_kept_of_many_units_is_bounded(
    output: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables and open files of the units that were used last, and no others; a data set that is gone holds no file."""

    def open_shards() -> set[str]:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        names = (os.readlink(link) for link in links if link.is_symlink())
        return {Path(name).stem for name in names if name.startswith(str(output / "data"))}

    tables, opened = [], []
    read_table, open_file = pq.read_table, os.open
    monkeypatch.setattr(os, "open", lambda path, *a, **k: opened.append(path) or open_file(path, *a, **k))
    monkeypatch.setattr(pq, "read_table", lambda *a, **k: tables.append(a) or read_table(*a, **k))
    monkeypatch.setattr(stored, "FILES_KEPT", 2)
    dataset = EmbeddingDataset(output, rows_kept=10)
    units = len(dataset.unit_lengths())
    assert units > 6
    for unit in range(units):
        dataset.read(unit, 0)
        dataset.read(0, 0)  # used again, so kept
        assert open_shards() == {f"part-000000-{number:04d}" for number in {0, unit}}
    assert len(tables) == units
    assert len([path for path in opened if str(path).startswith(str(output / "data"))]) == units
    assert len(dataset._tables) > 2
    assert dataset._tables.held <= 10
    dataset.read(1, 0)
    assert len(tables) == units + 1  # let go, so read again
    del dataset
    assert not open_shards()
    assert stored.FILES_KEPT == 2
    assert all(same(item, row) for item, row in zip(EmbeddingDataset(output).stream(), rows, strict=True))


def test_parts_that_are_not_folded_are_read_by_their_records(
    output: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """As while a run goes on, or behind one that was killed; and only units that are committed."""
    assert list((output / "ledger").iterdir())
    copy = Path(shutil.copytree(output, tmp_path / "out", ignore=shutil.ignore_patterns("ledger", "_SUCCESS")))
    dataset = EmbeddingDataset(copy, allow_incomplete=True)
    assert [same(item, row) for item, row in zip(dataset.stream(), rows, strict=True)] == [True] * 22
    (copy / "samples" / "part-000000-0000.parquet").unlink()
    fewer = EmbeddingDataset(copy, allow_incomplete=True)
    lost = dataset.unit_lengths()[0]
    assert len(fewer) == 22 - lost
    assert same(fewer[0], rows[lost])
    with pytest.raises(KeyError):
        fewer["k0"]


def test_a_remote_range_that_comes_back_short_is_an_error(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(output), "/short", recursive=True)
    dataset = EmbeddingDataset("memory://short")
    dataset._rows(0)
    cat_file = memory.cat_file
    monkeypatch.setattr(
        type(memory), "cat_file", lambda self, path, start=None, end=None: cat_file(path, start, end and end - 4)
    )
    with pytest.raises(OutputError, match=r"\d+ of \d+ bytes at"):
        dataset[0]


def test_of_object_storage_several_rows_are_under_way_at_once(
    output: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order all the same; and who stops early does not wait for what is left."""
    memory = fsspec.filesystem("memory")
    memory.put(str(output), "/ahead", recursive=True)
    dataset = EmbeddingDataset("memory://ahead")
    cat_file = memory.cat_file
    now: list[str] = []
    most, asked = 0, 0

    def read_slowly(self: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        nonlocal most, asked
        now.append(path)
        most, asked = max(most, len(now)), asked + 1
        time.sleep(0.02)
        now.remove(path)
        return cat_file(path, start, end)

    monkeypatch.setattr(type(memory), "cat_file", read_slowly)
    assert [same(item, row) for item, row in zip(dataset.stream(), rows, strict=True)] == [True] * len(rows)
    assert most >= 8
    asked = 0
    stream = iter(dataset.stream())
    next(stream)
    stream.close()
    assert asked < len(rows)


def test_a_remote_output(output: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(output), "/remote", recursive=True)
    dataset = EmbeddingDataset("memory://remote")
    asked: list[int] = []
    cat_file = memory.cat_file
    monkeypatch.setattr(
        type(memory),
        "cat_file",
        lambda self, path, start=None, end=None: (end and asked.append(end - start)) or cat_file(path, start, end),
    )
    dataset._rows(0)
    assert same(dataset[0], rows[0])
    assert asked == [len(rows[0]["embedding"])]
    assert all(same(item, row) for item, row in zip(dataset.stream(), rows, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("shuffle_seed", [None, 3])
@pytest.mark.parametrize("world_size", [1, 3, 5])
def test_ranks_and_workers_share_every_row_once(output: Path, shuffle_seed: int | None, world_size: int) -> None:
    dataset = EmbeddingDataset(output)
    seen: Counter[str] = Counter()
    counts = []
    for rank in range(world_size):
        stream = dataset.stream(shuffle_seed=shuffle_seed, shuffle_buffer=6, rank=rank, world_size=world_size)
        loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2 if world_size < 5 else 0)
        keys = [item["key"] for item in loader]
        seen.update(keys)
        counts.append(len(keys))
    assert len(seen) == 22
    assert set(seen.values()) == {1}
    assert max(counts) - min(counts) <= 2


def test_shuffling_depends_on_seed_and_epoch_alone(output: Path) -> None:
    dataset = EmbeddingDataset(output)

    def keys(seed: int, epoch: int) -> list[str]:
        stream = dataset.stream(shuffle_seed=seed, shuffle_buffer=8)
        stream.set_epoch(epoch)
        return [item["key"] for item in stream]

    orders = [keys(1, 0), keys(1, 1), keys(2, 0)]
    assert orders[0] == keys(1, 0)
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    written = [item["key"] for item in dataset.stream()]
    assert written == [f"k{number}" for number in range(23) if number != 2]
    assert written not in orders


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_a_position_is_resumed_without_reading_what_was_read(
    output: Path, shuffle_seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = EmbeddingDataset(output)
    whole = [item["key"] for item in dataset.stream(shuffle_seed=shuffle_seed)]
    stream = dataset.stream(shuffle_seed=shuffle_seed)
    iterator = iter(stream)
    first = [next(iterator)["key"] for _ in range(9)]
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = EmbeddingStream(dataset, shuffle_seed=shuffle_seed)
    resumed.load_state_dict(state)
    read: list[int] = []
    take = dataset.read
    monkeypatch.setattr(dataset, "read", lambda unit, row: read.append(row) or take(unit, row))
    rest = [item["key"] for item in resumed]
    assert first + rest == whole
    assert len(read) == len(whole) - 9


def test_batches_are_packed_by_the_ledger_and_without_it(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their lengths alone: no embedding and no samples shard is read for a batch that is skipped."""
    bare = tmp_path / "out"
    shutil.copytree(output, bare)
    shutil.rmtree(bare / "ledger")
    dataset = EmbeddingDataset(output)
    counts = [int(count) for unit in range(len(dataset.unit_lengths())) for count in dataset.token_counts(unit)]
    assert counts == [len(item["image_embeds"]) for item in dataset.stream()]
    budget = 2 * max(counts)
    batches = [[item["key"] for item in batch] for batch in dataset.stream(max_tokens=budget)]
    assert len(batches) < 0.8 * len(counts)
    assert [[item["key"] for item in batch] for batch in EmbeddingDataset(bare).stream(max_tokens=budget)] == batches
    again = EmbeddingDataset(output)
    monkeypatch.setattr(again, "_rows", None)
    stream = again.stream(max_tokens=budget)
    stream.load_state_dict({"epoch": 0, "position": len(batches)})
    assert list(stream) == []


def test_the_lengths_of_another_run_are_not_taken(output: Path, source: Path, model_path: Path, tmp_path: Path) -> None:
    """A ledger that was copied there: of the same units, with other lengths."""
    fields = {"source": {"key_column": "id", "carry": ["n"]}, "preprocess": {"max_pixels": 4000}}
    run_here(config_for(source, tmp_path / "out", model_path, output={"shard_tokens": 1}, **fields))
    run_here(config_for(source, tmp_path / "larger", model_path, output={"shard_tokens": 1}, source=fields["source"]))
    dataset = EmbeddingDataset(tmp_path / "out")
    assert dataset.unit_lengths() == EmbeddingDataset(tmp_path / "larger").unit_lengths()
    shutil.copy(tmp_path / "larger" / "ledger" / "part-000000.parquet", tmp_path / "out" / "ledger")
    counts = [int(count) for unit in range(len(dataset.unit_lengths())) for count in dataset.token_counts(unit)]
    assert counts == [len(item["image_embeds"]) for item in dataset.stream()]


@pytest.mark.slow
def test_a_stateful_loader_goes_on_in_the_middle(output: Path) -> None:
    """torchdata's own, with two workers: the batches that were not taken, in their order, and no other."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def fresh() -> StatefulDataLoader:
        stream = EmbeddingDataset(output).stream(shuffle_seed=1, max_tokens=60)
        return StatefulDataLoader(stream, batch_size=None, num_workers=2)

    def keys(batch: list[dict[str, Any]]) -> list[str]:
        return [item["key"] for item in batch]

    whole = [keys(batch) for batch in fresh()]
    loader = fresh()
    iterator = iter(loader)
    first = [keys(next(iterator)) for _ in range(3)]
    state = loader.state_dict()
    del iterator
    resumed = fresh()
    resumed.load_state_dict(state)
    assert len(whole) > 5
    assert first + [keys(batch) for batch in resumed] == whole


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "fp8"])
def test_dtypes(dtype: str, source: Path, model_path: Path, output: Path, tmp_path: Path) -> None:
    dataset = EmbeddingDataset(make_output(source, tmp_path / "out", model_path, dtype))
    exact = EmbeddingDataset(output)
    for number in (0, 5, 21):
        tokens = dataset[number]["image_embeds"]
        assert tokens.dtype == torch.bfloat16
        wanted = exact[number]["image_embeds"]
        assert float((tokens.float() - wanted).norm() / wanted.norm()) < (0.04 if dtype == "fp8" else 0.02)
        worst = (tokens.float() - wanted).abs().amax(-1) / wanted.abs().amax(-1)  # token by token: each has its scale
        assert float(worst.max()) < (0.05 if dtype == "fp8" else 0.01)


def test_a_batch(output: Path) -> None:
    batch = collate([EmbeddingDataset(output)[number] for number in (0, 1)])
    assert len(batch["image_embeds"]) == int(batch["image_grid_thw"].prod(-1).sum()) // 4
    assert batch["key"] == ["k0", "k1"]


def test_what_is_no_output_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not an output of visionbake"):
        EmbeddingDataset(tmp_path)


@pytest.mark.slow
def test_other_engines_open_it(output: Path, rows: list[dict[str, Any]]) -> None:
    """A token statistic by SQL or frame, and one embedding back to values, in each."""
    import datasets
    import duckdb
    import pandas as pd
    import polars as pl

    total = sum(row["num_tokens"] for row in rows)
    wanted = rows[3]["embedding"]
    files, table = f"{output}/data/*.parquet", f"{output}/samples/*.parquet"
    assert duckdb.sql(f"SELECT sum(num_tokens) FROM '{table}' WHERE status = 'ok'").fetchall() == [(total,)]
    assert duckdb.sql(f"SELECT embedding FROM '{files}' WHERE key = 'k4'").fetchall() == [(wanted,)]
    frame = pd.concat(pd.read_parquet(path) for path in sorted((output / "data").iterdir()))
    assert frame["num_tokens"].sum() == total
    assert frame.set_index("key").loc["k4", "embedding"] == wanted
    assert pl.scan_parquet(table).select(pl.col("num_tokens").sum()).collect().item() == total
    assert pl.read_parquet(files).filter(pl.col("key") == "k4")["embedding"][0] == wanted
    hugging_face = datasets.load_dataset(
        "parquet", data_files=sorted(map(str, (output / "data").iterdir())), split="train", cache_dir=str(output.parent)
    )
    assert sum(hugging_face["num_tokens"]) == total
    assert hugging_face[3]["embedding"] == wanted
    assert pq.read_table(output / "data", columns=["num_tokens"]).column(0).to_numpy().sum() == total


def test_it_is_used_as_people_use_such_things(output: Path, rows: list[dict[str, object]]) -> None:
    dataset = EmbeddingDataset(output)
    keys = [row["key"] for row in rows]
    assert list(dataset.keys()) == keys
    assert all(key in dataset for key in keys)
    assert (rows[0]["source"], keys[0]) in dataset
    assert not any(
        other in dataset for other in ("none", ("none", keys[0]), (1, 2, 3), 0, None, dataset[0]["grid_thw"])
    )
    assert [item["key"] for item in dataset[1:7:2]] == keys[1:7:2]
    assert [item["key"] for item in dataset[::-1]] == keys[::-1]
    assert dataset[5:5] == []
    assert [item["key"] for item in dataset[[3, keys[1], -1]]] == [keys[3], keys[1], keys[-1]]
    with pytest.raises(KeyError, match=f"did you mean {str(keys[2])!r}"):
        dataset[f"{keys[2]}x"]


def test_an_output_that_is_not_complete_says_how_far_it_is(output: Path, tmp_path: Path) -> None:
    shutil.copytree(output, tmp_path / "out")
    (tmp_path / "out" / "_SUCCESS").unlink()
    last = max((tmp_path / "out" / "samples").iterdir())
    units = len(list(last.parent.iterdir()))
    for folder in ("samples", "ledger"):
        for path in (tmp_path / "out" / folder).iterdir():
            if path == last or folder == "ledger":
                path.unlink()
    with pytest.raises(RequestError, match=rf"not complete: {units - 1} units are committed.*allow_incomplete"):
        EmbeddingDataset(tmp_path / "out")
    part = EmbeddingDataset(tmp_path / "out", allow_incomplete=True)
    assert 0 < len(part) < len(EmbeddingDataset(output))


def test_hugging_face_loads_an_output_as_it_lies(output: Path, rows: list[dict[str, object]], tmp_path: Path) -> None:
    """By its folder alone, rows by default, and no file of the plan for one."""
    import datasets

    loaded = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path))
    assert loaded["key"][:] == [row["key"] for row in rows]
    samples = datasets.load_dataset(str(output), "samples", split="train", cache_dir=str(tmp_path))
    assert set(samples["status"]) > {"ok"} or len(samples) >= len(rows)


def test_rows_are_asked_for_as_arrays_are(output: Path, rows: list[dict[str, object]]) -> None:
    dataset = EmbeddingDataset(output)
    keys = [row["key"] for row in rows]
    for index in ([2, 0], np.array([2, 0]), torch.tensor([2, 0]), [keys[2], np.int64(0)]):
        assert [item["key"] for item in dataset[index]] == [keys[2], keys[0]]
    assert [item["key"] for item in dataset[range(1, 3)]] == keys[1:3] == [item["key"] for item in dataset[1:3]]
    assert [dataset[one]["key"] for one in (torch.tensor(1), np.int32(-1))] == [keys[1], keys[-1]]
    assert f"{len(keys):,} rows" in repr(dataset)


@pytest.mark.parametrize("index", [1.5, None, True, (1, 2), b"key", ["a.png", 1.5]])
def test_what_is_no_index_is_told_what_would_be_one(index: object, output: Path) -> None:
    with pytest.raises((TypeError, KeyError), match=r"by number, key or \(source, key\)|a\.png"):
        EmbeddingDataset(output)[index]


def test_the_end_of_the_interpreter_says_nothing(output: Path) -> None:
    program = f"from pipeline import EmbeddingDataset\nkept = EmbeddingDataset({str(output)!r})\nkept[0]"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
