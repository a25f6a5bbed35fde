"""Run: the whole data flow on one screen.

check ─▶ start the engine ─▶ plan ─▶ drive (index, prepare, encode, commit) ─▶ totals ─▶ _SUCCESS
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from ..config import Config
from ..errors import DamagedPart, RequestError, RunFailed
from ..index.read import read_index_arrays
from ..index.units import Unit, cut_units
from ..output.dataset import check_output, recorded_versions, remove_success, stored_facts, write_dataset, write_success
from ..output.fingerprint import config_facts, fingerprint_of
from ..output.info import DatasetInfo
from ..output.layout import SCHEMA_VERSION
from ..output.ledger import CommittedUnits
from ..output.settings import ShardSettings
from ..output.totals import totals_of
from ..process import in_background, peak_memory_bytes
from ..source.carry import schema_text
from ..source.plan import Plan
from ..storage.files import make_folder
from ..storage.scratch import Scratch
from .driver import Driver, DriverLimits, Engine, Observer, Progress, Work, check_rejected_fraction
from .request import Request, check_request, stage_settings
from .summary import Summary

MOMENT_SECONDS = 1.0  # that a run looks for reasons not to start an engine
PARTS_LOOKED_AT = 256  # of a plan, for work, before an engine is started


class StartedEngine(Engine, Protocol):
    """An engine whose processes may still be starting.

    `begin` gives it what turns the encoders' identities, once all are there, into what a shard says about itself;
    `admit` raises RequestError where they cannot go on with this output. Nothing is encoded before.
    """

    encoders: int

    def begin(self, admit: Callable[[list[dict[str, object]]], ShardSettings]) -> None: ...

    def in_flight_bytes(self) -> int: ...

    def observe(self, progress: Progress, seconds: float) -> None: ...

    def shutdown(self) -> None: ...


def start_engine(
    request: Request, scratch: Scratch, say: Callable[[str], None], *, encoding: bool = True
) -> StartedEngine:
    """Starts the configured engine; without encoders where only indexing is to be done."""
    settings = stage_settings(request, scratch.nonce)
    if request.config.cluster.engine == "inline":
        from .engine_inline import InlineEngine

        return InlineEngine(settings, encoding=encoding)
    try:
        from .engine_ray import RayEngine
    except ImportError as error:
        raise RequestError(f"cluster.engine: ray is not installed ({error}); use cluster.engine: inline") from error
    return RayEngine(settings, request.config.cluster, scratch, say, encoding=encoding)


def one_identity(identities: list[dict[str, object]], mixed_devices: bool) -> dict[str, object]:
    """Returns what all encoders agree on. Raises RequestError, naming what differs."""
    first = identities[0]
    result = dict(first)
    for name in first:
        values = sorted({str(identity[name]) for identity in identities})
        if len(values) > 1:
            if not mixed_devices:
                raise RequestError(
                    f"the encoders differ in {name}: {', '.join(values)}; bits would depend on which of them encodes "
                    "an image. cluster.mixed_devices: true accepts that"
                )
            result[name] = " + ".join(values)
    return result


def run(config: Config, *, say: Callable[[str], None], report: Callable[[Progress, float, int], None]) -> Summary:
    """Indexes what is not indexed, encodes what is not committed.

    The source is listed and the tower hashed while the engine's processes start, but for the first moment: what is
    found wrong by then, or that nothing is left to do, costs no engine.

    Args:
        say: prints a line.
        report: called with the progress, the seconds since encoding could begin, and the number of encoders.

    Raises:
        RequestError: before anything is encoded.
        OutputError, RunFailed: the run stopped; what is committed stays.
    """
    request = check_request(config)
    check_output(request.output, config_facts(config))
    whole = Run(request, say, report)
    if (summary := whole.finished(None if config.cluster.engine == "inline" else MOMENT_SECONDS)) is not None:
        return summary
    with Scratch(request.output) as scratch:
        engine = start_engine(request, scratch, say)
        try:
            return whole.go(engine, scratch)
        finally:
            engine.shutdown()


class Run:
    """One run into one output: what is known of it, step by step."""

    def __init__(
        self, request: Request, say: Callable[[str], None], report: Callable[[Progress, float, int], None]
    ) -> None:
        self._request, self._say, self._report = request, say, report
        self._config, self._output = request.config, request.output
        self._tower_sha256 = in_background(request.checkpoint.sha256)
        self._plan = Plan(request.output)
        self._facts: dict[str, object] = {}
        self._skipped: dict[int, str] = {}
        self._started: float | None = None  # when encoding could begin

    def finished(self, seconds: float | None) -> Summary | None:
        """The summary if nothing is left to do. None if something is, or if it takes longer than this to see."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            new_files = self._check(deadline)
        except TimeoutError:
            return None
        plan = self._plan
        if new_files or len(plan.indexed_parts()) < plan.num_parts or stored_facts(self._output) is None:
            return None
        committed = CommittedUnits(self._output, plan.num_parts)
        try:
            for part in range(plan.num_parts):
                if part >= PARTS_LOOKED_AT or not all(
                    committed.has(part, unit.number) for unit in self._units_of(part)
                ):
                    return None
        except DamagedPart:
            return None
        with Scratch(self._output) as scratch:
            return self._conclude(Progress(parts=plan.num_parts), committed, scratch, encoders=1)

    def _check(self, deadline: float | None) -> int:
        """How many files are new. Raises RequestError: this output cannot take this run; TimeoutError."""

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        listing = self._request.listed(left())
        self._facts = config_facts(self._config) | {"tower_sha256": self._tower_sha256.result(left())}
        check_output(self._output, self._facts)
        return self._plan.check_files(self._config.source, listing)

    def go(self, engine: StartedEngine, scratch: Scratch) -> Summary:
        """Plans what is new, and drives the engine until nothing is left that can be done."""
        request, config, plan = self._request, self._config, self._plan
        new_files = self._check(None)
        new_parts = plan.update(config.source, request.listed(), scratch, new_files)
        committed = CommittedUnits(self._output, plan.num_parts)
        if committed.count or new_parts < plan.num_parts:
            self._say(f"{committed.count} units are committed; {new_parts} of {plan.num_parts} parts are new")
        engine.begin(lambda identities: self._admit(identities, scratch))
        tower, in_flight = request.checkpoint.config, config.cluster.in_flight
        patch_bytes = tower.in_channels * tower.patch_size**2

        def tick(progress: Progress) -> None:
            seconds = self._seconds()
            engine.observe(progress, seconds)
            self._report(progress, seconds, engine.encoders)

        work = Work(
            parts=plan.num_parts,
            indexed=plan.indexed_parts(),
            units_of=self._units_of,
            committed=committed.has,
            unit_bytes=lambda unit: unit.patches * patch_bytes,
        )
        limits = DriverLimits(
            in_flight_bytes=in_flight if isinstance(in_flight, int) else engine.in_flight_bytes(),
            attempts=config.limits.attempts,
            max_rejected_fraction=config.limits.max_rejected_fraction,
        )
        driver = Driver(engine, work, limits, Observer(on_tick=tick, on_start=lambda: remove_success(self._output)))
        return self._conclude(driver.run(), committed, scratch, encoders=engine.encoders)

    def _seconds(self) -> float:
        """Since encoding could begin."""
        return 0.0 if self._started is None else time.monotonic() - self._started

    def _admit(self, identities: list[dict[str, object]], scratch: Scratch) -> ShardSettings:
        """Completes the fingerprint by what the encoders are, and writes dataset.json. Raises RequestError."""
        config, output, facts = self._config, self._output, self._facts
        if any(identity["tower_sha256"] != facts["tower_sha256"] for identity in identities):
            raise RequestError(
                f"model.path: {config.model.path}: an encoder has found other weights there than the driver; every "
                "node must see the same checkpoint"
            )
        facts |= one_identity(identities, config.cluster.mixed_devices)
        check_output(output, facts)
        tower = self._request.checkpoint.config
        hidden_size = tower.width_of(config.output.stage)
        info = DatasetInfo(
            schema_version=SCHEMA_VERSION,
            fingerprint=fingerprint_of(facts),
            fingerprint_facts=facts,
            config=config.model_dump(),
            hidden_size=hidden_size,
            merge_size=tower.merge_size,
            patch_size=tower.patch_size,
            temporal_patch_size=tower.temporal_patch_size,
            carried_schema=schema_text(self._request.carry),
            device=str(facts["device"]),
            versions=recorded_versions(),
        )
        write_dataset(output, info, scratch)
        for folder in ("data", "samples"):
            make_folder(output / folder)
        self._started = time.monotonic()
        return ShardSettings(
            fingerprint=info.fingerprint,
            tower_sha256=str(facts["tower_sha256"]),
            stage=config.output.stage,
            dtype=config.output.dtype,
            hidden_size=hidden_size,
            merge_size=tower.merge_size,
            row_group_bytes=config.output.row_group_bytes,
            device=str(facts["device"]),
            format=config.output.format,
        )

    def _units_of(self, part: int) -> list[Unit]:
        """Cuts an indexed part. Raises DamagedPart: an earlier run skipped it, and this one may not."""
        index = read_index_arrays(self._plan.index_path(part))
        if index.damaged:
            if self._config.source.on_damaged == "fail":
                raise DamagedPart(index.damaged)
            self._skipped[part] = index.damaged
        return cut_units(part, index, self._request.geometry, self._config.output.shard_tokens)

    def _conclude(self, progress: Progress, committed: CommittedUnits, scratch: Scratch, *, encoders: int) -> Summary:
        """Adds up, and writes the card and _SUCCESS where nothing failed. Raises RunFailed."""
        config, output, wall_seconds = self._config, self._output, self._seconds()
        totals = totals_of(output, committed.unit_ids())
        totals.merge(progress.totals)
        problems = [*progress.failed_parts.values(), *progress.set_aside.values()]
        skipped = list(self._skipped.values())
        summary = Summary(
            output=str(output),
            complete=not problems,
            totals=totals,
            this_run=progress.totals,
            already_committed=committed.count,
            wall_seconds=wall_seconds,
            busy_share=progress.totals.seconds["encode"] / max(1e-9, wall_seconds * encoders),
            peak_memory_bytes=max(progress.peak_memory_bytes, peak_memory_bytes()),
            driver_peak_memory_bytes=peak_memory_bytes(),
            retries=progress.retries,
            problems=problems,
            skipped_parts=skipped,
            ignored_files=sum(self._request.listed().ignored.values()),
        )
        if problems:
            remove_success(output)  # one of an earlier run, before parts were added
            return summary
        if not totals.samples:
            raise RunFailed(f"source.uri: {config.source.uri}: no sample was found")
        try:
            check_rejected_fraction(totals, config.limits.max_rejected_fraction)
        except RunFailed:
            remove_success(output)  # of a run that allowed more
            raise
        write_success(output, totals, skipped, scratch)
        return summary


def make_plan(request: Request, say: Callable[[str], None]) -> tuple[Plan, list[str]]:
    """Lists and indexes the source, and no more.

    Returns:
        The plan, and what is wrong with parts that could not be indexed.

    Raises:
        RequestError: as `run`.
    """
    config = request.config
    check_output(request.output, {})
    plan, listing = Plan(request.output), request.listed()
    new_files = plan.check_files(config.source, listing)
    if not new_files and len(plan.indexed_parts()) == plan.num_parts:
        return plan, []
    with Scratch(request.output) as scratch:
        engine = start_engine(request, scratch, say, encoding=False)
        try:
            plan.update(config.source, listing, scratch, new_files)
            work = Work(parts=plan.num_parts, indexed=plan.indexed_parts(), units_of=lambda part: [])
            driver = Driver(engine, work, DriverLimits(in_flight_bytes=1, attempts=config.limits.attempts))
            return plan, list(driver.run().failed_parts.values())
        finally:
            engine.shutdown()
