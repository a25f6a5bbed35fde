"""Settle: before anything is planned, what became of files that were planned by an earlier run."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import output_error
from ..index.changes import SourceChanged, settle_changes
from ..output.ledger import bits_of
from ..source.listing import Listing
from ..source.plan import Plan
from ..source.planned_source import PLAN_VERSION
from ..storage.files import AnyPath, names_in
from ..storage.scratch import Scratch
from .request import Request


def settle(plan: Plan, request: Request, listing: Listing, say: Callable[[str], None]) -> None:
    """Notes files that have another mtime or ETag and the same bytes, and, where that is asked, those that are lost.

    A plan of which nothing is committed is forgotten instead, so that it is made anew.

    Raises:
        RequestError: a planned file vanished or holds other bytes; the plan is of another source.
        SourceBusy, SourceError: a file that changed cannot be read.
        OutputError: the plan cannot be written.
    """
    if plan.planned is None:
        return
    if plan.planned.version != PLAN_VERSION and not _has_commits(request.output):
        _make_anew(plan, f"{plan.folder} is of another version", say)
        return
    source = request.config.source
    plan.check_source(source, listing.place)
    if next(plan.changes(listing), None) is None:
        return
    on_changed = source.on_changed if _has_commits(request.output) else "fail"
    try:
        with Scratch(request.output) as scratch:
            settled = settle_changes(plan, listing, on_changed, scratch)
    except SourceChanged as error:
        if _has_commits(request.output):
            raise
        _make_anew(plan, str(error).partition(";")[0], say)
        return
    if settled.same:
        say(f"{settled.same:,} files of the source have another mtime or ETag and the same bytes: noted")
    if settled.lost:
        say(f"{settled.lost:,} files of the source have vanished or changed: what is not committed of them is rejected")


def _has_commits(output: AnyPath) -> bool:
    return bool(bits_of(names_in(output / "samples", "part-")))


def _make_anew(plan: Plan, why: str, say: Callable[[str], None]) -> None:
    say(f"{why}; nothing is committed yet: the source is planned anew")
    try:
        plan.remove()
    except OSError as error:
        raise output_error(f"{plan.folder} cannot be removed: {error}", error) from error
