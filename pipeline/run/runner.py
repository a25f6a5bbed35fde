"""Run: the whole data flow on one screen.

check ─▶ start the engine ─▶ plan ─▶ drive (index, prepare, encode, commit) ─▶ totals ─▶ _SUCCESS
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from ..config_fields import Config
from ..errors import DamagedPart, RequestError, RunFailed
from ..index.read import read_index_arrays
from ..index.units import Unit, cut_units
from ..output.dataset import (
    check_output,
    is_complete,
    recorded_versions,
    remove_success,
    stored_facts,
    write_dataset,
    write_success,
)
from ..output.fingerprint import config_facts, fingerprint_of
from ..output.info import DatasetInfo
from ..output.layout import SCHEMA_VERSION
from ..output.settings import ShardSettings
from ..process import in_background, peak_memory_bytes
from ..source.carry import check_carried, schema_text
from ..source.plan import Plan
from ..storage.files import make_folder
from ..storage.scratch import Scratch
from .driver import Driver
from .failures import check_rejected_fraction
from .folding import Folder
from .patience import until_storage_answers
from .progress import Progress
from .request import Request, check_request
from .resume import Resume
from .settle import settle
from .start import StartedEngine, start_engine
from .summary import Summary
from .work import DriverLimits, Observer, Work

MOMENT_SECONDS = 1.0  # that a run looks for reasons not to start an engine
CUTTING_THREADS = 16
PARTS_LOOKED_AT = 256  # of a plan, for work, before an engine is started


def run(
    config: Config,
    *,
    say: Callable[[str], None],
    report: Callable[[Progress, float, float], None],
    doing: Callable[[str], None] = lambda what: None,
) -> Summary:
    """Indexes what is not indexed, encodes what is not committed.

    Storage that does not answer at either end, where nothing else can be done meanwhile, is waited for: a run that
    begins again goes on where it stopped.

    Args:
        say: prints a line.
        report: called with the progress, the seconds since encoding could begin, and those of encoders at work.
        doing: called with what is begun, before there is any progress.

    Raises:
        RequestError: before anything is encoded.
        OutputError, RunFailed, SourceError: the run stopped; what is committed stays.
    """
    return until_storage_answers(lambda: _run(config, say, report, doing), say)


def _run(
    config: Config,
    say: Callable[[str], None],
    report: Callable[[Progress, float, float], None],
    doing: Callable[[str], None],
) -> Summary:
    """Runs once.

    The source is listed and the tower hashed while the engine's processes start, but for the first moment: what is
    found wrong by then, or that nothing is left to do, costs no engine.
    """
    doing(f"looking at {config.source.uri} and {config.model.path}")
    request = check_request(config)
    if request.place.decided:
        say(request.place.decided)
    check_output(request.output, config_facts(request.config, request.geometry.video))
    whole = Run(request, say, report)
    if (summary := whole.finished(None if config.cluster.engine == "inline" else MOMENT_SECONDS)) is not None:
        return summary
    with Scratch(request.output) as scratch:
        folder = Folder(request.output, scratch, say)
        doing("loading the tower" if config.cluster.engine == "inline" else "starting the processes of the run")
        engine = start_engine(request, scratch, say)
        try:
            progress = whole.go(engine, scratch, folder)
        finally:
            engine.shutdown()  # the cluster is given back before anything is added up
            folder.close()
        return whole.conclude(progress, scratch, engine.encoder_seconds)


class Run:
    """One run into one output: what is known of it, step by step."""

    def __init__(
        self, request: Request, say: Callable[[str], None], report: Callable[[Progress, float, float], None]
    ) -> None:
        self._request, self._say, self._report = request, say, report
        self._config, self._output = request.config, request.output
        self._tower_sha256 = in_background(request.checkpoint.sha256)
        self._plan = Plan(request.output)
        self._facts: dict[str, object] = {}
        self._skipped: dict[int, str] = {}
        self._left_alone: dict[int, Counter[str]] = {}  # members of tars
        self._started: float | None = None  # when encoding could begin
        self._ended: float | None = None
        self._resume: Resume | None = None  # before this run

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
        resume = self._resume = Resume(self._output, plan.num_parts)
        committed, cut = resume.committed, [part for part in range(plan.num_parts) if part not in resume.done]
        try:
            if len(cut) > PARTS_LOOKED_AT or not all(
                committed.has(part, unit.number) for part in cut for unit in self._units_of(part)
            ):
                return None
        except DamagedPart:
            return None
        with Scratch(self._output) as scratch:
            return self.conclude(Progress(parts=plan.num_parts), scratch, 0.0)

    def _check(self, deadline: float | None) -> int:
        """How many files are new. Raises RequestError: this output cannot take this run; TimeoutError."""

        def left() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        listing = self._request.listed(left())
        facts = config_facts(self._config, self._request.geometry.video)
        self._facts = facts | {"tower_sha256": self._tower_sha256.result(left())}
        check_output(self._output, self._facts)
        settle(self._plan, self._request, listing, self._say)
        new_files = self._plan.check_files(self._config.source, listing)
        if new_files and self._request.carry and stored_facts(self._output) is not None:
            check_carried(self._request.carry, listing.place, self._plan.new_files(listing))
        return new_files

    def go(self, engine: StartedEngine, scratch: Scratch, folder: Folder) -> Progress:
        """Plans what is new, and drives the engine until nothing is left that can be done."""
        request, config, plan = self._request, self._config, self._plan
        new_files = self._check(None)
        if stored_facts(self._output) is not None and (new_files or is_complete(self._output)):
            # A run that is refused must leave a complete output as it is.
            engine.begin(partial(self._admit, scratch))
            engine.await_admission()
            if new_files:
                remove_success(self._output)
            new_parts = plan.update(config.source, request.listed(), scratch, new_files)
        else:
            new_parts = plan.update(config.source, request.listed(), scratch, new_files)
            engine.begin(partial(self._admit, scratch))
        if plan.decided:
            self._say(plan.decided)
        resume = self._resume = Resume(self._output, plan.num_parts)
        committed = resume.committed
        if committed.count or new_parts < plan.num_parts:
            self._say(f"{committed.count} units are committed; {new_parts} of {plan.num_parts} parts are new")
        tower = request.checkpoint.config
        patch_bytes = tower.in_channels * tower.patch_size**2

        def tick(progress: Progress) -> None:
            seconds = self._seconds()
            engine.observe(progress, seconds)
            self._report(progress, seconds, engine.encoder_seconds)

        indexed = plan.indexed_parts()
        folder.counts |= resume.counts
        work = Work(
            parts=plan.num_parts,
            to_index=[part for part in range(plan.num_parts) if part not in indexed],
            to_cut=[part for part in sorted(indexed) if part not in resume.done],
            units_of=self._units_of,
            committed=committed.has,
            unit_bytes=lambda unit: unit.frame_patches * patch_bytes,
        )
        observer = Observer(
            on_tick=tick, on_start=partial(remove_success, self._output), on_part_done=folder.add, say=self._say
        )
        driver = Driver(engine, work, self._limits(), observer)
        driver.progress.units_known = driver.progress.units_before = resume.units_done()
        progress = driver.run()
        self._ended = time.monotonic()
        return progress

    def _limits(self) -> DriverLimits:
        config = self._config
        in_flight, unit_seconds = config.cluster.in_flight, config.limits.unit_seconds
        inline = config.cluster.engine == "inline"
        return DriverLimits(
            in_flight_bytes=in_flight if isinstance(in_flight, int) and not inline else None,
            attempts=config.limits.attempts,
            max_rejected_fraction=config.limits.max_rejected_fraction,
            unit_seconds=unit_seconds if isinstance(unit_seconds, float) else None,
            cutting_threads=0 if inline else CUTTING_THREADS,
        )

    def _seconds(self) -> float:
        """Since encoding could begin."""
        return 0.0 if self._started is None else (self._ended or time.monotonic()) - self._started

    def _admit(self, scratch: Scratch, identity: dict[str, object]) -> ShardSettings:
        """Completes the fingerprint by what the encoders are, and writes dataset.json. Raises RequestError."""
        config, output, facts = self._config, self._output, dict(self._facts)
        if identity["tower_sha256"] != facts["tower_sha256"]:
            raise RequestError(
                f"model.path: {config.model.path}: an encoder has found other weights there than the driver; every "
                "node must see the same checkpoint"
            )
        facts |= identity
        check_output(output, facts)
        self._say(self._request.understood(facts))
        tower = self._request.checkpoint.config
        hidden_size = tower.width_of(config.output.stage)
        resolved = config.model_dump()
        resolved["model"]["dtype"] = facts["model.dtype"]
        info = DatasetInfo(
            schema_version=SCHEMA_VERSION,
            fingerprint=fingerprint_of(facts),
            fingerprint_facts=facts,
            config=resolved,
            hidden_size=hidden_size,
            merge_size=tower.merge_size,
            patch_size=tower.patch_size,
            temporal_patch_size=tower.temporal_patch_size,
            streams=tower.streams,
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
            streams=tower.streams,
        )

    def _units_of(self, part: int) -> list[Unit]:
        """Cuts an indexed part. Raises DamagedPart: an earlier run skipped it, and this one may not."""
        index = read_index_arrays(self._plan.index_path(part))
        if index.damaged:
            if self._config.source.on_damaged == "fail" and not index.is_lost:
                raise DamagedPart(index.damaged)
            self._skipped[part] = index.damaged
        if index.left_alone:
            self._left_alone[part] = index.left_alone
        return cut_units(part, index, self._request.geometry, self._config.output.shard_tokens)

    def conclude(self, progress: Progress, scratch: Scratch, encoder_seconds: float) -> Summary:
        """Adds up, and writes the card and _SUCCESS where nothing failed. Raises RunFailed."""
        config, output, wall_seconds, resume = self._config, self._output, self._seconds(), self._resume
        assert resume is not None
        totals = resume.totals()
        totals.merge(progress.totals)
        problems = [*progress.failed_parts.values(), *progress.set_aside.values()]
        skipped = list(self._skipped.values())
        summary = Summary(
            output=str(output),
            complete=not problems,
            totals=totals,
            this_run=progress.totals,
            already_committed=resume.committed.count,
            wall_seconds=wall_seconds,
            busy_share=progress.totals.seconds["encode"] / max(1e-9, encoder_seconds),
            peak_memory_bytes=max(progress.peak_memory_bytes, peak_memory_bytes()),
            driver_peak_memory_bytes=peak_memory_bytes(),
            retries=progress.retries,
            problems=problems,
            beyond_help=progress.beyond_help,
            skipped_parts=skipped,
            ignored=self._request.listed().ignored + sum(self._left_alone.values(), Counter()),
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
