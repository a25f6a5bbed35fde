"""Drive: which stage works on what, engine or no engine.

    parts to index ─▶ parts to cut ─▶ units to prepare ─▶ prepared units ─▶ encoders ─▶ committed

The driver holds names and counts, never samples. Prepared patches that wait or are being encoded are bounded in bytes,
node by node. Preparing goes before indexing while encoders could starve, and whatever a process can do it is given, so
that one of each kind, or one CPU in all, is enough to finish. An event costs the same however many processes there are.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ..errors import DamagedPart
from ..index.units import Unit
from .board import Board, Opened
from .calls import Call, Started, UnderWay
from .cutting import Cutter
from .engine import Engine
from .events import (
    CallFailed,
    Event,
    FleetChanged,
    NodeLost,
    PartIndexed,
    ProcessLost,
    Stage,
    UnitCommitted,
    UnitPrepared,
    name_of,
)
from .failures import Failures, Verdict, check_rejected_fraction
from .fleet import Kind, Process
from .progress import PartTally, Progress
from .work import SILENT, DriverLimits, Observer, Work

REJECTS_CHECKED_AFTER = 1000
TICK_SECONDS = 0.5
WAIT_SECONDS = 1.0
CUT_SECONDS = 0.05  # that an answer is waited for while parts are being cut
PARTS_AHEAD = 8  # that are cut before a node asks for one; at least two a node
WORKERS: dict[Stage, Kind] = {Stage.INDEX: "preparer", Stage.PREPARE: "preparer", Stage.ENCODE: "encoder"}


class Driver:
    """Runs everything that is not committed yet."""

    def __init__(self, engine: Engine, work: Work, limits: DriverLimits, observer: Observer = SILENT) -> None:
        self._engine, self._work, self._limits, self._observer = engine, work, limits, observer
        self._fleet = engine.fleet
        self._to_index, self._to_cut = deque(work.to_index), deque(work.to_cut)
        self._indexing: set[int] = set()
        self._cutter = Cutter(work.units_of, limits.cutting_threads)
        self._board = Board(engine.fleet, limits.in_flight_bytes)
        self._under_way = UnderWay(limits.unit_seconds)
        self._tally = PartTally(observer.on_part_done)
        self._started = False
        indexed = work.parts - len(work.to_index)
        self.progress = Progress(parts=work.parts, parts_indexed=indexed, parts_cut=indexed - len(work.to_cut))
        self._failures = Failures(self.progress, self._fleet, limits.attempts, observer.say)
        self._ticked = engine.now()
        engine.listen = self._listen

    def run(self) -> Progress:
        """Works until nothing is left that can be done.

        Raises:
            OutputError: the output cannot be written.
            RunFailed: ten units failed in a row, too many samples are rejects, or no process can be kept alive.
        """
        try:
            self._handle(FleetChanged())
            while True:
                self._fill()
                if not len(self._board) and not self._indexing and not self._work_left():
                    self._tell()
                    return self.progress
                only_cutting = bool(self._cutter.pending) and not len(self._under_way)
                seconds = 0.0 if only_cutting else CUT_SECONDS if self._cutter.pending else WAIT_SECONDS
                events = self._engine.wait(seconds)
                for event in events:
                    self._handle(event)
                self._add_cut(self._cutter.take(WAIT_SECONDS if only_cutting and not events else 0.0))
                self._tick()
        finally:
            self._cutter.close()

    def _work_left(self) -> bool:
        """Whether there is anything that no process was given yet: all of them may have died and not be back."""
        return bool(self._to_index or self._to_cut or self._cutter.pending or len(self._board.leases))

    def _tick(self) -> None:
        """Now and then, however many events there are: looks for what is late, and tells how far it is."""
        now = self._engine.now()
        if now - self._ticked < TICK_SECONDS:
            return
        self._ticked = now
        for stage, started in self._under_way.late(now):
            self._give_up(stage, started, now)
        if not self._indexing and not self._work_left() and not len(self._board.waiting):
            self._try_twice(Stage.ENCODE, now)
            self._try_twice(Stage.PREPARE, now)
        self._tell()

    def _listen(self, counts: dict[str, int]) -> None:
        self.progress.encoding |= {unit: images for unit, images in counts.items() if self._board.is_open(unit)}
        self._tell()

    def _tell(self) -> None:
        self.progress.prepared = len(self._board.waiting)
        self.progress.encoders = self._fleet.count("encoder")
        self._observer.on_tick(self.progress)

    def _fill(self) -> None:
        """Gives every process that is free something to do."""
        board, fleet = self._board, self._fleet
        for node, _ in fleet.wake(self._engine.now()):
            board.touch(node)
        self._cut()
        touched = board.touched()
        for node in touched:
            board.waiting.note(node)
            while board.waiting.has(node) and (encoder := fleet.free("encoder", node)) is not None:
                self._encode(encoder, *board.waiting.take(node))
        more = bool(self._indexing) or self._work_left()
        while (idle := fleet.idle_node("encoder")) is not None:
            lender = board.waiting.spare(all_of_it=not more)
            encoder = fleet.free("encoder", idle)
            if lender is None or encoder is None:
                break
            self._encode(encoder, *board.waiting.take(lender))
        for node in touched:
            self._employ(node)

    def _employ(self, node: str) -> None:
        """Gives the free preparers of a node units, or parts to index."""
        board = self._board
        while (process := self._fleet.free("preparer", node)) is not None:
            unit = board.leases.peek(process)
            if unit is not None and board.fits(self._work.unit_bytes(unit), node):
                board.leases.take(process)
                if not self._started:
                    self._started = True
                    self._observer.on_start()
                board.open(unit, process, self._work.unit_bytes(unit))
                self._prepare(process, unit)
            elif self._to_index:
                self._index(process, self._to_index.popleft())
            else:
                return

    def _index(self, process: Process, part: int) -> None:
        self._indexing.add(part)
        self._call(Call(process=process, stage=Stage.INDEX, part=part))

    def _prepare(self, process: Process, unit: Unit) -> None:
        self._call(Call(process=process, stage=Stage.PREPARE, part=unit.part, unit=unit))

    def _encode(self, process: Process, unit: Unit, handle: Any) -> None:
        self._call(Call(process=process, stage=Stage.ENCODE, part=unit.part, unit=unit, prepared=handle))

    def _call(self, call: Call) -> None:
        assert call.stage is not None
        name = name_of(call.part, call.unit)
        call.guarded = call.stage is not Stage.ENCODE and self._failures.is_suspect(name)
        opened = None if call.unit is None else self._board.get(call.unit)
        if opened is not None:
            opened.calls[call.stage] += 1
        started = Started(process=call.process, part=call.part, unit=call.unit, at=self._engine.now())
        self._under_way.began(call.stage, name, started)
        self._fleet.began(call.process)
        self._engine.submit(call)

    def _cut(self) -> None:
        """Keeps some parts cut ahead."""
        ahead = max(PARTS_AHEAD, 2 * self._fleet.nodes())
        while self._to_cut and self._board.leases.parts() + self._cutter.pending < ahead:
            self._cutter.want(self._to_cut.popleft())
            if not self._limits.cutting_threads:
                self._add_cut(self._cutter.take())

    def _add_cut(self, cut: list[tuple[int, list[Unit] | DamagedPart]]) -> None:
        for part, units in cut:
            if isinstance(units, DamagedPart):
                self.progress.failed_parts[part] = f"part {part:06d}: {units}"
                self.progress.beyond_help += 1
                continue
            left = [unit for unit in units if not self._work.committed(part, unit.number)]
            self.progress.units_known += len(units)
            self.progress.units_before += len(units) - len(left)
            self.progress.samples_to_do += sum(unit.count for unit in left)
            self.progress.parts_cut += 1
            self._tally.cut(part, units, len(left))
            self._board.leases.add(left)
        if cut:
            self._board.touch_all()

    def _give_up(self, stage: Stage, started: Started, now: float) -> None:
        """Ends a process that has not answered in time; its calls are given to others."""
        name, process = name_of(started.part, started.unit), started.process
        if not self._under_way.has(stage, name, process):
            return  # the process was late with another call too
        reason = f"has not answered for {now - started.at:.0f} s, at {name}"
        self._observer.say(f"{process.kind} {process.number} {reason}: it is ended and replaced")
        for event in self._engine.replace(process, reason):
            self._handle(self._failures.as_late(event, started, reason))

    def _try_twice(self, stage: Stage, now: float) -> None:
        """Gives what has been under way longest to an idle process as well; whichever answers first counts."""
        kind = WORKERS[stage]
        for started in list(self._under_way.slow(stage, now)):
            opened = None if started.unit is None else self._board.get(started.unit)
            if opened is None or opened.has_twin or opened.calls[stage] < 1:
                continue
            if stage is Stage.PREPARE and opened.is_prepared:
                continue
            other = self._fleet.idle(kind, started.process)
            if other is None:
                return
            opened.has_twin = True
            seconds = now - started.at
            first, second = f"{kind} {started.process.number}", f"{kind} {other.number}"
            self._observer.say(f"unit {opened.unit.id} is with {first} for {seconds:.0f} s: {second} tries it too")
            if stage is Stage.ENCODE:
                self._encode(other, opened.unit, opened.handle)
            else:
                self._prepare(other, opened.unit)

    def _handle(self, event: Event) -> None:
        board = self._board
        match event:
            case PartIndexed(process=process, part=part):
                self._ended(Stage.INDEX, name_of(part, None), process, good=True)
                self._indexing.discard(part)
                self._to_cut.append(part)
                self.progress.parts_indexed += 1
            case UnitPrepared(process=process, unit=unit):
                self._ended(Stage.PREPARE, name_of(unit.part, unit), process, good=True)
                board.prepared(unit, process.node, event.handle)
            case UnitCommitted(process=process, unit=unit):
                self._ended(Stage.ENCODE, name_of(unit.part, unit), process, good=True)
                if board.close(unit):  # else its twin was faster
                    self._committed(event)
            case CallFailed():
                self._ended(event.stage, event.name, event.process, good=False)
                self._failed(event)
            case ProcessLost(process=process):
                board.leases.release(process)
                board.touch(process.node)
                board.touch_all()
            case NodeLost(node=node):
                self.progress.retries += board.lose(node)
                self._failures.forget(node)
            case FleetChanged(node=None):
                board.touch_all()
                for node in self._fleet.nodes_with_room("encoder"):
                    board.touch(node)
            case FleetChanged(node=str(node)):
                board.touch(node)

    def _ended(self, stage: Stage, name: str, process: Process, *, good: bool) -> None:
        now = self._engine.now()
        self._under_way.ended(stage, name, process, now if good else None)
        self._fleet.ended(process)
        self._board.touch(process.node)
        if good:
            self._failures.worked(stage, name, process, now)

    def _committed(self, event: UnitCommitted) -> None:
        committed, totals = event.committed, self.progress.totals
        totals.add(committed.record)
        self.progress.encoding.pop(event.unit.id, None)
        self._tally.committed(event.unit, committed.record)
        self.progress.peak_memory_bytes = max(self.progress.peak_memory_bytes, committed.peak_memory_bytes)
        if totals.images >= REJECTS_CHECKED_AFTER:
            check_rejected_fraction(totals, self._limits.max_rejected_fraction)

    def _failed(self, failure: CallFailed) -> None:
        opened = None if failure.unit is None else self._board.get(failure.unit)
        if failure.unit is not None and not self._board.is_left_undone(failure.unit, failure.stage):
            self._failures.overhear(failure, self._engine.now())
            return
        verdict = self._failures.judge(failure, self._engine.now())
        self._put_back(failure, opened, verdict)
        if verdict is Verdict.SICK:
            for event in self._engine.replace(failure.process, f"failed twice in a row, at last: {failure.error}"):
                self._handle(event)

    def _put_back(self, failure: CallFailed, opened: Opened | None, verdict: Verdict) -> None:
        """Takes what failed to where it is taken up again, or nowhere."""
        board = self._board
        if opened is None:
            self._indexing.discard(failure.part)
            if verdict is Verdict.AGAIN_LAST:
                self._to_index.append(failure.part)
            elif verdict is not Verdict.SET_ASIDE:
                self._to_index.appendleft(failure.part)
        elif failure.stage is Stage.ENCODE and verdict in (Verdict.WAIT, Verdict.SICK):
            board.wait_again(opened)  # its patches are as good as before
        else:
            board.close(opened.unit)
            if verdict is Verdict.AGAIN_LAST:
                board.leases.add_last(opened.unit)
            elif verdict is not Verdict.SET_ASIDE:
                board.leases.add_first(opened.unit)
        board.touch_all()
