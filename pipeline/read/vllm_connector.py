"""vLLM: an encoder cache connector, which gives the tokens of an output in place of a run of the tower.

A request names its media by UUIDs: a row's key, `source/key`, or the sha256 of the file. The scheduler's half of the
connector looks them up and says where their tokens lie; each worker's half reads them, one range a row, and puts them
where vLLM keeps what its tower computed. What is not in the output is left to the tower.

Source: vLLM 0.32 and 0.33 `distributed/ec_transfer/ec_connector/base.py`, `v1/core/sched/scheduler.py`,
`v1/worker/gpu/ec_connector.py`. docs/serve.md has its flags.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import vllm

from ..errors import RequestError
from ..output.info import read_dataset
from ..storage.files import absolute
from ..storage.remote import check_uri
from .items import IMAGE, VIDEO
from .reader import EmbeddingDataset
from .serving import MediaIndex, TokenCache, check_served
from .stored import ServedRow, StoredRow

SUPPORTED = ("0.32", "0.33")  # one form of the interface; before, a connector was asked otherwise


def check_version(version: str) -> None:
    """Raises RequestError: this version of vLLM has another interface, or one that was never tried."""
    if ".".join(version.split(".")[:2]) not in SUPPORTED:
        raise RequestError(f"vLLM {version}: the connector was made for {' and '.join(SUPPORTED)}, and no others")


check_version(vllm.__version__)

from vllm.distributed.ec_transfer.ec_connector.base import ECConnectorBase, ECConnectorMetadata, ECConnectorRole  # noqa: E402

# What a prompt's item holds for the tower, or in its place. Without any of them it is a grid alone.
CONTENT = {IMAGE: ("pixel_values", "image_embeds"), VIDEO: ("pixel_values_videos", "video_embeds")}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    """`ec_connector_extra_config`.

    Attributes:
        output: the output, local or anything that fsspec opens; every worker reads it.
        host_cache_bytes: of tokens that each worker keeps in host memory.
        index_rows: rows of which the scheduler keeps in memory where they lie, some 300 bytes each.
        allow_incomplete: serve what is committed so far of a run that has not ended.
    """

    output: str
    host_cache_bytes: int = 4 << 30
    index_rows: int = 1 << 21
    allow_incomplete: bool = False

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Options:
        """Raises RequestError: a name is unknown, or output is missing, or a value has another type."""
        types: dict[str, type] = {"output": str, "allow_incomplete": bool}
        for name, value in tree.items():
            known = [one.name for one in fields(cls)]
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
                raise RequestError(f"ec_connector_extra_config has no {name}{hint}")
            kind = types.get(name, int)
            if type(value) is not kind or (isinstance(value, int) and value < 0):
                raise RequestError(f"ec_connector_extra_config.{name}: {value!r} is no {kind.__name__} that it can be")
        if "output" not in tree:
            raise RequestError("ec_connector_extra_config.output: which output of visionbake?")
        return cls(**tree)


@dataclass
class Loads(ECConnectorMetadata):  # type: ignore[misc]  # vLLM is no dependency
    """The rows that workers load before a step, by identifier."""

    rows: dict[str, StoredRow] = field(default_factory=dict)


class VisionbakeConnector(ECConnectorBase):  # type: ignore[misc]
    """Serves an output's tokens to vLLM: `--ec-transfer-config`, with `ec_role: ec_consumer`.

    Raises:
        RequestError: it is not an output, not complete, made with another model, or an option is unknown.
    """

    def __init__(self, vllm_config: Any, role: ECConnectorRole) -> None:
        super().__init__(vllm_config=vllm_config, role=role)
        if self.is_producer:
            raise RequestError("ec_role: an output is read and never added to; it is ec_consumer")
        options = Options.of(vllm_config.ec_transfer_config.ec_connector_extra_config)
        check_uri("ec_connector_extra_config.output", options.output)
        model = vllm_config.model_config
        info = read_dataset(absolute(options.output))
        check_served(info, options.output, model.get_inputs_embeds_size(), _streams_of(model.hf_config))
        self._loads: dict[str, StoredRow] = {}
        self._differing: set[str] = set()  # identifiers whose last request has another grid than the output
        self._unavailable: set[str] = set()
        if role == ECConnectorRole.SCHEDULER:
            dataset = EmbeddingDataset(
                options.output, allow_incomplete=options.allow_incomplete, rows_kept=options.index_rows
            )
            self._index = MediaIndex(dataset)
            log.info("%s: %d rows are served from it", options.output, len(dataset))
        else:
            self._device, pin = _device()
            self._cache = TokenCache(options.output, dtype=model.dtype, limit_bytes=options.host_cache_bytes, pin=pin)

    def shutdown(self) -> None:
        if self.role == ECConnectorRole.WORKER:
            self._cache.close()

    # The scheduler's half.

    def has_cache_item(self, identifier: str) -> bool:
        return identifier not in self._differing and self._index.find(identifier) is not None

    def ensure_cache_available(self, request: Any, num_computed_tokens: int) -> bool:
        """Compares a request's prompt with the rows that it names, before the scheduler asks for each of them.

        An item of another grid than its row, of a request with pixels, is left to the tower. One without pixels whose
        row is not there, or is of another grid, ends the request: nothing could compute its tokens.
        """
        for number, feature in enumerate(request.mm_features):
            row = self._index.find(feature.identifier)
            data = feature.data.get_data() if feature.data is not None else None
            differs = row is not None and _differs(row, request.get_num_encoder_embeds(number), feature.modality, data)
            if differs and feature.identifier not in self._differing:
                log.warning("%s has another grid in its request than in the output", feature.identifier)
            (self._differing.add if differs else self._differing.discard)(feature.identifier)
            if (row is None or differs) and data is not None and _is_grid_alone(feature.modality, data):
                log.warning("%s has no pixels, and no row that fits: its request ends", feature.identifier)
                self._unavailable.add(request.request_id)
                return False
        return True

    def take_unavailable_requests(self) -> set[str]:
        taken, self._unavailable = self._unavailable, set()
        return taken

    def update_state_after_alloc(self, request: Any, index: int) -> None:
        identifier = request.mm_features[index].identifier
        row = self._index.find(identifier)
        if row is not None and identifier not in self._differing:
            self._loads[identifier] = row.stored

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        loads, self._loads = Loads(rows=self._loads), {}
        return loads

    # A worker's half.

    def start_load_caches(self, encoder_cache: dict[str, torch.Tensor], **kwargs: Any) -> None:
        """Puts the tokens of this step's rows, [main | stream 0 | …] each, into vLLM's cache.

        Raises:
            OSError: one cannot be read; vLLM has no way on from there, and stops.
        """
        loads: Loads = self._get_connector_metadata()
        wanted = {name: row for name, row in loads.rows.items() if name not in encoder_cache}
        for name, tokens in zip(wanted, self._cache.get(list(wanted.values())), strict=True):
            encoder_cache[name] = tokens.to(self._device, non_blocking=True)

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **kwargs: Any) -> None:
        """Does nothing: what the tower computed for others is not added to an output."""


def _device() -> tuple[str, bool]:
    """The worker's device, and whether it reads pinned pages by itself."""
    from vllm.platforms import current_platform

    if current_platform.is_cuda_alike():
        return f"{current_platform.device_type}:{current_platform.current_device()}", True
    return current_platform.device_type or "cpu", False  # none: a build for GPUs where there is none


def _streams_of(config: Any) -> int:
    """How many further streams a model's language model takes."""
    config = getattr(config, "thinker_config", config)  # an Omni
    return len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ())


def _differs(row: ServedRow, tokens: int, modality: str, data: dict[str, Any] | None) -> bool:
    """Whether a prompt has another medium, number of tokens or, as far as it says one, grid than a row."""
    if row.medium != modality or row.stored.num_tokens != tokens:
        return True
    grid = (data or {}).get(f"{modality}_grid_thw")
    return grid is not None and tuple(torch.as_tensor(grid).flatten().tolist()) != row.grid_thw


def _is_grid_alone(modality: str, data: dict[str, Any]) -> bool:
    return all(data.get(name) is None for name in CONTENT.get(modality, tuple(data)))
