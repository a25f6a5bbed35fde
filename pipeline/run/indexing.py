"""Indexing: lists and indexes a source, and no more."""

from __future__ import annotations

from collections.abc import Callable

from ..output.dataset import check_output
from ..source.plan import Plan
from ..storage.publish import check_publishing
from ..storage.scratch import Scratch
from .driver import Driver
from .request import Request
from .settle import settle
from .start import start_engine
from .work import DriverLimits, Observer, Work


def make_plan(request: Request, say: Callable[[str], None]) -> tuple[Plan, list[str]]:
    """Lists and indexes the source, and no more.

    Returns:
        The plan, and what is wrong with parts that could not be indexed.

    Raises:
        RequestError: as `run`.
    """
    config = request.config
    if request.place.decided:
        say(request.place.decided)
    check_output(request.output, {})
    plan, listing = Plan(request.output), request.listed()
    settle(plan, request, listing, say)
    new_files = plan.check_files(config.source, listing)
    if not new_files and len(plan.indexed_parts()) == plan.num_parts:
        return plan, []
    with Scratch(request.output) as scratch:
        check_publishing(request.output, scratch)
        plan.update(config.source, listing, scratch, new_files)
        if plan.decided:
            say(plan.decided)
        indexed = plan.indexed_parts()
        to_index = [part for part in range(plan.num_parts) if part not in indexed]
        # A part is read by one process: no cluster would be done with a single one sooner.
        engine = start_engine(request, scratch, say, encoding=False, inline=len(to_index) == 1)
        try:
            work = Work(parts=plan.num_parts, to_index=to_index, to_cut=[], units_of=lambda part: [])
            limits = DriverLimits(attempts=config.limits.attempts)
            driver = Driver(engine, work, limits, Observer(say=say))
            return plan, list(driver.run().failed_parts.values())
        finally:
            engine.shutdown()
