"""The pages of `plan --html` and `stats --html`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import rejects
from ...errors import OutputError, SourceError
from ...output.info import read_dataset
from ...output.output_size import FORMATS, VALUE_BYTES
from ...rejects import Reject
from ...storage.files import AnyPath
from ..console import bytes_text
from ..console import number_text as plain_number
from .page import Section, bars, image_data, page, short, steps, table
from .pictures import Pictures

REJECTS_SHOWN = 24
OF_A_KIND = 3
COLUMNS = (
    'key, source, shard, "offset", length, status, num_tokens, grid_thw, width, height, resized_width, resized_height, '
    "norm_mean, norm_max"
)
DECODABLE = (rejects.ASPECT_RATIO, rejects.NON_FINITE)
BINS = 24
WORDS = {
    "language_model_tokens": "length in the language model",
    "share_clamped_min": "enlarged to min_pixels",
    "share_clamped_max": "reduced to max_pixels",
    "share_scaled_up": "scaled up",
    "deepstack_bytes": "bytes of the further streams among those",
    "duplicates": "equal images",
    "duplicate_tokens": "tokens of those",
    "duplicates_within_units": "equal within a unit: encoded once",
    "duplicate_tokens_within_units": "tokens of those, saved",
}


NUMBERS = {
    "Tokens": (
        "tokens",
        "tokens_mean",
        "tokens_p5",
        "tokens_p50",
        "tokens_p95",
        "tokens_p99",
        "tokens_max",
        "language_model_tokens",
        "norm_mean",
        "norm_max",
    ),
    "Images": (
        "samples",
        "rows",
        "rejected",
        "no_image",
        "non_finite",
        "duplicates",
        "duplicate_tokens",
        "duplicates_within_units",
        "duplicate_tokens_within_units",
        "share_clamped_min",
        "share_clamped_max",
        "share_scaled_up",
        "megapixels_p5",
        "megapixels_p50",
        "megapixels_p95",
        "megapixels_p99",
        "aspect_ratio_p50",
        "aspect_ratio_p95",
        "aspect_ratio_p99",
    ),
    "Size and time": (
        "units",
        "embedding_bytes",
        "deepstack_bytes",
        "data_bytes",
        "halvings",
        "device_hours",
        "images_per_second",
        "busy_share",
    ),
}


def _words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def number_text(name: str, value: Any) -> str:
    if isinstance(value, dict) and "estimate" in value:  # a line may break before the interval only
        low, high = number_text(name, value["low"]), number_text(name, value["high"])
        return f"{number_text(name, value['estimate'])} ({low}\N{NO-BREAK SPACE}–\N{NO-BREAK SPACE}{high})"
    if value is None:
        return "unknown"
    if "bytes" in name:
        return bytes_text(float(value)).replace(" ", "\N{NO-BREAK SPACE}")
    if name.startswith("share_") or name == "busy_share":
        return f"{100 * value:.1f} %"
    return plain_number(value)


def plan_page(tree: dict[str, Any], source: str, verdict: Sequence[str]) -> str:
    """The verdict, budgets side by side, and what the source is made of."""
    budgets = tree["budgets"]
    names = [name for name, value in budgets[0].items() if not isinstance(value, dict | list) or "estimate" in value]
    rows = [
        [_words(name), *(number_text(name, one[name]) for one in budgets)] for name in names if name != "max_pixels"
    ]
    sections = [
        Section(title="In words", wide=True, body="".join(f"<p>{html.escape(line)}</p>" for line in verdict)),
        Section(
            title="What a run would give",
            wide=len(budgets) > 1,
            body=table(rows, ["max_pixels", *(f"{one['max_pixels']:,}" for one in budgets)]),
        ),
    ]
    for one in budgets:
        body = _sizes(one)
        sections.append(Section(title=f"Bytes of the output, max_pixels {one['max_pixels']:,}", body=body))
        if "tokens_histogram" in one:
            sections.append(Section(title=f"Images by tokens, max_pixels {one['max_pixels']:,}", body=_token_bars(one)))
    facts = [
        [name.replace("_", " "), number_text(name, value)]
        for name, value in tree.items()
        if isinstance(value, int | float | str) or (isinstance(value, dict) and "estimate" in value)
    ]
    sections.append(Section(title="The source", body=table(facts)))
    rejects = tree.get("rejects") or budgets[0].get("rejects") or {}
    if rejects:
        sections.append(
            Section(
                title="Rejects known by now",
                body=bars(list(rejects), [float(count) for count in rejects.values()], across=True, unit="samples"),
            )
        )
    if tree.get("skipped_parts"):
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in tree["skipped_parts"])
        sections.append(Section(title="Skipped", body=f"<ul>{lines}</ul>", wide=True))
    return page("What it would take", source, sections)


def _token_bars(tree: dict[str, Any]) -> str:
    bins = tree["tokens_histogram"]
    return bars([short(one["from"]) for one in bins], [one["images"] for one in bins], unit="tokens of an image")


def _sizes(tree: dict[str, Any]) -> str:
    """Bytes of the data shards by dtype and format."""
    rows = [[dtype, *(bytes_text(tree[f"{kind}_bytes_by_dtype"][dtype]) for kind in FORMATS)] for dtype in VALUE_BYTES]
    return table(rows, ["output.dtype", *FORMATS])


def stats_page(output: AnyPath, connection: Any, result: dict[str, Any]) -> str:
    """Makes the page of an output: numbers, plots, and a few samples as the tower saw them."""
    dataset = read_dataset(output)
    config = dataset.config
    sections = [Section(title=title, body=_numbers(result, names)) for title, names in NUMBERS.items()]
    sections.append(Section(title="Bytes it would take otherwise", body=_sizes(result)))
    over = result["over_time"]
    if over:
        edges = [one["from"] for one in over] + [over[-1]["to"]]
        for title, name, largest in (
            ("Images per second", "images_per_second", None),
            ("Share of the encoders' time that they encode", "busy_share", 1.05),
        ):
            drawn = steps(edges, [one[name] for one in over], unit="seconds, pauses left out", largest=largest)
            sections.append(Section(title=title, body=drawn))
    sections.append(Section(title="Images by tokens", body=_token_bars(result)))
    for title, column, unit in (
        ("Images by the mean norm of their tokens", "norm_mean", "L2 norm"),
        ("Images by megapixels", "width::DOUBLE * height / 1e6", "megapixels"),
    ):
        sections.append(Section(title=title, body=_histogram(connection, column, unit)))
    if result["rejects"]:
        counts = result["rejects"]
        sections.append(
            Section(title="Rejects", body=bars(list(counts), list(counts.values()), across=True, unit="samples"))
        )
    seconds = result["seconds_by_stage"]
    if seconds:
        drawn = bars(list(seconds), list(seconds.values()), across=True, unit="seconds, over all processes")
        sections.append(Section(title="Work by stage", body=drawn))
    sections.append(Section(title="Some samples, as the tower saw them", body=_gallery(output, connection), wide=True))
    subtitle = f"{output} · {config['model']['path']} · {config['output']['dtype']} · {dataset.device}"
    return page("Vision tokens", subtitle, sections)


def _histogram(connection: Any, column: str, unit: str) -> str:
    values = connection.execute(f"SELECT min({column}), max({column}) FROM samples WHERE status = 'ok'").fetchone()
    if values[0] is None:
        return "<p>no image was accepted</p>"
    low, high = (float(value) for value in values)
    width = max((high - low) / BINS, 1e-9)
    rows = connection.execute(
        f"SELECT least(floor(({column} - {low}) / {width}), {BINS - 1})::INT AS bin, count(*) FROM samples "
        "WHERE status = 'ok' GROUP BY bin"
    ).fetchall()
    counts = np.zeros(BINS)
    for number, count in rows:
        counts[number] = count
    return bars([short(low + width * number) for number in range(BINS)], counts.tolist(), unit=unit)


def _gallery(output: AnyPath, connection: Any) -> str:
    """A few samples of each kind, and what was rejected."""
    median = connection.execute("SELECT quantile_disc(num_tokens, 0.5) FROM samples WHERE status = 'ok'").fetchone()[0]
    aspect = "greatest(width / height, height / width)"
    kinds = (
        ("Fewest tokens", "status = 'ok'", "num_tokens"),
        ("The median", f"status = 'ok' AND num_tokens = {median or 0}", "key"),
        ("Most tokens", "status = 'ok'", "num_tokens DESC"),
        ("Most extreme aspect", "status = 'ok'", f"{aspect} DESC"),
        ("Largest norms", "status = 'ok'", "norm_max DESC"),
        ("Rejected, but they can be decoded", f"status IN {DECODABLE}", "status"),
    )
    shown: set[tuple[str, str]] = set()
    parts: list[str] = []
    with Pictures(output) as pictures:
        for title, which, order in kinds:
            rows = _rows(connection, f"{COLUMNS} FROM samples WHERE {which} ORDER BY {order}, key LIMIT {OF_A_KIND}")
            fresh = [row for row in rows if (row["source"], row["key"]) not in shown]
            shown |= {(row["source"], row["key"]) for row in fresh}
            if fresh:
                figures = "".join(_figure(row, pictures) for row in fresh)
                parts.append(f"<h3>{title}</h3><div class=gallery>{figures}</div>")
    rejected = _rows(
        connection,
        "key, status, error FROM (SELECT *, row_number() OVER (PARTITION BY status ORDER BY key) AS place "
        f"FROM samples WHERE status NOT IN ('ok', 'no_image')) WHERE place <= {OF_A_KIND} "
        f"ORDER BY status, key LIMIT {REJECTS_SHOWN}",
    )
    if rejected:
        cells = [[str(cell) for cell in row.values()] for row in rejected]
        parts.append("<h3>Rejected</h3>" + table(cells, kind="text"))
    return "".join(parts)


def _rows(connection: Any, query: str) -> list[dict[str, Any]]:
    answer = connection.execute(f"SELECT {query}")
    names = [column[0] for column in answer.description]
    return [dict(zip(names, values, strict=True)) for values in answer.fetchall()]


def _numbers(result: dict[str, Any], names: Sequence[str]) -> str:
    """A table of those of some numbers that there are."""
    return table([[_words(name), number_text(name, result[name])] for name in names if name in result])


def _figure(row: dict[str, Any], pictures: Pictures) -> str:
    caption = f"{row['key']}, {row['width']}×{row['height']}"
    heat = ""
    if row["status"] == rejects.OK:
        caption += (
            f" as {row['resized_width']}×{row['resized_height']}, {row['num_tokens']:,} tokens, norms "
            f"{row['norm_mean']:.3g} on average, at most {row['norm_max']:.3g}"
        )
        try:
            heat = f'<img class=heat alt="norms of its tokens" src="{image_data(pictures.heat(row))}">'
        except (OutputError, OSError) as error:
            heat = f"<p>{html.escape(str(error))}</p>"
    else:
        caption += f", {row['status']}"
    try:
        what = "the image with its patches" if heat else "the image"
        picture = f'<img alt="{what}" src="{image_data(pictures.seen(row), "webp")}">'
    except (SourceError, OSError, KeyError, Reject) as error:
        picture = f"<p>{html.escape(str(error))}</p>"
    return f"<figure><div>{picture}{heat}</div><figcaption>{html.escape(caption)}</figcaption></figure>"
