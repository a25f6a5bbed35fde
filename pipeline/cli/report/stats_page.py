"""The page of `stats --html`: what was written, how fast, and some samples as the tower saw them."""

from __future__ import annotations

import datetime
import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...output.fingerprint import version_of
from ...output.info import DatasetInfo, read_dataset
from ...storage.files import AnyPath
from ..console import bytes_text
from ..console import number_text as plain_number
from ..words import flat, words_of
from .gallery import Gallery
from .page import Section, bars, histograms, page, short, steps, table
from .plan_page import sizes, text

BINS = 24
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
    "Samples": (
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
    "Videos": (
        "video.clips",
        "video.seconds",
        "video.frames",
        "video.frames_mean",
        "video.tokens",
        "video.tokens_mean",
        "video.tokens_p95",
        "video.tokens_max",
        "video.tokens_per_film_second",
        "video.tokens_per_film_second_p5",
        "video.tokens_per_film_second_p50",
        "video.tokens_per_film_second_p95",
        "video.tokens_per_film_second_p99",
        "video.share_clamped_min",
        "video.share_clamped_max",
        "image.images",
        "image.tokens",
        "image.tokens_mean",
        "image.share_clamped_max",
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


def stats_page(output: AnyPath, connection: Any, result: dict[str, Any]) -> str:
    """Makes the page of an output: numbers, plots, and a few samples."""
    dataset = read_dataset(output)
    numbers = flat(result)
    sections = [
        Section(title="In words", wide=True, body=f"<p>{html.escape(_in_words(result, dataset))}</p>"),
        Section(title="This output", body=table(_facts(output, dataset), kind="text")),
        *(
            Section(title=title, body=body)
            for title, names in NUMBERS.items()
            if (body := _numbers(numbers, names)) is not None
        ),
        Section(title="Bytes it would take otherwise", body=sizes(result)),
        *_over_time(result["over_time"]),
        *_token_bars(result),
    ]
    of_images = " AND media = 'image'" if dataset.sampling else ""
    for title, column, unit in (
        ("Images by the mean norm of their tokens", "norm_mean", "L2 norm"),
        ("Images by megapixels", "width::DOUBLE * height / 1e6", "megapixels, logarithmic"),
    ):
        drawn = _histogram(connection, column, unit, of_images, logarithmic="logarithmic" in unit)
        sections.append(Section(title=title, body=drawn))
    if dataset.sampling and "media" in result:
        rate = 'num_tokens / greatest(least(coalesce("end", duration), duration) - coalesce(start, 0), 1 / fps)'
        drawn = _histogram(connection, rate, "tokens a second", " AND media = 'video'")
        sections.append(Section(title="Clips by tokens a second of film", body=drawn))
    if result["rejects"]:
        counts = result["rejects"]
        sections.append(
            Section(title="Rejects", body=bars(list(counts), list(counts.values()), across=True, unit="samples"))
        )
    seconds = result["seconds_by_stage"]
    if seconds:
        drawn = bars(list(seconds), list(seconds.values()), across=True, unit="seconds, over all processes")
        sections.append(Section(title="Work by stage", body=drawn))
    gallery = Gallery(output, connection, with_clips=dataset.sampling is not None)
    sections.append(Section(title="Some samples, as the tower saw them", body=gallery.body(), wide=True))
    return page("Vision tokens", _subtitle(output, dataset), sections)


def _subtitle(output: AnyPath, dataset: DatasetInfo) -> str:
    """A line of facts: the output, the model, its limits, and when this page was made."""
    config = dataset.config
    facts = (
        str(output),
        config["model"]["path"],
        f"{config['output']['dtype']} in {config['output']['format']}",
        f"max_pixels {plain_number(config['preprocess']['max_pixels'])}",
        f"fingerprint {dataset.fingerprint[:12]}",
        datetime.date.today().isoformat(),
    )
    return " · ".join(facts)


def _in_words(result: dict[str, Any], dataset: DatasetInfo) -> str:
    """The output in a sentence or two."""
    rejected = sum(result["rejects"].values())
    rows = result["rows"]
    what = f"{plain_number(rows)} images"
    if "media" in result:
        film = result["media"]["video"]
        images, clips = plain_number(result["media"]["image"]["images"]), plain_number(film["clips"])
        what = f"{images} images and {clips} videos of {plain_number(film['seconds'])} seconds together"
    return (
        f"{what} are {plain_number(result['tokens'])} tokens of {dataset.hidden_size} values in "
        f"{dataset.config['output']['dtype']}: {bytes_text(result['data_bytes'])}. {plain_number(rejected)} of "
        f"{plain_number(result['samples'])} samples are rejects."
    )


def _facts(output: AnyPath, dataset: DatasetInfo) -> list[list[str]]:
    """Facts that decide the bytes, and where they were made."""
    config, sampling = dataset.config, dataset.sampling
    rows = {
        "model": config["model"]["path"],
        "max_pixels": plain_number(config["preprocess"]["max_pixels"]),
        "min_pixels": plain_number(config["preprocess"]["min_pixels"]),
        "computed in": config["model"]["dtype"],
        "device": dataset.device,
        "visionbake": dataset.versions.get("visionbake") or version_of("visionbake") or "from a checkout",
        "fingerprint": dataset.fingerprint,
    }
    if sampling is not None:
        frames = "every frame" if sampling.fps is None else f"{plain_number(sampling.fps)} frames a second"
        frames = frames if sampling.num_frames is None else f"{sampling.num_frames} frames"
        rows["videos"] = f"{frames}, by {sampling.sampler}, max_pixels {plain_number(sampling.max_pixels)}"
    return [[name, str(value)] for name, value in rows.items()]


def _over_time(over: Sequence[dict[str, float]]) -> list[Section]:
    if not over:
        return []
    edges = [one["from"] for one in over] + [over[-1]["to"]]
    return [
        Section(
            title=title,
            body=steps(edges, [one[name] for one in over], unit="seconds, pauses left out", largest=largest),
        )
        for title, name, largest in (
            ("Images per second", "images_per_second", None),
            ("Share of the encoders' time that they encode", "busy_share", 1.05),
        )
    ]


def _token_bars(result: dict[str, Any]) -> list[Section]:
    of_media = result.get("media", {"image": result})
    return [
        Section(
            title=f"{'Images' if media == 'image' else 'Clips'} by tokens",
            body=histograms(
                [("", one["tokens_histogram"])], unit=f"tokens of {'an image' if media == 'image' else 'a clip'}"
            ),
        )
        for media, one in of_media.items()
        if any(each["images"] for each in one["tokens_histogram"])
    ]


def _histogram(connection: Any, value: str, unit: str, which: str = "", *, logarithmic: bool = False) -> str:
    """Counts accepted samples by a value, an expression in SQL. `which`: more that a sample must be."""
    column = f"log10({value})" if logarithmic else value
    accepted = f"FROM samples WHERE status = 'ok'{which}"
    values = connection.execute(f"SELECT min({column}), max({column}) {accepted}").fetchone()
    if values[0] is None:
        return "<p>none was accepted</p>"
    low, high = (float(value) for value in values)
    width = max((high - low) / BINS, 1e-9)
    rows = connection.execute(
        f"SELECT least(floor(({column} - {low}) / {width}), {BINS - 1})::INT AS bin, count(*) {accepted} GROUP BY bin"
    ).fetchall()
    counts = np.zeros(BINS)
    for number, count in rows:
        counts[number] = count
    edges = [low + width * number for number in range(BINS)]
    return bars([short(10**edge if logarithmic else edge) for edge in edges], counts.tolist(), unit=unit)


def _numbers(numbers: dict[str, Any], names: Sequence[str]) -> str | None:
    """A table of those of some numbers that there are; None where there are none."""
    rows = [[words_of(name).removeprefix("clips: "), text(name, numbers[name])] for name in names if name in numbers]
    return table(rows) if rows else None
