"""The pages of `plan --html` and `stats --html`."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jobs.cli import bytes_text
from jobs.report import Section, bars, image_data, page, short, table
from pipeline.errors import SourceError
from pipeline.files import AnyPath
from pipeline.guard import GuardedReader
from pipeline.index_read import read_index_rows
from pipeline.output import read_dataset
from pipeline.parts import Plan
from pipeline.prepare import UnitReader, resize
from pipeline.reader import EmbeddingDataset
from pipeline.rejects import Reject

SHOWN_PIXELS = 400  # the longer side of an image on the page
REJECTS_SHOWN = 12
BINS = 24
WORDS = {
    "language_model_tokens": "length in the language model",
    "share_clamped_min": "enlarged to min_pixels",
    "share_clamped_max": "reduced to max_pixels",
    "share_scaled_up": "scaled up",
    "duplicates": "equal images",
    "duplicate_tokens": "tokens of those",
    "duplicates_within_units": "equal within a unit: encoded once",
    "duplicate_tokens_within_units": "tokens of those, saved",
}


def number_text(name: str, value: Any) -> str:
    if isinstance(value, dict) and "estimate" in value:
        return " ".join(
            (number_text(name, value["estimate"]),
             f"({number_text(name, value['low'])} – {number_text(name, value['high'])})")
        )  # fmt: skip
    if "bytes" in name:
        return bytes_text(float(value))
    if name.startswith("share_"):
        return f"{100 * value:.1f} %"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}"


def plan_page(tree: dict[str, Any], source: str) -> str:
    """Budgets side by side, and what the source is made of."""
    budgets = tree["budgets"]
    names = [name for name, value in budgets[0].items() if not isinstance(value, dict | list) or "estimate" in value]
    rows = [
        [WORDS.get(name, name.replace("_", " ")), *(number_text(name, one[name]) for one in budgets)]
        for name in names
        if name != "max_pixels"
    ]
    sections = [
        Section(
            title="What a run would give", wide=len(budgets) > 1,
            body=table(rows, ["max_pixels", *(f"{one['max_pixels']:,}" for one in budgets)]),
        )
    ]  # fmt: skip
    for one in budgets:
        if "tokens_histogram" in one:
            labels = [short(one_bin["from"]) for one_bin in one["tokens_histogram"]]
            drawn = bars(labels, [one_bin["images"] for one_bin in one["tokens_histogram"]], unit="tokens of an image")
            sections.append(Section(title=f"Images by tokens, max_pixels {one['max_pixels']:,}", body=drawn))
        if "bytes_by_dtype" in one and one is budgets[0]:
            sizes = one["bytes_by_dtype"]
            drawn = bars(list(sizes), list(sizes.values()), across=True, unit="bytes of embeddings")
            sections.append(Section(title=f"Bytes by output.dtype, max_pixels {one['max_pixels']:,}", body=drawn))
    facts = [
        [name.replace("_", " "), number_text(name, value)]
        for name, value in tree.items()
        if isinstance(value, int | float) or (isinstance(value, dict) and "estimate" in value)
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


def stats_page(output: AnyPath, connection: Any, result: dict[str, Any]) -> str:
    """What was written: numbers, plots, and a few samples as the tower saw them."""
    dataset = read_dataset(output)
    config = dataset["config"]
    plain = [(name, value) for name, value in result.items() if not isinstance(value, dict)]
    sections = [
        Section(
            title="Numbers",
            body=table([[WORDS.get(name, name.replace("_", " ")), number_text(name, value)] for name, value in plain]),
        )
    ]
    for title, column, unit in (
        ("Images by tokens", "num_tokens", "tokens of an image"),
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
    subtitle = f"{output} · {config['model']['path']} · {config['output']['dtype']} · {dataset['device']}"
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
    chosen: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    count = connection.execute("SELECT count(*) FROM samples WHERE status = 'ok'").fetchone()[0]
    for what, order, skip in (
        ("fewest tokens", "num_tokens", 0),
        ("median", "num_tokens", count // 2),
        ("most tokens", "num_tokens DESC", 0),
        ("most extreme aspect", "greatest(width / height, height / width) DESC", 0),
        ("largest norm", "norm_max DESC", 0),
    ):
        query = (
            "SELECT key, source, shard, num_tokens, grid_thw, width, height, resized_width, resized_height, norm_mean, "
            f"norm_max FROM samples WHERE status = 'ok' ORDER BY {order}, key LIMIT 1 OFFSET {min(skip, count - 1)}"
        )
        answer = connection.execute(query)
        names = [column[0] for column in answer.description]
        for values in answer.fetchall() if count else []:
            row = dict(zip(names, values, strict=True))
            chosen.setdefault((row["source"], row["key"]), (what, row))
    dataset, plan = EmbeddingDataset(str(output)), Plan(output)
    config = read_dataset(output)["config"]
    reader, images = UnitReader(config["source"]["image_column"]), GuardedReader(config["limits"]["sample_seconds"])
    try:
        figures = [_figure(what, row, dataset, plan, reader, images) for what, row in chosen.values()]
    finally:
        images.close()
        reader.close()
    rejected = connection.execute(
        "SELECT status, key, error FROM (SELECT *, row_number() OVER (PARTITION BY status ORDER BY key) AS place "
        f"FROM samples WHERE status <> 'ok') WHERE place <= 3 ORDER BY status, key LIMIT {REJECTS_SHOWN}"
    ).fetchall()
    lines = (
        table([[str(cell) for cell in (key, status, error)] for status, key, error in rejected], kind="text")
        if rejected
        else ""
    )
    return f"<div class=gallery>{''.join(figures)}</div>{lines}"


def _figure(
    what: str, row: dict[str, Any], dataset: EmbeddingDataset, plan: Plan, reader: UnitReader, images: GuardedReader
) -> str:
    _, height, width = row["grid_thw"]
    merge = dataset.info["merge_size"]
    norms = dataset[row["source"], row["key"]]["image_embeds"].float().norm(dim=1).numpy()
    heat = _heat(norms.reshape(height // merge, width // merge), row)
    caption = (
        f"{what}: {row['key']}, {row['width']}×{row['height']} as {row['resized_width']}×{row['resized_height']}, "
        f"{row['num_tokens']:,} tokens, norms {row['norm_mean']:.3g} on average, at most {row['norm_max']:.3g}"
    )
    try:
        seen = image_data(_seen(row, dataset.info["patch_size"], plan, reader, images))
        picture = f'<img alt="the image with its patches" src="{seen}">'
    except (SourceError, OSError, KeyError, Reject) as error:
        picture = f"<p>{html.escape(str(error))}</p>"
    return (
        f'<figure><div>{picture}<img alt="norms of its tokens" src="{image_data(heat)}"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _shown(row: dict[str, Any]) -> tuple[int, int]:
    """Width and height on the page."""
    scale = min(1.0, SHOWN_PIXELS / max(row["resized_width"], row["resized_height"]))
    return max(1, round(row["resized_width"] * scale)), max(1, round(row["resized_height"] * scale))


def _seen(row: dict[str, Any], patch_size: int, plan: Plan, reader: UnitReader, images: GuardedReader) -> Image.Image:
    """The image as it was resized, with the edges of its patches. Raises KeyError, Reject, SourceError, OSError."""
    number = int(row["shard"].removeprefix("data/part-")[:6])
    rows = (one for one in read_index_rows(plan.index_path(number), 0, 1 << 40) if one.status == "ok")
    sample = next((one for one in rows if (one.source, one.key) == (row["source"], row["key"])), None)
    if sample is None:
        raise KeyError(row["key"])
    data = reader.read(plan.part(number), [sample])[0]
    assert data is not None
    pixels = images.pixels(sample.key, data, sample.orientation or 1)
    planes = resize(pixels, row["resized_height"], row["resized_width"])
    size = _shown(row)
    image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).resize(size).convert("RGBA")
    lines = Image.new("RGBA", size, (0, 0, 0, 0))
    drawing = ImageDraw.Draw(lines)
    step = patch_size * size[0] / row["resized_width"]
    for edge in np.arange(step, max(size), step).tolist():
        drawing.line([(edge, 0), (edge, size[1])], fill=(255, 255, 255, 70))
        drawing.line([(0, edge), (size[0], edge)], fill=(255, 255, 255, 70))
    return Image.alpha_composite(image, lines).convert("RGB")


def _heat(norms: np.ndarray, row: dict[str, Any]) -> Image.Image:
    from matplotlib import colormaps

    low, high = float(norms.min()), float(norms.max())
    colours = colormaps["viridis"]((norms - low) / max(high - low, 1e-9))[..., :3]
    return Image.fromarray((colours * 255).astype(np.uint8)).resize(_shown(row), Image.Resampling.NEAREST)
