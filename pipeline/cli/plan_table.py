"""Plan's table: what a run would give, a column for each case; secondary numbers only where they are wanted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from .console import ignored_text
from .words import flat, value_text, words_of

LABEL = 38
# Numbers that are shown without `--all`, of a case.
MAIN = frozenset(
    {
        "model",
        "max_pixels",
        "fps",
        "samples",
        "images",
        "rejects",
        "image.images",
        "video.clips",
        "video.seconds",
        "video.frames",
        "video.frames_mean",
        "tokens",
        "tokens_mean",
        "tokens_p50",
        "tokens_p95",
        "tokens_p99",
        "tokens_max",
        "image.tokens_mean",
        "image.tokens_p95",
        "video.tokens_mean",
        "video.tokens_p95",
        "video.tokens_per_film_second",
        "video.tokens_per_film_second_p50",
        "video.tokens_per_film_second_p95",
        "image.share_clamped_max",
        "video.share_clamped_max",
        "share_clamped_max",
        "data_bytes",
        "tokens_per_second",
        "device_hours",
        "price",
        "break_even_price_per_terabyte",
        "break_even_epochs",
        "prepare_core_hours",
        "cores_per_device",
    }
)
MAIN_OF_SOURCE = frozenset({"sampled", "samples", "calibrated_on", "prepared_on", "duplicates_counted_in_one_of"})
OF_BOTH = ("tokens_mean", "tokens_p50", "tokens_p95", "tokens_p99", "tokens_max", "share_clamped_max")


def plan_lines(tree: dict[str, Any], *, whole: bool) -> Iterator[str]:
    """The lines of a table.

    Args:
        tree: as `plan --json` prints it.
        whole: whether all numbers are shown.
    """
    currency = str(tree.get("currency", ""))
    for name, value in flat(tree).items():
        if name == "ignored_by_extension":
            if value:
                yield f"{'other files':{LABEL}}{ignored_text(value)}"
        elif name not in ("ignored_files", "currency") and (whole or name in MAIN_OF_SOURCE):
            yield f"{words_of(name):{LABEL}}{value_text(name, value, currency)}"
    yield from (f"{'skipped':{LABEL}}{line}" for line in tree.get("skipped_parts", ()))
    yield ""
    rows = case_rows(tree, whole=whole)
    widths = [max(len(row[column]) for row in rows) for column in range(1, len(rows[0]))]
    for label, *cells in rows:
        yield f"{label:{LABEL}}" + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def case_rows(tree: dict[str, Any], *, whole: bool) -> list[list[str]]:
    """Each number's words, and its text in each case."""
    cases = [flat(one) for one in tree["budgets"]]
    names = dict.fromkeys(name for one in cases for name in one)
    shown = [name for name in names if whole or is_main(name, cases)]
    currency = str(tree.get("currency", ""))
    return [
        [words_of(name), *(_cell(name, one, currency) for one in cases)]
        for name in shown
        if not _is_nothing(name, cases)
    ]


def is_main(name: str, cases: Sequence[dict[str, Any]]) -> bool:
    """Whether a number is shown without being asked for: of media apart, what it is of both together is not."""
    if any("video.clips" in one for one in cases) and name in OF_BOTH:
        return False
    return name in MAIN


def _is_nothing(name: str, cases: Sequence[dict[str, Any]]) -> bool:
    return name == "rejects" and not any(one.get(name) for one in cases)


def _cell(name: str, case: dict[str, Any], currency: str) -> str:
    if name not in case:
        return "–"
    value = case[name]
    if name == "model":
        return os.path.basename(str(value).rstrip("/"))
    return value_text(name, value, currency)
