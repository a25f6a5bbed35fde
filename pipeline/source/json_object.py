"""JSON object: the fields of a record, as a manifest of JSON spells them."""

from __future__ import annotations

import json
from typing import Any


def object_of(data: bytes) -> dict[str, Any]:
    """The fields of one object. Raises ValueError: it is none, or names a field twice with different values."""
    try:
        tree = json.loads(data, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(tree, dict):
        raise ValueError(f"it is a {type(tree).__name__}")
    return tree


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):  # which of them is meant nobody knows
        for name, value in pairs:
            if value != tree[name]:
                raise ValueError(f"it has the field {name!r} twice, with different values")
    return tree
