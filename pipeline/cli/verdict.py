"""Verdict: what an estimate comes to, in a few sentences, before the numbers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..config_fields import Output
from ..storage.files import absolute
from .console import bytes_text, number_text
from .words import money_text


def verdict(tree: dict[str, Any], output: Output, factor: int, *, kept: bool = True) -> list[str]:
    """Sentences about the first case of an estimate: how much, how large, whether it fits, how long.

    Args:
        tree: as `plan --json` prints it.
        factor: pixels of a token's side.
        kept: whether the output is one that was named, and so where it is to lie is known.
    """
    budget = tree["budgets"][0]
    size = float(_middle(budget["data_bytes"]))
    lines = [
        f"{_much(budget)}. As {output.dtype} they take {bytes_text(size)}{_room(output.uri, size) if kept else ''}."
    ]
    if (hours := budget.get("device_hours")) is not None:
        price = budget.get("price")
        cost = "" if price is None else f", {money_text(float(_middle(price)), str(tree.get('currency', '')))}"
        if price is not None and not tree.get("currency"):
            cost += " at the price that was given"
        lines.append(f"One device would take {_duration(float(_middle(hours)))}{cost}.")
    lines += _preparing(budget)
    by_dtype = budget.get(f"{output.format}_bytes_by_dtype", {})
    if output.dtype not in ("int8", "fp8") and "int8" in by_dtype:
        less = f"Less: output.dtype int8 takes {bytes_text(float(_middle(by_dtype['int8'])))}"
        lines.append(f"{less}{_half(budget, factor)}.")
    return lines


def _much(budget: dict[str, Any]) -> str:
    """How many images and clips there are, and their tokens."""
    rejected = sum(_middle(count) for count in budget["rejects"].values()) if budget["rejects"] else 0
    less = f" ({number_text(round(rejected))} more would be rejects)" if rejected else ""
    tokens = f"{number_text(round(_middle(budget['tokens'])))} tokens"
    at = f"max_pixels {budget['max_pixels']:,}"
    if "media" in budget:
        return _much_of_media(budget, less, tokens, at)
    if (images := _middle(budget.get("images"))) is None:  # of an index, not of a sample
        images = budget["samples"] - rejected - budget["no_image"]
    mean = number_text(round(_middle(budget["tokens_mean"])))
    return f"{number_text(round(images))} images{less} are {tokens}, {mean} an image, at {at}"


def _much_of_media(budget: dict[str, Any], less: str, tokens: str, at: str) -> str:
    image, video = budget["media"]["image"], budget["media"]["video"]
    images, clips = round(_middle(image["images"])), round(_middle(video["clips"]))
    rate = number_text(round(_middle(video["tokens_per_film_second"])))
    film = f"{number_text(clips)} videos of {_duration(float(_middle(video['seconds'])) / 3600)} together"
    sampling = budget.get("fps")
    sampled = str(sampling or "")
    if isinstance(sampling, int | float):
        sampled = f"{number_text(sampling)} frame{'' if sampling == 1 else 's'} a second"
    if "num_frames" in budget:
        sampled = f"{budget['num_frames']} frames a video"
    if not images:
        return f"{film}{less} are {tokens}, {rate} a second of film, at {sampled}"
    mean = number_text(round(_middle(image["tokens_mean"])))
    return (
        f"{number_text(images)} images and {film}{less} are {tokens}: {mean} an image at {at}, {rate} a second of "
        f"film at {sampled}"
    )


def _preparing(budget: dict[str, Any]) -> list[str]:
    """A sentence about preparing, where that was measured."""
    if "prepare_core_hours" not in budget:
        return []
    hours = float(_middle(budget["prepare_core_hours"]))
    said = f"Preparing takes {number_text(hours)} core hours" if hours >= 1 else f"Preparing takes {_duration(hours)}"
    if (cores := budget.get("cores_per_device")) is not None:
        said += f"{'' if hours >= 1 else ' of one core'}: {number_text(cores)} cores for each device, or it waits"
    return [f"{said}."]


def _half(budget: dict[str, Any], factor: int) -> str:
    """The option that compares with less, for half as many tokens of images, or for half as many frames."""
    if "media" in budget and _middle(budget["media"]["video"]["tokens"]) * 2 > _middle(budget["tokens"]):
        fps = budget.get("fps")
        return f"; --fps {fps:g},{fps / 2:g} compares with half as many frames" if isinstance(fps, float) else ""
    mean = budget["media"]["image"]["tokens_mean"] if "media" in budget else budget["tokens_mean"]
    half = max(1, round(_middle(mean) * factor**2 / 2 / 1000)) * 1000
    return f"; --max-pixels {budget['max_pixels']},{half} compares with a budget of half as many tokens"


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
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:,.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:,.1f} seconds"
