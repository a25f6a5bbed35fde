"""Commit record: what a samples shard's footer says of its unit, and of what the data shard must be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from ..errors import OutputError
from ..storage.files import AnyPath
from .metadata import read_metadata


@dataclass(frozen=True, kw_only=True)
class CommitRecord:
    """One committed unit.

    Attributes:
        rows_in: samples, rejects included; `rows_out`: rows of the data shard; `no_image`: samples that name none.
        rejects: by reason; `reject_examples`: up to three keys of each; `reject_errors`: what is wrong with the first.
        encoded_tokens: of distinct images, where equal ones are encoded once; `tokens`: of all rows.
        halvings: how often a pack was halved for lack of device memory; `packs`: patches of each forward.
        overflows: values clamped to fit float16.
        nulled: by carried column, values that are no text and became null.
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
    seconds: dict[str, float]
    # What outputs of earlier versions do not say.
    no_image: int = 0
    overflows: int = 0
    nulled: dict[str, int] = field(default_factory=dict)
    packs: list[int] = field(default_factory=list)
    adopted: bool = False
    encoder: int = 0
    encoded_at: float = 0.0
    statistics: dict[str, Any] = field(default_factory=dict, compare=False)
    errors: dict[str, object] = field(default_factory=dict)
    reject_errors: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """A flat JSON object: errors stand beside the other fields."""
        # Not `asdict`, which copies every value: a fold writes a hundred records while a driver works.
        return {name: getattr(self, name) for name in _FIELDS} | self.errors

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> CommitRecord:
        """The inverse of `to_json`. Raises ValueError: a field is missing or is something else."""
        own = {name: tree[name] for name in _FIELDS if name in tree}
        if missing := _REQUIRED - own.keys():
            raise ValueError(f"its record lacks {', '.join(sorted(missing))}")
        for name, value in own.items():
            if not _FIELDS[name](value):
                raise ValueError(f"its record's {name} is {str(value)[:80]!r}")
        return cls(**own, errors={name: value for name, value in tree.items() if name not in _FIELDS})


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_seconds(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]


def _is_list(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(of, value))


def _is_table(of: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(map(of, value.values()))


_FORMS: dict[str, Callable[[object], bool]] = {
    "int": _is_count,
    "str": _is_text,
    "float": _is_seconds,
    "bool": lambda value: isinstance(value, bool),
    "list[int]": _is_list(_is_count),
    "dict[str, Any]": _is_table(lambda value: True),
    "dict[str, str]": _is_table(_is_text),
    "dict[str, int]": _is_table(_is_count),
    "dict[str, float]": _is_table(_is_seconds),
    "dict[str, list[str]]": _is_table(_is_list(_is_text)),
}
_FIELDS = {one.name: _FORMS[str(one.type)] for one in fields(CommitRecord) if one.name != "errors"}
_REQUIRED = {one.name for one in fields(CommitRecord) if one.default is MISSING and one.default_factory is MISSING}


def read_record(path: AnyPath) -> CommitRecord:
    """The record in a samples shard's footer. Raises OutputError: the file is not one of ours."""
    try:
        return CommitRecord.from_json(read_metadata(path))
    except ValueError as error:
        raise OutputError(f"{path}: not a complete shard: {error}") from error


def same_json(ours: CommitRecord, theirs: CommitRecord) -> bool:
    """Whether two records say the same once written, whether or not both have their statistics yet."""
    first, second = (json.dumps(replace(one, statistics={}).to_json(), sort_keys=True) for one in (ours, theirs))
    return first == second
