"""What the driver counts with, piece by piece. Catches: a unit lost or doubled, bytes not given back, a wrong pause.

Times are made up; the threads of cutting are real.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import DamagedPart, EncodeError, OutputBusy, OutputError, RunFailed, SourceBusy
from pipeline.index.units import Unit
from pipeline.output.totals import Totals
from pipeline.run.board import Board
from pipeline.run.calls import SHORTEST_LIMIT_SECONDS, Started, UnderWay
from pipeline.run.cutting import Cutter
from pipeline.run.events import Blame, CallFailed, Stage
from pipeline.run.failures import DEATHS_BEFORE_GUARD, MAX_LOSSES, Failures, Verdict, check_rejected_fraction
from pipeline.run.fleet import Fleet, Process
from pipeline.run.health import FAILURES_OF_A_NODE, Health, NodeHealth
from pipeline.run.leases import RUN, Leases
from pipeline.run.patience import (
    DEATHS_BEFORE_ALL_ARE_GUARDED,
    GUARDED_AT_FIRST,
    GUARDED_AT_MOST,
    HOPELESS_SECONDS,
    LONGEST_PAUSE_SECONDS,
    Guard,
    Patience,
)
from pipeline.run.progress import Progress
from pipeline.run.waiting import Waiting


def unit(number: int, part: int = 0) -> Unit:
    return Unit(part=part, number=number, first=number, count=1, tokens=1, patches=1)


def units_of(part: int, count: int) -> list[Unit]:
    return [unit(number, part) for number in range(count)]


def fleet_of(**nodes: tuple[int, int]) -> tuple[Fleet, dict[str, list[Process]]]:
    """Nodes with so many preparers and encoders, and their processes in that order."""
    fleet, processes = Fleet(), {}
    for name, (preparers, encoders) in nodes.items():
        fleet.see(name, 100)
        processes[name] = [Process(kind="preparer", number=number, node=name) for number in range(preparers)]
        processes[name] += [Process(kind="encoder", number=number, node=name) for number in range(encoders)]
        for process in processes[name]:
            fleet.add(process)
    return fleet, processes


# Fleet


def test_a_node_says_how_many_calls_its_encoders_have() -> None:
    fleet = Fleet()
    fleet.see("a", 100, calls=3)
    one = Process(kind="encoder", number=0, node="a")
    fleet.add(one)
    for _ in range(3):
        assert fleet.free("encoder", "a") is one
        fleet.began(one)
    assert fleet.free("encoder", "a") is None
    fleet.see("a", 200, calls=2)  # what an encoder was started with stays
    fleet.ended(one)
    assert fleet.free("encoder", "a") is one


def test_the_least_busy_is_given_work_and_nobody_more_than_it_can_take() -> None:
    fleet, processes = fleet_of(a=(0, 2))
    one, other = processes["a"]
    assert fleet.free("encoder", "a") is one
    fleet.began(one)
    assert fleet.free("encoder", "a") is other
    fleet.began(other)
    fleet.began(one)
    assert fleet.free("encoder", "a") is other  # one has two
    fleet.began(other)
    assert fleet.free("encoder", "a") is None
    assert not list(fleet.nodes_with_room("encoder"))
    fleet.ended(one)
    fleet.ended(one)
    fleet.ended(other)
    assert fleet.free("encoder", "a") is one
    assert fleet.free("preparer", "a") is None and fleet.free("encoder", "elsewhere") is None


def test_a_preparer_has_one_call_at_a_time() -> None:
    fleet, processes = fleet_of(a=(1, 0))
    fleet.began(processes["a"][0])
    assert fleet.free("preparer", "a") is None and fleet.idle_node("preparer") is None


def test_a_paused_node_is_given_nothing_until_it_wakes() -> None:
    fleet, _ = fleet_of(a=(1, 1), b=(0, 1))
    fleet.pause("encoder", "a", 10.0)
    fleet.pause("encoder", "gone", 1.0)
    assert fleet.is_paused("encoder", "a") and not fleet.is_paused("preparer", "a")
    assert fleet.free("encoder", "a") is None and fleet.idle_node("encoder") == "b"
    assert fleet.free("preparer", "a") is not None
    assert fleet.wake(9.9) == [] and fleet.is_paused("encoder", "a")
    assert fleet.wake(10.0) == [("a", "encoder")]
    assert fleet.free("encoder", "a") is not None
    assert sorted(fleet.nodes_with_room("encoder")) == ["a", "b"]


def test_what_ends_while_its_node_is_paused_is_free_when_it_wakes() -> None:
    fleet, processes = fleet_of(a=(1, 0))
    fleet.began(processes["a"][0])
    fleet.pause("preparer", "a", 1.0)
    fleet.ended(processes["a"][0])
    assert fleet.free("preparer", "a") is None
    fleet.wake(1.0)
    assert fleet.free("preparer", "a") is processes["a"][0]


def test_one_process_may_rest_while_the_others_of_its_node_work() -> None:
    fleet, processes = fleet_of(a=(2, 2))
    *_, one, other = processes["a"]
    fleet.began(one)
    fleet.rest(one, 5.0)
    fleet.ended(one)
    fleet.began(other)
    assert fleet.free("encoder", "a") is other and fleet.idle_node("encoder") is None
    assert fleet.wake(4.9) == [] and fleet.wake(5.0) == [("a", "encoder")]
    assert fleet.free("encoder", "a") is one
    fleet.rest(one, 9.0)
    fleet.remove(one)
    fleet.wake(9.0)
    fleet.rest(one, 10.0)
    assert fleet.free("encoder", "a") is other and fleet.count("encoder") == 1


def test_where_too_little_is_prepared_an_encoders_second_call_comes_from_elsewhere() -> None:
    fleet, processes = fleet_of(a=(1, 2), b=(2, 2))
    for process in processes["a"][1:] + processes["b"][2:]:
        fleet.began(process)
    assert fleet.idle_node("encoder") == "a"  # b has what its second calls need beside it
    for process in processes["a"][1:]:
        fleet.began(process)
    assert fleet.idle_node("encoder") is None


def test_a_process_that_is_removed_while_it_has_calls_does_not_come_back() -> None:
    fleet, processes = fleet_of(a=(0, 2))
    one, other = processes["a"]
    fleet.began(one)
    fleet.remove(one)
    fleet.remove(one)
    assert one.gone and fleet.count("encoder") == fleet.count("encoder", "a") == 1
    fleet.ended(one)
    assert fleet.free("encoder", "a") is other
    fleet.remove(other)
    assert fleet.free("encoder", "a") is None and fleet.idle_node("encoder") is None
    assert fleet.spread("encoder") == 0


def test_removing_a_process_that_was_never_ready_changes_no_count() -> None:
    fleet, _ = fleet_of(a=(0, 1))
    fleet.remove(Process(kind="encoder", number=7, node="a"))
    fleet.remove(Process(kind="encoder", number=8, node="never seen"))
    for starting in (Process(kind="encoder", number=9, node="b"), Process(kind="preparer", number=9, node="c")):
        fleet.expect(starting)
        assert (fleet.spread("encoder"), fleet.spread("encoder", coming=True)) == (1, 2 if starting.node == "b" else 1)
        fleet.remove(starting)
    assert fleet.spread("encoder", coming=True) == 1
    assert fleet.count("encoder") == fleet.count("encoder", "a") == 1


def test_a_node_is_forgotten() -> None:
    fleet, processes = fleet_of(a=(1, 1), b=(1, 1))
    fleet.pause("encoder", "a", 5.0)
    for process in processes["a"]:
        fleet.remove(process)
    fleet.forget("a")
    assert (fleet.nodes(), fleet.count("encoder"), fleet.count("encoder", "a"), fleet.budget_bytes("a")) == (1, 1, 0, 0)
    assert list(fleet.nodes_with_room("preparer")) == ["b"]
    assert fleet.wake(5.0) == []
    fleet.see("a", 7)
    assert fleet.budget_bytes("a") == 7 and not fleet.is_paused("encoder", "a")
    fleet.see("a", 8)
    assert fleet.budget_bytes("a") == 8


def test_a_second_try_goes_rather_to_another_node_and_never_to_the_same_process() -> None:
    fleet, processes = fleet_of(a=(0, 2), b=(0, 1))
    one, neighbour, elsewhere = *processes["a"], *processes["b"]
    assert fleet.idle("encoder", one) is elsewhere
    fleet.began(elsewhere)
    assert fleet.idle("encoder", one) is neighbour
    fleet.began(neighbour)
    assert fleet.idle("encoder", one) is None


# Leases


def taken(leases: Leases, process: Process) -> Unit | None:
    shown = leases.peek(process)
    assert shown is None or leases.take(process) is shown
    return shown


def test_a_part_goes_to_one_node_in_runs_of_one_process() -> None:
    leases, (_, processes) = Leases(), fleet_of(a=(2, 0), b=(1, 0))
    for part in range(2):
        leases.add(units_of(part, 3 * RUN))
    first, second, far = *processes["a"], *processes["b"]
    order = [taken(leases, one) for _ in range(RUN) for one in (first, second, far)]
    assert [one.number for one in order[0::3] if one] == list(range(RUN))
    assert [one.number for one in order[1::3] if one] == list(range(RUN, 2 * RUN))
    assert {one.part for one in order[0::3] + order[1::3] if one} == {0}
    assert {one.part for one in order[2::3] if one} == {1}
    assert leases.parts() == 0 and len(leases) == 3 * RUN


def test_who_finds_nothing_takes_from_the_open_part_of_another_then_from_the_end_of_a_run() -> None:
    leases, (_, processes) = Leases(), fleet_of(a=(1, 0), b=(1, 0))
    leases.add(units_of(0, RUN + 4))
    here, there = processes["a"][0], processes["b"][0]
    assert taken(leases, here) == unit(0)
    assert [taken(leases, there) for _ in range(2)] == [unit(RUN), unit(RUN + 1)]  # half of what the node has open
    assert [taken(leases, there) for _ in range(2)] == [unit(RUN + 2), unit(RUN + 3)]
    assert taken(leases, there) == unit(RUN - 1)
    assert taken(leases, there) == unit(RUN - 2)
    assert taken(leases, here) == unit(1)
    assert len(leases) == RUN - 4


def test_half_of_what_a_node_has_open_is_left_to_it() -> None:
    leases, (_, processes) = Leases(), fleet_of(a=(2, 0), b=(1, 0))
    leases.add(units_of(0, RUN + 4))
    (here, neighbour), there = processes["a"], processes["b"][0]
    assert (taken(leases, here), taken(leases, there)) == (unit(0), unit(RUN))
    assert (taken(leases, neighbour), taken(leases, there)) == (unit(RUN + 2), unit(RUN + 1))


def test_the_run_of_a_process_that_is_gone_and_the_part_of_a_node_go_to_others() -> None:
    leases, (_, processes) = Leases(), fleet_of(a=(1, 0), b=(1, 0))
    leases.add(units_of(0, 2 * RUN))
    here, there = processes["a"][0], processes["b"][0]
    assert taken(leases, here) == unit(0)
    leases.release(here)
    leases.release(here)
    leases.forget("a")
    leases.forget("a")
    assert len(leases) == 2 * RUN - 1
    found = [taken(leases, there) for _ in range(2 * RUN)]
    assert found[-1] is None
    assert sorted(one.number for one in found if one) == list(range(1, 2 * RUN))


def test_what_was_lost_comes_first_and_what_failed_comes_last() -> None:
    leases, (_, processes) = Leases(), fleet_of(a=(1, 0))
    leases.add(units_of(0, 2))
    leases.add_last(unit(9))
    leases.add_first(unit(8))
    leases.add([unit(5)])
    order = [unit(8), unit(0), unit(1), unit(5), unit(9), None]
    assert [taken(leases, processes["a"][0]) for _ in range(6)] == order
    assert len(leases) == 0


@pytest.mark.parametrize("seed", range(60))
def test_no_unit_is_lost_or_doubled_whatever_happens(seed: int) -> None:
    """Random parts, units given back, processes and nodes gone: what is out and what is in make up all."""
    chance, leases = random.Random(seed), Leases()
    nodes = {name: [Process(kind="preparer", number=n, node=name) for n in range(3)] for name in "abc"}
    inside: set[str] = set()
    outside: dict[str, Unit] = {}

    def take(process: Process) -> None:
        found = taken(leases, process)
        assert (found is None) == (not inside)
        if found is not None:
            inside.remove(found.id)  # KeyError: it was out already
            outside[found.id] = found

    for part in range(80):
        match chance.randrange(7):
            case 0:
                units = units_of(part, chance.randrange(30))
                leases.add(units)
                inside |= {one.id for one in units}
            case 1 | 2 if outside:
                one = outside.pop(chance.choice(list(outside)))
                (leases.add_first if chance.random() < 0.5 else leases.add_last)(one)
                inside.add(one.id)
            case 3:
                node = chance.choice(list(nodes))
                place = chance.randrange(3)
                leases.release(nodes[node][place])
                nodes[node][place] = Process(kind="preparer", number=100 + part, node=node)
            case 4:
                node = chance.choice(list(nodes))
                for process in nodes[node]:
                    leases.release(process)
                leases.forget(node)
            case 5:
                leases.peek(chance.choice(nodes[chance.choice("abc")]))  # it did not fit
            case _:
                for _ in range(chance.randrange(20)):
                    take(chance.choice(nodes[chance.choice("abc")]))
        assert len(leases) == len(inside)
    while inside:
        take(chance.choice(nodes[chance.choice("abc")]))
    assert leases.peek(nodes["a"][0]) is None and leases.parts() == 0


# Waiting


def test_only_what_a_node_will_not_soon_encode_itself_goes_elsewhere() -> None:
    fleet, processes = fleet_of(a=(0, 2), b=(0, 1), bare=(1, 0))
    waiting = Waiting(fleet)
    waiting.put("a", unit(0), "x")
    assert waiting.has("a") and waiting.spare(all_of_it=False) is None
    assert waiting.spare(all_of_it=True) == "a"  # nothing else will come
    waiting.put("a", unit(1), "y")
    assert waiting.spare(all_of_it=False) == "a"
    assert waiting.take("a") == (unit(0), "x")
    assert waiting.spare(all_of_it=False) is None
    fleet.pause("encoder", "a", 1.0)
    waiting.note("a")
    assert waiting.spare(all_of_it=False) == "a"  # its encoders do nothing now
    fleet.wake(1.0)
    waiting.note("a")
    assert waiting.spare(all_of_it=False) is None
    waiting.put("bare", unit(2), "z")
    assert waiting.spare(all_of_it=False) == "bare"
    fleet.remove(processes["a"][0])
    waiting.note("a")
    assert waiting.lose("bare") == [unit(2)] and waiting.lose("bare") == []
    assert waiting.spare(all_of_it=False) == "a" and len(waiting) == 1


def test_what_is_put_back_is_the_next_again() -> None:
    waiting = Waiting(fleet_of(a=(0, 1))[0])
    waiting.put("a", unit(0), "x")
    waiting.put("a", unit(1), "y")
    first = waiting.take("a")
    waiting.put_back("a", *first)
    assert waiting.take("a") == first and len(waiting) == 1


# Board


def opened(board: Board, one: Unit, process: Process, size: int = 60) -> None:
    board.open(one, process, size)
    found = board.get(one)
    assert found is not None
    found.calls[Stage.PREPARE] += 1


def test_bytes_are_held_from_preparing_to_commit_node_by_node() -> None:
    fleet, processes = fleet_of(a=(1, 1), b=(1, 1))
    board = Board(fleet, None)
    assert board.fits(1000, "a")  # one alone always may
    opened(board, unit(0), processes["a"][0])
    assert board.fits(40, "a") and not board.fits(41, "a") and board.fits(1000, "b")
    board.prepared(unit(0), "a", "x")
    board.waiting.take("a")
    assert not board.fits(41, "a")
    assert board.close(unit(0)) and not board.close(unit(0))
    assert board.fits(1000, "a") and len(board) == 0
    board.touched()
    opened(board, unit(1), processes["a"][0])
    board.close(unit(1))
    assert board.touched() == ["a"]  # there is room again


def test_a_bound_on_all_nodes_together_wakes_all_of_them() -> None:
    fleet, processes = fleet_of(a=(1, 1), b=(1, 1))
    board = Board(fleet, 100)
    opened(board, unit(0), processes["a"][0])
    assert not board.fits(41, "b") and board.fits(40, "b")
    board.touched()
    board.close(unit(0))
    assert board.touched() == ["a", "b"] and board.fits(1000, "b")


def test_bytes_are_never_negative_even_of_a_node_that_is_lost_and_comes_back() -> None:
    """What lay there is encoded elsewhere while its node goes: it is counted off once, not twice."""
    fleet, processes = fleet_of(a=(2, 0), b=(0, 2))
    board = Board(fleet, None)
    for number in range(2):
        opened(board, unit(number), processes["a"][number], 50)
        board.prepared(unit(number), "a", number)
    assert board.waiting.take("a")[0] == unit(0)  # to b
    assert board.lose("a") == 1
    assert len(board.leases) == 1 and board.get(unit(1)) is None and board.get(unit(0)) is not None
    board.close(unit(0))
    opened(board, unit(2), processes["a"][0], 100)  # it is back
    assert not board.fits(1, "a")
    board.close(unit(2))
    assert board.fits(1000, "a")
    assert board._all_bytes == 0 and not board._bytes


def test_of_two_that_prepare_one_unit_the_first_counts() -> None:
    fleet, processes = fleet_of(a=(1, 1), b=(1, 1))
    board = Board(fleet, None)
    opened(board, unit(0), processes["a"][0])
    found = board.get(unit(0))
    assert found is not None
    found.has_twin = True
    found.calls[Stage.PREPARE] += 1
    board.prepared(unit(0), "b", "second")
    board.prepared(unit(0), "a", "first")
    assert len(board.waiting) == 1 and board.waiting.take("b") == (unit(0), "second")
    assert board.fits(1000, "a") and not board.fits(41, "b")  # its bytes are where its patches are
    assert not found.has_twin  # an encoder may have one, too
    board.close(unit(0))
    board.prepared(unit(0), "a", "third")
    assert len(board) == len(board.waiting) == 0 and not board._bytes


# Cutting


def cut_three(part: int) -> list[Unit]:
    if part == 1:
        raise DamagedPart("cut short")
    if part == 2:
        raise KeyError("a mistake")
    return units_of(part, 3)


@pytest.mark.parametrize("threads", [0, 3])
def test_parts_are_cut_and_what_is_no_damage_is_raised(threads: int) -> None:
    cutter = Cutter(cut_three, threads)
    assert cutter.take(0.0) == [] and cutter.take(5.0) == []  # nothing was asked for, so nothing is waited for
    for part in (0, 1, 3):
        cutter.want(part)
    found: dict[int, Any] = {}
    while cutter.pending:
        found |= dict(cutter.take(5.0))
    assert found[0] == units_of(0, 3) and found[3] == units_of(3, 3) and isinstance(found[1], DamagedPart)
    cutter.want(2)
    with pytest.raises(KeyError, match="a mistake"):
        cutter.take(5.0)
    assert cutter.pending == 0
    cutter.close()


def test_threads_cut_at_once_end_when_closed_and_keep_no_process_alive() -> None:
    before, started, go = set(threading.enumerate()), threading.Barrier(3), threading.Event()
    cut: list[int] = []

    def slow(part: int) -> list[Unit]:
        started.wait(10)
        go.wait(10)
        cut.append(part)
        return []

    cutter = Cutter(slow, 2)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2 and all(thread.daemon for thread in mine)
    for part in range(20):
        cutter.want(part)
    started.wait(10)  # both are at work
    assert cutter.take(0.01) == []
    cutter.close()
    go.set()
    for thread in mine:
        thread.join(10)
    assert not any(thread.is_alive() for thread in mine)
    assert sorted(cut) == [0, 1]  # what was not begun is left


# Calls


def called(under_way: UnderWay, number: int, at: float, stage: Stage = Stage.ENCODE) -> Process:
    process = Process(kind="encoder", number=number)
    under_way.began(stage, f"unit {number}", Started(process=process, part=0, unit=unit(number), at=at))
    return process


def test_a_call_may_take_ten_minutes_or_ten_medians_or_what_is_set() -> None:
    under_way = UnderWay()
    assert under_way.limit_seconds(Stage.ENCODE) == SHORTEST_LIMIT_SECONDS == 600
    for number, took in enumerate((100.0, 70.0, 1000.0)):
        process = called(under_way, number, 5.0)
        under_way.ended(Stage.ENCODE, f"unit {number}", process, 5.0 + took)
    assert under_way.limit_seconds(Stage.ENCODE) == 1000
    assert under_way.limit_seconds(Stage.PREPARE) == 600  # each stage by itself
    assert under_way.limit_seconds(Stage.INDEX) == 3600
    failing = called(under_way, 9, 0.0)
    under_way.ended(Stage.ENCODE, "unit 9", failing)  # what failed says nothing
    assert under_way.limit_seconds(Stage.ENCODE) == 1000
    assert UnderWay(7.0).limit_seconds(Stage.PREPARE) == 7
    assert UnderWay(7.0).limit_seconds(Stage.INDEX) == 42
    assert len(under_way) == 0


def test_late_are_those_that_have_taken_longer() -> None:
    under_way = UnderWay(10.0)
    processes = [called(under_way, number, float(number)) for number in range(3)]
    called(under_way, 3, 0.0, Stage.INDEX)
    assert under_way.late(10.0) == []
    assert [(stage, started.process) for stage, started in under_way.late(11.5)] == [
        (Stage.ENCODE, processes[0]),
        (Stage.ENCODE, processes[1]),
    ]
    under_way.ended(Stage.ENCODE, "unit 0", processes[0])
    assert [started.process for _, started in under_way.late(11.5)] == [processes[1]]
    assert under_way.has(Stage.ENCODE, "unit 1", processes[1]) and not under_way.has(
        Stage.ENCODE, "unit 0", processes[0]
    )


def test_slow_are_the_oldest_once_they_took_twice_the_median() -> None:
    under_way = UnderWay()
    processes = [called(under_way, number, float(number)) for number in range(3)]
    assert [started.process for started in under_way.slow(Stage.ENCODE, 61.5)] == processes[:2]  # nothing is known yet
    for number, took in enumerate((10.0, 20.0, 30.0), start=10):
        under_way.ended(Stage.ENCODE, f"unit {number}", called(under_way, number, 0.0), took)
    assert list(under_way.slow(Stage.ENCODE, 39.9)) == []
    assert [started.process for started in under_way.slow(Stage.ENCODE, 41.0)] == processes[:2]


# Patience


def test_pauses_grow_up_to_a_minute_and_are_one_at_a_time() -> None:
    patience, now, pauses = Patience(), 0.0, []
    for _ in range(9):
        pause = patience.failed("encoder", "a", now)
        assert pause is not None
        assert patience.failed("encoder", "a", now + pause / 2) is None  # the other call of the same moment
        pauses.append(pause)
        now += pause
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]
    assert patience.failed("preparer", "a", now) == patience.failed("encoder", "b", now) == 1
    patience.worked("encoder", "a", now)
    assert patience.failed("encoder", "a", now) == 1


@pytest.mark.parametrize("nodes", [1, 2])
def test_ten_minutes_on_two_nodes_or_on_the_only_one_are_hopeless(nodes: int) -> None:
    patience = Patience()
    patience.failed("encoder", "a", 0.0)
    assert not patience.is_hopeless("encoder", HOPELESS_SECONDS - 1, nodes)
    assert patience.is_hopeless("encoder", HOPELESS_SECONDS, nodes) == (nodes == 1)
    assert not patience.is_hopeless("preparer", HOPELESS_SECONDS, 1)
    patience.failed("encoder", "b", 500.0)
    assert patience.is_hopeless("encoder", 700.0, nodes) == (nodes == 1)  # b has just begun to fail
    assert patience.is_hopeless("encoder", 500.0 + HOPELESS_SECONDS, nodes)
    patience.worked("encoder", "c", 599.0)  # somewhere it works
    assert not patience.is_hopeless("encoder", 500.0 + HOPELESS_SECONDS, nodes)
    assert patience.is_hopeless("encoder", 599.0 + HOPELESS_SECONDS, nodes)
    patience.forget("a")
    assert patience.is_hopeless("encoder", 1500.0, nodes) == (nodes == 1)


def died(guard: Guard, times: int = DEATHS_BEFORE_ALL_ARE_GUARDED) -> None:
    for _ in range(times):
        guard.died()


def passed_until_off(guard: Guard) -> int:
    count = 0
    while guard.is_on:
        guard.passed("x")
        count += 1
        assert count <= GUARDED_AT_MOST, "it is never off again"
    return count


def test_the_guard_ends_again_lasts_twice_as_long_each_time_and_shrinks_back() -> None:
    guard = Guard()
    died(guard, 4)
    guard.passed("x")
    died(guard, 4)
    assert not guard.is_on  # not in a row
    died(guard, 1)
    assert guard.is_on
    lengths = [passed_until_off(guard)]
    for _ in range(9):
        died(guard)
        lengths.append(passed_until_off(guard))
    assert lengths[:4] == [GUARDED_AT_FIRST * factor for factor in (1, 2, 4, 8)]
    assert lengths[-1] == lengths[-2] == GUARDED_AT_MOST
    for _ in range(GUARDED_AT_MOST):
        guard.passed("x")
    died(guard)
    assert passed_until_off(guard) == GUARDED_AT_FIRST


# Health


def test_who_fails_twice_in_a_row_where_others_succeed_is_sick() -> None:
    health = Health()
    sick, well = (Process(kind="encoder", number=number) for number in range(2))
    assert not health.failed(sick, 0.0) and not health.failed(sick, 0.1)  # nobody has succeeded yet
    health.succeeded(well, 5.0)
    assert health.failed(sick, 5.1)
    health.succeeded(sick, 5.2)
    assert not health.failed(sick, 5.3) and health.failed(sick, 5.4)


def test_nobody_is_sick_where_nobody_else_succeeds() -> None:
    health = Health()
    one, other = (Process(kind="encoder", number=number) for number in range(2))
    preparer = Process(kind="preparer", number=0)
    health.succeeded(one, 1.0)
    health.succeeded(preparer, 1.0)
    assert not any(health.failed(one, 2.0 + tenth / 10) for tenth in range(10))  # only its own successes
    health.succeeded(other, 3.0)
    assert one.failures and health.failed(one, 3.1)
    late = Process(kind="encoder", number=2)
    assert not health.failed(late, 100.0) and not health.failed(late, 100.1)  # all others stopped long before


def test_who_fails_before_anybody_succeeds_fails_more_and_more_slowly() -> None:
    """It answers at once, and would take every unit that is prepared."""
    failures, processes, _ = failing(a=(1, 1), b=(0, 1), c=(0, 1))
    bad, good = processes["b"][0], processes["c"][0]
    now, times, fleet = 0.0, 0, failures._fleet
    while now < 30:
        fleet.wake(now)
        if fleet.free("encoder", "b"):
            times += 1
            assert failures.judge(failed(bad, Stage.ENCODE, RuntimeError("CUDA"), times), now) is Verdict.AGAIN_LAST
        now += 0.05
    assert 4 <= times <= 8
    failures.worked(Stage.ENCODE, "unit", good, now)
    assert failures.judge(failed(bad, Stage.ENCODE, RuntimeError("CUDA"), 99), now) is Verdict.SICK


def test_who_is_alone_does_not_rest() -> None:
    failures, processes, _ = failing(a=(1, 1))
    for number in range(3):
        failures.judge(failed(processes["a"][1], Stage.ENCODE, RuntimeError("CUDA"), number), 0.0)
    assert failures._fleet.free("encoder", "a") is processes["a"][1]


def test_units_are_not_to_blame_for_a_place_where_encoders_die() -> None:
    failures, processes, _ = failing(attempts=1, a=(1, 1), b=(0, 1))
    dies = Process(kind="encoder", number=7, node="b", ends=Counter(death=1))
    death = failed(dies, Stage.ENCODE, RuntimeError("died"), blame=Blame.PROCESS)
    assert failures.judge(death, 0.0) is Verdict.SET_ASIDE  # nobody else has succeeded
    failures.worked(Stage.ENCODE, "unit", processes["a"][1], 1.0)
    assert failures.judge(death, 2.0) is Verdict.AGAIN_FIRST
    first = failed(Process(kind="encoder", number=8, node="b"), Stage.ENCODE, RuntimeError(), 1, blame=Blame.PROCESS)
    assert failures.judge(first, 2.0) is Verdict.SET_ASIDE  # one death alone may be the unit's fault


def test_a_success_ends_the_count_of_failed_starts() -> None:
    process = Process(kind="encoder", number=0, ends=Counter(start=1))
    Health().succeeded(process, 0.0)
    assert not process.ends


def test_a_node_is_to_blame_while_nothing_works_there_alone() -> None:
    nodes = NodeHealth()
    assert not any(nodes.failed("bad", f"unit {number}", 2) for number in range(FAILURES_OF_A_NODE - 1))
    assert nodes.failed("bad", "unit 8", 2) and nodes.failed("bad", "unit 8", 2)
    assert not nodes.failed("bad", "unit 8", 1)  # the only one
    assert not nodes.failed("good", "unit 8", 2) and not nodes.failed("bad", "unit 8", 2)  # it is the unit
    nodes.succeeded("bad", "unit 9")
    assert not nodes.failed("bad", "unit 10", 2)
    for number in range(20, 20 + FAILURES_OF_A_NODE):
        nodes.failed("bad", f"unit {number}", 2)
        nodes.failed("good", f"unit {number + 20}", 2)
    assert not nodes.failed("bad", "unit 60", 2)  # everywhere: it is the source
    nodes.forget("good")
    assert nodes.failed("bad", "unit 61", 2)


# Failures


def failing(attempts: int = 3, **nodes: tuple[int, int]) -> tuple[Failures, dict[str, list[Process]], Progress]:
    fleet, processes = fleet_of(**(nodes or {"a": (1, 1)}))
    progress = Progress()
    return Failures(progress, fleet, attempts, lambda line: None), processes, progress


def failed(process: Process, stage: Stage, error: BaseException, number: int = 0, **fields: Any) -> CallFailed:
    return CallFailed(process=process, stage=stage, part=0, unit=unit(number), error=error, **fields)


def test_many_that_die_at_once_before_they_were_guarded_are_no_attempts() -> None:
    """The fifth death turns the guard on; those after it were at work before that, unguarded."""
    failures, processes, progress = failing(attempts=1)
    preparer = processes["a"][0]
    for number in range(24):
        verdict = failures.judge(
            failed(preparer, Stage.PREPARE, RuntimeError("died"), number, blame=Blame.PROCESS), 0.0
        )
        assert verdict is Verdict.AGAIN_LAST
    assert failures.is_suspect("anything")
    again = failed(preparer, Stage.PREPARE, RuntimeError("died"), 0, blame=Blame.PROCESS)
    assert {failures.judge(again, 0.0) for _ in range(3)} == {Verdict.AGAIN_LAST}  # calls of before that were late
    guarded = failed(preparer, Stage.PREPARE, RuntimeError("died"), 0, blame=Blame.PROCESS, guarded=True)
    assert failures.judge(guarded, 0.0) is Verdict.SET_ASIDE
    assert list(progress.set_aside) == ["000000-0000"]


def test_a_unit_that_kills_twice_is_suspect_by_itself() -> None:
    failures, processes, _ = failing()
    for _ in range(DEATHS_BEFORE_GUARD):
        assert not failures.is_suspect("unit 000000-0000")
        failures.judge(failed(processes["a"][0], Stage.PREPARE, RuntimeError(), blame=Blame.PROCESS), 0.0)
    assert failures.is_suspect("unit 000000-0000") and not failures.is_suspect("unit 000000-0001")


def test_the_second_death_of_a_unit_is_the_last_without_guard_and_a_success_forgives_it() -> None:
    failures, processes, _ = failing()
    preparer, encoder = processes["a"]
    for deaths, suspect in ((1, False), (2, True)):
        failures.judge(failed(preparer, Stage.PREPARE, RuntimeError(), blame=Blame.PROCESS), 0.0)
        assert failures.is_suspect("unit 000000-0000") is suspect, deaths
    failures.worked(Stage.ENCODE, "unit 000000-0000", encoder, 1.0)  # says nothing of its images
    assert failures.is_suspect("unit 000000-0000")
    failures.worked(Stage.PREPARE, "unit 000000-0000", preparer, 1.0)
    assert not failures.is_suspect("unit 000000-0000")


def test_ten_units_in_a_row_that_come_to_nothing_stop_the_run_and_nine_do_not() -> None:
    failures, processes, progress = failing(attempts=1)
    preparer, encoder = processes["a"]
    for start in (0, 100):
        for number in range(start, start + 9):
            assert failures.judge(failed(preparer, Stage.PREPARE, EncodeError("x"), number), 0.0) is Verdict.SET_ASIDE
        failures.worked(Stage.ENCODE, "unit 000000-0099", encoder, 0.0)
    for number in range(200, 209):
        failures.judge(failed(preparer, Stage.PREPARE, EncodeError("x"), number), 0.0)
        failures.worked(Stage.PREPARE, "unit 000000-0300", preparer, 0.0)  # is not committed yet
    with pytest.raises(RunFailed, match="10 failures in a row, the last: unit 000000-0209: x"):
        failures.judge(failed(preparer, Stage.PREPARE, EncodeError("x"), 209), 0.0)
    assert len(progress.set_aside) == 28


def test_a_unit_that_fails_again_where_it_failed_is_no_attempt_while_there_are_others() -> None:
    failures, processes, _ = failing(attempts=2, a=(1, 2))
    _, one, other = processes["a"]
    same = [failures.judge(failed(one, Stage.ENCODE, RuntimeError("x")), 0.0) for _ in range(3)]
    assert same == [Verdict.AGAIN_LAST, Verdict.AGAIN_FIRST, Verdict.AGAIN_FIRST]
    assert failures.judge(failed(replace(other, number=7), Stage.ENCODE, RuntimeError("x")), 0.0) is Verdict.SET_ASIDE
    alone, processes, _ = failing(attempts=2)
    only = processes["a"][1]
    verdicts = [alone.judge(failed(only, Stage.ENCODE, RuntimeError("x")), 0.0) for _ in range(2)]
    assert verdicts == [Verdict.AGAIN_LAST, Verdict.SET_ASIDE]


def test_just_as_many_rejects_as_are_allowed_are_allowed() -> None:
    totals = Totals(samples=1000, rejects=Counter(corrupt=60, truncated=40), reject_examples={"corrupt": ["a", "b"]})
    check_rejected_fraction(totals, 0.1)
    totals.rejects["truncated"] += 1
    with pytest.raises(RunFailed, match=r"101 of 1000 .*corrupt 60 \(such as a, b\); truncated 41"):
        check_rejected_fraction(totals, 0.1)


def test_losses_have_an_end_and_are_no_attempts() -> None:
    failures, processes, progress = failing(attempts=1)
    loss = failed(processes["a"][1], Stage.ENCODE, RuntimeError("node"), blame=Blame.WORLD)
    verdicts = [failures.judge(loss, 0.0) for _ in range(MAX_LOSSES)]
    assert set(verdicts[:-1]) == {Verdict.AGAIN_FIRST} and verdicts[-1] is Verdict.SET_ASIDE
    assert progress.retries == MAX_LOSSES - 1


@pytest.mark.parametrize(
    ("place", "stage", "error", "raised"),
    [(1, Stage.ENCODE, OutputBusy("503"), OutputError), (0, Stage.PREPARE, SourceBusy("503"), RunFailed)],
)
def test_storage_is_waited_for_by_kind_and_node_and_not_for_ever(
    place: int, stage: Stage, error: BaseException, raised: type[BaseException]
) -> None:
    failures, processes, progress = failing(attempts=1, a=(1, 1), b=(1, 1))
    one, other = processes["a"][place], processes["b"][place]
    for now in range(0, 700, 10):
        assert failures.judge(failed(one, stage, error), float(now)) is Verdict.WAIT
    failures.judge(failed(other, stage, error), 700.0)
    for now in range(710, 700 + int(HOPELESS_SECONDS), 10):
        assert failures.judge(failed(other, stage, error), float(now)) is Verdict.WAIT
    with pytest.raises(raised, match="10 minutes, the last: 503"):
        failures.judge(failed(other, stage, error), 700 + HOPELESS_SECONDS)
    assert not progress.set_aside
