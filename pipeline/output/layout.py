"""Layout: where things lie in an output, and the version of what they hold."""

from __future__ import annotations

import re

from ..index.units import UnitId
from ..storage.files import AnyPath

SCHEMA_VERSION = 1
SUFFIXES = {"parquet": "parquet", "webdataset": "tar"}  # of data shards
# What an output and its plan are made of; folders with a slash.
OUTPUT_NAMES = ("_tmp/", "plan/", "data/", "samples/", "ledger/", "dataset.json", "README.md", "_SUCCESS")
PLAN_NAMES = ("parts/", "index/", "plan.json")
_SHARD_NAME = re.compile(rf"part-([0-9-]+)\.(?:{'|'.join(SUFFIXES.values())})")


def data_path(output: AnyPath, unit_id: str, kind: str = "parquet") -> AnyPath:
    """A unit's data shard. `kind`: a key of SUFFIXES."""
    return output / "data" / f"part-{unit_id}.{SUFFIXES[kind]}"


def samples_path(output: AnyPath, unit_id: str) -> AnyPath:
    """A unit's samples shard."""
    return output / "samples" / f"part-{unit_id}.parquet"


def unit_id_of(name: str) -> UnitId:
    """Returns the unit of a shard, by its file's name or path.

    Raises:
        ValueError: it is not just what `data_path` or `samples_path` gives; a copy or a part of a shard is none.
    """
    match = _SHARD_NAME.fullmatch(name.rpartition("/")[2])
    if match is None:
        raise ValueError(f"{name!r} is no shard's name")
    return UnitId.parse(match[1])
