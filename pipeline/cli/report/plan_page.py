"""The page of `plan --html`: the verdict, the cases side by side, and what the source is made of."""

from __future__ import annotations

import datetime
import html
import os
from collections.abc import Iterable, Sequence
from typing import Any

from ...config_fields import Config
from ...output.fingerprint import version_of
from ...output.output_size import FORMATS, VALUE_BYTES
from ..words import flat, value_text, words_of
from .page import Section, bars, cards, folded, histograms, page, table

# Columns of the table of cases, and what stands above them.
COLUMNS = {
    "tokens": "tokens",
    "tokens_mean": "an image",
    "image.tokens_mean": "an image",
    "video.tokens_per_film_second": "a second of film",
    "share_clamped_max": "reduced to max_pixels",
    "data_bytes": "output",
    "device_hours": "device hours",
    "price": "price",
    "cores_per_device": "cores a device",
}
NAMES = {"model": "model", "max_pixels": "max_pixels", "fps": "frames a second", "num_frames": "frames"}
NOT_DECIDING = {"image": ("fps", "num_frames"), "video": ("max_pixels",)}


def plan_page(tree: dict[str, Any], config: Config, verdict: Sequence[str]) -> str:
    """Makes the page. `tree`: as `plan --json` prints it; `verdict`: sentences."""
    cases = sorted(tree["budgets"], key=lambda one: _order(one, tree["budgets"]))
    currency = str(tree.get("currency", ""))
    sections = [
        Section(title="In words", wide=True, body="".join(f"<p>{html.escape(line)}</p>" for line in verdict)),
        Section(title="What a run would give", wide=True, body=_cases(cases, currency)),
        *_histograms(cases),
        Section(title="The source", body=_facts(tree, currency)),
    ]
    rejects = tree.get("rejects") or cases[0].get("rejects") or {}
    if rejects:
        sections.append(
            Section(
                title="Rejects known by now",
                body=bars(list(rejects), [float(count) for count in rejects.values()], across=True, unit="samples"),
            )
        )
    sections += [Section(title="Bytes of the output", body=sizes(cases[0]))] if len(cases) == 1 else []
    sections.append(Section(title="All numbers", body="".join(_all_numbers(one, cases, currency) for one in cases)))
    if tree.get("skipped_parts"):
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in tree["skipped_parts"])
        sections.append(Section(title="Skipped", body=f"<ul>{lines}</ul>", wide=True))
    return page("What it would take", _subtitle(config), sections)


def _subtitle(config: Config) -> str:
    """A line of facts: the source, the model, and when it was planned."""
    facts = (
        config.source.uri,
        config.model.path,
        f"{config.output.dtype} in {config.output.format}",
        f"model.dtype {config.model.dtype}",
        f"visionbake {version_of('visionbake') or 'from a checkout'}",
        datetime.date.today().isoformat(),
    )
    return " · ".join(facts)


def _order(one: dict[str, Any], cases: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    """Models in the order in which they were named, and of each the budgets and rates from the least on."""
    models = list(dict.fromkeys(case.get("model") for case in cases))
    fps = one.get("fps")
    return models.index(one.get("model")), one["max_pixels"], fps if isinstance(fps, int | float) else 0


def case_label(one: dict[str, Any], cases: Sequence[dict[str, Any]], names: Iterable[str] = NAMES) -> str:
    """Says by which of these names a case differs from the others; "" of a single one."""
    told = [name for name in names if len({str(case.get(name)) for case in cases}) > 1]
    return ", ".join(f"{NAMES[name]} {_name_text(name, one.get(name))}" for name in told)


def _name_text(name: str, value: Any) -> str:
    return os.path.basename(str(value).rstrip("/")) if name == "model" else value_text(name, value)


def _cases(cases: Sequence[dict[str, Any]], currency: str) -> str:
    """A row each, with what most people ask for."""
    figures = [flat(one) for one in cases]
    left_out = {"tokens_mean", "share_clamped_max"} if any("video.clips" in one for one in figures) else set()
    names = [name for name in NAMES if any(name in one for one in cases)]
    columns = [name for name in COLUMNS if any(name in one for one in figures) and name not in left_out]
    rows = [
        [_name_text(name, one.get(name)) for name in names] + [text(name, one.get(name), currency) for name in columns]
        for one in figures
    ]
    return cards(rows, [NAMES[name] for name in names] + [COLUMNS[name] for name in columns])


def _histograms(cases: Sequence[dict[str, Any]]) -> list[Section]:
    """Images, and clips, by tokens: the cases one below the other, on one axis."""
    found = []
    for media, what in (("image", "Images"), ("video", "Clips")):
        # What decides nothing of these is no reason for another one.
        deciding = [name for name in NAMES if name not in NOT_DECIDING[media]]
        shown = {
            case_label(one, cases, deciding): bins
            for one in cases
            if (bins := _bins(one, media)) and any(each["images"] for each in bins)
        }
        if shown:
            drawn = histograms(list(shown.items()), unit=f"tokens of {'an image' if media == 'image' else 'a clip'}")
            found.append(Section(title=f"{what} by tokens", body=drawn))
    return found


def _bins(one: dict[str, Any], media: str) -> list[dict[str, float]]:
    """The histogram of one of the media; without clips everything is of images."""
    if "media" in one:
        return list(one["media"][media]["tokens_histogram"])
    return list(one["tokens_histogram"]) if media == "image" else []


def _all_numbers(one: dict[str, Any], cases: Sequence[dict[str, Any]], currency: str) -> str:
    """Everything that is known of a case, hidden until somebody asks."""
    rows = [[words_of(name), text(name, value, currency)] for name, value in flat(one).items() if _is_number(value)]
    return folded(table(rows) + (sizes(one) if len(cases) > 1 else ""), case_label(one, cases) or "show")


def _facts(tree: dict[str, Any], currency: str) -> str:
    rows = [[words_of(name), text(name, value, currency)] for name, value in flat(tree).items() if _is_number(value)]
    return table([row for row in rows if row[0] != "currency"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | str) or (isinstance(value, dict) and "estimate" in value)


def text(name: str, value: Any, currency: str = "") -> str:
    """A number as a page has it: a line may break before an interval only."""
    if isinstance(value, dict) and "estimate" in value:
        low, high = (text(name, value[end], currency) for end in ("low", "high"))
        return f"{text(name, value['estimate'], currency)} ({low}\N{NO-BREAK SPACE}–\N{NO-BREAK SPACE}{high})"
    return value_text(name, value, currency).replace(" ", "\N{NO-BREAK SPACE}")


def sizes(tree: dict[str, Any]) -> str:
    """Bytes of the data shards by dtype and format."""
    rows = [
        [dtype, *(text("bytes", tree[f"{kind}_bytes_by_dtype"][dtype]) for kind in FORMATS)] for dtype in VALUE_BYTES
    ]
    return table(rows, ["output.dtype", *FORMATS])
