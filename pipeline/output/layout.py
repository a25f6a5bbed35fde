"""Layout: where things lie in an output."""

from __future__ import annotations

from ..storage.files import AnyPath

SCHEMA_VERSION = 1


def data_path(output: AnyPath, unit_id: str, kind: str = "parquet") -> AnyPath:
    return output / "data" / f"part-{unit_id}.{'tar' if kind == 'webdataset' else 'parquet'}"


def samples_path(output: AnyPath, unit_id: str) -> AnyPath:
    return output / "samples" / f"part-{unit_id}.parquet"
