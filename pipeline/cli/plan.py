"""Index the source, and say what a run would take: samples, rejects, tokens, bytes, device hours."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import rejects
from ..config import Config
from ..errors import RequestError, RunFailed
from ..estimate.estimate import Rates
from ..estimate.estimate_plan import estimate_plan
from ..estimate.extrapolate import extrapolated
from ..estimate.preparing import CLIPS, IMAGES, measured, specimens_of
from ..estimate.sampling import Headers, Specimen, draw
from ..index.read import read_index_arrays
from ..run.indexing import make_plan
from ..run.request import check_request, columns_of
from ..source.drawing import Drawn
from ..source.plan import Plan
from .console import add_json_argument, check_file, check_installed, print_json, say, warn, write_page
from .plan_cases import Compared, cases_of_plan, models_of
from .plan_table import LABEL, plan_lines
from .requested import add_request_arguments, is_config, requested_config
from .verdict import verdict
from .words import Money


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser, model_help="Hub id, local directory, or random:tiny; A,B compares (model.path)")
    add_json_argument(parser)
    parser.add_argument("--max-pixels", dest="budgets", metavar="A,B,C", help="compare budgets, from the index alone")
    parser.add_argument("--fps", dest="fps", metavar="A,B,C", help="compare rates of frames, from the index alone")
    parser.add_argument("--tokens-per-second", type=float, metavar="R", help="of one device, for the device hours")
    parser.add_argument("--price-per-hour", metavar="P", help="of one device: 2.5, or with a currency: 2.5EUR")
    parser.add_argument(
        "--price-per-terabyte", metavar="P", help="of keeping a terabyte for as long as it is trained on"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="from the headers of N samples, writing nothing")
    parser.add_argument("--seed", type=int, default=0, help="of --sample")
    parser.add_argument("--all", action="store_true", help="print the secondary numbers, too")
    parser.add_argument("--html", metavar="FILE", help="write the same as a page with plots")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="measure on this machine what a core prepares, and tokens per second if they are not stated",
    )


@dataclass(frozen=True, kw_only=True)
class Stated:
    """Rates and prices that are stated. `currency` is "" where none was named."""

    rates: Rates
    currency: str


class Planner:
    """One `plan` command: the estimates for its cases, from an index or from a sample."""

    def __init__(self, arguments: argparse.Namespace, config: Config, models: list[str], stated: Stated) -> None:
        self._arguments, self._stated = arguments, stated
        encodes = arguments.calibrate and not arguments.tokens_per_second
        self.request = check_request(config, weights=encodes)
        self.config = self.request.config
        compared = Compared(budgets=arguments.budgets, fps=arguments.fps, encodes=encodes)
        self.cases = cases_of_plan(config, self.request, models, compared)
        self.rates = [stated.rates] * len(self.cases)
        self.measured: dict[str, Any] = {}  # what calibration found out beside the rates
        self._quiet = arguments.json or arguments.quiet
        self._left_alone: Counter[str] = Counter()  # of the tars that were indexed

    def estimate(self) -> dict[str, Any]:
        """The answer as JSON. Raises RequestError, RunFailed."""
        tree = self._from_sample() if self._arguments.sample is not None else self._from_index()
        for budget, one in zip(tree["budgets"], self.cases, strict=True):
            figures = dict(budget)
            budget.clear()
            budget.update(one.names | figures)
        ignored = self.request.listed().ignored + self._left_alone
        currency = {"currency": self._stated.currency} if self._stated.currency else {}
        others = {"ignored_files": ignored.total(), "ignored_by_extension": ignored}
        return tree | self.measured | currency | others

    def _from_sample(self) -> dict[str, Any]:
        arguments, source = self._arguments, self.config.source
        listing = self.request.listed()  # what is looked for may be decided by it
        columns = replace(columns_of(source, self.request.place), key=None)
        headers = Headers(self.config.limits.sample_seconds, kept=max(IMAGES, CLIPS) if arguments.calibrate else 0)
        try:
            draws, decided = draw(listing, arguments.sample, arguments.seed, columns, source.members, headers)
        finally:
            headers.close()
        for line in (self.request.place.decided, decided):
            if line and not self._quiet:
                say(line)
        seen = [one for each in draws.draws for one in each.samples if one.status == rejects.OK]
        self._rate(seen, headers.specimens)
        return extrapolated(draws, [one.case for one in self.cases], self.rates)

    def _from_index(self) -> dict[str, Any]:
        plan, failed = make_plan(self.request, say=(lambda line: None) if self._quiet else say)
        for problem in failed:
            warn(f"FAILED  {problem}")
        if failed:
            raise RunFailed(f"{len(failed)} of {plan.num_parts} parts could not be indexed")
        estimates, source = estimate_plan(plan, [one.case for one in self.cases])
        self._left_alone = source.left_alone
        if self._arguments.calibrate:
            self._rate(some_samples(plan), specimens_of(plan))
        each = zip(estimates, self.cases, self.rates, strict=True)
        return source.as_dict() | {
            **({"duplicates_counted_in_one_of": one_of} if (one_of := source.duplicates_of_one_in) > 1 else {}),
            "budgets": [one.as_dict(case.case.writing, rates) for one, case, rates in each],
            "skipped_parts": source.skipped_parts,
        }

    def _rate(self, seen: Sequence[Drawn], specimens: Sequence[Specimen]) -> None:
        """Finds each case's rates, from samples of these sizes: large ones take more time for a token than small."""
        if not self._arguments.calibrate:
            return
        from .calibrate import calibrated, cores_text

        self.rates = [
            replace(rates, image_seconds=found.image_seconds, film_second_seconds=found.film_second_seconds)
            for rates, one in zip(self.rates, self.cases, strict=True)
            if (found := measured(specimens, one.case.geometry))
        ]
        self.measured["prepared_on"] = cores_text()
        if not self._arguments.tokens_per_second:
            device, tokens = calibrated(self.cases, seen)
            self.measured["calibrated_on"] = device
            self.rates = [replace(rates, tokens_per_second=one) for rates, one in zip(self.rates, tokens, strict=True)]


def stated_by(arguments: argparse.Namespace) -> Stated:
    """Raises RequestError: a number that is none, or prices in two currencies."""
    for name, least in (("tokens_per_second", 0), ("sample", 1)):
        value = getattr(arguments, name)
        if value is not None and not (value > least and math.isfinite(value)):
            more = "; an interval needs two samples" if value == 1 else ""
            raise RequestError(f"--{name.replace('_', '-')}: must be a positive number{more}")
    given = {
        name: Money.parse(f"--{name.replace('_', '-')}", text)
        for name in ("price_per_hour", "price_per_terabyte")
        if (text := getattr(arguments, name)) is not None
    }
    currencies = sorted({money.currency for money in given.values() if money.currency})
    if len(currencies) > 1:
        raise RequestError(f"--price-per-terabyte: prices in {' and '.join(currencies)}; give them in one currency")
    amounts = {name: money.amount for name, money in given.items()}
    return Stated(rates=Rates(tokens_per_second=arguments.tokens_per_second, **amounts), currency="".join(currencies))


def main(arguments: argparse.Namespace) -> int:
    stated = stated_by(arguments)
    check_file("--html", arguments.html)
    if arguments.html:
        check_installed("--html", "report", "matplotlib")
    models = models_of(arguments.model)
    arguments.model = models[0] if models else None
    if is_config(arguments.source) or arguments.output is not None:
        return _answer(arguments, requested_config(arguments, "plan"), models, stated)
    with tempfile.TemporaryDirectory(prefix="visionbake-plan-") as folder:  # the index is not kept
        return _answer(arguments, requested_config(arguments, "plan", folder), models, stated, kept=False)


def _answer(
    arguments: argparse.Namespace, config: Config, models: list[str], stated: Stated, *, kept: bool = True
) -> int:
    planner = Planner(arguments, config, models, stated)
    tree = planner.estimate()
    said = verdict(tree, config.output, planner.request.geometry.factor, kept=kept)
    if arguments.json:
        print_json(tree)
    else:
        say("\n".join(said) + "\n")
        say("\n".join(plan_lines(tree, whole=arguments.all)))
        if not planner.rates[0].tokens_per_second:
            say(f"{'device hours':{LABEL}}state --tokens-per-second (and --price-per-hour) to have them")
        if not arguments.all:
            say("\n--all prints bytes by format and dtype, duplicates, sizes, and what else is known")
    if arguments.html:
        from .report.plan_page import plan_page

        write_page(arguments.html, plan_page(tree, planner.config, said))
    return 0


def some_samples(plan: Plan) -> list[Drawn]:
    """Images and clips of some parts, spread over the source."""
    chosen = sorted({part * max(1, plan.num_parts - 1) // 7 for part in range(8)} & set(range(plan.num_parts)))
    found: list[Drawn] = []
    for part in chosen:
        index = read_index_arrays(plan.index_path(part))
        for row in index.accepted_N.nonzero()[0][:1000].tolist():
            width, height = int(index.width_N[row]), int(index.height_N[row])
            found.append(Drawn(status=rejects.OK, width=width, height=height, video=index.clips.get(row)))
    return found
