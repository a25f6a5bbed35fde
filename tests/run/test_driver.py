"""The driver alone, over an engine made of plain calls. Catches: work forgotten while no process is there to do it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.driver import NullEngine, drive_nothing
from pipeline.errors import DamagedPart, OutputBusy, OutputError, RunFailed, SourceBusy, SourceError
from pipeline.index.units import Unit
from pipeline.run.actors import _introduction
from pipeline.run.calls import Call
from pipeline.run.driver import Driver
from pipeline.run.events import Blame, CallFailed, Event, NodeLost, ProcessLost, Stage
from pipeline.run.fleet import Fleet, Process
from pipeline.run.progress import Progress
from pipeline.run.work import DriverLimits, Observer, Work

Fault = tuple[BaseException, Blame]


def units_of(part: int) -> list[Unit]:
    return [Unit(part=part, number=number, first=number, count=1, tokens=1, patches=4) for number in range(5)]


def drive(engine: Any, parts: int = 3, observer: Observer | None = None, **options: Any) -> Progress:
    work = {"to_index": list(range(parts)), "to_cut": [], "units_of": units_of, "unit_bytes": lambda unit: 10}
    limits = {"attempts": 3}
    for name, value in options.items():
        (limits if name in DriverLimits.__dataclass_fields__ else work)[name] = value
    driver = Driver(engine, Work(parts=parts, **work), DriverLimits(**limits), observer or Observer())
    return driver.run()


class Faulty(NullEngine):
    """Fails calls as told, in a time of its own: a second passes with every wait."""

    def __init__(self, faults: dict[tuple[Stage, str], list[Fault]], **options: Any) -> None:
        super().__init__(**{"budget_bytes": 40} | options)
        self.faults = faults
        self.in_flight = 0
        self.most_in_flight = 0
        self.fired = 0
        self.seconds = 0.0
        self.prepared: list[str] = []

    def now(self) -> float:
        return self.seconds

    def submit(self, call: Call) -> None:
        if call.stage is Stage.PREPARE:
            assert call.unit is not None
            self.prepared.append(call.unit.id)
            self.in_flight += 10
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        super().submit(call)

    def wait(self, timeout_seconds: float) -> list[Event]:
        self.seconds += 1
        assert self.seconds < 20_000, "it waits for ever"
        return [self.judged(event) for event in super().wait(timeout_seconds)]

    def judged(self, event: Any) -> Event:
        stage, part, unit = called(event)
        faults = self.faults.get((stage, unit.id if unit else str(part)), [])
        if faults:
            self.fired += 1
            error, blame = faults.pop(0)
            event = CallFailed(process=event.process, stage=stage, part=part, unit=unit, error=error, blame=blame)
        if unit is not None and (stage is Stage.ENCODE or isinstance(event, CallFailed)):
            self.in_flight -= 10
        return event  # type: ignore[no-any-return]


def called(event: Any) -> tuple[Stage, int, Unit | None]:
    unit = getattr(event, "unit", None)
    if unit is None:
        return Stage.INDEX, event.part, None
    return (Stage.ENCODE if hasattr(event, "committed") else Stage.PREPARE), unit.part, unit


def failure(error: BaseException, blame: Blame = Blame.CALL) -> Fault:
    return error, blame


def test_every_unit_is_done_once() -> None:
    assert drive(NullEngine()).totals.units == 15
    assert drive_nothing(4, units_of) == 20
    engine = Faulty({})
    assert drive(engine, committed=lambda part, number: number != 2).totals.units == 3
    assert sorted(engine.prepared) == [f"{part:06d}-0002" for part in range(3)]


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


def test_scattered_failures_do_not_stop_a_run() -> None:
    """Every other unit, in the order in which they come."""
    gone = [failure(SourceError("gone"))]
    faults = {(Stage.PREPARE, unit.id): gone * 3 for part in range(12) for unit in units_of(part)[::2]}
    progress = drive(Faulty(faults, processes=1), parts=12)
    assert (len(progress.set_aside), progress.totals.units) == (36, 24)


class Rejecting(Faulty):
    """Commits units of a hundred samples of which some are rejects."""

    def __init__(self, rejected: int) -> None:
        super().__init__({}, processes=1)
        self.rejected, self.committed = rejected, 0

    def judged(self, event: Any) -> Event:
        event = super().judged(event)
        if not hasattr(event, "committed"):
            return event
        self.committed += 1
        sums = {"rows_in": 100, "rows_out": 100 - self.rejected, "rejects": {"corrupt": self.rejected}}
        record = replace(event.committed.record, **sums, reject_examples={"corrupt": ["a", "b", "c"]})
        return replace(event, committed=replace(event.committed, record=record))  # type: ignore[no-any-return, arg-type]


def test_a_source_of_rejects_is_stopped_after_a_thousand_samples() -> None:
    engine = Rejecting(100)
    with pytest.raises(RunFailed, match=r"1000 of 1000 samples are rejects.*corrupt 1000 \(such as a, b, c\)"):
        drive(engine, max_rejected_fraction=0.9)
    assert engine.committed >= 10


def test_as_many_rejects_as_are_allowed_stop_nothing() -> None:
    assert drive(Rejecting(25), max_rejected_fraction=0.25).totals.units == 15
    with pytest.raises(RunFailed, match="260 of 1000 samples are rejects"):
        drive(Rejecting(26), max_rejected_fraction=0.25)


def test_a_process_sees_the_output_where_it_sees_the_drivers_file(tmp_path: Path) -> None:
    """On a node that does not share the output's file system the file is not there, whatever its name is."""

    class Stage:
        def identity(self) -> dict[str, object]:
            return {"device": "x"}

    probe = tmp_path / "probe"
    said = [_introduction(Stage(), str(name)) for name in ("", probe)]  # type: ignore[arg-type]
    probe.write_text("")
    said.append(_introduction(Stage(), str(probe)))  # type: ignore[arg-type]
    assert [one.sees_output for one in said] == [True, False, True]
    assert said[0].identity == {"device": "x"}


def test_prepared_bytes_are_bounded() -> None:
    engine = Faulty({})
    drive(engine, in_flight_bytes=20)
    assert engine.most_in_flight == 20
    engine = Faulty({})
    drive(engine, in_flight_bytes=1)  # a unit larger than the bound passes alone
    assert engine.most_in_flight == 10
    engine = Faulty({}, budget_bytes=30)  # of its node
    drive(engine)
    assert engine.most_in_flight == 30


def test_storage_that_does_not_answer_is_waited_for_with_growing_pauses() -> None:
    lines: list[str] = []
    faults: dict[tuple[Stage, str], list[Fault]] = {
        (Stage.ENCODE, "000001-0001"): [failure(OutputBusy("503")) for _ in range(6)],
        (Stage.PREPARE, "000002-0001"): [failure(SourceBusy("503")) for _ in range(6)],
    }
    engine = Faulty(faults)
    progress = drive(engine, observer=Observer(say=lines.append))
    assert engine.fired == 12
    assert (progress.totals.units, len(progress.set_aside)) == (15, 0)
    assert sum("waiting" in line and "503" in line for line in lines) >= 3
    assert engine.prepared.count("000001-0001") == 1  # its patches were kept


def test_storage_that_does_not_answer_for_ten_minutes_ends_the_run() -> None:
    engine = Faulty({(Stage.ENCODE, unit.id): [failure(OutputBusy("503"))] * 1000 for unit in units_of(0)})
    with pytest.raises(OutputError, match="nothing could be written for 10 minutes, the last: 503"):
        drive(engine, parts=1)
    assert engine.seconds > 600


def test_what_cannot_be_written_on_one_node_is_written_on_another() -> None:
    """One node's scratch is full: the units of its preparers go to the other's encoder."""

    class Full(Faulty):
        def judged(self, event: Any) -> Event:
            if hasattr(event, "committed") and event.process.node == "full":
                self.fired += 1
                error = OutputBusy("no space left")
                return CallFailed(
                    process=event.process, stage=Stage.ENCODE, part=event.unit.part, unit=event.unit, error=error
                )
            return super().judged(event)

    engine = Full({})
    engine.fleet = two_nodes("full", "other")
    progress = drive(engine)
    assert engine.fired
    assert (progress.totals.units, len(progress.set_aside)) == (15, 0)


def two_nodes(*names: str) -> Fleet:
    fleet = Fleet()
    for name in names:
        fleet.see(name, 40)
        fleet.add(Process(kind="preparer", number=0, node=name))
        fleet.add(Process(kind="encoder", number=0, node=name))
    return fleet


class Still(Faulty):
    """Never answers the first call of a stage by one process; ends it when told to."""

    def __init__(self, stage: Stage, processes: int = 2) -> None:
        super().__init__({}, processes=processes)
        self.stage, self.held, self.replaced = stage, [], []  # type: ignore[var-annotated]

    def submit(self, call: Call) -> None:
        if call.stage is self.stage and not self.held and not self.replaced:
            self.held.append(call)
            return
        super().submit(call)

    def replace(self, process: Process, reason: str) -> list[Event]:
        self.replaced.append(process)
        self.fleet.remove(process)
        process.gone = True
        self.fleet.add(Process(kind=process.kind, number=9))
        held = [call for call in self.held if call.process is process]
        self.held = [call for call in self.held if call.process is not process]
        return [*(call.failed(RuntimeError(reason), Blame.WORLD) for call in held), ProcessLost(process=process)]


@pytest.mark.parametrize("stage", list(Stage))
def test_a_call_that_is_never_answered_is_ended_and_done_by_another(stage: Stage) -> None:
    lines: list[str] = []
    engine = Still(stage, processes=1)
    progress = drive(engine, unit_seconds=20.0, observer=Observer(say=lines.append))
    assert len(engine.replaced) == 1
    assert engine.seconds > 20
    assert (progress.totals.units, progress.retries) == (15, 1)
    assert any("has not answered for" in line for line in lines)


def test_without_a_limit_a_call_may_take_ten_minutes_or_ten_medians() -> None:
    engine = Still(Stage.ENCODE, processes=1)
    drive(engine)
    assert 600 < engine.seconds < 1000


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.ENCODE])
def test_the_last_unit_is_given_to_a_second_process(stage: Stage) -> None:
    lines: list[str] = []
    engine = Still(stage)
    progress = drive(engine, observer=Observer(say=lines.append))
    assert engine.held and not engine.replaced
    assert progress.totals.units == 15
    assert engine.seconds < 200
    assert any("tries it too" in line for line in lines)


def test_the_answer_of_a_slower_twin_changes_nothing() -> None:
    class Late(Still):
        def wait(self, timeout_seconds: float) -> list[Event]:
            if self.seconds > 30 and self.held:
                call = self.held.pop()
                super(Still, self).submit(call)
            return super().wait(timeout_seconds)

    engine = Late(Stage.PREPARE)
    progress = drive(engine, parts=40)
    assert not engine.held
    assert progress.totals.units == 200


def test_a_node_that_is_lost_costs_no_attempt_and_its_patches_are_made_again() -> None:
    class Losing(Faulty):
        lost = False
        calls_lost = 0

        def wait(self, timeout_seconds: float) -> list[Event]:
            if self.lost or self.seconds < 5:
                return super().wait(timeout_seconds)
            self.lost = True
            error, events = RuntimeError("node b is lost"), []
            for event in super().wait(0):
                stage, part, unit = called(event)
                process: Process = event.process  # type: ignore[union-attr]
                if process.node == "b":
                    self.calls_lost += 1
                    event = CallFailed(
                        process=process, stage=stage, part=part, unit=unit, error=error, blame=Blame.WORLD
                    )
                events.append(event)
            for process in self.there["b"]:
                self.fleet.remove(process)
                events.append(ProcessLost(process=process))
            self.fleet.forget("b")
            return [*events, NodeLost(node="b")]

    engine = Losing({})
    engine.fleet = Fleet()
    engine.there = {}  # type: ignore[attr-defined]
    for name in "ab":
        engine.fleet.see(name, 40)
        engine.there[name] = []  # type: ignore[attr-defined]
        for number in range(6):
            process = Process(kind="preparer" if number else "encoder", number=number, node=name)
            engine.there[name].append(process)  # type: ignore[attr-defined]
            engine.fleet.add(process)
    progress = drive(engine, parts=20, attempts=1)
    assert engine.lost and engine.calls_lost
    assert (progress.totals.units, len(progress.set_aside)) == (100, 0)
    assert len(engine.prepared) > 100


def test_an_encoder_that_always_fails_is_replaced_and_sets_nothing_aside() -> None:
    """It answers faster than the others, so that it is always the least busy."""

    class Sick(Faulty):
        def __init__(self) -> None:
            super().__init__({}, processes=4)
            self.sick: Process | None = None
            self.calls = 0
            self.replaced = 0

        def judged(self, event: Any) -> Event:
            if hasattr(event, "committed"):
                self.sick = self.sick or event.process
                if event.process is self.sick:
                    self.calls += 1
                    error = RuntimeError("CUDA error")
                    return CallFailed(
                        process=event.process, stage=Stage.ENCODE, part=event.unit.part, unit=event.unit, error=error
                    )
            return super().judged(event)

        def replace(self, process: Process, reason: str) -> list[Event]:
            assert process is self.sick
            self.replaced += 1
            self.fleet.remove(process)
            return [ProcessLost(process=process)]

    engine = Sick()
    progress = drive(engine, parts=20)
    assert (progress.totals.units, len(progress.set_aside)) == (100, 0)
    assert engine.replaced == 1
    assert engine.calls <= 4


def test_the_run_is_begun_before_the_first_unit_is_prepared() -> None:
    begun: list[int] = []
    engine = Faulty({})
    drive(engine, observer=Observer(on_start=lambda: begun.append(len(engine.prepared))))
    assert begun == [0]


def test_a_part_that_is_done_is_told_with_its_records() -> None:
    done: dict[int, tuple[range, list[int]]] = {}
    observer = Observer(on_part_done=lambda part, numbers, records: done.update({part: (numbers, sorted(records))}))
    drive(Faulty({}), committed=lambda part, number: part == 1 or number == 0, observer=observer)
    assert done == {0: (range(5), [1, 2, 3, 4]), 1: (range(5), []), 2: (range(5), [1, 2, 3, 4])}


def test_a_file_that_cannot_be_read_for_ever_is_set_aside_while_others_are_read() -> None:
    """A broken sector, say: its storage says that it is busy."""
    engine = Faulty({(Stage.PREPARE, "000001-0001"): [failure(SourceBusy("input/output error"))] * 1000})
    progress = drive(engine, parts=60)
    assert progress.set_aside == {"000001-0001": "unit 000001-0001: input/output error"}
    assert progress.totals.units == 299
    assert engine.seconds < 600


def test_what_a_twin_makes_good_still_says_that_nothing_can_be_written() -> None:
    class Forbidden(Still):
        """The slow one's answer comes late, and is a refusal."""

        def wait(self, timeout_seconds: float) -> list[Event]:
            events = super().wait(timeout_seconds)
            if self.seconds > 65 and self.held:
                events.append(self.held.pop().failed(OutputError("access denied"), Blame.CALL))
                self.fired += 1
            return events

    engine = Forbidden(Stage.ENCODE)
    with pytest.raises(OutputError, match="access denied"):
        drive(engine, parts=40)
    assert engine.fired == 1


def test_images_are_counted_while_they_are_encoded_and_once() -> None:
    """Also where an encoder's word comes when its unit is committed."""

    class Telling(Faulty):
        def submit(self, call: Call) -> None:
            super().submit(call)
            if call.stage is Stage.ENCODE and call.unit is not None:
                told.append(call.unit.id)
                self.listen({call.unit.id: 1, told[0]: 1})

    told: list[str] = []
    seen: list[tuple[int, int]] = []
    observer = Observer(on_tick=lambda progress: seen.append((progress.samples_done, progress.totals.samples)))
    progress = drive(Telling({}), observer=observer)
    assert any(done > committed for done, committed in seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert progress.encoding == {}
    assert progress.samples_done == progress.samples_to_do == progress.totals.samples == 15
