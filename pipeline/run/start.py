"""Start: the engine that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import RequestError
from ..output.settings import ShardSettings
from ..storage.publish import check_publishing
from ..storage.scratch import Scratch
from .engine import Engine
from .progress import Progress
from .request import Request, stage_settings


class StartedEngine(Engine, Protocol):
    """An engine whose processes may still be starting.

    `begin` gives it what turns an encoder's identity into what a shard says about itself; `admit` raises RequestError
    where it cannot go on with this output. Nothing is encoded before. `encoder_seconds`: of encoders at work, so far.
    """

    @property
    def encoder_seconds(self) -> float: ...

    def begin(self, admit: Callable[[dict[str, object]], ShardSettings]) -> None: ...

    def await_admission(self) -> None: ...

    def observe(self, progress: Progress, seconds: float) -> None: ...

    def shutdown(self) -> None: ...


def start_engine(
    request: Request, scratch: Scratch, say: Callable[[str], None], *, encoding: bool = True, inline: bool = False
) -> StartedEngine:
    """Starts the configured engine; without encoders where only indexing is to be done.

    Args:
        inline: that engine, whatever is configured.

    Raises:
        RequestError: it cannot be had, or nothing can be published in the output.
    """
    check_publishing(request.output, scratch)
    settings, cluster = stage_settings(request, scratch.nonce), request.config.cluster
    if inline or cluster.engine == "inline":
        from .engine_inline import InlineEngine

        return InlineEngine(settings, cluster.device, encoding=encoding)
    try:
        from .ray_cluster import start_on_ray
    except ImportError as error:
        raise RequestError(f"cluster.engine: ray is not installed ({error}); use cluster.engine: inline") from error
    return start_on_ray(settings, cluster, scratch, say, encoding=encoding)
