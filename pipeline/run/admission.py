"""Admission: which processes may work on one output: those that agree in what decides bits."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import RequestError
from ..output.settings import ShardSettings
from .fleet import Kind, Process

Identity = dict[str, object]
OF_THE_DEVICE = {"device", "attention", "compiled", "cuda", "linear"}


class Admission:
    """The first process of each kind sets what the others must be, unless devices may be mixed."""

    def __init__(self, *, mixed: bool) -> None:
        self._mixed = mixed
        self._admit: Callable[[Identity], ShardSettings] | None = None
        self._first: dict[Kind, Identity] = {}
        self._encoders: dict[Process, Identity] = {}

    def begin(self, admit: Callable[[Identity], ShardSettings]) -> None:
        """`admit` turns what they are into what a shard says of itself. Raises RequestError: not with this output."""
        self._admit = admit

    def meet(self, process: Process, identity: Identity) -> None:
        """Takes note of what a process is. Raises RequestError, naming what differs."""
        first = self._first.setdefault(process.kind, identity)
        for name in first.keys() | identity.keys():
            if first.get(name) != identity.get(name) and not (self._mixed and name in OF_THE_DEVICE):
                raise RequestError(
                    f"the {process.kind}s differ in {name}: {first.get(name)}, {identity.get(name)}; bits would depend "
                    "on which of them works on an image. cluster.mixed_devices: true accepts that"
                )
        if process.kind == "encoder":
            self._encoders[process] = identity

    def ready(self) -> Process | None:
        """The first encoder, once there is also a preparer, and somebody to ask."""
        if self._admit is None or "preparer" not in self._first:
            return None
        return next((process for process in self._encoders if not process.gone), None)

    def admit(self) -> ShardSettings:
        """Asks. An encoder knows best what it is: it has loaded what others only read the version of."""
        assert self._admit is not None
        encoder = self._first["encoder"]
        if self._mixed:  # whichever came first must decide nothing
            encoder = encoder | dict.fromkeys(OF_THE_DEVICE & encoder.keys(), "mixed")
        return self._admit(self._first["preparer"] | encoder)

    def encoders(self) -> list[Process]:
        return list(self._encoders)

    def forget(self, node: str) -> None:
        """The first encoder, of this node, was not admitted: the next one elsewhere sets what they must be."""
        living = {one: said for one, said in self._encoders.items() if one.node != node and not one.gone}
        self._encoders = living
        self._first.pop("encoder", None)
        if living:
            self._first["encoder"] = next(iter(living.values()))
