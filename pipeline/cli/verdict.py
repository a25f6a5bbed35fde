"""Verdict: what an estimate comes to, in a few sentences, before the numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..config_fields import Output
from ..storage.files import absolute
from .console import bytes_text, number_text


def verdict(tree: dict[str, Any], output: Output, factor: int, *, kept: bool = True) -> list[str]:
    """Sentences about the first budget of an estimate: how much, how large, whether it fits, how long.

    Args:
        tree: as `plan --json` prints it.
        factor: pixels of a token's side.
        kept: whether the output is one that was named, and so where it is to lie is known.
    """
    budget = tree["budgets"][0]
    rejected = sum(_middle(count) for count in budget["rejects"].values()) if budget["rejects"] else 0
    if (images := _middle(budget.get("images"))) is None:  # of an index, not of a sample
        images = budget["samples"] - rejected - budget["no_image"]
    less = f" ({number_text(round(rejected))} more would be rejects)" if rejected else ""
    size = float(_middle(budget["data_bytes"]))
    lines = [
        f"{number_text(round(images))} images{less} are {number_text(_middle(budget['tokens']))} tokens, "
        f"{number_text(round(_middle(budget['tokens_mean'])))} an image, at max_pixels {budget['max_pixels']:,}. "
        f"As {output.dtype} they take {bytes_text(size)}{_room(output.uri, size) if kept else ''}."
    ]
    if (hours := budget.get("device_hours")) is not None:
        price = budget.get("price")
        cost = "" if price is None else f", {number_text(_middle(price))} at the price that was given"
        lines.append(f"One device would take {_duration(float(_middle(hours)))}{cost}.")
    by_dtype = budget.get(f"{output.format}_bytes_by_dtype", {})
    if output.dtype not in ("int8", "fp8") and "int8" in by_dtype:
        half = _middle(budget["tokens_mean"]) * factor**2 / 2
        lines.append(
            f"Less: output.dtype int8 takes {bytes_text(float(_middle(by_dtype['int8'])))}; --max-pixels "
            f"{budget['max_pixels']},{max(1, round(half / 1000)) * 1000} compares with a budget of half as many tokens."
        )
    return lines


def _middle(value: Any) -> Any:
    return value["estimate"] if isinstance(value, dict) else value


def _room(uri: str, size: float) -> str:
    """Whether so much fits where the output is to lie, as far as a file system can say."""
    folder = absolute(uri)
    if not isinstance(folder, Path):
        return ""
    while not folder.exists():
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f", and {bytes_text(free)} are free there: {'it fits' if size <= free else 'IT DOES NOT FIT'}"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"
