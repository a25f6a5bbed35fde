"""Columns that a configuration names: refused where the source has none of that name, with those that there are."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from ..errors import RequestError

NAMES_SHOWN = 30


def refuse_missing(setting: str, name: str, names: Sequence[str], where: str, they: str = "it has") -> NoReturn:
    """Raises RequestError: a column that is not there, with the nearest one, and all that are.

    Args:
        setting: the field of the configuration.
        where: what lacks the column, up to its name: `a.parquet has no column`; `they`: before those that there are.
    """
    nearest = get_close_matches(name, names, 1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    raise RequestError(f"{setting}: {where} {name!r}; {they} {shown or 'none'}{hint}")
