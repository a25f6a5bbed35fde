"""Index the source, and say what a run would take: samples, rejects, tokens, bytes, device hours."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.calibrate import calibrate
from jobs.cli import add_config_arguments, bytes_text, print_json, run_command, say, write_page
from pipeline import rejects
from pipeline.config import Config, load_config
from pipeline.errors import RequestError, RunFailed
from pipeline.estimate import PERCENTILES, Duplicates, Estimate, LogHistogram, repeated
from pipeline.files import AnyPath, map_ahead
from pipeline.grid import smart_resize_many
from pipeline.index import IndexArrays, read_index_arrays, read_index_hashes, read_index_status
from pipeline.parts import Plan
from pipeline.request import Request, check_request
from pipeline.runner import make_plan
from pipeline.sampling import Draws, draw, interval, rejected, tokens_of
from pipeline.storage import STORED, is_scaled

READ_AHEAD = 4
COLUMN = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--max-pixels", metavar="A,B,C", help="compare budgets, from the index alone")
    parser.add_argument("--tokens-per-second", type=float, metavar="R", help="of one device, for the device hours")
    parser.add_argument("--price-per-hour", type=float, metavar="P", help="of one device")
    parser.add_argument("--sample", type=int, metavar="N", help="from the headers of N samples, writing nothing")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--html", metavar="FILE", help="write the same as a page with plots")
    parser.add_argument("--calibrate", action="store_true", help="measure tokens per second on this machine")


@dataclass(kw_only=True)
class Source:
    """What does not depend on a budget: sizes of the images as they are, and parts that were skipped."""

    megapixels: LogHistogram = field(default_factory=LogHistogram)  # of pixels
    aspect_ratios: LogHistogram = field(default_factory=LogHistogram)  # long side over short side
    skipped_parts: list[str] = field(default_factory=list)
    duplicates_of_one_in: int = 1

    def add(self, index: IndexArrays) -> None:
        height_N, width_N = index.height_N[index.accepted_N], index.width_N[index.accepted_N]
        self.megapixels.add((height_N * width_N).astype(np.float64))
        self.aspect_ratios.add(np.maximum(height_N, width_N) / np.maximum(np.minimum(height_N, width_N), 1))

    def as_dict(self) -> dict[str, object]:
        return {
            **{f"megapixels_p{percent}": self.megapixels.percentile(percent) / 1e6 for percent in PERCENTILES},
            **{f"aspect_ratio_p{percent}": self.aspect_ratios.percentile(percent) for percent in (50, 95, 99)},
        }


def estimate(request: Request, plan: Plan, budgets: list[int]) -> tuple[list[Estimate], Source]:
    """Reads each part's index once for all budgets."""
    estimates = [Estimate(max_pixels=budget) for budget in budgets]
    source = Source()
    paths = [plan.index_path(part) for part in range(plan.num_parts)]
    duplicates = Duplicates(len(budgets))
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        for part, facts in enumerate(map_ahead(pool, read_facts, paths, READ_AHEAD)):
            index, status, hash_N = facts
            del status[rejects.OK]
            if index.damaged:
                source.skipped_parts.append(index.damaged)
            source.add(index)
            tokens: list[npt.NDArray[np.int64]] = []
            candidates = repeated(hash_N)
            for one in estimates:
                one.rejects.update(status)
                tokens_N, units = one.add(index, request.geometry, part, request.config.output.shard_tokens)
                if request.config.pack.deduplicate:
                    one.add_unit_duplicates(hash_N, candidates, tokens_N, units)
                tokens.append(tokens_N)
            duplicates.add(hash_N, tokens)
    count, saved = duplicates.totals()
    for one, duplicate_tokens in zip(estimates, saved, strict=True):
        one.duplicates, one.duplicate_tokens = count, duplicate_tokens
    source.duplicates_of_one_in = duplicates.one_of
    return estimates, source


def read_facts(path: AnyPath) -> tuple[IndexArrays, Counter[str], npt.NDArray[np.uint64]]:
    """A part's numbers, its samples by status, and their hashes."""
    return read_index_arrays(path), Counter(read_index_status(path)), read_index_hashes(path)


def budgets_of(config: Config, text: str | None) -> list[int]:
    if text is None:
        return [config.preprocess.max_pixels]
    budgets = [int(word) for word in text.split(",") if word.strip().isdigit()]
    low = max(784, config.preprocess.min_pixels)
    if len(budgets) != len(text.split(",")) or min(budgets, default=0) < low:
        raise RequestError(f"--max-pixels: {text}: must be integers of at least {low}, such as 501760,1003520")
    return budgets


def main(arguments: argparse.Namespace) -> int:
    if arguments.calibrate and arguments.tokens_per_second:
        raise RequestError("--calibrate: measures what --tokens-per-second states; give one of them")
    for name in ("tokens_per_second", "price_per_hour", "sample"):
        if getattr(arguments, name) is not None and getattr(arguments, name) <= 0:
            raise RequestError(f"--{name.replace('_', '-')}: must be positive")
    config = load_config(arguments.config, arguments.overrides)
    budgets = budgets_of(config, arguments.max_pixels)
    request = check_request(config)
    hidden_size = request.checkpoint.config.width_of(config.output.stage)
    row_bytes = {name: hidden_size * dtype.itemsize + (4 if is_scaled(name) else 0) for name, dtype in STORED.items()}
    rate, price = arguments.tokens_per_second, arguments.price_per_hour
    measured: dict[str, Any] = {}

    def rate_of(height_N: npt.NDArray[np.int64], width_N: npt.NDArray[np.int64]) -> float | None:
        if not arguments.calibrate:
            return rate
        result = calibrate(request, grids_of(request, height_N, width_N))
        measured["calibrated_on"] = result.device
        measured["calibrated_tokens_per_second"] = result.tokens_per_second
        return result.tokens_per_second

    if arguments.sample is not None:
        draws = draw(request.place, arguments.sample, arguments.seed, config.source.image_column)
        seen = [one for each in draws.draws for one in each.samples if one.status == rejects.OK]
        rate = rate_of(np.array([one.height for one in seen]), np.array([one.width for one in seen]))
        tree = sampled(request, budgets, draws, row_bytes[config.output.dtype], rate, price)
    else:
        plan, failed = make_plan(request, say=(lambda line: None) if arguments.json else say)
        if failed:
            for problem in failed:
                print(f"FAILED  {problem}", file=sys.stderr)
            raise RunFailed(f"{len(failed)} of {plan.num_parts} parts could not be indexed")
        estimates, source = estimate(request, plan, budgets)
        rate = rate_of(*some_sizes(plan))
        tree = source.as_dict() | {
            "budgets": [one.as_dict(row_bytes, config.output.dtype, rate, price) for one in estimates],
            "skipped_parts": source.skipped_parts,
        }
    tree |= measured
    tree["ignored_files"] = sum(request.ignored.values())
    if arguments.html:
        from jobs.report_pages import plan_page

        write_page(arguments.html, plan_page(tree, config.source.uri))
    if arguments.json:
        print_json(tree)
        return 0
    _print(tree)
    if not rate:
        say(f"{'device_hours':{COLUMN}}state --tokens-per-second (and --price-per-hour) to have them")
    return 0


def some_sizes(plan: Plan) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Heights and widths of the images of some parts, spread over the source."""
    chosen = sorted({part * max(1, plan.num_parts - 1) // 7 for part in range(8)} & set(range(plan.num_parts)))
    indices = [read_index_arrays(plan.index_path(part)) for part in chosen]
    return (
        np.concatenate([index.height_N[index.accepted_N][:1000] for index in indices]),
        np.concatenate([index.width_N[index.accepted_N][:1000] for index in indices]),
    )


def grids_of(
    request: Request, height_N: npt.NDArray[np.int64], width_N: npt.NDArray[np.int64]
) -> list[tuple[int, int, int]]:
    """The grids of images of these sizes. Raises RequestError: there are none."""
    geometry = request.geometry
    sides = smart_resize_many(height_N, width_N, geometry.factor, geometry.min_pixels, geometry.max_pixels)
    grids = [(1, h // geometry.patch_size, w // geometry.patch_size) for h, w in zip(*sides, strict=True) if h]
    if not grids:
        raise RequestError("--calibrate: the source has no image to measure with")
    return [(t, int(h), int(w)) for t, h, w in grids]


def sampled(
    request: Request, budgets: list[int], draws: Draws, row_bytes: int, rate: float | None, price: float | None
) -> dict[str, Any]:
    """The same from the headers of some samples, each number with its 95 % interval."""
    results: list[dict[str, Any]] = []
    for budget in budgets:
        tokens = tokens_of(draws, replace(request.geometry, max_pixels=budget))
        total = interval(draws, [float(one.sum()) for one in tokens])
        images = interval(draws, [float((one > 0).sum()) for one in tokens])
        pooled = np.concatenate(tokens)
        weights = np.concatenate([np.full(len(one), d.weight) for one, d in zip(tokens, draws.draws, strict=True)])
        result: dict[str, Any] = {
            "max_pixels": budget,
            "images": images.scaled(1),
            "tokens": total.scaled(1),
            "tokens_mean": total.value / images.value if images.value else 0.0,
            **{f"tokens_p{percent}": quantile(pooled, weights, percent) for percent in PERCENTILES},
            "embedding_bytes": total.scaled(row_bytes),
        }
        if rate:
            result["device_hours"] = total.scaled(1 / rate / 3600)
            if price is not None:
                result["price"] = total.scaled(price / rate / 3600)
        results.append(result)
    return {
        "sampled": draws.samples,
        "files": draws.files,
        "samples": interval(draws, [float(len(one.samples)) for one in draws.draws]).scaled(1),
        "rejects": rejected(draws),
        "budgets": results,
    }


def quantile(values: npt.NDArray[np.int64], weights: npt.NDArray[np.float64], percent: float) -> int:
    """Of the values above 0, each standing for `weight` of its kind."""
    values, weights = values[values > 0], weights[values > 0]
    if not len(values):
        return 0
    order = np.argsort(values)
    ends = np.cumsum(weights[order])
    return int(values[order][min(len(values) - 1, int(np.searchsorted(ends, ends[-1] * percent / 100)))])


def _print(tree: dict[str, Any]) -> None:
    for name, value in tree.items():
        if name == "budgets":
            for budget in value:
                say("")
                _print(budget)
            say("")
        elif name == "skipped_parts":
            for line in value:
                say(f"{'skipped':{COLUMN}}{line}")
        elif name == "ignored_files":
            if value:
                say(f"{'other files':{COLUMN}}{value:,} in the source, left alone")
        elif name != "tokens_histogram":
            say(f"{name:{COLUMN}}{_text(name, value)}")


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict) and "estimate" in value:
        middle, low, high = (_text(name, value[key]) for key in ("estimate", "low", "high"))
        return f"{middle} ({low} to {high})"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(name, number)}" for key, number in value.items()) or "none"
    if "bytes" in name:
        return bytes_text(float(value))
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"
    return f"{value:,}"


if __name__ == "__main__":
    sys.exit(run_command("plan"))
