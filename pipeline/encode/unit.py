"""Encode: a prepared unit to its tokens, in input order, in the dtype that is stored.

    patches [P, C] ─pack─▶ forwards ─▶ tokens [M, O] of the unit's distinct images, norms, finite or not

A pack that does not fit on the device is halved. An image whose tokens are not finite is encoded again alone, and
rejected if they are not finite then either; its neighbours keep the first forward's rows.

On a GPU nothing waits for the device but the end of a unit: packs are uploaded from pinned memory on a stream of their
own while the one before is computed, tokens land in unit order on the device, and the unit is copied back on a third
stream while the next unit's packs, launched by another thread, are under way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import EncodeError
from ..prepare.unit import PreparedUnit
from ..tower.config import Stage
from ..tower.pack_plan import PackPlan
from ..tower.tower import Tower
from .dtypes import STORED, is_scaled, norms_of, overflows, restore, store
from .encoded import EncodedUnit
from .fp8_error import Fp8Error
from .pieces import Piece, pack_pieces, pieces_of

# Packs launched ahead of the device. A full launch queue would block its thread, and with it all of Python.
PACKS_AHEAD = 2
MAIN = 0  # the stream that norms are stated of


class UnitEncoder:
    """Encodes prepared units on one device. Calls from several threads take turns on it.

    Args:
        tower: the weights.
        max_patches: budget of one forward.
        stored_dtype: a key of `STORED`.
        on_overflow: what to do with values over float16's range: `fail` or `clamp`.
        threads: of a CPU's matrix products; part of what decides bits.
        stage: `merged`, or `pre_merger` for the last block's output.
    """

    def __init__(
        self,
        tower: Tower,
        *,
        max_patches: int,
        stored_dtype: str,
        on_overflow: str = "fail",
        threads: int = 1,
        stage: Stage = "merged",
    ) -> None:
        self.tower = tower
        self.max_patches = max_patches
        self.stored_dtype = stored_dtype
        self.on_overflow = on_overflow
        self.threads = threads
        self.stage: Stage = stage
        self._turn = threading.Lock()
        self._fp8_error = Fp8Error(tower, stage)
        on_gpu = tower.device.type == "cuda"
        self._upload = torch.cuda.Stream(tower.device) if on_gpu else None
        self._download = torch.cuda.Stream(tower.device) if on_gpu else None
        self._ahead: deque[torch.cuda.Event] = deque()

    def encode(self, prepared: PreparedUnit, on_pack: Callable[[int], None] = lambda images: None) -> EncodedUnit:
        """Encodes the distinct images of one unit; tells `on_pack`, forward by forward, how many it took.

        Raises:
            EncodeError: one image does not fit on the device alone, or a value does not fit the stored dtype.
        """
        config = self.tower.config
        tokens = np.array([t * h * w // config.merge_size**2 for t, h, w in prepared.grids], np.int64)
        ends_N = np.cumsum(tokens)
        pieces = pieces_of(prepared.grids, prepared.clips, self.max_patches)
        packs = pack_pieces(pieces, self.max_patches, config.linear_patches)
        with self._turn:
            started = time.perf_counter()
            torch.set_num_threads(self.threads)  # here, because it is a property of the calling thread
            begun = self._mark()
            state = self._state(prepared, tokens, ends_N)
            for pack in packs:
                self._encode_pack(pack, state)
                on_pack(sum(piece.is_last for piece in pack))
            launched = self._mark()
        norms_MS = self._fetch([state.norms_MS], launched)[0]
        finite_N = _finite(norms_MS, state, len(tokens))
        if not finite_N.all():
            with self._turn:
                torch.set_num_threads(self.threads)
                for piece in (piece for piece in pieces if not finite_N[piece.image]):
                    self._encode_pack([piece], state)
                launched = self._mark()
            norms_MS = self._fetch([state.norms_MS], launched)[0]
            finite_N = _finite(norms_MS, state, len(tokens))
        buffers = [state.unit_MO] + [x for x in (state.scale_MS, state.over_M, state.error_MS2) if x is not None]
        tokens_MO, *others = self._fetch(buffers, launched)
        over = self._check_overflows(others[0].numpy(), state) if state.over_M is not None else 0
        errors: dict[str, object] = {}
        if state.error_MS2 is not None:
            by_stream = [_relative_rms(error_M2, finite_N, tokens) for error_M2 in others[1].unbind(1)]
            errors["storage_relative_rms"] = max(by_stream)
            if config.streams:
                errors["storage_relative_rms_by_stream"] = by_stream
        if self.tower.linear_kernel == "fp8" and pieces:
            errors["fp8_linear"] = self._linear_error(prepared, pieces)
        # On a GPU the device's own time: the unit before may still have been under way when this one was launched.
        seconds = time.perf_counter() - started
        if begun is not None and launched is not None:
            seconds = begun.elapsed_time(launched) / 1e3
        norm_mean, norm_max = _norms(norms_MS, state, tokens)
        return EncodedUnit(
            tokens_MO=tokens_MO,
            ends_N=ends_N,
            norm_mean_N=norm_mean.astype(np.float32),
            norm_max_N=norm_max.astype(np.float32),
            finite_N=finite_N,
            halvings=state.halvings,
            overflows=over,
            packs=tuple(sum(piece.patches for piece in pack) for pack in packs),
            seconds={"encode": seconds},
            scale_MS=others[0].numpy() if state.scale_MS is not None else None,
            errors=errors,
        )

    def _state(self, prepared: PreparedUnit, tokens: npt.NDArray[np.int64], ends_N: npt.NDArray[np.int64]) -> _State:
        config, device, count = self.tower.config, self.tower.device, int(tokens.sum())
        streams = 1 + config.streams

        def empty(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(count, *shape, dtype=dtype, device=device)

        scaled = is_scaled(self.stored_dtype)
        return _State(
            prepared=prepared,
            token_ends=np.concatenate([[0], ends_N]).astype(np.int64),
            unit_MO=empty(STORED[self.stored_dtype], config.width_of(self.stage)),
            norms_MS=empty(torch.float32, streams),
            scale_MS=empty(torch.float32, streams) if scaled else None,
            error_MS2=empty(torch.float32, streams, 2) if scaled else None,
            over_M=empty(torch.int64) if self.stored_dtype == "float16" else None,
        )

    def _encode_pack(self, pack: Sequence[Piece], state: _State) -> None:
        halved = pack[0].halves() if len(pack) == 1 else pack
        try:
            self._forward(pack, state)
            return
        except torch.OutOfMemoryError as error:
            if len(halved) == 1:
                key = _key_of(state.prepared, pack[0].image)
                raise EncodeError(
                    f"unit {state.prepared.unit.id}: {key}: {pack[0].patches} patches do not "
                    f"fit on {self.tower.device}, even alone; lower preprocess.max_pixels"
                ) from error
        # Behind the except block: inside it, the error would keep the failed forward's tensors alive.
        if self.tower.device.type == "cuda":
            torch.cuda.empty_cache()
        state.halvings += 1
        middle = len(halved) // 2
        self._encode_pack(halved[:middle], state)
        self._encode_pack(halved[middle:], state)

    def _forward(self, pack: Sequence[Piece], state: _State) -> None:
        """One pack: its tokens, norms and whatever its stored dtype needs, into the unit's rows."""
        streams = self.tower.config.streams
        patches_PC, plan, rows_M = self._load(pack, state)
        tokens_MO = self.tower.forward_in_window_order(patches_PC, plan, self.stage)
        stored_MO, scale_MS = store(tokens_MO, self.stored_dtype, streams)
        restored_MO = stored_MO if scale_MS is None else restore(stored_MO, scale_MS)
        _copy_rows(state.unit_MO, rows_M, stored_MO)
        state.norms_MS.index_copy_(0, rows_M, norms_of(restored_MO, streams))
        if state.over_M is not None:
            state.over_M.index_copy_(0, rows_M, overflows(tokens_MO))
        if state.scale_MS is not None and state.error_MS2 is not None and scale_MS is not None:
            state.scale_MS.index_copy_(0, rows_M, scale_MS)
            wide_MO = tokens_MO.float()
            norms = [norms_of(x_MO, streams) for x_MO in (restored_MO - wide_MO, wide_MO)]
            state.error_MS2.index_copy_(0, rows_M, torch.stack(norms, -1))
        if self.tower.device.type == "cuda":
            self._ahead.append(torch.cuda.current_stream(self.tower.device).record_event())
            if len(self._ahead) > PACKS_AHEAD:
                self._ahead.popleft().synchronize()

    def _load(self, pack: Sequence[Piece], state: _State) -> tuple[Tensor, PackPlan, Tensor]:
        """A pack's patches, plan, and the unit's row of each token that the tower computes, on the device."""
        pieces = [state.prepared.rows_of(piece.is_clip, piece.first_row, piece.patches) for piece in pack]
        grids, merged = [piece.grid for piece in pack], self.tower.config.merge_size**2
        rows = np.concatenate(
            [np.arange(piece.first_patch // merged, (piece.first_patch + piece.patches) // merged) for piece in pack]
        )
        device = self.tower.device
        if self._upload is None:
            plan = self.tower.plan(grids)
            return torch.from_numpy(np.concatenate(pieces)).to(device), plan, torch.from_numpy(rows)[plan.order_M]
        count = sum(map(len, pieces))
        pinned_PC = torch.empty(count, pieces[0].shape[1], dtype=torch.uint8, pin_memory=True)
        np.concatenate(pieces, out=pinned_PC.numpy())
        with torch.cuda.stream(self._upload):
            patches_PC = pinned_PC.to(device, non_blocking=True)
            rows_M = torch.from_numpy(rows).pin_memory().to(device, non_blocking=True)
        compute = torch.cuda.current_stream(device)
        compute.wait_stream(self._upload)
        for tensor in (patches_PC, rows_M):
            tensor.record_stream(compute)
        plan = self.tower.plan(grids)
        return patches_PC, plan, rows_M[plan.order_M]

    def _mark(self) -> torch.cuda.Event | None:
        """The point that the device's queue has reached."""
        device = self.tower.device
        if device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        torch.cuda.current_stream(device).record_event(event)
        return event

    def _fetch(self, tensors: list[Tensor], launched: torch.cuda.Event | None) -> list[Tensor]:
        """Copies on the CPU, once what was launched is done; what was launched since goes on meanwhile."""
        if self._download is None or launched is None:
            return tensors
        self._download.wait_event(launched)
        with torch.cuda.stream(self._download):
            copies = [
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            ]
            done = self._download.record_event()
        for tensor in tensors:
            tensor.record_stream(self._download)
        done.synchronize()
        return copies

    def _check_overflows(self, over_M: npt.NDArray[np.int64], state: _State) -> int:
        total = int(over_M.sum())
        if total and self.on_overflow == "fail":
            by_image = np.add.reduceat(over_M, state.token_ends[:-1])
            keys = [_key_of(state.prepared, image) for image in np.flatnonzero(by_image).tolist()]
            raise EncodeError(
                f"unit {state.prepared.unit.id}: {total} values over float16's range in {', '.join(keys[:3])}"
                f"{', …' if len(keys) > 3 else ''}; use output.dtype bfloat16, or output.on_overflow: clamp"
            )
        return total

    def _linear_error(self, prepared: PreparedUnit, pieces: Sequence[Piece]) -> dict[str, object]:
        """Measures what fp8 products cost, on the unit's image of median size; of a clip, what is packed."""
        piece = sorted(pieces, key=lambda one: one.patches)[len(pieces) // 2]
        patches_PC = prepared.rows_of(piece.is_clip, piece.first_row, piece.patches)
        with self._turn:
            torch.set_num_threads(self.threads)
            measured = self._fp8_error.measure(torch.from_numpy(patches_PC.copy()), piece.grid)
        return {"key": _key_of(prepared, piece.image), **measured}


@dataclass(kw_only=True)
class _State:
    """One unit while its packs are encoded; its tensors lie on the device."""

    prepared: PreparedUnit
    token_ends: npt.NDArray[np.int64]
    unit_MO: Tensor
    norms_MS: Tensor
    scale_MS: Tensor | None
    error_MS2: Tensor | None
    over_M: Tensor | None
    halvings: int = 0


def _copy_rows(unit_MO: Tensor, rows_M: Tensor, values_MO: Tensor) -> None:
    """index_copy_, by bytes where torch has none for the dtype."""
    if unit_MO.dtype == torch.float8_e4m3fn:
        unit_MO, values_MO = unit_MO.view(torch.uint8), values_MO.view(torch.uint8)
    unit_MO.index_copy_(0, rows_M, values_MO)


def _norms(
    norms_MS: Tensor, state: _State, tokens: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the mean and the largest norm of each image's tokens, in their main stream."""
    norms = norms_MS[:, MAIN].numpy().astype(np.float64)
    starts = state.token_ends[:-1]
    if not len(starts):
        return norms, norms
    return np.add.reduceat(norms, starts) / np.maximum(tokens, 1), np.maximum.reduceat(norms, starts)


def _finite(norms_MS: Tensor, state: _State, count: int) -> npt.NDArray[np.bool_]:
    """Whether all tokens of each image are finite, in every stream."""
    if not count:
        return np.ones(0, np.bool_)
    finite_M = torch.isfinite(norms_MS).all(-1).numpy()
    return np.logical_and.reduceat(finite_M, state.token_ends[:-1])


def _relative_rms(error_M2: Tensor, finite_N: npt.NDArray[np.bool_], tokens: npt.NDArray[np.int64]) -> float:
    """Returns the relative RMS of storing, over the images that are finite: √(Σ error² / Σ value²)."""
    squares = error_M2.numpy().astype(np.float64)[np.repeat(finite_N, tokens)] ** 2
    error, value = squares.sum(0) if len(squares) else (0.0, 0.0)
    return float(np.sqrt(error / value)) if value else 0.0


def _key_of(prepared: PreparedUnit, image: int) -> str:
    return next(sample.facts.key for sample in prepared.samples if sample.image == image)
