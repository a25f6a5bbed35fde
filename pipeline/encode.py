"""Encode: a prepared unit to its tokens, in input order, in the dtype that is stored.

    patches [P, C] ─pack─▶ forwards ─▶ tokens [M, O] of the unit's distinct images, norms, finite or not

A pack that does not fit on the device is halved. An image whose tokens are not finite is encoded again alone, and
rejected if they are not finite then either; its neighbours keep the first forward's rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoder import Grid, Tower
from pipeline.errors import EncodeError
from pipeline.pack import Size, pack_images
from pipeline.prepare import PreparedUnit

STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class EncodedUnit:
    """The hand-off from encoding to writing. N distinct images, M tokens of them all.

    Attributes:
        tokens_MO: in the stored dtype, on the CPU, image after image.
        ends_N: where each image's tokens end.
        norm_mean_N, norm_max_N: float32, of the L2 norms of the tokens as stored.
        finite_N: False for an image that stayed non-finite alone: a reject.
        halvings: how often a pack was halved for lack of device memory.
        overflows: values clamped to fit float16.
        seconds: by step.
        packs: patches of each forward.
    """

    tokens_MO: Tensor
    ends_N: npt.NDArray[np.int64]
    norm_mean_N: npt.NDArray[np.float32]
    norm_max_N: npt.NDArray[np.float32]
    finite_N: npt.NDArray[np.bool_]
    halvings: int
    overflows: int
    packs: tuple[int, ...]
    seconds: dict[str, float]


class UnitEncoder:
    """Encodes prepared units on one device.

    Args:
        tower: the weights.
        max_patches: budget of one forward.
        stored_dtype: `bfloat16`, `float16` or `float32`.
        on_overflow: what to do with values over float16's range: `fail` or `clamp`.
        threads: of a CPU's matrix products; part of what decides bits.
    """

    def __init__(
        self, tower: Tower, *, max_patches: int, stored_dtype: str, on_overflow: str = "fail", threads: int = 1
    ) -> None:
        self.tower = tower
        self.max_patches = max_patches
        self.stored_dtype = STORED[stored_dtype]
        self.on_overflow = on_overflow
        self.threads = threads

    def encode(self, prepared: PreparedUnit) -> EncodedUnit:
        """Encodes the distinct images of one unit.

        Raises:
            EncodeError: one image does not fit on the device alone, or a value does not fit the stored dtype.
        """
        started = time.perf_counter()
        torch.set_num_threads(self.threads)  # here, because it is a property of the calling thread
        config = self.tower.config
        sizes = [Size(patches=t * h * w, frame_patches=h * w) for t, h, w in prepared.grids]
        tokens = np.array([size.patches // config.merge_size**2 for size in sizes], np.int64)
        ends_N = np.cumsum(tokens)
        state = _State(
            prepared=prepared,
            patch_ends=np.cumsum([0] + [size.patches for size in sizes]),
            token_ends=np.concatenate([[0], ends_N]).astype(np.int64),
            unit_MO=torch.empty(int(tokens.sum()), config.out_width, dtype=self.stored_dtype, device=self.tower.device),
            norms_M=torch.empty(int(tokens.sum()), dtype=torch.float32, device=self.tower.device),
        )
        packs = pack_images(sizes, self.max_patches)
        for pack in packs:
            self._encode_pack(pack, state)
        finite_N = self._finite(state, len(sizes))
        for image in np.flatnonzero(~finite_N).tolist():
            self._encode_pack([image], state)
        if not finite_N.all():
            finite_N = self._finite(state, len(sizes))
        norms_M = state.norms_M.cpu().numpy().astype(np.float64)
        starts = state.token_ends[:-1]
        norm_mean = np.add.reduceat(norms_M, starts) / np.maximum(tokens, 1) if len(starts) else norms_M
        norm_max = np.maximum.reduceat(norms_M, starts) if len(starts) else norms_M
        tokens_MO = state.unit_MO.cpu()
        return EncodedUnit(
            tokens_MO=tokens_MO,
            ends_N=ends_N,
            norm_mean_N=norm_mean.astype(np.float32),
            norm_max_N=norm_max.astype(np.float32),
            finite_N=finite_N,
            halvings=state.halvings,
            overflows=state.overflows,
            packs=tuple(sum(sizes[image].patches for image in pack) for pack in packs),
            seconds={"encode": time.perf_counter() - started},
        )

    def _finite(self, state: _State, count: int) -> npt.NDArray[np.bool_]:
        finite_M = torch.isfinite(state.norms_M).cpu().numpy()
        if not count:
            return np.ones(0, np.bool_)
        return np.logical_and.reduceat(finite_M, state.token_ends[:-1])  # type: ignore[no-any-return]

    def _encode_pack(self, pack: Sequence[int], state: _State) -> None:
        grids = [state.prepared.grids[image] for image in pack]
        try:
            self._forward(pack, grids, state)
            return
        except torch.OutOfMemoryError as error:
            if len(pack) == 1:
                t, h, w = grids[0]
                raise EncodeError(
                    f"unit {state.prepared.unit.id}: {_key_of(state.prepared, pack[0])}: {t * h * w} patches do not "
                    f"fit on {self.tower.device}, even alone; lower preprocess.max_pixels"
                ) from error
        # Behind the except block: inside it, the error would keep the failed forward's tensors alive.
        if self.tower.device.type == "cuda":
            torch.cuda.empty_cache()
        state.halvings += 1
        middle = len(pack) // 2
        self._encode_pack(pack[:middle], state)
        self._encode_pack(pack[middle:], state)

    def _forward(self, pack: Sequence[int], grids: list[Grid], state: _State) -> None:
        device = self.tower.device
        patches = np.concatenate(
            [state.prepared.patches_PC[state.patch_ends[image] : state.patch_ends[image + 1]] for image in pack]
        )
        tokens_MO = self.tower.forward(torch.from_numpy(patches).to(device), self.tower.plan(grids))
        rows = np.concatenate([np.arange(state.token_ends[image], state.token_ends[image + 1]) for image in pack])
        rows_M = torch.from_numpy(rows).to(device)
        stored_MO = self._store(tokens_MO, pack, state)
        state.unit_MO.index_copy_(0, rows_M, stored_MO)
        state.norms_M.index_copy_(0, rows_M, torch.linalg.vector_norm(stored_MO, dim=-1, dtype=torch.float32))

    def _store(self, tokens_MO: Tensor, pack: Sequence[int], state: _State) -> Tensor:
        if self.stored_dtype != torch.float16 or tokens_MO.dtype == torch.float16:
            return tokens_MO.to(self.stored_dtype)
        limit = torch.finfo(torch.float16).max
        over = int(((tokens_MO.abs() > limit) & torch.isfinite(tokens_MO)).sum())
        if over and self.on_overflow == "fail":
            keys = ", ".join(_key_of(state.prepared, image) for image in pack[:3])
            raise EncodeError(
                f"unit {state.prepared.unit.id}: {over} values over float16's range among {keys}, …; use output.dtype "
                "bfloat16, or output.on_overflow: clamp"
            )
        state.overflows += over
        clamped = tokens_MO.clamp(-limit, limit)
        return torch.where(torch.isfinite(tokens_MO), clamped, tokens_MO).to(torch.float16)


@dataclass(kw_only=True)
class _State:
    """One unit while its packs are encoded."""

    prepared: PreparedUnit
    patch_ends: npt.NDArray[np.int64]
    token_ends: npt.NDArray[np.int64]
    unit_MO: Tensor
    norms_M: Tensor
    halvings: int = 0
    overflows: int = 0


def _key_of(prepared: PreparedUnit, image: int) -> str:
    return next(sample.facts.key for sample in prepared.samples if sample.image == image)
