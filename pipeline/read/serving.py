"""Serving: which row a server's identifier means, and its tokens from host memory in front of the output.

M tokens, O values of a row, in all of its streams. Nothing here knows an engine; `vllm_connector` is vLLM's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ..errors import RequestError
from ..output.info import DatasetInfo, read_dataset
from ..storage.files import absolute, reads_ahead
from .items import IMAGE
from .kept import Kept
from .reader import EmbeddingDataset
from .stored import ServedRow, StoredRow, StoredRows

SHA256 = re.compile(r"[0-9a-f]{64}")
ANSWERS_KEPT = 100_000
UNITS_AT_ONCE = 32
log = logging.getLogger(__name__)


class MediaIndex:
    """The rows of an output by what requests call their media.

    Args:
        dataset: the output. As many of its rows as it keeps are looked up in memory; of others the first look-up in
            a unit reads that unit's samples shard.
    """

    def __init__(self, dataset: EmbeddingDataset) -> None:
        self._dataset = dataset
        self._answers: Kept[ServedRow | None] = Kept(ANSWERS_KEPT)
        dataset.find_all("")  # reads the keys now, not with the first request
        if len(dataset) <= dataset.rows_kept:
            with ThreadPoolExecutor(UNITS_AT_ONCE) as pool:
                list(pool.map(dataset.carried, range(len(dataset.unit_lengths()))))

    def find(self, identifier: str) -> ServedRow | None:
        """The row that a key, `source/key` or the sha256 of a file means; None where none does, or several do.

        The sha256 of an image may be that of several rows: equal files have equal tokens. Videos may be spans of a
        file, so that theirs counts where it is of one row alone.
        """
        return self._answers.get(identifier, lambda: self._find(identifier))

    def _find(self, identifier: str) -> ServedRow | None:
        found = self._dataset.find_all(identifier)
        if not found:
            slashes = [match.start() for match in re.finditer("/", identifier)]
            found = [row for at in slashes for row in self._dataset.find_all((identifier[:at], identifier[at + 1 :]))]
        if not found and SHA256.fullmatch(identifier):
            rows = [self._dataset.served(*row) for row in self._dataset.find_sha256(identifier)]
            return rows[0] if rows and (len(rows) == 1 or all(row.medium == IMAGE for row in rows)) else None
        if len(found) > 1:
            log.warning("%s means %d rows of %s: name it source/key", identifier, len(found), self._dataset.uri)
        return self._dataset.served(*found[0]) if len(found) == 1 else None


class TokenCache:
    """Tokens in host memory, those that were used last; what is not there is read, one range a row.

    Args:
        output: the output, local or anything that fsspec opens.
        dtype: of the tokens that are given.
        limit_bytes: of what is kept.
        pin: whether in pages that a GPU reads by itself.

    Raises:
        RequestError: it is not an output of visionbake.
    """

    def __init__(self, output: str, *, dtype: torch.dtype, limit_bytes: int, pin: bool) -> None:
        root = absolute(output)
        self._stored = StoredRows(root, read_dataset(root))
        self._dtype, self._pin = dtype, pin
        self._kept: Kept[Tensor] = Kept(limit_bytes, lambda tokens: tokens.nbytes)
        self._pool = ThreadPoolExecutor(max(1, reads_ahead(output)), thread_name_prefix="visionbake-read")

    def get(self, rows: Sequence[StoredRow]) -> list[Tensor]:
        """The tokens [M, O] of each row, in order. Raises OSError: one cannot be read."""
        return list(self._pool.map(self._one, rows))

    def _one(self, row: StoredRow) -> Tensor:
        return self._kept.get((row.shard, row.offset), lambda: self._read(row))

    def _read(self, row: StoredRow) -> Tensor:
        rows_MO = self._stored.tokens(row).to(self._dtype)
        return rows_MO.pin_memory() if self._pin else rows_MO

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def check_served(info: DatasetInfo, output: str, width: int, streams: int) -> None:
    """Raises RequestError: a language model of this width, with so many further streams, cannot take an output."""
    if info.config["output"].get("stage", "merged") != "merged":
        raise RequestError(f"{output} holds the merger's input (stage: pre_merger), which no engine takes")
    if (info.stream_width, info.streams) != (width, streams):
        raise RequestError(
            f"{output} has {info.stream_width} values a token in {1 + info.streams} streams, the served model takes "
            f"{width} in {1 + streams}: it was made with another model"
        )
