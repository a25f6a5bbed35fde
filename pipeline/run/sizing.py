"""Sizing: how many processes of each kind each node of a cluster gets, and what each asks of Ray.

Asked again and again while a run goes on: nodes come and go. A node keeps what it has where that is still right.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..config_fields import Cluster
from .fleet import CALLS, Kind

Device = Literal["cuda", "cpu"]
ALL = 1 << 20  # more than a node can have
PREPARERS: dict[Device, int] = {"cuda": 6, "cpu": 1}  # that an encoder is fed by
THIRD_CALL_BYTES = 8 << 30  # of memory for each encoder: its own, and three units with what writing them takes
Options = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """A node that lives, as Ray states its resources. `name`: for messages; what is free nobody holds.

    `memory_bytes` is beside the object store; 0 where Ray does not say.
    """

    id: str
    name: str
    cpus: float
    free_cpus: float
    gpus: int
    free_gpus: int
    store_bytes: int
    accelerators: tuple[str, ...] = ()
    memory_bytes: int = 0


@dataclass(kw_only=True)
class Share:
    """The processes of one node."""

    encoders: int = 0
    preparers: int = 0

    def of(self, kind: Kind) -> int:
        return self.encoders if kind == "encoder" else self.preparers


@dataclass(frozen=True, kw_only=True)
class Present:
    """The processes that a run has, by kind and node, and by how many fewer a node can have."""

    processes: Mapping[tuple[Kind, str], int] = field(default_factory=dict)
    lost: Mapping[tuple[Kind, str], int] = field(default_factory=dict)

    def count(self, kind: Kind, node: str) -> int:
        return self.processes.get((kind, node), 0)

    def lost_of(self, kind: Kind, node: str) -> int:
        return self.lost.get((kind, node), 0)


def shares_of(
    wanted: Cluster,
    nodes: Sequence[NodeFacts],
    device: Device,
    *,
    encoding: bool = True,
    present: Present | None = None,
) -> dict[str, Share]:
    """Sizes a run, node by node.

    Args:
        encoding: False where only indexing is to be done.
    """
    present = present or Present()
    shares = {node.id: Share() for node in nodes}
    usable = [node for node in nodes if node.cpus >= 1 or node.gpus] or list(nodes)
    threads = 1.0 if device == "cuda" else float(wanted.threads_per_encoder)
    if encoding:
        _place_encoders(wanted, usable, shares, device, present)
    else:
        threads = 0.0
    spare = {node.id: int(node.cpus - shares[node.id].encoders * threads) for node in usable}
    if isinstance(wanted.preprocessors, int):
        dealt = _deal(wanted.preprocessors, "preparer", spare, 1.0, present)
    else:
        dealt = _preparers(usable, shares, spare, PREPARERS[device] if encoding else 0, present)
    for name, count in dealt.items():
        shares[name].preparers = count
    return shares


def _place_encoders(
    wanted: Cluster, nodes: list[NodeFacts], shares: dict[str, Share], device: Device, present: Present
) -> None:
    """On GPUs one each, as many as are wanted; on CPUs one a node, or as many as are wanted, spread by their CPUs."""
    if isinstance(wanted.encoders, int) and device == "cpu":
        room = {node.id: node.cpus for node in nodes}
        for name, count in _deal(wanted.encoders, "encoder", room, wanted.threads_per_encoder, present).items():
            shares[name].encoders = count
        return
    left = wanted.encoders if isinstance(wanted.encoders, int) else ALL
    free_first = sorted(nodes, key=lambda node: -node.free_gpus)  # another job may hold some
    places = {
        node.id: (node.gpus if device == "cuda" else 1) - present.lost_of("encoder", node.id) for node in free_first
    }
    for keeping in (True, False):  # what is there stays
        for name, count in places.items():
            most = min(count, present.count("encoder", name)) if keeping else count
            more = max(0, min(left, most - shares[name].encoders))
            shares[name].encoders += more
            left -= more


def _deal(count: int, kind: Kind, room: Mapping[str, float], cpus: float, present: Present) -> dict[str, int]:
    """Gives so many processes one by one to where most CPUs are left, but no more to where one was given up.

    What is there stays.
    """
    dealt = {}
    for name in room:
        dealt[name] = min(count, present.count(kind, name))
        count -= dealt[name]
    names = [name for name in room if not present.lost_of(kind, name)]
    heap = [(dealt[name] * cpus - room[name], number) for number, name in enumerate(names)]
    heapq.heapify(heap)
    for _ in range(count if heap else 0):
        left, number = heapq.heappop(heap)
        dealt[names[number]] += 1
        heapq.heappush(heap, (left + cpus, number))
    return dealt


def _preparers(
    nodes: list[NodeFacts], shares: dict[str, Share], spare: dict[str, int], each: int, present: Present
) -> dict[str, int]:
    """First beside the encoders that they feed; where a node has too few CPUs for that, others help."""
    own, missing = {}, 0
    if not each:  # only to index
        own = {node.id: max(1, int(node.cpus)) for node in nodes}
    elif not any(shares[node.id].encoders for node in nodes):
        own, missing = {node.id: 0 for node in nodes}, each  # until there is an encoder
    else:
        for node in nodes:
            needed = each * shares[node.id].encoders
            own[node.id] = max(1, min(spare[node.id], needed)) if needed else 0
            missing += needed - own[node.id]
    count = dict(own)

    def helps(name: str) -> tuple[int, int]:
        return own[name] - present.count("preparer", name), own[name] - spare[name]  # those that help already go on

    for name in sorted(own, key=helps):
        more = max(0, min(missing, spare[name] - own[name]))
        count[name] += more
        missing -= more
    if nodes and not any(count.values()):
        count[nodes[0].id] = 1
    return {name: max(0, number - present.lost_of("preparer", name)) for name, number in count.items()}


def options_of(kind: Kind, wanted: Cluster, node: NodeFacts, missing: Share, device: Device) -> Options:
    """The resources that a process asks of Ray.

    Where the free CPUs of its node are too few, also because another job holds them, processes ask for none: what asks
    for nothing is always placed, and nothing can wait for what a process of ours holds.
    """
    threads = 1.0 if device == "cuda" else float(wanted.threads_per_encoder)
    crowded = missing.encoders * threads + missing.preparers > node.free_cpus
    if kind == "preparer":
        return {"num_cpus": 0.0 if crowded else 1.0}
    cpus = 0.0 if crowded else min(threads, node.cpus)
    calls = calls_of(node, device)
    return {"num_cpus": cpus, "num_gpus": 1.0 if device == "cuda" else 0.0, "max_concurrency": float(calls)}


def calls_of(node: NodeFacts, device: Device) -> int:
    """How many calls an encoder has at once: on a GPU a third where memory allows, else two.

    A GPU encodes a unit about as fast as it is written: with two calls the slower unit of a pair lets it wait.
    """
    has_room = node.memory_bytes >= max(1, node.gpus) * THIRD_CALL_BYTES
    return CALLS + 1 if device == "cuda" and has_room else CALLS
