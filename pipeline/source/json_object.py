"""JSON object: the fields of a record, as a manifest of JSON spells them."""

from __future__ import annotations

import json
import math
from typing import Any


def object_of(data: bytes) -> dict[str, Any]:
    """The fields of one object. Raises ValueError: it is none, or names a field twice with different values."""
    try:
        tree = json.loads(data, object_pairs_hook=_object, parse_float=_fraction)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(tree, dict):
        raise ValueError(f"it is a {type(tree).__name__}")
    return tree


def _fraction(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:30]} is no float64")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):  # which of them is meant nobody knows
        for name, value in pairs:
            if value != tree[name]:
                raise ValueError(f"it has the field {name!r} twice, with different values")
    return tree
