"""Sizing: how many processes of each kind each node of a cluster gets, and what each asks of Ray.

Asked again and again while a run goes on: nodes come and go. A node keeps what it has where that is still right.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..config import Cluster
from .fleet import SLOTS, Kind

Device = Literal["cuda", "cpu"]
PREPARERS: dict[Device, int] = {"cuda": 6, "cpu": 1}  # that an encoder is fed by
Options = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """A node that lives, as Ray states its resources. `name`: for messages; `free_cpus`: that nobody holds."""

    id: str
    name: str
    cpus: float
    free_cpus: float
    gpus: int
    store_bytes: int
    accelerators: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Share:
    """The processes of one node."""

    encoders: int = 0
    preparers: int = 0

    def of(self, kind: Kind) -> int:
        return self.encoders if kind == "encoder" else self.preparers


@dataclass(frozen=True, kw_only=True)
class Present:
    """The state of a run: processes by kind and node, and by how many fewer a node can have."""

    processes: Mapping[tuple[Kind, str], int] = field(default_factory=dict)
    lost: Mapping[tuple[Kind, str], int] = field(default_factory=dict)


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
    _place_preparers(wanted, usable, shares, threads, PREPARERS[device] if encoding else 0)
    for node in nodes:
        share = shares[node.id]
        share.preparers = max(0, share.preparers - present.lost.get(("preparer", node.id), 0))
    return shares


def _place_encoders(
    wanted: Cluster, nodes: list[NodeFacts], shares: dict[str, Share], device: Device, present: Present
) -> None:
    """On GPUs one each, as many as are wanted; on CPUs one a node, or as many as are wanted, spread by their CPUs."""

    def had(node: NodeFacts) -> int:
        return present.processes.get(("encoder", node.id), 0)

    def lost(node: NodeFacts) -> int:
        return present.lost.get(("encoder", node.id), 0)

    left = wanted.encoders if isinstance(wanted.encoders, int) else None
    if device == "cuda":
        for node in sorted(nodes, key=lambda node: -had(node)):
            count = max(0, node.gpus - lost(node))
            count = count if left is None else min(count, left)
            left = None if left is None else left - count
            shares[node.id].encoders = count
        return
    if left is None:
        for node in nodes:
            shares[node.id].encoders = max(0, 1 - lost(node))
        return
    nodes = [node for node in nodes if not lost(node)]
    room = [(-node.cpus, -had(node), number) for number, node in enumerate(nodes)]
    _deal(left, room, [shares[node.id] for node in nodes], "encoders", wanted.threads_per_encoder)


def _deal(count: int, room: list[tuple[float, int, int]], shares: list[Share], name: str, cpus: float) -> None:
    """Gives so many processes one by one to where most room is left."""
    heapq.heapify(room)
    for _ in range(count if room else 0):
        left, had, number = heapq.heappop(room)
        setattr(shares[number], name, getattr(shares[number], name) + 1)
        heapq.heappush(room, (left + cpus, had, number))


def _place_preparers(
    wanted: Cluster, nodes: list[NodeFacts], shares: dict[str, Share], threads: float, each: int
) -> None:
    """First beside the encoders that they feed; where a node has too few CPUs for that, others help."""
    spare = {node.id: int(node.cpus - shares[node.id].encoders * threads) for node in nodes}
    if isinstance(wanted.preprocessors, int):
        room = [(-float(spare[node.id]), -shares[node.id].encoders, number) for number, node in enumerate(nodes)]
        _deal(wanted.preprocessors, room, [shares[node.id] for node in nodes], "preparers", 1.0)
        return
    if not each:  # only to index
        for node in nodes:
            shares[node.id].preparers = max(1, int(node.cpus))
        return
    missing = 0 if any(shares[node.id].encoders for node in nodes) else each  # until there is an encoder
    for node in nodes:
        encoders = shares[node.id].encoders
        own = max(1, min(spare[node.id], each * encoders)) if encoders else 0
        shares[node.id].preparers = own
        spare[node.id] -= own
        missing += each * encoders - own
    for node in sorted(nodes, key=lambda node: -spare[node.id]):
        help_here = max(0, min(missing, spare[node.id]))
        shares[node.id].preparers += help_here
        missing -= help_here
    if nodes and not any(shares[node.id].preparers for node in nodes):
        shares[nodes[0].id].preparers = 1


def options_of(kind: Kind, wanted: Cluster, node: NodeFacts, missing: Share, device: Device) -> Options:
    """Says what a process asks of Ray.

    Where the free CPUs of its node are too few, also because another job holds them, processes ask for none: what asks
    for nothing is always placed, and nothing can wait for what a process of ours holds.
    """
    threads = 1.0 if device == "cuda" else float(wanted.threads_per_encoder)
    crowded = missing.encoders * threads + missing.preparers > node.free_cpus
    if kind == "preparer":
        return {"num_cpus": 0.0 if crowded else 1.0}
    cpus = 0.0 if crowded else min(threads, node.cpus)
    return {"num_cpus": cpus, "num_gpus": 1.0 if device == "cuda" else 0.0, "max_concurrency": float(SLOTS["encoder"])}
