"""Faults of a whole run that no other test makes: the device's, the source's while it runs, and two real processes."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import assert_whole, config_for, encoded, files_of, keys_of, make_tar, noise, run_here, run_two_at_once

from pipeline import rejects
from pipeline.errors import RequestError
from pipeline.output.verify import Verifier
from pipeline.run.indexing import make_plan
from pipeline.run.request import check_request
from pipeline.tower.tower import Tower


def rows_of(output: Path, folder: str) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in pq.read_table(output / folder).to_pylist()}


def test_an_image_that_makes_the_tower_give_nan(
    source: Path, model_path: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known by its first patch, in whatever pack it is; its neighbours keep the first forward's rows."""
    victim, twin = "0/0004.jpg", "1/0005.jpg"  # the same bytes, in one unit
    index = rows_of(undisturbed, "samples")
    real, fired = Tower.forward_in_window_order, [0]
    marks: list[torch.Tensor] = []
    real_prepare = __import__("pipeline.prepare.unit", fromlist=["prepare_into"]).prepare_into

    def marked(out_PC: np.ndarray, data: bytes, facts: Any, *rest: Any) -> None:
        real_prepare(out_PC, data, facts, *rest)
        if facts.key == victim:
            marks.append(torch.from_numpy(out_PC[:4].copy()))

    def poisoned(self: Tower, patches_PC: torch.Tensor, plan: Any, *rest: Any) -> torch.Tensor:
        tokens = real(self, patches_PC, plan, *rest).clone()
        for start in range(0, len(patches_PC) - 3, 4):
            if marks and torch.equal(patches_PC[start : start + 4].cpu(), marks[0]):
                fired[0] += 1
                tokens[plan.order_M == start // 4] = float("nan")
        return tokens

    monkeypatch.setattr("pipeline.prepare.unit.prepare_into", marked)
    monkeypatch.setattr(Tower, "forward_in_window_order", poisoned)
    output = tmp_path / "out"
    summary = run_here(config_for(source, output, model_path))
    assert summary.complete
    assert fired[0] == 2  # in its pack, and alone
    assert summary.totals.rejects == {rejects.NON_FINITE: 2, rejects.TRUNCATED: 1, rejects.MISSING_IMAGE: 1}
    found, expected = rows_of(output, "data"), rows_of(undisturbed, "data")
    assert found.keys() == expected.keys() - {victim, twin}
    assert rows_of(output, "samples").keys() == index.keys()
    assert all(row["embedding"] == expected[key]["embedding"] for key, row in found.items())
    assert Verifier(output).verify().proven


@pytest.mark.slow
def test_a_device_that_is_too_small(
    source: Path, model_path: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs are halved, which the records name; images that do not fit even alone fail by name, the others finish."""
    real, refused = Tower.forward_in_window_order, [0]
    sizes = {key: row["num_patches"] for key, row in rows_of(undisturbed, "data").items()}
    limit = sorted(sizes.values())[-3]

    def limited(self: Tower, patches_PC: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(patches_PC) > limit:
            refused[0] += 1
            raise torch.OutOfMemoryError("made by the test")
        return real(self, patches_PC, *rest)

    monkeypatch.setattr(Tower, "forward_in_window_order", limited)
    output = tmp_path / "out"
    config = config_for(source, output, model_path, pack={"max_patches": 1000}, output={"shard_tokens": 100})
    summary = run_here(config)
    assert refused[0]
    assert not summary.complete
    too_large = [key for key, size in sizes.items() if size > limit]
    assert too_large
    assert all(
        any(f"{key}: {sizes[key]} patches do not fit" in line for line in summary.problems) for key in too_large[:1]
    )
    assert summary.this_run.halvings
    assert not (output / "_SUCCESS").exists()
    monkeypatch.setattr(Tower, "forward_in_window_order", real)
    assert run_here(config).complete
    assert_whole(output, keys_of(source))
    found, expected = rows_of(output, "data"), rows_of(undisturbed, "data")
    for key, row in found.items():
        ours, other = (np.frombuffer(one["embedding"], np.float32) for one in (row, expected[key]))
        assert np.abs(ours - other).max() <= 1e-5 * np.abs(other).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "cut", "touch"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "parquet"])
def test_a_source_damaged_between_plan_and_run(kind: str, suffix: str, model_path: Path, tmp_path: Path) -> None:
    """With its mtime put back, where the damage keeps the size: only the bytes tell."""
    photos = {f"{number:03d}.png": encoded(noise(60, 70, number)) for number in range(6)}
    path = tmp_path / "in" / f"a.{suffix}"
    if suffix == "parquet":
        path.parent.mkdir()
        import pyarrow as pa

        pq.write_table(pa.table({"image": list(photos.values())}), path, compression="NONE", use_dictionary=False)
    else:
        make_tar(path, list(photos.items()), "w:gz" if suffix == "tar.gz" else "w")
    config = config_for(path, tmp_path / "out", model_path)
    make_plan(check_request(config), say=lambda line: None)
    facts, data = path.stat(), bytearray(path.read_bytes())
    if kind == "touch":
        os.utime(path)
    else:
        if suffix == "tar.gz":
            data = bytearray(gzip.decompress(bytes(data)))
        place = data.find(photos["003.png"]) + len(photos["003.png"]) // 2
        assert place > 1000
        if kind == "flip":
            data[place] ^= 1
        else:
            del data[place:]
        path.write_bytes(bytes(data))
        if suffix == "tar.gz":
            path.write_bytes(gzip.compress(bytes(data)).ljust(facts.st_size, b"\0"))
        assert kind == "cut" or path.stat().st_size == facts.st_size
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    if kind == "flip":
        summary = run_here(config)
        assert summary.totals.rejects == {rejects.CHECKSUM: 1}
        bad = [row["key"] for row in rows_of(tmp_path / "out", "samples").values() if row["status"] == rejects.CHECKSUM]
        assert bad == [f"a.parquet:{3}" if suffix == "parquet" else "003"]
        return
    if kind == "touch":  # a file is known by its bytes
        assert run_here(config).complete
        return
    says = {
        "cut.tar": "ends inside member",
        "cut.parquet": "cannot be read as parquet",
        "cut.tar.gz": "ends inside a unit's range",
    }
    with pytest.raises(
        (RequestError, AssertionError), match=rf"a\.{suffix}:? {says.get(f'{kind}.{suffix}', 'has changed')}"
    ):
        raise AssertionError(*run_here(config).problems)
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.slow
def test_two_real_processes_on_one_output(source: Path, model_path: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_two_at_once(config_for(source, output, model_path))
    assert_whole(output, keys_of(source))
    assert files_of(output / "data") == files_of(undisturbed / "data")
