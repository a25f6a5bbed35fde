"""Encode: a prepared unit to its tokens, in input order, in the dtype that is stored.

    patches [P, C] ─pack─▶ forwards ─▶ tokens [M, O] of the unit's distinct images, norms, finite or not

A pack that does not fit on the device is halved. An image whose tokens are not finite is encoded again alone, and
rejected if they are not finite then either; its neighbours keep the first forward's rows.

On a GPU nothing waits for the device but the end of a unit: packs are uploaded from pinned memory on a stream of their
own while the one before is computed, tokens land in unit order on the device, and the unit is copied back on a stream
of its thread's own while the next unit's packs, launched by another thread, are under way (`queues`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import EncodeError
from ..grid import offsets
from ..index.units import Unit
from ..prepare.unit import PreparedUnit
from ..tower.config import Stage
from ..tower.device import on_device
from ..tower.pack_plan import PackPlan
from ..tower.tower import Tower
from .dtypes import STORED, is_scaled, norms_of, overflows, restore, store
from .encoded import EncodedUnit
from .fp8_error import Fp8Error
from .pieces import Piece, pack_pieces, pieces_of
from .queues import Queues
from .unit_state import UnitState, copy_rows, finite_images, image_norms, key_of, storage_error

WARM_UP_SIDE = 72  # patches along the side of an image that a device is warmed up on: a photo's


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
        self._room = threading.Condition(self._turn)  # told when a unit has left the device
        self._on_device = 0  # units of which the device holds tensors
        self._fp8_error = Fp8Error(tower, stage)
        self._queues = Queues(tower.device)

    def encode(self, prepared: PreparedUnit, on_pack: Callable[[int], None] = lambda images: None) -> EncodedUnit:
        """Encodes the distinct images of one unit; tells `on_pack`, forward by forward, how many it took.

        Raises:
            EncodeError: the unit's tokens or one image alone do not fit on the device, or a value does not fit the
                stored dtype.
        """
        with on_device(self.tower.device):
            return self._encode(prepared, on_pack)

    def warm_up(self, most_tokens: int) -> None:
        """Encodes one full pack of images in the calling thread, and pins its memory for a unit of so many tokens.

        Packs are as large as they will be: large products have kernels of their own, which are loaded when first used.
        """
        config = self.tower.config
        side = min(WARM_UP_SIDE, math.isqrt(self.max_patches)) // config.merge_size * config.merge_size
        side = max(side, config.merge_size)
        count = max(1, self.max_patches // side**2)
        patches_PC = np.zeros((count * side**2, self.tower.patch_weight_still.shape[1]), np.uint8)
        unit = Unit(part=0, number=0, first=0, count=0, tokens=0, patches=len(patches_PC))
        row_bytes = config.width_of(self.stage) * STORED[self.stored_dtype].itemsize
        self._queues.reserve(most_tokens * row_bytes)
        self.encode(PreparedUnit(unit=unit, samples=(), grids=((1, side, side),) * count, patches_PC=patches_PC))

    def _encode(self, prepared: PreparedUnit, on_pack: Callable[[int], None]) -> EncodedUnit:
        pieces = pieces_of(prepared.grids, prepared.clips, self.max_patches)
        packs = pack_pieces(pieces, self.max_patches, self.tower.config.linear_patches)
        with self._turn:
            state = self._allocate(prepared)
        try:
            self._encode_packs(packs, state, on_pack)
            norms_MS = self._queues.fetch([state.norms_MS], state.launched)[0]
            finite_N = finite_images(norms_MS, state)
            if not finite_N.all():
                self._encode_packs([[piece] for piece in pieces if not finite_N[piece.image]], state)
                norms_MS = self._queues.fetch([state.norms_MS], state.launched)[0]
                finite_N = finite_images(norms_MS, state)
            encoded = self._fetched(state, norms_MS, finite_N, packs)
        finally:
            del state
            with self._turn:
                self._on_device -= 1
                self._room.notify_all()
        if self.tower.linear_kernel == "fp8" and prepared.samples and pieces:
            encoded.errors["fp8_linear"] = self._linear_error(prepared, pieces)
        return encoded

    def _encode_packs(
        self, packs: Sequence[Sequence[Piece]], state: UnitState, on_pack: Callable[[int], None] = lambda images: None
    ) -> None:
        """Takes a turn on the device, and adds it to what the unit's seconds are of."""
        with self._turn:
            torch.set_num_threads(self.threads)  # here, because it is a property of the calling thread
            begun = self._queues.mark()
            for pack in packs:
                self._encode_pack(pack, state)
                on_pack(sum(piece.is_last for piece in pack))
            state.turns.append((begun, self._queues.mark()))

    def _fetched(
        self, state: UnitState, norms_MS: Tensor, finite_N: npt.NDArray[np.bool_], packs: Sequence[Sequence[Piece]]
    ) -> EncodedUnit:
        buffers = [state.unit_MO] + [x for x in (state.scale_MS, state.over_M, state.error_MS2) if x is not None]
        tokens_MO, *others = self._queues.fetch(buffers, state.launched)
        over = self._check_overflows(others[0].numpy(), state) if state.over_M is not None else 0
        errors: dict[str, object] = {}
        if state.error_MS2 is not None:
            by_stream = [storage_error(error_M2, finite_N, state.tokens_N) for error_M2 in others[1].unbind(1)]
            errors["storage_relative_rms"] = max(by_stream)
            if self.tower.config.streams:
                errors["storage_relative_rms_by_stream"] = by_stream
        norm_mean, norm_max = image_norms(norms_MS, state)
        return EncodedUnit(
            tokens_MO=tokens_MO,
            ends_N=state.token_ends[1:],
            norm_mean_N=norm_mean.astype(np.float32),
            norm_max_N=norm_max.astype(np.float32),
            finite_N=finite_N,
            halvings=state.halvings,
            overflows=over,
            packs=tuple(sum(piece.patches for piece in pack) for pack in packs),
            # Of this unit's own turns: between two of them the device may have been another's.
            seconds={"encode": sum(begun.seconds_until(ended) for begun, ended in state.turns)},
            scale_MS=others[0].numpy() if state.scale_MS is not None else None,
            errors=errors,
        )

    def _allocate(self, prepared: PreparedUnit) -> UnitState:
        """The unit's tensors on the device. Where they do not fit, another thread's unit is waited for."""
        freed = False
        while True:
            try:
                state = self._state(prepared)
                break
            except torch.OutOfMemoryError as error:
                if freed and not self._on_device:
                    raise EncodeError(
                        f"unit {prepared.unit.id}: its {sum(t * h * w for t, h, w in prepared.grids)} patches' tokens "
                        f"do not fit on {self.tower.device}; lower output.shard_tokens"
                    ) from error
            # Behind the except block, as in `_encode_pack`.
            if self._on_device:
                self._room.wait()
            self._queues.free_memory()
            freed = True
        self._on_device += 1
        return state

    def _state(self, prepared: PreparedUnit) -> UnitState:
        config, device = self.tower.config, self.tower.device
        tokens_N = np.array([t * h * w // config.merge_size**2 for t, h, w in prepared.grids], np.int64)
        count, streams = int(tokens_N.sum()), 1 + config.streams

        def empty(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.empty(count, *shape, dtype=dtype, device=device)

        scaled = is_scaled(self.stored_dtype)
        return UnitState(
            prepared=prepared,
            tokens_N=tokens_N,
            token_ends=offsets(tokens_N),
            unit_MO=empty(STORED[self.stored_dtype], config.width_of(self.stage)),
            norms_MS=empty(torch.float32, streams),
            scale_MS=empty(torch.float32, streams) if scaled else None,
            error_MS2=empty(torch.float32, streams, 2) if scaled else None,
            over_M=empty(torch.int64) if self.stored_dtype == "float16" else None,
        )

    def _encode_pack(self, pack: Sequence[Piece], state: UnitState) -> None:
        halved = pack[0].halves() if len(pack) == 1 else pack
        try:
            self._forward(pack, state)
            return
        except torch.OutOfMemoryError as error:
            if len(halved) == 1:
                key = key_of(state.prepared, pack[0].image)
                raise EncodeError(
                    f"unit {state.prepared.unit.id}: {key}: {pack[0].patches} patches do not "
                    f"fit on {self.tower.device}, even alone; lower preprocess.max_pixels"
                ) from error
        # Behind the except block: inside it, the error would keep the failed forward's tensors alive.
        self._queues.free_memory()
        state.halvings += 1
        middle = len(halved) // 2
        self._encode_pack(halved[:middle], state)
        self._encode_pack(halved[middle:], state)

    def _forward(self, pack: Sequence[Piece], state: UnitState) -> None:
        """One pack: its tokens, norms and whatever its stored dtype needs, into the unit's rows."""
        streams = self.tower.config.streams
        patches_PC, plan, rows_M = self._load(pack, state)
        tokens_MO = self.tower.forward_in_window_order(patches_PC, plan, self.stage)
        stored_MO, scale_MS = store(tokens_MO, self.stored_dtype, streams)
        restored_MO = stored_MO if scale_MS is None else restore(stored_MO, scale_MS)
        copy_rows(state.unit_MO, rows_M, stored_MO)
        state.norms_MS.index_copy_(0, rows_M, norms_of(restored_MO, streams))
        if state.over_M is not None:
            state.over_M.index_copy_(0, rows_M, overflows(tokens_MO))
        if state.scale_MS is not None and state.error_MS2 is not None and scale_MS is not None:
            state.scale_MS.index_copy_(0, rows_M, scale_MS)
            wide_MO = tokens_MO.float()
            norms = [norms_of(x_MO, streams) for x_MO in (restored_MO - wide_MO, wide_MO)]
            state.error_MS2.index_copy_(0, rows_M, torch.stack(norms, -1))
        self._queues.pace()

    def _load(self, pack: Sequence[Piece], state: UnitState) -> tuple[Tensor, PackPlan, Tensor]:
        """A pack's patches, plan, and the unit's row of each token that the tower computes, on the device."""
        pieces = [state.prepared.rows_of(piece.is_clip, piece.first_row, piece.patches) for piece in pack]
        grids, merged = [piece.grid for piece in pack], self.tower.config.merge_size**2
        rows = np.concatenate(
            [np.arange(piece.first_patch // merged, (piece.first_patch + piece.patches) // merged) for piece in pack]
        )
        patches_PC, rows_M = self._queues.upload(pieces, rows)
        plan = self.tower.plan(grids)
        return patches_PC, plan, rows_M[plan.order_M]

    def _check_overflows(self, over_M: npt.NDArray[np.int64], state: UnitState) -> int:
        total = int(over_M.sum())
        if total and self.on_overflow == "fail":
            by_image = np.add.reduceat(over_M, state.token_ends[:-1])
            keys = [key_of(state.prepared, image) for image in np.flatnonzero(by_image).tolist()]
            raise EncodeError(
                f"unit {state.prepared.unit.id}: {total} values over float16's range in {', '.join(keys[:3])}"
                f"{', …' if len(keys) > 3 else ''}; use output.dtype bfloat16, or output.on_overflow: clamp"
            )
        return total

    def _linear_error(self, prepared: PreparedUnit, pieces: Sequence[Piece]) -> dict[str, object]:
        """Measures what fp8 products cost, on the unit's image of median size; of a clip, what is packed.

        Three more forwards, one of them in float32: of the first unit, then of one in `Fp8Error.EVERY`. They take no
        turn, so that another thread's packs are launched meanwhile.
        """
        if not self._fp8_error.is_due():
            return {"measured": False}
        piece = sorted(pieces, key=lambda one: one.patches)[len(pieces) // 2]
        patches_PC = prepared.rows_of(piece.is_clip, piece.first_row, piece.patches)
        torch.set_num_threads(self.threads)
        measured = self._fp8_error.measure(torch.from_numpy(patches_PC.copy()), piece.grid)
        return {"measured": True, "key": key_of(prepared, piece.image), **measured}
