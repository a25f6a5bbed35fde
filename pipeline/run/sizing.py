"""Sizing: how many processes of each kind a cluster gets, and what each asks of Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..config import Cluster

CALLS_PER_ENCODER = 2  # one encodes while the other writes
PREPARERS_PER_GPU = 6


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """The resources of a cluster, as Ray states them."""

    resources: dict[str, float]
    free_cpus: float
    largest_node_cpus: float


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How many processes there are; `options` of an actor by its kind."""

    encoders: int
    preparers: int
    options: dict[str, dict[str, Any]]


def sizing_of(wanted: Cluster, cluster: ClusterFacts, threads: int, *, encoding: bool) -> Sizing:
    """Sizes a run.

    Args:
        threads: of an encoder on a CPU.
        encoding: False where only indexing is to be done.
    """
    gpus, cpus = int(cluster.resources.get("GPU", 0)), cluster.resources.get("CPU", 1.0)
    encoders = wanted.encoders if isinstance(wanted.encoders, int) else max(1, gpus)
    if not encoding:
        encoders, gpus = 0, 0
    encoder_cpus = 1.0 if gpus else float(threads)
    spare = int(cpus - encoders * encoder_cpus)
    useful = PREPARERS_PER_GPU * encoders if gpus else encoders
    useful = useful if encoding else int(cpus)
    preparers = wanted.preprocessors if isinstance(wanted.preprocessors, int) else max(1, min(spare, useful))
    # Where the free CPUs are too few, also because another job holds them, processes ask for none: what asks for
    # nothing is always placed, and nothing can wait for what a process of ours holds.
    crowded = encoders * encoder_cpus + preparers > cluster.free_cpus
    return Sizing(
        encoders=encoders,
        preparers=preparers,
        options={
            "encoder": {
                "num_cpus": 0 if crowded else min(encoder_cpus, cluster.largest_node_cpus),
                "num_gpus": 1 / math.ceil(encoders / gpus) if gpus else 0,
                "max_concurrency": CALLS_PER_ENCODER,
            },
            "preparer": {"num_cpus": 0 if crowded else 1},
        },
    )
