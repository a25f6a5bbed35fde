"""How many processes each node gets. Catches: encoders that move when a node joins, a place tried for ever."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pipeline.config import Cluster
from pipeline.run.fleet import Kind, Process
from pipeline.run.places import Places
from pipeline.run.sizing import (
    ALL,
    THIRD_CALL_BYTES,
    Device,
    NodeFacts,
    Present,
    Share,
    calls_of,
    options_of,
    shares_of,
)

Shares = dict[str, tuple[int, int]]


def node(name: str, cpus: float, gpus: int = 0, free: float | None = None, free_gpus: int | None = None) -> NodeFacts:
    return NodeFacts(
        id=name,
        name=name,
        cpus=cpus,
        free_cpus=cpus if free is None else free,
        gpus=gpus,
        free_gpus=gpus if free_gpus is None else free_gpus,
        store_bytes=1 << 30,
    )


def sized(*nodes: NodeFacts, device: Device = "cuda", **options: Any) -> Shares:
    """Encoders and preparers by node."""
    cluster = {name: options.pop(name) for name in list(options) if name in Cluster.model_fields}
    shares = shares_of(Cluster(**cluster), nodes, device, **options)
    return {name: (share.encoders, share.preparers) for name, share in shares.items()}


def present(shares: Shares, lost: dict[tuple[Kind, str], int] | None = None) -> Present:
    processes: dict[tuple[Kind, str], int] = {}
    for name, (encoders, preparers) in shares.items():
        processes["encoder", name], processes["preparer", name] = encoders, preparers
    return Present(processes=processes, lost=lost or {})


# GPUs


def test_a_number_of_encoders_goes_where_no_other_job_holds_the_gpus() -> None:
    held, free = node("held", 16, 2, free_gpus=0), node("free", 16, 2)
    shares = sized(held, free, encoders=2)
    assert shares["held"][0] == 0 and shares["free"][0] == 2
    now = [node("held", 16, 2), node("free", 16, 2, free_gpus=0)]  # they are ours
    assert sized(*now, encoders=2, present=present(shares)) == shares


def test_each_gpu_gets_an_encoder_and_six_preparers_beside_it() -> None:
    assert sized(node("a", 64, 8), node("b", 14, 2)) == {"a": (8, 48), "b": (2, 12)}


def test_a_node_with_few_cpus_keeps_one_for_each_gpu_and_others_help() -> None:
    assert sized(node("a", 16, 4)) == {"a": (4, 12)}
    assert sized(node("a", 16, 4), node("c", 8), node("d", 64)) == {"a": (4, 12), "c": (0, 0), "d": (0, 12)}
    assert sized(node("a", 16, 4), node("c", 8), node("d", 9)) == {"a": (4, 12), "c": (0, 3), "d": (0, 9)}
    assert sized(node("a", 16, 4), node("b", 64, 4)) == {"a": (4, 12), "b": (4, 36)}  # a GPU node that has some left
    assert sized(node("a", 1, 4)) == {"a": (4, 1)}
    assert sized(node("a", 0, 4)) == {"a": (4, 1)}


def test_no_node_is_given_more_preparers_than_it_has_cpus() -> None:
    for cpus in range(2, 40):
        shares = sized(node("a", cpus, 2), node("b", 5), node("c", 3.5))
        assert shares["a"][0] + shares["a"][1] <= max(3, cpus)
        assert shares["b"][1] <= 5 and shares["c"][1] <= 3
        assert sum(preparers for _, preparers in shares.values()) <= 12


def test_a_head_without_cpus_gets_nothing_unless_it_is_all_there_is() -> None:
    assert sized(node("head", 0), node("a", 8, 1)) == {"head": (0, 0), "a": (1, 6)}
    assert sized(node("head", 0), node("a", 8), device="cpu") == {"head": (0, 0), "a": (1, 1)}
    assert sized(node("head", 0), node("a", 8), encoding=False) == {"head": (0, 0), "a": (0, 8)}
    assert sized(node("head", 0)) == {"head": (0, 1)}
    assert sized(node("head", 0), device="cpu") == {"head": (1, 1)}
    assert sized() == {}


def test_without_a_gpu_yet_there_are_preparers_for_one() -> None:
    assert sized(node("a", 4), node("b", 16)) == {"a": (0, 0), "b": (0, 6)}
    assert sized(node("a", 2), node("b", 3)) == {"a": (0, 2), "b": (0, 3)}


def test_fewer_or_more_encoders_than_gpus_may_be_asked_for() -> None:
    nodes = node("a", 32, 4), node("b", 32, 4)
    assert sized(*nodes, encoders=5) == {"a": (4, 24), "b": (1, 6)}
    assert sized(*nodes, encoders=9) == {"a": (4, 24), "b": (4, 24)}
    assert sized(*nodes, encoders=1) == {"a": (1, 6), "b": (0, 0)}


@pytest.mark.parametrize("wanted", ["auto", 3, 6])
def test_nodes_that_have_encoders_keep_them_when_others_join(wanted: Any) -> None:
    before = sized(node("b", 16, 2), node("c", 32, 4), encoders=wanted)
    assert sum(encoders for encoders, _ in before.values()) == (6 if wanted == "auto" else wanted)
    after = sized(
        node("a", 64, 8), node("b", 16, 2), node("c", 32, 4), node("d", 64, 8), encoders=wanted, present=present(before)
    )
    assert {name: after[name] for name in before} == before
    if wanted != "auto":
        assert after["a"] == after["d"] == (0, 0)


def test_a_lost_place_is_not_filled_again_there_but_elsewhere() -> None:
    nodes = node("a", 32, 4), node("b", 32, 4)
    lost: dict[tuple[Kind, str], int] = {("encoder", "a"): 1, ("preparer", "b"): 2}
    assert sized(*nodes, present=present({}, lost)) == {"a": (3, 18), "b": (4, 22)}
    assert sized(*nodes, encoders=4, present=present({"a": (3, 18)}, lost))["b"][0] == 1
    out: dict[tuple[Kind, str], int] = {("encoder", "a"): ALL}
    assert sized(*nodes, present=present({"a": (0, 24)}, out)) == {"a": (0, 0), "b": (4, 24)}


# CPUs


def test_on_cpus_there_is_one_encoder_a_node() -> None:
    assert sized(node("a", 8), node("b", 1), device="cpu") == {"a": (1, 1), "b": (1, 1)}
    assert sized(node("a", 8, 2), device="cpu") == {"a": (1, 1)}
    lost: dict[tuple[Kind, str], int] = {("encoder", "a"): 1}
    assert sized(node("a", 8), node("b", 8), device="cpu", present=present({}, lost))["a"][0] == 0


def test_on_cpus_a_number_is_spread_by_what_nodes_have() -> None:
    shares = sized(node("a", 16), node("b", 8), node("c", 4), device="cpu", encoders=7, threads_per_encoder=4)
    assert [shares[name][0] for name in "abc"] == [4, 2, 1]
    assert sized(node("a", 2), device="cpu", encoders=5)["a"][0] == 5  # as asked


@pytest.mark.parametrize("kind", ["encoders", "preprocessors"])
def test_a_number_that_was_spread_stays_where_it_is_when_a_larger_node_joins(kind: str) -> None:
    place = ["encoders", "preprocessors"].index(kind)
    small = node("a", 4), node("b", 4)
    before = sized(*small, device="cpu", **{kind: 4})
    assert [before[name][place] for name in "ab"] == [2, 2]
    after = sized(*small, node("c", 64), device="cpu", present=present(before), **{kind: 4})
    assert [after[name][place] for name in "abc"] == [2, 2, 0]
    alone = sized(small[0], node("c", 64), device="cpu", present=present({"a": before["a"]}), **{kind: 4})
    assert [alone[name][place] for name in "ac"] == [2, 2]  # b is gone


@pytest.mark.parametrize("kind", ["encoders", "preprocessors"])
def test_a_number_that_no_node_can_have_is_not_tried_for_ever(kind: str) -> None:
    name: Kind = "encoder" if kind == "encoders" else "preparer"
    place = ["encoders", "preprocessors"].index(kind)
    out: dict[tuple[Kind, str], int] = {(name, "a"): ALL}
    assert sized(node("a", 8), device="cpu", present=present({}, out), **{kind: 2})["a"][place] == 0
    one: dict[tuple[Kind, str], int] = {(name, "a"): 1}
    assert sized(node("a", 8), device="cpu", present=present({"a": (1, 1)}, one), **{kind: 2})["a"][place] == 1


def test_helpers_stay_when_a_larger_node_joins() -> None:
    before = sized(node("a", 16, 4), node("c", 16))
    assert before == {"a": (4, 12), "c": (0, 12)}
    after = sized(node("a", 16, 4), node("c", 16), node("d", 64), present=present(before))
    assert after == before | {"d": (0, 0)}


# Indexing, preparers, and what is asked of Ray


def test_to_index_only_every_cpu_has_a_preparer() -> None:
    assert sized(node("a", 8, 1), node("b", 2.5), encoding=False) == {"a": (0, 8), "b": (0, 2)}
    assert sized(node("a", 8), node("b", 4), encoding=False, preprocessors=3) == {"a": (0, 3), "b": (0, 0)}


def test_a_number_of_preparers_is_spread_by_what_encoders_leave() -> None:
    assert sized(node("a", 8, 2), node("b", 8), preprocessors=4) == {"a": (2, 1), "b": (0, 3)}
    assert sized(node("a", 1, 1), preprocessors=3) == {"a": (1, 3)}


def test_what_fits_asks_for_its_cpus_and_a_crowded_node_for_none() -> None:
    cluster, lacks = Cluster(), Share(encoders=2, preparers=12)
    roomy, crowded = node("a", 16, 2, free=14), node("a", 16, 2, free=13.5)
    assert options_of("encoder", cluster, roomy, lacks, "cuda") == {
        "num_cpus": 1.0,
        "num_gpus": 1.0,
        "max_concurrency": 2.0,
    }
    assert options_of("preparer", cluster, roomy, lacks, "cuda") == {"num_cpus": 1.0}
    assert options_of("encoder", cluster, crowded, lacks, "cuda")["num_cpus"] == 0
    assert options_of("encoder", cluster, crowded, lacks, "cuda")["num_gpus"] == 1
    assert options_of("preparer", cluster, crowded, lacks, "cuda") == {"num_cpus": 0.0}


def test_an_encoder_on_the_cpu_asks_for_its_threads_and_no_gpu() -> None:
    cluster = Cluster(threads_per_encoder=4)
    asked = options_of("encoder", cluster, node("a", 8), Share(encoders=1, preparers=4), "cpu")
    assert (asked["num_cpus"], asked["num_gpus"]) == (4, 0)
    assert options_of("encoder", cluster, node("a", 8), Share(encoders=1, preparers=5), "cpu")["num_cpus"] == 0
    small = options_of("encoder", cluster, node("a", 2, free=4), Share(encoders=1), "cpu")
    assert small["num_cpus"] == 2  # never more than the node has


# Places


def test_what_lacks_is_what_ought_to_be_less_what_is_there() -> None:
    places = Places(Cluster(), "cuda", encoding=True)
    assert places.update([node("a", 16, 2)]) == ([], [])
    there = [Process(kind="encoder", number=0, node="a"), Process(kind="preparer", number=0, node="a")]
    assert [(one.id, lacks) for one, lacks in places.missing(there)] == [("a", Share(encoders=1, preparers=11))]
    gone, joined = places.update([node("b", 8, 1)])
    assert (gone, [one.id for one in joined]) == (["a"], ["b"])
    assert places.forget("a") == node("a", 16, 2)
    assert [one.id for one, _ in places.missing([])] == ["b"]


def test_a_node_that_comes_back_is_a_new_one() -> None:
    places = Places(Cluster(), "cuda", encoding=True)
    places.update([node("a", 8, 1)])
    places.leave_out("encoder", "a")
    assert places.shares(Counter())["a"].encoders == 0
    places.forget("a")
    places.update([node("a", 8, 1)])
    assert places.shares(Counter())["a"].encoders == 1


def test_the_autoscaler_is_asked_while_there_are_fewer_encoders_than_wanted() -> None:
    encoder = Process(kind="encoder", number=0, node="a")
    auto, three = Places(Cluster(), "cuda", encoding=True), Places(Cluster(encoders=3), "cuda", encoding=True)
    assert (auto.encoders_to_ask_for([]), auto.encoders_to_ask_for([encoder])) == (1, 0)
    assert (three.encoders_to_ask_for([encoder] * 2), three.encoders_to_ask_for([encoder] * 3)) == (3, 0)
    assert Places(Cluster(), "cuda", encoding=False).encoders_to_ask_for([]) == 0
    assert "the autoscaler was asked" in auto.awaited("encoder", 0)


# Calls


def busy(calls: int, encode: list[float], write: list[float]) -> float:
    """The share of time in which a device is busy: units in turn, each encoded alone and then written beside others."""
    free, device, worked, ended = [0.0] * calls, 0.0, 0.0, 0.0
    for seconds, writing in zip(encode, write, strict=True):
        worker = free.index(min(free))
        began = max(device, free[worker])
        device = began + seconds
        free[worker] = device + writing
        worked, ended = worked + seconds, device
    return worked / ended


def test_a_third_call_keeps_a_gpu_busy_where_two_do_not() -> None:
    """Units of the 7B model: 0.7 s on the device; written in 0.87 s, 0.40 of them the hash while it came first."""
    encode = [0.7] * 200
    assert busy(2, encode, [0.87] * 200) == pytest.approx(0.89, abs=0.01)
    assert busy(3, encode, [0.87] * 200) > 0.99
    assert busy(2, encode, [0.47] * 200) > 0.99  # with the hash beside the write, on a quiet disk
    uneven = [0.3, 1.3] * 100  # on one that is not
    assert busy(2, encode, uneven) < 0.9 < 0.99 < busy(3, encode, uneven)


def test_an_encoder_on_a_gpu_has_a_third_call_where_memory_allows() -> None:
    def with_memory(gpus: int, memory_bytes: int) -> NodeFacts:
        return replace(node("a", 16, gpus), memory_bytes=memory_bytes)

    assert calls_of(with_memory(1, THIRD_CALL_BYTES), "cuda") == 3
    assert calls_of(with_memory(2, 2 * THIRD_CALL_BYTES - 1), "cuda") == 2
    assert calls_of(with_memory(0, 1 << 40), "cpu") == 2
    assert calls_of(node("a", 16, 1), "cuda") == 2  # Ray does not say
    assert options_of("encoder", Cluster(), with_memory(1, 1 << 40), Share(), "cuda")["max_concurrency"] == 3
