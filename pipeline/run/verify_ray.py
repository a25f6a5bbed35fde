"""Verify on Ray: ranges of parts as tasks on a cluster; the findings are those of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ray
from ray.exceptions import RayError, RayTaskError

from ..errors import OutputError, RequestError
from ..output.report import PartsChecked
from ..output.verify import Verifier
from ..storage.files import as_path
from .ray_cluster import connect

TASKS_PER_CPU = 4  # so that no core waits long for the last one
PARTS_PER_TASK = 64  # at most: a task that a lost node takes along is done again
AHEAD_PER_CPU = 2


def _check(output: str, parts: range) -> list[PartsChecked]:
    """Checks parts on a node. Raises RequestError: the node does not see the output."""
    verifier = Verifier(as_path(output))
    return list(verifier.check_parts(parts))


def checker_on(address: str, output: str, say: Callable[[str], None]) -> Callable[[range], Iterator[PartsChecked]]:
    """Joins the cluster, or starts one, and returns what checks parts there; see `Verifier.verify`.

    Args:
        address: as `cluster.address`.

    Raises:
        RequestError: there is no such cluster; while parts are checked: a node does not see the output.
        OutputError: while parts are checked: the cluster was lost.
    """
    connect(address, say)

    def check(parts: range) -> Iterator[PartsChecked]:
        cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        size = min(PARTS_PER_TASK, max(1, len(parts) // (cpus * TASKS_PER_CPU)))
        ranges = [parts[first : first + size] for first in range(0, len(parts), size)]
        task = ray.remote(num_cpus=1)(_check)
        waiting: list[ray.ObjectRef] = []
        try:
            for one in ranges:
                waiting.append(task.remote(output, one))
                if len(waiting) > cpus * AHEAD_PER_CPU:
                    yield from ray.get(waiting.pop(0))
            while waiting:
                yield from ray.get(waiting.pop(0))
        except RayTaskError as error:
            if isinstance(error.cause, RequestError | OutputError):
                raise error.cause from error
            raise
        except RayError as error:
            raise OutputError(f"verify --ray: {str(error).splitlines()[0]}") from error

    return check
