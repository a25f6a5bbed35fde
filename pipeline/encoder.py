"""The Qwen2.5-VL vision tower: packed images in, merged vision tokens out.

    P patches, C values of a patch, M merged tokens (P / merge_size²), D width of the tower, O width of the output,
    H heads, E width of a head. Tensors carry these letters as a suffix.

One forward runs over the patches of many images, one after the other. Inside, merged tokens are permuted so that every
attention window is a run of rows; the merger's output is put back in input order. What grids decide is computed
beforehand (`plan_pack`), so that the forward itself never waits for the device.

Source: transformers 5.23, `models/qwen2_5_vl/modeling_qwen2_5_vl.py` (Qwen2_5_VisionTransformerPretrainedModel).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.checkpoint import Checkpoint, TowerConfig
from pipeline.grid import grid_layout

try:
    from torch.nn.attention import varlen
except ImportError:  # pragma: no cover - torch before 2.10
    varlen = None  # type: ignore[assignment]

RMS_NORM_EPS = 1e-6  # the reference hard-codes it, whatever the checkpoint's rms_norm_eps says
ROPE_THETA = 10_000.0
# On a CPU, rows go through a windowed block in chunks whose intermediates stay in cache, instead of through memory.
CPU_CHUNK_ROWS = 512
Kernel = Literal["varlen", "dense"]
Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Segments of equal length for the dense kernel: `count` segments of `length` patches.

    `rows` is None where they lie one after the other from `start` on, else their row numbers.
    """

    start: int
    count: int
    length: int
    rows: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Segments:
    """What attention must not cross. `runs` for the dense kernel, `cu_seqlens` int32 [S + 1] for varlen."""

    runs: tuple[Run, ...] = ()
    cu_seqlens: Tensor | None = None
    max_length: int = 0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Rows that go through a windowed block together, and their windows, counted from `rows.start`."""

    rows: slice
    windows: Segments


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """Everything that the grids of one pack decide, on the device.

    Attributes:
        order_M: int64 [M], input token of each computed token.
        cos_PE, sin_PE: float32 [P, E/2], of the computed order.
        chunks: of all rows; a single one but on a CPU.
    """

    order_M: Tensor
    cos_PE: Tensor
    sin_PE: Tensor
    chunks: tuple[Chunk, ...]
    frames: Segments


def plan_pack(grids: Sequence[Grid], config: TowerConfig, kernel: Kernel, device: torch.device) -> PackPlan:
    """Lays out one pack of images, in the order in which their patches follow each other.

    For varlen, images stay together and windows lie in order within them. For dense, windows are sorted by length over
    the whole pack, so that windowed attention, most of the blocks, runs over views and gathers nothing.
    """
    unit = config.merge_size**2
    layouts = [grid_layout(grid, config.merge_size, config.window_merged) for grid in grids]
    tokens = [len(layout.window_order_M) for layout in layouts]
    starts = np.concatenate([[0], np.cumsum(tokens)])
    order = np.concatenate([layout.window_order_M + start for layout, start in zip(layouts, starts, strict=False)])
    lengths = np.concatenate([layout.window_lengths for layout in layouts])
    frame_lengths = np.repeat([layout.frame_length for layout in layouts], [layout.frames for layout in layouts])
    positions = np.concatenate([np.tile(layout.positions_P2, (layout.frames, 1)) for layout in layouts])

    if kernel == "dense":
        by_length = np.argsort(-lengths, kind="stable")
        window_starts = np.concatenate([[0], np.cumsum(lengths // unit)])[:-1]
        sorted_lengths = lengths[by_length]
        ends = np.cumsum(sorted_lengths // unit)
        within = np.arange(len(order)) - np.repeat(ends - sorted_lengths // unit, sorted_lengths // unit)
        order = order[np.repeat(window_starts[by_length], sorted_lengths // unit) + within]
        chunks = _chunks(sorted_lengths, CPU_CHUNK_ROWS if device.type == "cpu" else len(order) * unit)
        frames = Segments(runs=_runs_gathered(frame_lengths, order, unit, device))
    else:
        chunks = (Chunk(rows=slice(0, len(order) * unit), windows=_cu_seqlens(lengths, device)),)
        frames = _cu_seqlens(frame_lengths, device)

    computed = positions.reshape(-1, unit, 2)[order].reshape(-1, 2)
    frequencies = 1.0 / ROPE_THETA ** (
        torch.arange(0, config.head_dim // 2, 2, dtype=torch.float32) / (config.head_dim // 2)
    )
    table = torch.arange(int(positions.max()) + 1, dtype=torch.float32)[:, None] * frequencies
    angles = table[torch.from_numpy(computed)].flatten(1)  # row frequencies, then column frequencies
    return PackPlan(
        order_M=torch.from_numpy(order).to(device),
        cos_PE=angles.cos().to(device),
        sin_PE=angles.sin().to(device),
        chunks=chunks,
        frames=frames,
    )


def _chunks(lengths: np.ndarray, max_rows: int) -> tuple[Chunk, ...]:
    """Groups sorted windows into chunks of at most `max_rows` rows (or one window), with runs of equal length."""
    chunks: list[Chunk] = []
    ends = np.cumsum(lengths)
    first, start = 0, 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(ends, start + max_rows, side="right")))
        runs: list[Run] = []
        place = 0
        negative, counts = np.unique(-lengths[first:last], return_counts=True)  # longest first, as they are sorted
        for length, count in zip((-negative).tolist(), counts.tolist(), strict=True):
            runs.append(Run(start=place, count=count, length=length))
            place += length * count
        chunks.append(Chunk(rows=slice(start, start + place), windows=Segments(runs=tuple(runs))))
        first, start = last, start + place
    return tuple(chunks)


def _runs_gathered(lengths: np.ndarray, order: np.ndarray, unit: int, device: torch.device) -> tuple[Run, ...]:
    """Frames of equal length, by the rows that their patches have in the computed order."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    rows = (place[:, None] * unit + np.arange(unit)).ravel()
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    runs: list[Run] = []
    for length in sorted(set(lengths.tolist()), reverse=True):
        chosen = starts[lengths == length]
        index = torch.from_numpy(rows[chosen[:, None] + np.arange(length)].ravel()).to(device)
        runs.append(Run(start=0, count=len(chosen), length=length, rows=index))
    return tuple(runs)


def _cu_seqlens(lengths: np.ndarray, device: torch.device) -> Segments:
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Segments(cu_seqlens=torch.from_numpy(ends).to(device), max_length=int(lengths.max()))


def choose_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """varlen where torch has it for this device and dtype, else dense."""
    if varlen is None or device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "dense"
    return "varlen" if torch.cuda.get_device_capability(device) >= (8, 0) else "dense"


class _Block:
    """The weights of one transformer block, in the compute dtype; gate and up as one matrix."""

    def __init__(self, weights: dict[str, Tensor], number: int) -> None:
        def take(name: str) -> Tensor:
            return weights.pop(f"blocks.{number}.{name}")

        self.norm1, self.norm2 = take("norm1.weight"), take("norm2.weight")
        self.qkv, self.qkv_bias = take("attn.qkv.weight"), take("attn.qkv.bias")
        self.proj, self.proj_bias = take("attn.proj.weight"), take("attn.proj.bias")
        self.gate_up = _laid_out(torch.cat([take("mlp.gate_proj.weight"), take("mlp.up_proj.weight")]))
        self.gate_up_bias = torch.cat([take("mlp.gate_proj.bias"), take("mlp.up_proj.bias")])
        self.down, self.down_bias = take("mlp.down_proj.weight"), take("mlp.down_proj.bias")


def _laid_out(weight: Tensor) -> Tensor:
    """On a CPU, a matrix whose memory is transposed: the matrix product reads it without packing it anew."""
    return weight.t().contiguous().t() if weight.device.type == "cpu" and weight.dim() == 2 else weight


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Mean square in fp32, rounded to the input's dtype, times the weight."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + RMS_NORM_EPS)
    return (wide * scale).to(x.dtype) * weight


def rotate(x_PHE: Tensor, cos_PE: Tensor, sin_PE: Tensor) -> Tensor:
    """Rotary positions on pairs (i, i + E/2), in fp32. `x` may hold queries and keys at once, [P, 2, H, E]."""
    shape = (x_PHE.shape[0], *([1] * (x_PHE.dim() - 2)), cos_PE.shape[1])
    cos, sin = cos_PE.view(shape), sin_PE.view(shape)
    first, second = x_PHE.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_PHE.dtype)


def before_attention(
    x_PD: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, cos_PE: Tensor, sin_PE: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm, qkv and rotary: three [P, H, E] tensors; the values are a view of the qkv product."""
    qkv = functional.linear(rms_norm(x_PD, norm), weight, bias).view(x_PD.shape[0], 3, num_heads, -1)
    turned = rotate(qkv[:, :2], cos_PE, sin_PE)
    return turned[:, 0], turned[:, 1], qkv[:, 2]


def after_attention(
    x_PD: Tensor, attended_PD: Tensor, proj: Tensor, proj_bias: Tensor, norm: Tensor, gate_up: Tensor,
    gate_up_bias: Tensor, down: Tensor, down_bias: Tensor,
) -> Tensor:  # fmt: skip
    """Projection, residual, and the SiLU-gated MLP with its residual."""
    x_PD = x_PD + functional.linear(attended_PD, proj, proj_bias)
    gate, up = functional.linear(rms_norm(x_PD, norm), gate_up, gate_up_bias).chunk(2, dim=-1)
    return x_PD + functional.linear(functional.silu(gate).mul_(up), down, down_bias)


def attend(q_PHE: Tensor, k_PHE: Tensor, v_PHE: Tensor, segments: Segments) -> Tensor:
    """Attention within segments; [P, H, E] in, [P, H·E] out."""
    if segments.cu_seqlens is not None:
        return _attend_varlen(q_PHE, k_PHE, v_PHE, segments)
    if len(segments.runs) == 1 and segments.runs[0].rows is None:
        (run,) = segments.runs
        q, k, v = (x_PHE.unflatten(0, (run.count, run.length)).transpose(1, 2) for x_PHE in (q_PHE, k_PHE, v_PHE))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(q_PHE.shape[0], -1)
    out_PD = torch.empty(q_PHE.shape[0], q_PHE.shape[1] * q_PHE.shape[2], dtype=q_PHE.dtype, device=q_PHE.device)
    for run in segments.runs:
        size = run.count * run.length

        def batch(x_PHE: Tensor, run: Run = run, size: int = size) -> Tensor:
            rows = x_PHE[run.start : run.start + size] if run.rows is None else x_PHE.index_select(0, run.rows)
            return rows.unflatten(0, (run.count, run.length)).transpose(1, 2)

        attended = functional.scaled_dot_product_attention(batch(q_PHE), batch(k_PHE), batch(v_PHE))
        attended = attended.transpose(1, 2).reshape(size, -1)
        if run.rows is None:
            out_PD[run.start : run.start + size] = attended
        else:
            out_PD.index_copy_(0, run.rows, attended)
    return out_PD


def _attend_varlen(q_PHE: Tensor, k_PHE: Tensor, v_PHE: Tensor, segments: Segments) -> Tensor:
    assert segments.cu_seqlens is not None
    extra: Any = {"num_splits": 1} if _VARLEN_HAS_SPLITS else {}  # 1: an image's bits do not depend on its neighbours
    out_PHE = varlen.varlen_attn(
        q_PHE, k_PHE, v_PHE, segments.cu_seqlens, segments.cu_seqlens, segments.max_length, segments.max_length, **extra
    )
    assert isinstance(out_PHE, Tensor)
    return out_PHE.flatten(1)


_VARLEN_HAS_SPLITS = varlen is not None and "num_splits" in inspect.signature(varlen.varlen_attn).parameters


class Tower:
    """The tower's weights on one device.

    Args:
        checkpoint: whose `visual.*` tensors are loaded.
        dtype: of weights and computation, bfloat16 or float32.
        compile_blocks: whether the two halves of a block around attention go through torch.compile.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, compile_blocks: bool = False
    ) -> None:
        self.config = checkpoint.config
        self.dtype, self.device = dtype, device
        self.kernel: Kernel = choose_kernel(device, dtype)
        patch_weight = torch.empty(0)
        weights: dict[str, Tensor] = {}
        for name, tensor in checkpoint.tensors():
            if name == "patch_embed.proj.weight":
                patch_weight = tensor.float()
            else:
                weights[name] = _laid_out(tensor.to(device=device, dtype=dtype))
        # A still image fills both frames of a patch with the same values: their weights can be summed, rounded once.
        self.patch_weight_still = patch_weight.sum(2).flatten(1).to(device=device, dtype=dtype)
        self.patch_weight_frames = patch_weight.flatten(1).to(device=device, dtype=dtype)
        self.blocks = [_Block(weights, number) for number in range(self.config.depth)]
        self.merger_norm = weights.pop("merger.ln_q.weight")
        self.merger = [weights.pop(f"merger.mlp.{layer}.{kind}") for layer in (0, 2) for kind in ("weight", "bias")]
        self.mean = torch.tensor(self.config.image_mean, device=device) * (1 / (1 / 255))
        self.std = torch.tensor(self.config.image_std, device=device) * (1 / (1 / 255))
        self._before, self._after = before_attention, after_attention
        if compile_blocks:
            # dynamic: packs differ in their number of rows. No autotuning: a choice by timing could change bits.
            self._before = torch.compile(before_attention, dynamic=True)
            self._after = torch.compile(after_attention, dynamic=True)
        if dtype == torch.float32 and device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False

    def plan(self, grids: Sequence[Grid]) -> PackPlan:
        return plan_pack(grids, self.config, self.kernel, self.device)

    def normalize(self, patches_PC: Tensor) -> Tensor:
        """uint8 [P, C] to float32 [P, C]: the reference's rescaling and normalising in one step, to the bit."""
        planes = patches_PC.float().view(patches_PC.shape[0], self.config.in_channels, -1)
        return ((planes - self.mean[:, None]) / self.std[:, None]).flatten(1)

    def embed(self, patches_PC: Tensor) -> Tensor:
        """Patch embedding: uint8 [P, 3·p²] of one frame, or [P, 3·t·p²] of t frames, to [P, D]."""
        weight = self.patch_weight_still
        if patches_PC.shape[1] != weight.shape[1]:
            weight = self.patch_weight_frames
        return functional.linear(self.normalize(patches_PC).to(self.dtype), weight)

    @torch.inference_mode()
    def forward(self, patches_PC: Tensor, plan: PackPlan) -> Tensor:
        """Encodes one pack.

        Args:
            patches_PC: uint8 [P, C], on the device, of the pack's images in order.
            plan: of the same images' grids.

        Returns:
            Merged tokens [M, O] in the compute dtype, in input order.
        """
        config = self.config
        unit = config.merge_size**2
        x_PD = self.embed(patches_PC).unflatten(0, (-1, unit))[plan.order_M].flatten(0, 1)
        for number, block in enumerate(self.blocks):
            if number in config.full_attention_blocks:
                parts = [self._queries(x_PD, block, plan, chunk.rows) for chunk in plan.chunks]
                q_PHE, k_PHE, v_PHE = (_join(tensors) for tensors in zip(*parts, strict=True))
                attended_PD = attend(q_PHE, k_PHE, v_PHE, plan.frames)
                for chunk in plan.chunks:
                    done = self._finish(x_PD[chunk.rows], attended_PD[chunk.rows], block)
                    x_PD = _put(x_PD, chunk, done)
            else:
                for chunk in plan.chunks:
                    attended_PD = attend(*self._queries(x_PD, block, plan, chunk.rows), chunk.windows)
                    done = self._finish(x_PD[chunk.rows], attended_PD, block)
                    x_PD = _put(x_PD, chunk, done)
        x_MD = rms_norm(x_PD, self.merger_norm).view(-1, unit * config.width)
        hidden = functional.gelu(functional.linear(x_MD, self.merger[0], self.merger[1]))
        merged_MO = functional.linear(hidden, self.merger[2], self.merger[3])
        out_MO = torch.empty_like(merged_MO)
        out_MO[plan.order_M] = merged_MO
        return out_MO

    def _queries(self, x_PD: Tensor, block: _Block, plan: PackPlan, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        return self._before(
            x_PD[rows], block.norm1, block.qkv, block.qkv_bias, plan.cos_PE[rows], plan.sin_PE[rows],
            self.config.num_heads,
        )  # fmt: skip

    def _finish(self, x_PD: Tensor, attended_PD: Tensor, block: _Block) -> Tensor:
        return self._after(
            x_PD, attended_PD, block.proj, block.proj_bias, block.norm2, block.gate_up, block.gate_up_bias, block.down,
            block.down_bias,
        )  # fmt: skip


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _put(x_PD: Tensor, chunk: Chunk, rows_PD: Tensor) -> Tensor:
    """The residual stream with one chunk replaced: in place, unless the chunk is all of it."""
    if rows_PD.shape[0] == x_PD.shape[0]:
        return rows_PD
    x_PD[chunk.rows] = rows_PD
    return x_PD
