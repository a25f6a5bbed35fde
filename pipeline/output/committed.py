"""Committed: the answer of a commit to the driver. Light: whoever only counts commits loads nothing that makes them."""

from __future__ import annotations

from dataclasses import dataclass

from ..index.units import Unit
from .record import CommitRecord


@dataclass(frozen=True, kw_only=True)
class Committed:
    """One committed unit, as the driver counts it. `fresh` is False where another process had committed it."""

    unit: Unit
    record: CommitRecord
    fresh: bool
    peak_memory_bytes: int = 0
