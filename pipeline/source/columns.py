"""Columns that a configuration names: refused where the source has none of that name, with those that there are."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

from ..errors import RequestError

NAMES_SHOWN = 30


def refuse_missing(setting: str, name: str, names: Sequence[str], where: str) -> NoReturn:
    """Raises RequestError: a column that is not there, with the nearest one, and all that are.

    Args:
        setting: the field of the configuration.
        where: what lacks the column, up to the verb: `a.parquet has no column`.
    """
    nearest = get_close_matches(name, names, 1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    shown = ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    raise RequestError(f"{setting}: {where} {name!r}{hint}; there are: {shown or 'none'}")
