"""Run: the whole data flow on one screen.

check ─▶ start the engine ─▶ fingerprint ─▶ plan ─▶ drive (index, prepare, encode, commit) ─▶ totals ─▶ _SUCCESS
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pipeline.carry import schema_text
from pipeline.config import Config
from pipeline.driver import Driver, Engine, Progress, check_rejected_fraction
from pipeline.errors import DamagedPart, RequestError, RunFailed
from pipeline.files import Scratch
from pipeline.index_read import read_index_arrays
from pipeline.output import (
    CommittedUnits,
    Totals,
    check_output,
    config_facts,
    fingerprint_of,
    remove_success,
    totals_of,
    write_dataset,
    write_success,
)
from pipeline.parts import Plan
from pipeline.process import peak_memory_bytes
from pipeline.request import Request, check_request, stage_settings
from pipeline.settings import ShardSettings
from pipeline.units import Unit, cut_units


class StartedEngine(Engine, Protocol):
    encoders: int

    def identities(self) -> list[dict[str, object]]: ...

    def start(self, shards: ShardSettings) -> None: ...

    def in_flight_bytes(self) -> int: ...

    def observe(self, progress: Progress, seconds: float) -> None: ...

    def shutdown(self) -> None: ...


@dataclass(kw_only=True)
class Summary:
    """What a run did and what the output holds. Seconds are wall time unless they are by stage."""

    output: str
    complete: bool
    totals: Totals
    this_run: Totals
    already_committed: int
    wall_seconds: float
    busy_share: float
    peak_memory_bytes: int
    driver_peak_memory_bytes: int
    retries: int
    problems: list[str] = field(default_factory=list)
    skipped_parts: list[str] = field(default_factory=list)
    ignored_files: int = 0

    def as_dict(self) -> dict[str, object]:
        seconds = max(self.wall_seconds, 1e-9)
        return {
            "output": self.output,
            "complete": self.complete,
            "totals": self.totals.as_dict(),
            "this_run": self.this_run.as_dict(),
            "units_already_committed": self.already_committed,
            "wall_seconds": round(self.wall_seconds, 3),
            "images_per_second": round(self.this_run.rows / seconds, 2),
            "tokens_per_second": round(self.this_run.tokens / seconds, 1),
            "seconds_by_stage": {key: round(value, 3) for key, value in sorted(self.this_run.seconds.items())},
            "encoder_busy_share": round(self.busy_share, 4),
            "peak_memory_bytes": self.peak_memory_bytes,
            "driver_peak_memory_bytes": self.driver_peak_memory_bytes,
            "retries": self.retries,
            "problems": self.problems,
            "skipped_parts": self.skipped_parts,
            "ignored_files": self.ignored_files,
        }


def start_engine(
    request: Request, scratch: Scratch, say: Callable[[str], None], *, encoding: bool = True
) -> StartedEngine:
    """Starts the configured engine; without encoders where only indexing is to be done."""
    settings = stage_settings(request, scratch.nonce)
    if request.config.cluster.engine == "inline":
        from pipeline.engine_inline import InlineEngine

        return InlineEngine(settings, encoding=encoding)
    try:
        from pipeline.engine_ray import RayEngine
    except ImportError as error:
        raise RequestError(f"cluster.engine: ray is not installed ({error}); use cluster.engine: inline") from error
    return RayEngine(settings, request.config.cluster, scratch, say, encoding=encoding)


def one_identity(identities: list[dict[str, object]], mixed_devices: bool) -> dict[str, object]:
    """What all encoders agree on. Raises RequestError, naming what differs."""
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

    Args:
        say: prints a line.
        report: called with the progress, the seconds since encoding began, and the number of encoders.

    Raises:
        RequestError: before anything is written.
        OutputError, RunFailed: the run stopped; what is committed stays.
    """
    request = check_request(config)
    output = request.output
    tower_sha256 = request.checkpoint.sha256()
    facts = config_facts(config, tower_sha256)
    check_output(output, facts)
    plan = Plan(output)
    new_files = plan.check_files(config.source, request.place)

    with Scratch(output) as scratch:
        engine = start_engine(request, scratch, say)
        try:
            identities = engine.identities()
            if any(identity["tower_sha256"] != tower_sha256 for identity in identities):
                raise RequestError(
                    f"model.path: {config.model.path}: an encoder has found other weights there than the driver; every "
                    "node must see the same checkpoint"
                )
            facts |= one_identity(identities, config.cluster.mixed_devices)
            check_output(output, facts)
            return _run(request, engine, facts, plan, new_files, scratch, say, report)
        finally:
            engine.shutdown()


def make_plan(request: Request, say: Callable[[str], None]) -> tuple[Plan, list[str]]:
    """Lists and indexes the source, and no more.

    Returns:
        The plan, and what is wrong with parts that could not be indexed.

    Raises:
        RequestError: as `run`.
    """
    config = request.config
    check_output(request.output, {})
    plan = Plan(request.output)
    new_files = plan.check_files(config.source, request.place)
    if not new_files and len(plan.indexed_parts()) == plan.num_parts:
        return plan, []
    with Scratch(request.output) as scratch:
        engine = start_engine(request, scratch, say, encoding=False)
        try:
            plan.update(config.source, request.place, scratch, new_files)
            indexed = plan.indexed_parts()
            driver = Driver(
                engine, parts=plan.num_parts, indexed=indexed, units_of=lambda part: [], committed=lambda *_: True,
                unit_bytes=lambda unit: 0, in_flight_bytes=1, attempts=config.limits.attempts,
                max_rejected_fraction=1.0, on_tick=lambda progress: None, on_start=lambda: None,
            )  # fmt: skip
            return plan, list(driver.run().failed_parts.values())
        finally:
            engine.shutdown()


def _run(
    request: Request, engine: StartedEngine, facts: dict[str, object], plan: Plan, new_files: int, scratch: Scratch,
    say: Callable[[str], None], report: Callable[[Progress, float, int], None],
) -> Summary:  # fmt: skip
    config, output = request.config, request.output
    tower = request.checkpoint.config
    new_parts = plan.update(config.source, request.place, scratch, new_files)
    committed = CommittedUnits(output, plan.num_parts)
    if committed.count or new_parts < plan.num_parts:
        say(f"{committed.count} units are committed; {new_parts} of {plan.num_parts} parts are new")
    hidden_size = tower.width_of(config.output.stage)
    sizes = {"hidden_size": hidden_size, "merge_size": tower.merge_size, "patch_size": tower.patch_size}
    write_dataset(output, config, facts, sizes | {"carried_schema": schema_text(request.carry)}, scratch)
    if isinstance(output, Path):
        for folder in ("data", "samples"):
            (output / folder).mkdir(exist_ok=True)
    engine.start(
        ShardSettings(
            fingerprint=fingerprint_of(facts),
            tower_sha256=str(facts["tower_sha256"]),
            stage=config.output.stage,
            dtype=config.output.dtype,
            hidden_size=hidden_size,
            merge_size=tower.merge_size,
            row_group_bytes=config.output.row_group_bytes,
            device=str(facts["device"]),
            format=config.output.format,
        )
    )
    skipped: list[str] = []

    def units_of(part: int) -> list[Unit]:
        index = read_index_arrays(plan.index_path(part))
        if index.damaged:
            if config.source.on_damaged == "fail":  # an earlier run skipped it
                raise DamagedPart(index.damaged)
            skipped.append(index.damaged)
        return cut_units(part, index, request.geometry, config.output.shard_tokens)

    patch_bytes = tower.in_channels * tower.patch_size**2
    in_flight = config.cluster.in_flight
    started = time.monotonic()

    def tick(progress: Progress) -> None:
        seconds = time.monotonic() - started
        engine.observe(progress, seconds)
        report(progress, seconds, engine.encoders)

    driver = Driver(
        engine,
        parts=plan.num_parts,
        indexed=plan.indexed_parts(),
        units_of=units_of,
        committed=committed.has,
        unit_bytes=lambda unit: unit.patches * patch_bytes,
        in_flight_bytes=in_flight if isinstance(in_flight, int) else engine.in_flight_bytes(),
        attempts=config.limits.attempts,
        max_rejected_fraction=config.limits.max_rejected_fraction,
        on_tick=tick,
        on_start=lambda: remove_success(output),
    )
    progress = driver.run()
    wall_seconds = time.monotonic() - started
    totals = totals_of(output, committed.unit_ids())
    totals.merge(progress.totals)
    problems = [*progress.failed_parts.values(), *progress.set_aside.values()]
    summary = Summary(
        output=str(output),
        complete=not problems,
        totals=totals,
        this_run=progress.totals,
        already_committed=committed.count,
        wall_seconds=wall_seconds,
        busy_share=progress.totals.seconds["encode"] / max(1e-9, wall_seconds * engine.encoders),
        peak_memory_bytes=max(progress.peak_memory_bytes, peak_memory_bytes()),
        driver_peak_memory_bytes=peak_memory_bytes(),
        retries=progress.retries,
        problems=problems,
        skipped_parts=skipped,
        ignored_files=sum(request.ignored.values()),
    )
    if problems:
        remove_success(output)  # one of an earlier run, before parts were added
    else:
        if not totals.samples:
            raise RunFailed(f"source.uri: {config.source.uri}: no sample was found")
        try:
            check_rejected_fraction(totals, config.limits.max_rejected_fraction)
        except RunFailed:
            remove_success(output)  # of a run that allowed more
            raise
        write_success(output, totals, skipped, scratch)
    return summary
