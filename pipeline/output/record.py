"""Commit record: what a samples shard's footer says of its unit, and of what the data shard must be."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import OutputError
from ..storage.files import AnyPath
from .metadata import read_metadata


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """One committed unit.

    Attributes:
        rows_in: samples, rejects included; `rows_out`: rows of the data shard.
        rejects: by reason; `reject_examples`: up to three keys of each.
        encoded_tokens: of distinct images, where equal ones are encoded once; `tokens`: of all rows.
        halvings: how often a pack was halved for lack of device memory; `packs`: patches of each forward.
        overflows: values clamped to fit float16.
        seconds: by stage.
        encoder: a number for the one that encoded it; `encoded_at`: when it had, Unix seconds; 0 where that is unknown.
        adopted: whether the data shard was found published.
        errors: measured ones, of a lossy setting, by what they are of.
        statistics: facts about the accepted images, as `UnitStatistics.to_json` writes them; empty where they are
            not known. They follow from the rows: two records are equal whether or not both have them.
    """

    schema_version: int
    unit: str
    rows_in: int
    rows_out: int
    rejects: dict[str, int]
    reject_examples: dict[str, list[str]]
    tokens: int
    encoded_tokens: int
    embedding_bytes: int
    data_size: int
    data_sha256: str
    fingerprint: str
    device: str
    halvings: int
    overflows: int
    packs: list[int]
    adopted: bool
    seconds: dict[str, float]
    encoder: int = 0
    encoded_at: float = 0.0
    statistics: dict[str, Any] = field(default_factory=dict, compare=False)
    errors: dict[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """A flat JSON object: errors stand beside the other fields."""
        # Not `asdict`, which copies every value: a fold writes a hundred records while a driver works.
        return {name: getattr(self, name) for name in _FLAT} | self.errors

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> CommitRecord:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError: a field is missing or is something else."""
        own = {name: value for name, value in tree.items() if name in _FLAT}
        record = cls(**own, errors={name: value for name, value in tree.items() if name not in _FLAT})
        for name in ("rows_in", "rows_out", "tokens", "embedding_bytes", "data_size", "halvings"):
            if type(getattr(record, name)) is not int:
                raise ValueError(f"its {name} is {getattr(record, name)!r}, not a number")
        return record


_FLAT = {one.name: None for one in fields(CommitRecord) if one.name != "errors"}  # in order


def read_record(path: AnyPath) -> CommitRecord:
    """The record in a samples shard's footer. Raises OutputError: the file is not one of ours."""
    try:
        return CommitRecord.from_json(read_metadata(path))
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{path}: not a complete shard: {error}") from error


def same_json(ours: CommitRecord, theirs: CommitRecord) -> bool:
    """Whether two records say the same once written, whether or not both have their statistics yet."""
    first, second = (json.dumps(replace(one, statistics={}).to_json(), sort_keys=True) for one in (ours, theirs))
    return first == second
