"""Estimate: from indices alone, what a run would write and cost, for several cases at once.

Sums and histograms only, a part at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..config_fields import Config
from ..grid import Geometry, smart_resize_many
from ..index.read import IndexArrays
from ..output.output_size import FORMATS, VALUE_BYTES, RowForm, data_bytes
from ..output.statistics import BRANCHES
from .film import Film, by_media, shares, tokens_in, tokens_of
from .histograms import PERCENTILES, Int64, LogHistogram, added

LANGUAGE_MODEL_EXTRA = 2  # <|vision_start|> and <|vision_end|> around an image's tokens


@dataclass(frozen=True, kw_only=True)
class Writing:
    """The form in which tokens are written, and how they are cut into shards."""

    width: int
    format: str
    dtype: str
    row_group_bytes: int
    shard_tokens: int
    deduplicate: bool
    streams: int = 0

    @classmethod
    def of(cls, config: Config, width: int, streams: int = 0) -> Writing:
        """Returns the form that a configuration asks for.

        Args:
            width: values of a row.
            streams: further ones that a row has behind its main one.
        """
        output = config.output
        return cls(
            width=width,
            streams=streams,
            format=output.format,
            dtype=output.dtype,
            row_group_bytes=output.row_group_bytes,
            shard_tokens=output.shard_tokens,
            deduplicate=config.pack.deduplicate,
        )

    def streams_of(self, tokens: int) -> dict[str, int]:
        """The bytes of so many tokens that their further streams take, where they have any."""
        each = self.width // (1 + self.streams) * VALUE_BYTES[self.dtype]
        return {"deepstack_bytes": tokens * self.streams * each} if self.streams else {}

    @property
    def row(self) -> RowForm:
        return RowForm(width=self.width, streams=self.streams)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One of several ways to encode a source that are compared: a budget, a rate of frames, a model.

    Attributes:
        writing: the form in which its tokens are written.
    """

    geometry: Geometry
    writing: Writing


def cases_of(geometry: Geometry, budgets: Sequence[int], writing: Writing) -> list[Case]:
    """A case for each budget of pixels."""
    return [Case(geometry=replace(geometry, max_pixels=budget), writing=writing) for budget in budgets]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates and prices that turn tokens into time and money; None where one is not known.

    Attributes:
        tokens_per_second, price_per_hour: of one device.
        price_per_terabyte: what keeping a terabyte costs for as long as it is trained on.
        image_seconds, film_second_seconds: of one core, to prepare an image, and a second of film.
    """

    tokens_per_second: float | None = None
    price_per_hour: float | None = None
    price_per_terabyte: float | None = None
    image_seconds: float | None = None
    film_second_seconds: float | None = None

    def core_seconds(self, images: float, film_seconds: float) -> float | None:
        """Seconds of one core that preparing these takes; None where a rate that it needs is not known."""
        image_seconds, film_second_seconds = self.image_seconds, self.film_second_seconds
        if (images and image_seconds is None) or (film_seconds and film_second_seconds is None):
            return None
        if image_seconds is None and film_second_seconds is None:
            return None
        return images * (image_seconds or 0.0) + film_seconds * (film_second_seconds or 0.0)

    def preparing(self, core_seconds: float | None, encoded_tokens: float) -> dict[str, float]:
        """Core hours of preparing, and how many cores keep one device busy."""
        if core_seconds is None:
            return {}
        result = {"prepare_core_hours": core_seconds / 3600}
        if self.tokens_per_second and encoded_tokens:
            result["cores_per_device"] = core_seconds / (encoded_tokens / self.tokens_per_second)
        return result

    def costs(self, encoded_tokens: float, stored_bytes: float) -> dict[str, float]:
        """Device hours, their price, and when the cache has paid for itself.

        Encoding costs C once, and keeping the cache S; encoding in every epoch costs C times their number. So the cache
        is cheaper from 1 + S / C epochs on, and in the second one already while a terabyte costs less than
        C / terabytes.
        """
        if not self.tokens_per_second:
            return {}
        hours = encoded_tokens / self.tokens_per_second / 3600
        if self.price_per_hour is None:
            return {"device_hours": hours}
        price, terabytes = hours * self.price_per_hour, stored_bytes / 1e12
        result = {
            "device_hours": hours,
            "price": price,
            "break_even_price_per_terabyte": price / terabytes if terabytes else 0.0,
        }
        if self.price_per_terabyte is not None and price:
            result["break_even_epochs"] = 1 + self.price_per_terabyte * terabytes / price
        return result


@dataclass(kw_only=True)
class Estimate:
    """The totals that one case would give. `histogram` counts images and clips by their number of tokens."""

    max_pixels: int
    samples: int = 0
    units: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    no_image: int = 0
    histogram: Int64 = field(default_factory=lambda: np.zeros(1, np.int64))
    branches: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    duplicate_tokens: int = 0
    unit_duplicates: int = 0
    unit_duplicate_tokens: int = 0
    film: Film = field(default_factory=Film)

    def merge(self, other: Estimate) -> None:
        """Adds what another one counted of other parts."""
        self.samples += other.samples
        self.units += other.units
        self.rejects.update(other.rejects)
        self.no_image += other.no_image
        self.branches.update(other.branches)
        self.unit_duplicates += other.unit_duplicates
        self.unit_duplicate_tokens += other.unit_duplicate_tokens
        self.histogram = added(self.histogram, other.histogram)
        self.film.merge(other.film)

    @property
    def images(self) -> int:
        return int(self.histogram.sum())

    @property
    def tokens(self) -> int:
        return tokens_in(self.histogram)

    def as_dict(self, writing: Writing, rates: Rates) -> dict[str, object]:
        """The numbers by name."""
        images, tokens = self.images, self.tokens
        encoded_tokens = tokens - self.unit_duplicate_tokens

        def size(kind: str, dtype: str) -> int:
            return data_bytes(self.histogram, self.units, writing.row, kind, dtype, writing.row_group_bytes)

        stored_bytes = size(writing.format, writing.dtype)
        return {
            "max_pixels": self.max_pixels,
            "samples": self.samples,
            "units": self.units,
            "rejects": {name: count for name, count in sorted(self.rejects.items()) if count},
            "no_image": self.no_image,
            **tokens_of(self.histogram),
            "language_model_tokens": tokens + LANGUAGE_MODEL_EXTRA * images,
            **shares(self.branches, images),
            **by_media(self.histogram, self.branches, self.film),
            "duplicates": self.duplicates,
            "duplicate_tokens": self.duplicate_tokens,
            "duplicates_within_units": self.unit_duplicates,
            "duplicate_tokens_within_units": self.unit_duplicate_tokens,
            "embedding_bytes": tokens * writing.width * VALUE_BYTES[writing.dtype],
            **writing.streams_of(tokens),
            "data_bytes": stored_bytes,
            **{f"{kind}_bytes_by_dtype": {dtype: size(kind, dtype) for dtype in VALUE_BYTES} for kind in FORMATS},
            **({"tokens_per_second": rate} if (rate := rates.tokens_per_second) else {}),
            **rates.costs(encoded_tokens, stored_bytes),
            **rates.preparing(rates.core_seconds(*self._prepared()), encoded_tokens),
        }

    def _prepared(self) -> tuple[int, float]:
        """Images and seconds of film that are prepared: equal ones of a unit once."""
        images = self.images - self.film.clips - (self.unit_duplicates - self.film.repeats)
        return images, self.film.seconds - self.film.repeated_seconds


@dataclass(kw_only=True)
class SourceFacts:
    """Facts that no budget changes: sizes of the images as they are, parts that were skipped, what was left alone."""

    megapixels: LogHistogram = field(default_factory=LogHistogram)  # of pixels
    aspect_ratios: LogHistogram = field(default_factory=LogHistogram)  # long side over short side
    skipped_parts: list[str] = field(default_factory=list)
    left_alone: Counter[str] = field(default_factory=Counter)  # members of tars, by extension
    duplicates_of_one_in: int = 1

    def add(self, index: IndexArrays) -> None:
        self.left_alone += index.left_alone
        if index.damaged:
            self.skipped_parts.append(index.damaged)
        self.add_sizes(index.height_N[index.accepted_N], index.width_N[index.accepted_N])

    def add_sizes(self, height_N: Int64, width_N: Int64, counts: Int64 | None = None) -> None:
        """Adds images of these sizes, each as often as `counts` says, or once."""
        ratios_N = np.maximum(height_N, width_N) / np.maximum(np.minimum(height_N, width_N), 1)
        self.megapixels.add((height_N * width_N).astype(np.float64), counts)
        self.aspect_ratios.add(ratios_N, counts)

    def merge(self, other: SourceFacts) -> None:
        self.megapixels.counts += other.megapixels.counts
        self.aspect_ratios.counts += other.aspect_ratios.counts
        self.skipped_parts += other.skipped_parts
        self.left_alone += other.left_alone

    def as_dict(self) -> dict[str, object]:
        return {
            **{f"megapixels_p{percent}": self.megapixels.percentile(percent) / 1e6 for percent in PERCENTILES},
            **{f"aspect_ratio_p{percent}": self.aspect_ratios.percentile(percent) for percent in PERCENTILES},
        }


def branches_of(
    height_N: Int64, width_N: Int64, pixels_N: Int64, geometry: Geometry
) -> dict[str, npt.NDArray[np.bool_]]:
    """Returns which of BRANCHES each image took that has `pixels_N` after resizing."""
    factor = geometry.factor
    rounded_N = np.rint(height_N / factor) * np.rint(width_N / factor) * factor**2
    clamped_max_N = rounded_N > geometry.max_pixels
    clamped_min_N = rounded_N < geometry.min_pixels
    return dict(zip(BRANCHES, (clamped_min_N, clamped_max_N, pixels_N > height_N * width_N), strict=True))


def tokens_of_sizes(height_N: Int64, width_N: Int64, geometry: Geometry) -> Int64:
    """Tokens of images of these sizes, 0 for those that the header alone rejects."""
    sides = smart_resize_many(height_N, width_N, geometry.factor, geometry.min_pixels, geometry.max_pixels)
    return np.where(width_N * height_N <= geometry.max_image_pixels, sides[0] * sides[1], 0) // geometry.factor**2
