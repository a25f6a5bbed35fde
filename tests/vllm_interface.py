"""vLLM's classes that the connector builds on: its own where vLLM is installed (`make vllm`), else a small stand-in.

Source of the stand-in: vLLM 0.32 and 0.33, `distributed/ec_transfer/ec_connector/base.py`, whose abstract methods and
calls these are.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

REAL = importlib.util.find_spec("vllm") is not None
BASE = "vllm.distributed.ec_transfer.ec_connector.base"


class Role(enum.Enum):
    SCHEDULER = 0
    WORKER = 1


class Metadata(ABC):  # noqa: B024
    pass


class Base(ABC):
    def __init__(self, vllm_config: Any, role: Role) -> None:
        self._connector_metadata: Any = None
        self._vllm_config, self._role = vllm_config, role
        self._is_producer = vllm_config.ec_transfer_config.is_ec_producer
        self._is_consumer = vllm_config.ec_transfer_config.is_ec_consumer

    role = property(lambda self: self._role)
    is_producer = property(lambda self: self._is_producer)
    is_consumer = property(lambda self: self._is_consumer)

    def bind_connector_metadata(self, metadata: Any) -> None:
        self._connector_metadata = metadata

    def clear_connector_metadata(self) -> None:
        self._connector_metadata = None

    def _get_connector_metadata(self) -> Any:
        assert self._connector_metadata is not None
        return self._connector_metadata

    @abstractmethod
    def start_load_caches(self, encoder_cache: Any, **kwargs: Any) -> None: ...
    @abstractmethod
    def save_caches(self, encoder_cache: Any, mm_hash: str, **kwargs: Any) -> None: ...
    @abstractmethod
    def has_cache_item(self, identifier: str) -> bool: ...
    @abstractmethod
    def update_state_after_alloc(self, request: Any, index: int) -> None: ...
    @abstractmethod
    def build_connector_meta(self, scheduler_output: Any) -> Any: ...


def stand_in() -> dict[str, ModuleType]:
    """The modules that the connector imports, by name."""
    names = ["vllm", "vllm.platforms"]
    names += [BASE.rsplit(".", count)[0] for count in range(3, 0, -1)] + [BASE]
    modules = {name: ModuleType(name) for name in names}
    modules["vllm"].__version__ = "0.33.0"  # type: ignore[attr-defined]
    modules["vllm.platforms"].current_platform = SimpleNamespace(  # type: ignore[attr-defined]
        device_type="cpu", is_cuda_alike=lambda: False
    )
    vars(modules[BASE]).update(ECConnectorBase=Base, ECConnectorMetadata=Metadata, ECConnectorRole=Role)
    return modules


@contextmanager
def importable() -> Iterator[None]:
    """vLLM can be imported within; a stand-in is gone afterwards: libraries look whether there is a vLLM."""
    modules = {} if REAL else stand_in()
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
