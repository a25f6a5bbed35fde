"""Settings: what every stage of one run needs to know. Plain values: they travel to other processes."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow

from ..grid import Geometry
from ..source.format import Columns
from ..tower.config import Stage


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings that every process of a run is given."""

    output: str
    nonce: str
    columns: Columns
    carry: pyarrow.Schema
    on_damaged: str
    on_changed: str
    geometry: Geometry
    deduplicate: bool
    model_path: str
    model_revision: str | None
    dtype: str
    compile: str
    linear: str
    attention: str
    stage: Stage
    deepstack: bool
    max_patches: int
    shard_tokens: int
    stored_dtype: str
    on_overflow: str
    threads: int
    sample_seconds: float
