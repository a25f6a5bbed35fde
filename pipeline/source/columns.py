"""Columns that a configuration names: which of a table can be one, and the line that refuses what is not there."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

import pyarrow as pa

from ..errors import RequestError
from .carried_values import is_list, plain

NAMES_SHOWN = 30
NO_COLUMN = "has no column"
NEEDED = "needed are bytes, a struct of bytes and path, a path, or a list of those"


def refuse_missing(setting: str, name: str, names: Sequence[str], where: str, they: str = "it has") -> NoReturn:
    """Raises RequestError: a column that is not there, with the nearest one, and all that are.

    Args:
        setting: the field of the configuration.
        where: what lacks the column, up to its name: `a.parquet has no column`; `they`: before those that there are.
    """
    nearest = get_close_matches(name, names, 1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise RequestError(f"{setting}: {where} {name!r}; {they} {shown(names)}{hint}")


def shown(names: Sequence[str]) -> str:
    """Names in a row, not all of very many."""
    return (", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")) or "none"


def image_problem(schema: pa.Schema, name: str, path: str, lists: int = 1) -> str:
    """Why a table's column cannot be that of its images, "" if it can.

    Args:
        path: what the table is called.
        lists: how deep its lists may be: those of frame images may stand in a list of several.
    """
    if not (count := schema.names.count(name)):
        return f"{path} {NO_COLUMN} {name!r}; it has {shown(schema.names)}"
    if count > 1:
        return f"{path} has {count} columns {name!r}; rename one of them"
    kind = schema.field(name).type
    return "" if _holds_images(kind, lists) else f"{name} of {path} is {kind}; {NEEDED}"


def _holds_images(kind: pa.DataType, lists: int) -> bool:
    kind = _of_an_image(kind, lists)
    types = pa.types
    if types.is_struct(kind):
        return any(kind.field(index).name in ("bytes", "path") for index in range(kind.num_fields))
    checks = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_null)
    return _is_text(kind) or any(check(kind) for check in checks)


def holds_text(kind: pa.DataType) -> bool:
    """Whether the cells of a column of this type are text, such as paths, or lists of it."""
    return _is_text(_of_an_image(kind, lists=2))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _of_an_image(kind: pa.DataType, lists: int) -> pa.DataType:
    kind = plain(kind)
    for _ in range(lists):
        kind = kind.value_type if is_list(kind) else kind
    return kind
