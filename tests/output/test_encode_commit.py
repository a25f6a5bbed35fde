"""From prepared patches to a committed unit: order, duplicates, memory, overflow, bytes in place, adoption."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import noise, stamp

from pipeline import rejects
from pipeline.encode.dtypes import STORED, restore
from pipeline.encode.unit import EncodedUnit, UnitEncoder
from pipeline.errors import DamagedShard, EncodeError, OutputError
from pipeline.grid import Geometry
from pipeline.index.units import Unit
from pipeline.output.commit import commit_unit
from pipeline.output.committed import Committed
from pipeline.output.hashing import HASHED_BESIDE, HashingFile
from pipeline.output.layout import data_path, samples_path
from pipeline.output.metadata import read_metadata
from pipeline.output.record import CommitRecord
from pipeline.output.settings import Encoding, ShardSettings
from pipeline.output.shard import row_groups
from pipeline.output.shard_formats import shard_format
from pipeline.prepare.patches import patches_of_pixels
from pipeline.prepare.unit import PreparedSample, PreparedUnit
from pipeline.source.sample import IndexedSample
from pipeline.storage.publish import publish_new
from pipeline.storage.scratch import Scratch
from pipeline.tower.block import rms_norm
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.linear import has_fp8_on_cpu
from pipeline.tower.pack_plan import PackPlan
from pipeline.tower.tower import Tower

GEOMETRY = Geometry(
    patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=3136, max_pixels=20_000, max_image_pixels=1_000_000
)
SIZES = [(60, 90), (200, 60), (60, 60), (90, 60), (110, 140)]


@pytest.fixture(scope="module")
def tower(checkpoint: Checkpoint) -> Tower:
    return Tower(checkpoint, torch.float32, torch.device("cpu"))


def prepared_unit(images: list[int], statuses: dict[int, str] | None = None) -> PreparedUnit:
    """Samples of which the i-th shows the distinct image images[i]; some are rejects."""
    samples, patches, grids, place = [], [], [], {}
    for index, number in enumerate(images):
        facts = IndexedSample(key=f"k{index}", source="s.tar", sha256=f"{number:064d}", width=1, height=1)
        if statuses and index in statuses:
            samples.append(PreparedSample(facts=facts, status=statuses[index], error="why"))
            continue
        if number not in place:
            place[number] = len(grids)
            patches_PC, grid = patches_of_pixels(noise(*SIZES[number], number), GEOMETRY)
            patches.append(patches_PC)
            grids.append(grid)
        samples.append(PreparedSample(facts=facts, status=rejects.OK, image=place[number], clamped="none"))
    unit = Unit(part=3, number=1, first=0, count=len(images), tokens=0, patches=sum(map(len, patches)))
    joined = np.concatenate(patches) if patches else np.empty((0, 588), np.uint8)
    return PreparedUnit(unit=unit, samples=tuple(samples), grids=tuple(grids), patches_PC=joined)


def unit_encoder(tower: Tower, **options: object) -> UnitEncoder:
    settings: dict[str, object] = {"max_patches": 100, "stored_dtype": "float32"}
    return UnitEncoder(tower, **settings | options)


def tokens_of(encoded_unit: EncodedUnit, image: int) -> torch.Tensor:
    starts = [0, *encoded_unit.ends_N.tolist()]
    return encoded_unit.tokens_MO[starts[image] : starts[image + 1]]


def test_rows_leave_in_input_order_whatever_the_packs(tower: Tower) -> None:
    prepared = prepared_unit([0, 1, 2, 3, 4])
    for budget in (4, 60, 100, 10_000):
        unit = unit_encoder(tower, max_patches=budget).encode(prepared)
        starts = np.cumsum([0] + [t * h * w for t, h, w in prepared.grids])
        for image, grid in enumerate(prepared.grids):
            alone = tower.forward(
                torch.from_numpy(prepared.patches_PC[starts[image] : starts[image + 1]]), tower.plan([grid])
            )
            assert torch.allclose(tokens_of(unit, image), alone, atol=1e-5)
            norms = tokens_of(unit, image).norm(dim=-1)
            assert unit.norm_mean_N[image] == pytest.approx(float(norms.mean()), rel=1e-5)
            assert unit.norm_max_N[image] == pytest.approx(float(norms.max()), rel=1e-5)
        assert sum(unit.packs) == len(prepared.patches_PC)


def test_out_of_memory_halves_the_pack_and_goes_on(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_unit([0, 1, 2, 3, 4])
    expected = unit_encoder(tower, max_patches=10_000).encode(prepared)
    forward, refused = tower.forward_in_window_order, []

    def limited(patches_PC: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(patches_PC) > 100:
            refused.append(len(patches_PC))
            raise torch.OutOfMemoryError("CUDA out of memory (made by a test)")
        return forward(patches_PC, *rest)

    monkeypatch.setattr(tower, "forward_in_window_order", limited)
    unit = unit_encoder(tower, max_patches=10_000).encode(prepared)
    assert unit.halvings == len(refused) > 1
    assert torch.allclose(unit.tokens_MO, expected.tokens_MO, atol=1e-5)
    monkeypatch.setattr(
        tower, "forward_in_window_order", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("made by a test"))
    )
    with pytest.raises(EncodeError, match=r"000003-0001: k\d: \d+ patches do not fit"):
        unit_encoder(tower).encode(prepared)


def test_non_finite_tokens_are_tried_alone_then_rejected(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_unit([0, 1, 2])
    expected = unit_encoder(tower, max_patches=10_000).encode(prepared)
    forward, calls = tower.forward_in_window_order, []
    middle = slice(int(expected.ends_N[0]), int(expected.ends_N[1]))

    def poisoned(patches_PC: torch.Tensor, plan: PackPlan, stage: str, always: bool = True) -> torch.Tensor:
        calls.append(len(patches_PC))
        tokens = forward(patches_PC, plan, stage).clone()
        if len(calls) == 1:
            tokens[(plan.order_M >= middle.start) & (plan.order_M < middle.stop)] = float("nan")
        elif always:
            tokens[0, 0] = float("inf")
        return tokens

    monkeypatch.setattr(tower, "forward_in_window_order", poisoned)
    unit = unit_encoder(tower, max_patches=10_000).encode(prepared)
    assert calls == [len(prepared.patches_PC), 4 * (middle.stop - middle.start)]
    assert unit.finite_N.tolist() == [True, False, True]
    for image in (0, 2):
        assert torch.equal(tokens_of(unit, image), tokens_of(expected, image))
    calls.clear()
    monkeypatch.setattr(tower, "forward_in_window_order", lambda *a: poisoned(*a, always=False))
    assert unit_encoder(tower, max_patches=10_000).encode(prepared).finite_N.all()


def test_float16_overflow_fails_or_is_clamped_and_counted(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_unit([0, 1])
    forward = tower.forward_in_window_order
    monkeypatch.setattr(
        tower, "forward_in_window_order", lambda *a: forward(*a).index_fill(1, torch.tensor([3]), 70_000.0)
    )
    with pytest.raises(EncodeError, match="float16's range in k0, k1;"):
        unit_encoder(tower, stored_dtype="float16").encode(prepared)
    unit = unit_encoder(tower, stored_dtype="float16", on_overflow="clamp").encode(prepared)
    assert unit.overflows == unit.tokens_MO.shape[0]
    assert (unit.tokens_MO[:, 3] == 65504).all()


@pytest.mark.parametrize(("dtype", "bound"), [("int8", 0.02), ("fp8", 0.04)])
def test_scaled_storage_records_its_error(
    dtype: str, bound: float, tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_unit([0, 1, 2])
    exact = unit_encoder(tower).encode(prepared)
    unit = unit_encoder(tower, stored_dtype=dtype).encode(prepared)
    assert unit.tokens_MO.dtype == STORED[dtype]
    assert unit.scale_MS is not None
    restored = restore(unit.tokens_MO, torch.from_numpy(unit.scale_MS))
    error = float((restored - exact.tokens_MO).norm() / exact.tokens_MO.norm())
    assert 1e-4 < error < bound
    assert unit.errors["storage_relative_rms"] == pytest.approx(error, rel=1e-4)
    assert unit.norm_max_N[0] == pytest.approx(float(restored[: unit.ends_N[0]].norm(dim=-1).max()), rel=1e-5)
    # The largest value of each token is met to one step of the scale; NaN must not become a number.
    forward = tower.forward_in_window_order
    monkeypatch.setattr(
        tower, "forward_in_window_order", lambda *a: forward(*a).index_fill(1, torch.tensor([3]), float("nan"))
    )
    assert not unit_encoder(tower, stored_dtype=dtype).encode(prepared).finite_N.any()


def test_before_the_merger(tower: Tower) -> None:
    """What `pre_merger` stores, put through the merger, is what `merged` stores: in merge order, before the norm."""
    prepared = prepared_unit([0, 1, 2, 3])
    unit = unit_encoder(tower, stage="pre_merger").encode(prepared)
    assert unit.tokens_MO.shape[1] == 4 * tower.config.width
    patches_PD = unit.tokens_MO.view(-1, tower.config.width)
    weights = {name: tensor.float() for name, tensor in tower.checkpoint.tensors() if name.startswith("merger.")}
    normed_MD = rms_norm(patches_PD, weights["merger.ln_q.weight"]).view(len(unit.tokens_MO), -1)
    first, second = ((weights[f"merger.mlp.{n}.weight"], weights[f"merger.mlp.{n}.bias"]) for n in (0, 2))
    hidden = torch.nn.functional.gelu(torch.nn.functional.linear(normed_MD, *first))
    merged = torch.nn.functional.linear(hidden, *second)
    assert torch.allclose(merged, unit_encoder(tower).encode(prepared).tokens_MO, atol=1e-5)


@pytest.mark.skipif(not has_fp8_on_cpu(), reason="an older torch: fp8 by rows on GPUs only")
def test_fp8_products_say_what_they_cost(checkpoint: Checkpoint) -> None:
    fp8 = Tower(checkpoint, torch.bfloat16, torch.device("cpu"), linear="fp8")
    unit = unit_encoder(fp8).encode(prepared_unit([0, 1, 2]))
    record = unit.errors["fp8_linear"]
    for against in ("bfloat16", "float32"):
        assert 1e-3 < record[against]["relative_rms"] < 0.4
        assert 0.9 < record[against]["cosine_min"] <= record[against]["cosine_mean"] < 1


def settings_for(dtype: str = "float32", row_group_bytes: int = 4000) -> ShardSettings:
    return ShardSettings(
        fingerprint="f" * 64,
        tower_sha256="t",
        stage="merged",
        dtype=dtype,
        hidden_size=48,
        merge_size=2,
        row_group_bytes=row_group_bytes,
        device="cpu",
    )


def commit(tower: Tower, output: Path, prepared: PreparedUnit, dtype: str = "float32") -> Committed:
    unit = unit_encoder(tower, stored_dtype=dtype).encode(prepared)
    with Scratch(output) as scratch:
        return commit_unit(prepared, unit, output, scratch, settings_for(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "fp8"])
def test_a_committed_unit_says_where_each_embedding_lies(dtype: str, tower: Tower, tmp_path: Path) -> None:
    images = [0, 1, 0, 2, 3, 4, 1]
    prepared = prepared_unit([*images, 2], {1: rejects.CORRUPT, 7: rejects.TRUNCATED})
    committed = commit(tower, tmp_path, prepared, dtype)
    unit = unit_encoder(tower, stored_dtype=dtype).encode(prepared)
    table = pq.read_table(samples_path(tmp_path, "000003-0001")).to_pylist()
    data = pq.read_table(data_path(tmp_path, "000003-0001")).to_pylist()
    assert [row["key"] for row in table] == [f"k{index}" for index in range(8)]
    assert [row["status"] for row in table].count("ok") == len(data) == 6
    assert pq.read_metadata(data_path(tmp_path, "000003-0001")).num_row_groups > (dtype not in ("int8", "fp8"))
    rows = iter(data)
    for row, sample in zip(table, prepared.samples, strict=True):
        if row["status"] != "ok":
            assert row["shard"] is row["offset"] is row["num_tokens"] is row["norm_mean"] is None
            assert row["error"] == "why"
            continue
        stored = next(rows)
        expected = tokens_of(unit, sample.image)
        with open(tmp_path / row["shard"], "rb") as stream:
            stream.seek(row["offset"])
            raw = stream.read(row["length"])
        assert raw == stored["embedding"] == expected.contiguous().view(torch.uint8).numpy().tobytes()
        read = torch.frombuffer(bytearray(raw), dtype=STORED[stored["dtype"]]).view(-1, stored["hidden_size"])
        assert torch.equal(read.float(), expected.float())
        if dtype in ("int8", "fp8"):
            read = restore(read, torch.frombuffer(bytearray(stored["scale"]), dtype=torch.float32)[:, None])
        else:
            assert stored["scale"] is None
        assert row["num_tokens"] == len(read)
        assert row["grid_thw"] == stored["grid_thw"] == list(prepared.grids[sample.image])
        assert row["norm_max"] == stored["norm_max"] == pytest.approx(float(read.float().norm(dim=-1).max()), rel=1e-3)
    record = read_metadata(samples_path(tmp_path, "000003-0001"))
    assert CommitRecord.from_json(record) == committed.record
    assert (record["rows_in"], record["rows_out"], record["rejects"]) == (8, 6, {"corrupt": 1, "truncated": 1})
    raw = data_path(tmp_path, "000003-0001").read_bytes()
    assert (record["data_size"], record["data_sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert record["embedding_bytes"] == sum(len(row["embedding"]) for row in data)
    assert record["tokens"] == sum(row["num_tokens"] for row in data) > record["encoded_tokens"] == unit.ends_N[-1]


def test_a_unit_of_rejects_has_a_data_shard_of_no_rows(tower: Tower, tmp_path: Path) -> None:
    committed = commit(tower, tmp_path, prepared_unit([0] * 5, dict.fromkeys(range(5), rejects.CORRUPT)))
    assert (committed.record.rows_out, committed.record.tokens) == (0, 0)
    assert committed.record.reject_examples == {rejects.CORRUPT: ["k0", "k1", "k2"]}
    assert pq.read_table(data_path(tmp_path, "000003-0001")).num_rows == 0
    assert pq.read_table(samples_path(tmp_path, "000003-0001")).num_rows == 5


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_copies_keep_their_own_tokens_when_another_image_is_not_finite(form: str, tower: Tower, tmp_path: Path) -> None:
    """As many rows as there are distinct images, and not the same ones."""
    prepared = prepared_unit([0, 1, 0])
    unit = unit_encoder(tower).encode(prepared)
    unit = replace(unit, finite_N=np.array([True, False]))
    with Scratch(tmp_path) as scratch:
        commit_unit(prepared, unit, tmp_path, scratch, replace(settings_for(), format=form))
    table = pq.read_table(samples_path(tmp_path, "000003-0001")).to_pylist()
    assert [row["status"] for row in table] == ["ok", rejects.NON_FINITE, "ok"]
    expected = tokens_of(unit, 0).numpy().tobytes()
    raw = data_path(tmp_path, "000003-0001", form).read_bytes()
    for row in (table[0], table[2]):
        assert raw[row["offset"] : row["offset"] + row["length"]] == expected
    nothing = ("grid_thw", "num_patches", "num_tokens", "norm_mean", "norm_max", "shard", "offset", "length")
    assert [table[1][name] for name in nothing] == [None] * len(nothing)


def test_a_record_says_how_its_unit_was_encoded(tower: Tower, tmp_path: Path) -> None:
    prepared = replace(prepared_unit([0, 1]), seconds={"read": 1.00004})
    unit = replace(unit_encoder(tower).encode(prepared), halvings=3, overflows=5, packs=(7, 9), errors={"rms": 0.5})
    with Scratch(tmp_path) as scratch:
        encoding = Encoding(encoder=4, encoded_at=8.25)
        record = commit_unit(prepared, unit, tmp_path, scratch, settings_for(), encoding).record
    assert (record.halvings, record.overflows, record.packs, record.errors) == (3, 5, [7, 9], {"rms": 0.5})
    assert (record.encoder, record.encoded_at, record.device, record.adopted) == (4, 8.25, "cpu", False)
    assert record.seconds["read"] == 1.0 and record.seconds["write"] > 0


def test_nothing_committed_is_written_again(tower: Tower, tmp_path: Path) -> None:
    prepared = prepared_unit([0, 1, 2])
    assert commit(tower, tmp_path, prepared).fresh
    paths = [data_path(tmp_path, "000003-0001"), samples_path(tmp_path, "000003-0001")]
    before = [stamp(path) for path in paths]
    assert not commit(tower, tmp_path, prepared).fresh
    assert [stamp(path) for path in paths] == before
    assert not (tmp_path / "_tmp").exists()


def test_two_drivers_may_disagree_about_a_reject(tower: Tower, tmp_path: Path) -> None:
    """A crash depends on time: the first record stands, and the second driver goes on."""
    first = commit(tower, tmp_path, prepared_unit([0, 1, 2], {1: rejects.CRASH}))
    paths = [data_path(tmp_path, "000003-0001"), samples_path(tmp_path, "000003-0001")]
    before = [stamp(path) for path in paths]
    second = commit(tower, tmp_path, prepared_unit([0, 1, 2]))
    assert (second.fresh, second.record) == (False, first.record)
    assert [stamp(path) for path in paths] == before
    paths[0].write_bytes(b"damaged")
    with pytest.raises(OutputError, match="does not hold what its committed record says"):
        commit(tower, tmp_path, prepared_unit([0, 1, 2]))


def test_a_data_shard_without_its_samples_is_adopted(tower: Tower, tmp_path: Path) -> None:
    prepared = prepared_unit([0, 1, 2])
    commit(tower, tmp_path, prepared)
    data, samples = data_path(tmp_path, "000003-0001"), samples_path(tmp_path, "000003-0001")
    before, table = stamp(data), pq.read_table(samples)
    samples.unlink()
    committed = commit(tower, tmp_path, prepared)
    assert committed.record.adopted
    assert stamp(data) == before
    assert pq.read_table(samples).equals(table)


@pytest.mark.parametrize(
    "damage", ["cut", "flipped to nan", "other fingerprint", "other unit", "no rows", "no parquet"]
)
def test_a_data_shard_that_is_not_what_it_must_be_is_replaced(damage: str, tower: Tower, tmp_path: Path) -> None:
    prepared = prepared_unit([0, 1, 2])
    commit(tower, tmp_path, prepared)
    data, samples = data_path(tmp_path, "000003-0001"), samples_path(tmp_path, "000003-0001")
    good, row = data.read_bytes(), pq.read_table(samples).to_pylist()[1]
    samples.unlink()
    if damage == "cut":
        data.write_bytes(good[:-20])
    elif damage == "no parquet":
        data.write_bytes(b"hello")
    elif damage == "flipped to nan":
        bad = bytearray(good)
        bad[row["offset"] : row["offset"] + 4] = np.float32("nan").tobytes()
        data.write_bytes(bytes(bad))
    else:
        data.unlink()
        unit = unit_encoder(tower).encode(prepared)
        other = {
            "other fingerprint": (prepared, replace(settings_for(), fingerprint="0" * 64)),
            "other unit": (replace(prepared, unit=replace(prepared.unit, number=2)), settings_for()),
            "no rows": (prepared_unit([0, 1, 2], dict.fromkeys(range(3), rejects.CORRUPT)), settings_for()),
        }[damage]
        with Scratch(tmp_path / "other") as scratch:
            commit_unit(other[0], unit, tmp_path / "other", scratch, other[1])
        (made,) = (tmp_path / "other" / "data").iterdir()
        data.write_bytes(made.read_bytes())
    assert data.read_bytes() != good
    committed = commit(tower, tmp_path, prepared)
    assert not committed.record.adopted
    assert data.read_bytes() == good


def test_publishing_never_replaces(tmp_path: Path) -> None:
    final = tmp_path / "final"
    for text, published in (("one", True), ("two", False)):
        scratch = tmp_path / f"scratch-{text}"
        scratch.write_text(text)
        assert publish_new(scratch, final) is published
    assert final.read_text() == "one"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot publish"):
        publish_new(tmp_path / "scratch-two", tmp_path / "file" / "final")


def test_the_footer_of_a_shard_is_small_and_says_it_all(tower: Tower, tmp_path: Path) -> None:
    commit(tower, tmp_path, prepared_unit([0, 1, 2, 3, 4]))
    path = data_path(tmp_path, "000003-0001")
    metadata = pq.read_metadata(path)
    column = metadata.row_group(0).column(metadata.schema.names.index("embedding"))
    assert column.compression == "UNCOMPRESSED"
    assert not column.is_stats_set
    assert "PLAIN" in column.encodings
    assert not column.has_dictionary_page
    said = read_metadata(path)
    assert (said["unit"], said["dtype"], said["hidden_size"], said["stage"]) == ("000003-0001", "float32", 48, "merged")
    assert metadata.serialized_size < 10_000


def test_a_row_group_holds_what_just_fits() -> None:
    assert row_groups(np.array([4, 4, 4, 9, 1]), 8) == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert row_groups(np.array([], np.int64), 8) == [(0, 0)]


def test_a_file_that_takes_less_than_it_is_given_is_given_the_rest() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:7])

    stream, data = Slow(), bytes(range(100))
    sink = HashingFile(stream)
    assert sink.write(data) == len(data) == sink.size
    assert stream.getvalue() == data


def test_what_is_large_is_hashed_while_it_is_written() -> None:
    """Neither is done before the other has begun: one after the other they would wait for ever."""
    begun = {"hash": threading.Event(), "write": threading.Event()}

    class Digest:
        def update(self, data: Any) -> None:
            begun["hash"].set()
            assert begun["write"].wait(20)

    class Stream(io.BytesIO):
        def write(self, data: Any) -> int:
            begun["write"].set()
            assert begun["hash"].wait(20)
            return super().write(data)

    with HashingFile(Stream()) as sink:
        sink._digest = Digest()
        sink.write(bytes(HASHED_BESIDE))


def test_the_hash_is_of_all_bytes_in_order_whatever_the_writes() -> None:
    stream, pieces = io.BytesIO(), [b"a" * 10, b"b" * HASHED_BESIDE, b"", b"c", b"d" * (2 * HASHED_BESIDE)]
    with HashingFile(stream) as sink:
        for piece in pieces:
            buffer = bytearray(piece)
            sink.write(buffer)
            buffer[:] = bytes(len(buffer))  # it is the caller's again
    assert sink.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert stream.getvalue() == b"".join(pieces)
    threads = [thread for thread in threading.enumerate() if thread in sink._beside._threads]
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_a_shard_of_other_lengths_is_not_read(form: str, tower: Tower, tmp_path: Path) -> None:
    """The same number of rows, and of bytes in all."""
    prepared = prepared_unit([0, 1])
    unit = unit_encoder(tower).encode(prepared)
    with Scratch(tmp_path) as scratch:
        commit_unit(prepared, unit, tmp_path, scratch, replace(settings_for(), format=form))
    path, shards = data_path(tmp_path, "000003-0001", form), shard_format(form)
    lengths_N = np.diff(np.concatenate([[0], unit.ends_N])).astype(np.int64) * 48 * 4
    assert lengths_N[0] != lengths_N[1]
    assert shards.read(path, lengths_N).keys == ["k0", "k1"]
    with pytest.raises(DamagedShard):
        shards.read(path, lengths_N[::-1])


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_what_has_a_name_outlives_a_power_cut(
    form: str, tower: Tower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file's bytes are flushed before it has its name, and the name before the next step, also an adopted one's."""
    prepared = prepared_unit([0, 1])
    unit = unit_encoder(tower).encode(prepared)
    data, samples = data_path(tmp_path, "000003-0001", form), samples_path(tmp_path, "000003-0001")
    flushed: list[tuple[int, bool, bool]] = []  # what, and which names there were
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        flushed.append((os.fstat(descriptor).st_ino, data.exists(), samples.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    with Scratch(tmp_path) as scratch:
        commit_unit(prepared, unit, tmp_path, scratch, replace(settings_for(), format=form))
    inode = {path: path.stat().st_ino for path in (data, samples, data.parent, samples.parent)}
    assert (inode[data], False, False) in flushed
    assert (inode[data.parent], True, False) in flushed
    assert (inode[samples], True, False) in flushed
    assert (inode[samples.parent], True, True) in flushed
    samples.unlink()
    flushed.clear()
    with Scratch(tmp_path) as scratch:
        commit_unit(prepared, unit, tmp_path, scratch, replace(settings_for(), format=form))
    assert (inode[data.parent], True, False) in flushed
