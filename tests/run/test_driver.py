"""The driver alone, over an engine made of plain calls. Catches: work forgotten while no process is there to do it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.bench.driver import NullEngine, drive_nothing
from pipeline.errors import DamagedPart, OutputError, RunFailed, SourceError
from pipeline.index.units import Unit
from pipeline.run.driver import Driver, DriverLimits, Observer, Progress, Work
from pipeline.run.events import Blame, CallFailed, Event, PartIndexed, Stage, UnitCommitted, UnitPrepared

Fault = tuple[BaseException, Blame]


def units_of(part: int) -> list[Unit]:
    return [Unit(part=part, number=number, first=number, count=1, tokens=1, patches=4) for number in range(5)]


def drive(engine: Any, parts: int = 3, on_start: Any = lambda: None, **options: Any) -> Progress:
    work = {"indexed": set(), "units_of": units_of, "unit_bytes": lambda unit: 10}
    limits = {"in_flight_bytes": 40, "attempts": 3}
    for name, value in options.items():
        (limits if name in DriverLimits.__dataclass_fields__ else work)[name] = value
    return Driver(engine, Work(parts=parts, **work), DriverLimits(**limits), Observer(on_start=on_start)).run()


class Faulty(NullEngine):
    """Fails calls as told; after a loss nobody is free for a while."""

    def __init__(self, faults: dict[tuple[Stage, str], list[Fault]]) -> None:
        super().__init__()
        self.faults = faults
        self.away = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.fired = 0

    def free_preparers(self) -> int:
        return 0 if self.away else super().free_preparers()

    def free_encoders(self) -> int:
        return 0 if self.away else super().free_encoders()

    def prepare(self, unit: Unit, guarded: bool) -> None:
        self.in_flight += 10
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        super().prepare(unit, guarded)

    def wait(self, timeout_seconds: float) -> list[Event]:
        self.away = max(0, self.away - 1)
        events: list[Event] = []
        for event in super().wait(timeout_seconds):
            stage, part, unit = called(event)
            faults = self.faults.get((stage, unit.id if unit else str(part)), [])
            if faults:
                self.fired += 1
                error, blame = faults.pop(0)
                event = CallFailed(stage=stage, part=part, unit=unit, error=error, blame=blame)
                self.away = 3 if blame is not Blame.CALL else 0
            if unit is not None and (stage is Stage.ENCODE or isinstance(event, CallFailed)):
                self.in_flight -= 10
            events.append(event)
        return events


def called(event: Event) -> tuple[Stage, int, Unit | None]:
    match event:
        case PartIndexed(part=part):
            return Stage.INDEX, part, None
        case UnitPrepared(unit=unit):
            return Stage.PREPARE, unit.part, unit
        case UnitCommitted(unit=unit):
            return Stage.ENCODE, unit.part, unit
        case CallFailed():
            raise AssertionError("nothing fails by itself here")


def failure(error: BaseException, blame: Blame = Blame.CALL) -> Fault:
    return error, blame


def test_every_unit_is_done_once() -> None:
    assert drive(NullEngine()).totals.units == 15
    assert drive_nothing(4, units_of) == 20
    assert drive(NullEngine(), committed=lambda part, number: number != 2).totals.units == 3


def test_what_was_lost_with_the_only_process_waits_for_its_successor() -> None:
    died, node = failure(RuntimeError("died"), Blame.PROCESS), failure(RuntimeError("node"), Blame.WORLD)
    lost: dict[tuple[Stage, str], list[Fault]] = {
        (Stage.INDEX, "0"): [died],
        (Stage.PREPARE, "000002-0004"): [died],
        (Stage.ENCODE, "000002-0004"): [node],
    }
    engine = Faulty(lost)
    progress = drive(engine)
    assert engine.fired == 3
    assert (progress.totals.units, progress.retries) == (15, 3)
    assert not progress.set_aside


def test_a_unit_that_fails_each_time_is_set_aside_and_the_others_finish() -> None:
    errors = [failure(SourceError("disk")) for _ in range(3)]
    progress = drive(Faulty({(Stage.PREPARE, "000001-0001"): list(errors)}))
    assert progress.totals.units == 14
    assert progress.set_aside == {"000001-0001": "unit 000001-0001: disk"}
    assert progress.retries == 2


def test_losing_nodes_is_no_attempt() -> None:
    lost = [failure(RuntimeError("node"), Blame.WORLD) for _ in range(7)]
    progress = drive(Faulty({(Stage.ENCODE, "000001-0001"): lost}))
    assert (progress.totals.units, progress.retries) == (15, 7)


def test_a_damaged_part_fails_at_once() -> None:
    progress = drive(Faulty({(Stage.INDEX, "1"): [failure(DamagedPart("cut"))]}))
    assert progress.failed_parts == {1: "part 000001: cut"}
    assert (progress.totals.units, progress.retries) == (10, 0)


def test_many_damaged_parts_do_not_stop_the_others() -> None:
    faults = {(Stage.INDEX, str(part)): [failure(DamagedPart("cut"))] for part in range(12)}
    progress = drive(Faulty(faults), parts=14)
    assert len(progress.failed_parts) == 12
    assert progress.totals.units == 10


def test_what_is_lost_for_ever_is_set_aside_in_the_end() -> None:
    lost = [failure(RuntimeError("node"), Blame.WORLD) for _ in range(50)]
    progress = drive(Faulty({(Stage.PREPARE, "000001-0001"): lost}))
    assert list(progress.set_aside) == ["000001-0001"]
    assert progress.totals.units == 14


def test_failing_to_write_stops_at_once() -> None:
    with pytest.raises(OutputError, match="full"):
        drive(Faulty({(Stage.ENCODE, "000000-0001"): [failure(OutputError("full"))]}))


def test_ten_failures_in_a_row_stop() -> None:
    faults = {
        (Stage.PREPARE, unit.id): [failure(SourceError("gone"))] * 3 for part in range(3) for unit in units_of(part)
    }
    with pytest.raises(RunFailed, match="10 failures in a row"):
        drive(Faulty(faults))


def test_prepared_bytes_are_bounded() -> None:
    engine = Faulty({})
    drive(engine, in_flight_bytes=20)
    assert engine.most_in_flight == 20
    engine = Faulty({})
    drive(engine, in_flight_bytes=1)  # a unit larger than the bound passes alone
    assert engine.most_in_flight == 10
