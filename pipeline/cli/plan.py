"""Index the source, and say what a run would take: samples, rejects, tokens, bytes, device hours."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rejects
from ..config import Config
from ..errors import RequestError, RunFailed
from ..estimate.estimate import Rates, Writing
from ..estimate.estimate_plan import estimate_plan
from ..estimate.extrapolate import extrapolated
from ..estimate.sampling import draw
from ..grid import Geometry, smart_resize_many
from ..index.read import read_index_arrays
from ..run.indexing import make_plan
from ..run.request import check_request
from ..source.plan import Plan
from .console import add_json_argument, bytes_text, check_file, ignored_text, number_text, print_json, say, write_page
from .requested import add_request_arguments, is_config, requested_config
from .verdict import verdict

COLUMN = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser)
    add_json_argument(parser)
    parser.add_argument("--max-pixels", dest="budgets", metavar="A,B,C", help="compare budgets, from the index alone")
    parser.add_argument("--tokens-per-second", type=float, metavar="R", help="of one device, for the device hours")
    parser.add_argument("--price-per-hour", type=float, metavar="P", help="of one device")
    parser.add_argument(
        "--price-per-terabyte", type=float, metavar="P", help="of keeping a terabyte for as long as it is trained on"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="from the headers of N samples, writing nothing")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--html", metavar="FILE", help="write the same as a page with plots")
    parser.add_argument("--calibrate", action="store_true", help="measure tokens per second on this machine")


def budgets_of(geometry: Geometry, text: str | None) -> list[int]:
    """The budgets of pixels that are asked for. Raises RequestError."""
    if text is None:
        return [geometry.max_pixels]
    budgets = [int(word) for word in text.split(",") if word.strip().isdecimal()]
    low = max(geometry.factor**2, geometry.min_pixels)
    if len(budgets) != len(text.split(",")) or min(budgets, default=0) < low:
        raise RequestError(f"--max-pixels: {text}: must be integers of at least {low}, such as 501760,1003520")
    return budgets


class Planner:
    """One `plan` command: the estimates for its budgets, from an index or from a sample."""

    def __init__(self, arguments: argparse.Namespace, config: Config) -> None:
        self._arguments = arguments
        self.request = check_request(config, weights=arguments.calibrate)
        self.config = self.request.config
        self.budgets = budgets_of(self.request.geometry, arguments.budgets)
        tower = self.request.checkpoint.config
        self.writing = Writing.of(config, tower.width_of(config.output.stage), tower.streams)
        self.measured: dict[str, Any] = {}  # what calibration found out beside the rates
        self.rates: list[Rates] = []  # of each budget
        self._left_alone: Counter[str] = Counter()  # of the tars that were indexed

    def estimate(self) -> dict[str, Any]:
        """The answer as JSON. Raises RequestError, RunFailed."""
        tree = self._from_sample() if self._arguments.sample is not None else self._from_index()
        ignored = self.request.listed().ignored + self._left_alone
        return tree | self.measured | {"ignored_files": ignored.total(), "ignored_by_extension": ignored}

    def _from_sample(self) -> dict[str, Any]:
        arguments, listing = self._arguments, self.request.listed()
        source = self.config.source
        if self.request.geometry.video is not None:
            raise RequestError(
                "--sample: tokens of clips are known when these were read as a whole: leave it out, or look at the "
                "images alone by source.media: image"
            )
        draws, decided = draw(listing, arguments.sample, arguments.seed, source.image_column, source.members)
        if decided and not arguments.json:
            say(decided)
        seen = [one for each in draws.draws for one in each.samples if one.status == rejects.OK]
        self._rate(np.array([one.height for one in seen]), np.array([one.width for one in seen]))
        return extrapolated(
            draws, self.request.geometry, dict(zip(self.budgets, self.rates, strict=True)), self.writing
        )

    def _from_index(self) -> dict[str, Any]:
        plan, failed = make_plan(self.request, say=(lambda line: None) if self._arguments.json else say)
        for problem in failed:
            print(f"FAILED  {problem}", file=sys.stderr)
        if failed:
            raise RunFailed(f"{len(failed)} of {plan.num_parts} parts could not be indexed")
        estimates, source = estimate_plan(plan, self.request.geometry, self.budgets, self.writing)
        self._left_alone = source.left_alone
        self._rate(*some_sizes(plan))
        return source.as_dict() | {
            **({"duplicates_counted_in_one_of": one_of} if (one_of := source.duplicates_of_one_in) > 1 else {}),
            "budgets": [one.as_dict(self.writing, each) for one, each in zip(estimates, self.rates, strict=True)],
            "skipped_parts": source.skipped_parts,
        }

    def _rate(self, height_N: npt.NDArray[np.int64], width_N: npt.NDArray[np.int64]) -> None:
        """Finds each budget's rates, from images of these sizes: large ones take more time for a token than small."""
        arguments = self._arguments
        rates = Rates(
            tokens_per_second=arguments.tokens_per_second,
            price_per_hour=arguments.price_per_hour,
            price_per_terabyte=arguments.price_per_terabyte,
        )
        self.rates = [rates] * len(self.budgets)
        if not arguments.calibrate:
            return
        from .calibrate import Calibrator

        calibrator = Calibrator(self.request)
        geometries = [replace(self.request.geometry, max_pixels=budget) for budget in self.budgets]
        results = [calibrator.measure(grids_of(geometry, height_N, width_N)) for geometry in geometries]
        self.measured["calibrated_on"] = results[0].device
        self.rates = [replace(rates, tokens_per_second=result.tokens_per_second) for result in results]


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises RequestError: a number that is none, or two ways of saying a rate."""
    if arguments.calibrate and arguments.tokens_per_second:
        raise RequestError("--calibrate: measures what --tokens-per-second states; give one of them")
    for name in ("tokens_per_second", "price_per_hour", "price_per_terabyte", "sample"):
        value = getattr(arguments, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise RequestError(f"--{name.replace('_', '-')}: must be a positive number")


def main(arguments: argparse.Namespace) -> int:
    check_numbers(arguments)
    check_file("--html", arguments.html)
    if is_config(arguments.source) or arguments.output is not None:
        return _answer(arguments, requested_config(arguments, "plan"))
    with tempfile.TemporaryDirectory(prefix="visionbake-plan-") as folder:  # the index is not kept
        return _answer(arguments, requested_config(arguments, "plan", folder), kept=False)


def _answer(arguments: argparse.Namespace, config: Config, *, kept: bool = True) -> int:
    planner = Planner(arguments, config)
    tree = planner.estimate()
    said = verdict(tree, config.output, planner.request.geometry.factor, kept=kept)
    if arguments.json:
        print_json(tree)
    else:
        say("\n".join(said) + "\n")
        _print(tree)
        if not planner.rates[0].tokens_per_second:
            say(f"{'device_hours':{COLUMN}}state --tokens-per-second (and --price-per-hour) to have them")
    if arguments.html:
        from .report.pages import plan_page

        write_page(arguments.html, plan_page(tree, planner.config.source.uri, said))
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
    geometry: Geometry, height_N: npt.NDArray[np.int64], width_N: npt.NDArray[np.int64]
) -> list[tuple[int, int, int]]:
    """The grids of images of these sizes. Raises RequestError: there are none."""
    sides = smart_resize_many(height_N, width_N, geometry.factor, geometry.min_pixels, geometry.max_pixels)
    grids = [(1, h // geometry.patch_size, w // geometry.patch_size) for h, w in zip(*sides, strict=True) if h]
    if not grids:
        raise RequestError("--calibrate: the source has no image to measure with")
    return [(t, int(h), int(w)) for t, h, w in grids]


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
        elif name == "ignored_by_extension":
            if value:
                say(f"{'other files':{COLUMN}}{ignored_text(value)}")
        elif name != "ignored_files" and name != "tokens_histogram":
            say(f"{name:{COLUMN}}{_text(name, value)}")


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict) and "estimate" in value:
        middle, low, high = (_text(name, value[key]) for key in ("estimate", "low", "high"))
        return f"{middle} ({low} to {high})"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(name, number)}" for key, number in value.items()) or "none"
    if "bytes" in name:
        return bytes_text(float(value))
    return number_text(value)
