"""Places: where processes of a run can be: the nodes that live, and what each of them should have and lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from ..config_fields import Cluster
from .fleet import KINDS, Kind, Process
from .sizing import ALL, Device, NodeFacts, Present, Share, shares_of


class Places:
    """The nodes of a cluster as a run sees them.

    Args:
        encoding: False where only indexing is to be done.
    """

    def __init__(self, cluster: Cluster, device: Device, *, encoding: bool) -> None:
        self._cluster, self._device, self._encoding = cluster, device, encoding
        self.nodes: dict[str, NodeFacts] = {}
        self._lost: Counter[tuple[Kind, str]] = Counter()
        self._seen = False

    def update(self, nodes: Iterable[NodeFacts]) -> tuple[list[str], list[NodeFacts]]:
        """Takes the nodes as they are now; returns which are gone, still in `nodes`, and which have joined a run."""
        now = {node.id: node for node in nodes}
        gone = [name for name in self.nodes if name not in now]
        joined = [node for name, node in now.items() if name not in self.nodes] if self._seen else []
        self.nodes |= now
        self._seen = True
        return gone, joined

    def forget(self, name: str) -> NodeFacts | None:
        """A node is gone."""
        for kind in KINDS:
            self._lost.pop((kind, name), None)
        return self.nodes.pop(name, None)

    def name(self, node: str) -> str:
        return self.nodes[node].name if node in self.nodes else node

    def give_up(self, kind: Kind, node: str) -> None:
        """Nothing is started any more in one of the places for a kind on a node."""
        self._lost[kind, node] += 1

    def gave_up(self, kind: Kind) -> bool:
        """Whether a node that lives has fewer places for a kind than it had."""
        return any(key[0] == kind for key in self._lost)

    def leave_out(self, kind: Kind, node: str) -> None:
        """No process of a kind is started on a node any more."""
        self._lost[kind, node] = ALL

    def missing(self, processes: Iterable[Process]) -> Iterator[tuple[NodeFacts, Share]]:
        """Yields what nodes lack, beside the processes that are there."""
        have: Counter[tuple[Kind, str]] = Counter((process.kind, process.node) for process in processes)
        for name, share in self.shares(have).items():
            lacks = Share(
                encoders=max(0, share.encoders - have["encoder", name]),
                preparers=max(0, share.preparers - have["preparer", name]),
            )
            if lacks.encoders or lacks.preparers:
                yield self.nodes[name], lacks

    def shares(self, have: Counter[tuple[Kind, str]]) -> dict[str, Share]:
        present = Present(processes=have, lost=self._lost)
        return shares_of(
            self._cluster, list(self.nodes.values()), self._device, encoding=self._encoding, present=present
        )

    def encoders_to_ask_for(self, processes: Iterable[Process]) -> int:
        """How many encoders the autoscaler is to be asked for; 0 where there are as many as were asked of the run."""
        if not self._encoding:
            return 0
        wanted = self._cluster.encoders if isinstance(self._cluster.encoders, int) else 1
        return wanted if sum(process.kind == "encoder" for process in processes) < wanted else 0

    def awaited(self, kind: Kind, starting: int) -> str:
        """A line for whoever waits."""
        nodes = self.nodes.values()
        free, gpus = sum(node.free_cpus for node in nodes), sum(node.gpus for node in nodes)
        asked = " (the autoscaler was asked for some)" if not gpus and self._device == "cuda" else ""
        return (
            f"waiting for {kind}s: {starting} are starting; the cluster has {len(nodes)} nodes, {free:g} free CPUs, "
            f"{gpus} GPUs{asked}"
        )
