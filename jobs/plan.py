"""Index the source, and say what a run would take: samples, rejects, tokens, bytes, device hours."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from jobs.cli import add_config_arguments, bytes_text, print_json, run_command, say
from pipeline import rejects
from pipeline.config import Config, load_config
from pipeline.errors import RequestError, RunFailed
from pipeline.index import IndexArrays, read_index_arrays, read_index_status
from pipeline.parts import Plan
from pipeline.request import Request, check_request
from pipeline.runner import make_plan
from pipeline.storage import STORED, is_scaled
from pipeline.units import Geometry, cut_units, patches_of

PERCENTILES = (50, 95, 99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--max-pixels", metavar="A,B,C", help="compare budgets, from the index alone")
    parser.add_argument("--tokens-per-second", type=float, metavar="R", help="of one device, for the device hours")
    parser.add_argument("--price-per-hour", type=float, metavar="P", help="of one device")
    for name in ("--sample", "--html"):
        parser.add_argument(name, metavar="X", help="not yet built")
    parser.add_argument("--calibrate", action="store_true", help="not yet built")


@dataclass(kw_only=True)
class Estimate:
    """What one budget of pixels would give. `histogram` counts images by their number of tokens."""

    max_pixels: int
    samples: int = 0
    units: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))

    def add(self, index: IndexArrays, geometry: Geometry, part: int, shard_tokens: int) -> None:
        tokens_N = patches_of(index, geometry) // geometry.merge_size**2
        self.samples += len(tokens_N)
        self.units += len(cut_units(part, index, geometry, shard_tokens))
        pixels_N = index.width_N * index.height_N
        large_N = index.accepted_N & (pixels_N > geometry.max_image_pixels)
        self.rejects[rejects.TOO_MANY_PIXELS] += int(large_N.sum())
        self.rejects[rejects.ASPECT_RATIO] += int((index.accepted_N & ~large_N & (tokens_N == 0)).sum())
        counts = np.bincount(tokens_N[tokens_N > 0], minlength=len(self.histogram))
        counts[: len(self.histogram)] += self.histogram
        self.histogram = counts.astype(np.int64)

    def as_dict(self, row_bytes: int, rate: float | None, price: float | None) -> dict[str, object]:
        images = int(self.histogram.sum())
        tokens = int((self.histogram * np.arange(len(self.histogram))).sum())
        ends = np.cumsum(self.histogram)
        result: dict[str, object] = {
            "max_pixels": self.max_pixels,
            "samples": self.samples,
            "units": self.units,
            "rejects": {name: count for name, count in sorted(self.rejects.items()) if count},
            "tokens": tokens,
            "tokens_mean": tokens / images if images else 0.0,
            **{f"tokens_p{p}": int(np.searchsorted(ends, images * p / 100)) if images else 0 for p in PERCENTILES},
            "tokens_max": len(self.histogram) - 1 if images else 0,
            "embedding_bytes": tokens * row_bytes,
        }
        if rate:
            result["device_hours"] = tokens / rate / 3600
            if price is not None:
                result["price"] = tokens / rate / 3600 * price
        return result


def estimate(request: Request, plan: Plan, budgets: list[int]) -> tuple[list[Estimate], list[str]]:
    """Reads each part's index once for all budgets. Also returns the skipped parts' damage."""
    estimates = [Estimate(max_pixels=budget) for budget in budgets]
    damaged: list[str] = []
    for part in range(plan.num_parts):
        path = plan.index_path(part)
        index = read_index_arrays(path)
        status = Counter(read_index_status(path))
        del status[rejects.OK]
        if index.damaged:
            damaged.append(index.damaged)
        for one in estimates:
            one.rejects.update(status)
            geometry = replace(request.geometry, max_pixels=one.max_pixels)
            one.add(index, geometry, part, request.config.output.shard_tokens)
    return estimates, damaged


def budgets_of(config: Config, text: str | None) -> list[int]:
    if text is None:
        return [config.preprocess.max_pixels]
    budgets = [int(word) for word in text.split(",") if word.strip().isdigit()]
    low = max(784, config.preprocess.min_pixels)
    if len(budgets) != len(text.split(",")) or min(budgets, default=0) < low:
        raise RequestError(f"--max-pixels: {text}: must be integers of at least {low}, such as 501760,1003520")
    return budgets


def main(arguments: argparse.Namespace) -> int:
    for name in ("sample", "html", "calibrate"):
        if getattr(arguments, name):
            raise RequestError(f"--{name}: not yet built in this version of visionbake")
    for name in ("tokens_per_second", "price_per_hour"):
        if getattr(arguments, name) is not None and getattr(arguments, name) <= 0:
            raise RequestError(f"--{name.replace('_', '-')}: must be positive")
    config = load_config(arguments.config, arguments.overrides)
    budgets = budgets_of(config, arguments.max_pixels)
    request = check_request(config)
    quiet = arguments.json
    plan, failed = make_plan(request, say=(lambda line: None) if quiet else say)
    if failed:
        for problem in failed:
            print(f"FAILED  {problem}", file=sys.stderr)
        raise RunFailed(f"{len(failed)} of {plan.num_parts} parts could not be indexed")
    estimates, damaged = estimate(request, plan, budgets)
    scale_bytes = 4 if is_scaled(config.output.dtype) else 0
    hidden_size = request.checkpoint.config.width_of(config.output.stage)
    row_bytes = hidden_size * STORED[config.output.dtype].itemsize + scale_bytes
    rate, price = arguments.tokens_per_second, arguments.price_per_hour
    results = [one.as_dict(row_bytes, rate, price) for one in estimates]
    if quiet:
        print_json({"budgets": results, "skipped_parts": damaged, "ignored_files": sum(request.ignored.values())})
        return 0
    for result in results:
        say("")
        for name, value in result.items():
            say(f"{name:18}{_text(name, value)}")
    for line in damaged:
        say(f"skipped           {line}")
    if request.ignored:
        say(f"other files       {sum(request.ignored.values()):,} in the source, left alone")
    if not rate:
        say("device_hours      state --tokens-per-second (and --price-per-hour) to have them")
    return 0


def _text(name: str, value: object) -> str:
    if name == "embedding_bytes":
        return bytes_text(float(str(value)))
    if isinstance(value, dict):
        return ", ".join(f"{key} {count:,}" for key, count in value.items()) or "none"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    sys.exit(run_command("plan"))
