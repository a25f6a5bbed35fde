"""Names in an output. Catches: a copy, or a part of a shard, that is taken for a commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.index.units import UnitId
from pipeline.output.layout import SUFFIXES, data_path, samples_path, unit_id_of
from pipeline.output.ledger import CommittedUnits
from pipeline.source.plan import Plan

NOT_SHARDS = [
    "part-000000-0001.parquet.ab12.partial",
    "part-000000-0001.parquet.bak",
    "part-000000-0001.parquet~",
    "part-000000-0001.parquet\n",
    "part-000000-0001",
    "part-000000-0001.PARQUET",
    "part-000000-0001.csv",
    "part-000000-0001.tar.parquet",
    "part-000000-0001-2.parquet",
    "part-0-1.parquet",
    "part-0000000-0001.parquet",
    "part-000000-00001.parquet",
    "part-000000-١٢٣٤.parquet",
    f"part-000000-{10**30}.parquet",
    "000000-0001.parquet",
    "copy of part-000000-0001.parquet",
    ".part-000000-0001.parquet",
]


@pytest.mark.parametrize("unit", [UnitId(0, 0), UnitId(3, 1), UnitId(1_234_567, 98_765)])
@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_shards_name_gives_its_unit(unit: UnitId, kind: str) -> None:
    assert unit_id_of(data_path(Path("out"), str(unit), kind).name) == unit
    assert unit_id_of(str(samples_path(Path("out"), str(unit)))) == unit


@pytest.mark.parametrize("name", NOT_SHARDS)
def test_other_names_are_no_units(name: str) -> None:
    with pytest.raises(ValueError, match="no "):
        unit_id_of(f"out/samples/{name}")


def test_a_unit_is_committed_by_its_samples_shard_alone(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    for name in [*NOT_SHARDS, "part-000000-0002.tar", "part-000000-0003.parquet"]:
        (samples / name).touch()
    assert list(CommittedUnits(tmp_path).unit_ids()) == ["000000-0003"]


def test_a_part_is_indexed_by_its_index_alone(tmp_path: Path) -> None:
    for folder, names in (
        ("index", ["part-000001.parquet", "part-000002.parquet.partial", "part-1.parquet", "part-1234567.parquet"]),
        ("parts", ["parts-x.parquet", "parts-000000.parquet.bak"]),
    ):
        (tmp_path / "plan" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "plan" / folder / name).touch()
    plan = Plan(tmp_path)
    assert plan.indexed_parts() == {1, 1_234_567}
    assert plan.num_parts == 0
