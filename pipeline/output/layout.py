"""Layout: where things lie in an output, and the version of what they hold."""

from __future__ import annotations

from ..index.units import UnitId
from ..storage.files import AnyPath

SCHEMA_VERSION = 1
SUFFIXES = {"parquet": "parquet", "webdataset": "tar"}  # of data shards


def data_path(output: AnyPath, unit_id: str, kind: str = "parquet") -> AnyPath:
    """A unit's data shard. `kind`: a key of SUFFIXES."""
    return output / "data" / f"part-{unit_id}.{SUFFIXES[kind]}"


def samples_path(output: AnyPath, unit_id: str) -> AnyPath:
    """A unit's samples shard."""
    return output / "samples" / f"part-{unit_id}.parquet"


def unit_id_of(name: str) -> UnitId:
    """The unit of a shard, by its file's name or path. Raises ValueError: it is no shard's."""
    return UnitId.parse(name.rpartition("/")[2].removeprefix("part-").partition(".")[0])
