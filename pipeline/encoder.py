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

from pipeline.checkpoint import Checkpoint
from pipeline.grid import grid_layout
from pipeline.linear import Linear, LinearKernel, Weight, aligned, choose_linear, laid_out, linear_of, pad_rows
from pipeline.tower_config import Stage, TowerConfig

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
    places = to_device(torch.from_numpy(computed), device)

    def of_patches(values: Tensor) -> Tensor:
        return to_device(values, device)[places].flatten(1)  # row frequencies, then column frequencies

    return PackPlan(
        order_M=to_device(torch.from_numpy(order), device),
        cos_PE=of_patches(table.cos()),
        sin_PE=of_patches(table.sin()),
        chunks=chunks,
        frames=frames,
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that neither waits for the device nor makes it wait: through pinned memory, which torch keeps until it is
    read."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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
        index = to_device(torch.from_numpy(rows[chosen[:, None] + np.arange(length)].ravel()), device)
        runs.append(Run(start=0, count=len(chosen), length=length, rows=index))
    return tuple(runs)


def _cu_seqlens(lengths: np.ndarray, device: torch.device) -> Segments:
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return Segments(cu_seqlens=to_device(torch.from_numpy(ends), device), max_length=int(lengths.max()))


def choose_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """varlen where torch has it for this device and dtype, else dense."""
    if varlen is None or device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return "dense"
    return "varlen" if torch.cuda.get_device_capability(device) >= (8, 0) else "dense"


class _Block:
    """The weights of one transformer block; gate and up as one matrix, their rows padded to an aligned number."""

    def __init__(self, weights: dict[str, Tensor], number: int, kernel: LinearKernel) -> None:
        def take(name: str) -> Tensor:
            return weights.pop(f"blocks.{number}.{name}")

        def gate_and_up(kind: str) -> Tensor:
            return torch.cat([pad_rows(take(f"mlp.{name}_proj.{kind}"), rows) for name in ("gate", "up")])

        down = take("mlp.down_proj.weight")
        rows = aligned(down.shape[1], down.device)
        self.norm1, self.norm2 = take("norm1.weight"), take("norm2.weight")
        self.qkv: Weight = laid_out(take("attn.qkv.weight"), kernel)
        self.proj: Weight = laid_out(take("attn.proj.weight"), kernel)
        self.gate_up: Weight = laid_out(gate_and_up("weight"), kernel)
        self.down: Weight = laid_out(pad_rows(down.t(), rows).t().contiguous(), kernel)
        self.qkv_bias, self.proj_bias = take("attn.qkv.bias"), take("attn.proj.bias")
        self.gate_up_bias, self.down_bias = gate_and_up("bias"), take("mlp.down_proj.bias")


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
    x_PD: Tensor, norm: Tensor, weight: Weight, bias: Tensor, cos_PE: Tensor, sin_PE: Tensor, num_heads: int,
    linear: Linear = functional.linear,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Norm, qkv and rotary: three [P, H, E] tensors; the values are a view of the qkv product."""
    qkv = linear(rms_norm(x_PD, norm), weight, bias).view(x_PD.shape[0], 3, num_heads, -1)
    turned = rotate(qkv[:, :2], cos_PE, sin_PE)
    return turned[:, 0], turned[:, 1], qkv[:, 2]


def after_attention(
    x_PD: Tensor, attended_PD: Tensor, proj: Weight, proj_bias: Tensor, norm: Tensor, gate_up: Weight,
    gate_up_bias: Tensor, down: Weight, down_bias: Tensor, linear: Linear = functional.linear,
) -> Tensor:  # fmt: skip
    """Projection, residual, and the SiLU-gated MLP with its residual."""
    x_PD = x_PD + linear(attended_PD, proj, proj_bias)
    gate, up = linear(rms_norm(x_PD, norm), gate_up, gate_up_bias).chunk(2, dim=-1)
    return x_PD + linear(functional.silu(gate).mul_(up), down, down_bias)


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
        compile_blocks: on a GPU, whether what lies between matrix products is fused into Triton kernels; on a CPU,
            whether the two halves of a block around attention go through torch.compile.
        linear: `exact`, or `fp8` for the matrix products of the blocks (not of patch embedding and merger).
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, *, compile_blocks: bool = False,
        linear: str = "exact",
    ) -> None:  # fmt: skip
        self.config, self.checkpoint = checkpoint.config, checkpoint
        self.dtype, self.device = dtype, device
        self.kernel: Kernel = choose_kernel(device, dtype)
        self.fused = compile_blocks and device.type == "cuda"
        # openblas_linear is not for a compiler to look into.
        exact: LinearKernel = "torch" if compile_blocks else choose_linear(device, dtype)
        self.linear_kernel = choose_linear(device, dtype, linear) if linear == "fp8" else exact
        self._exact, self._linear = linear_of(exact), linear_of(self.linear_kernel)
        patch_weight = torch.empty(0)
        weights: dict[str, Tensor] = {}
        for name, tensor in checkpoint.tensors():
            if name == "patch_embed.proj.weight":
                patch_weight = tensor.float()
            else:
                weights[name] = tensor.to(device=device, dtype=dtype)
        # A still image fills both frames of a patch with the same values: their weights can be summed, rounded once.
        self.patch_weight_still = patch_weight.sum(2).flatten(1).to(device=device, dtype=dtype)
        self.patch_weight_frames = patch_weight.flatten(1).to(device=device, dtype=dtype)
        self.blocks = [_Block(weights, number, self.linear_kernel) for number in range(self.config.depth)]
        self.merger_norm = weights.pop("merger.ln_q.weight")
        self.merger: list[Any] = []
        for layer in (0, 2):
            self.merger.append(laid_out(weights.pop(f"merger.mlp.{layer}.weight"), exact))
            self.merger.append(weights.pop(f"merger.mlp.{layer}.bias"))
        self.mean = torch.tensor(self.config.image_mean, device=device) * (1 / (1 / 255))
        self.std = torch.tensor(self.config.image_std, device=device) * (1 / (1 / 255))
        self._before, self._after = before_attention, after_attention
        if compile_blocks and not self.fused:
            # dynamic: packs differ in their number of rows. No autotuning: a choice by timing could change bits.
            self._before = torch.compile(before_attention, dynamic=True, fullgraph=True)
            self._after = torch.compile(after_attention, dynamic=True, fullgraph=True)
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
        return self._exact(self.normalize(patches_PC).to(self.dtype), weight, None)

    @torch.inference_mode()
    def forward(self, patches_PC: Tensor, plan: PackPlan, stage: Stage = "merged") -> Tensor:
        """Encodes one pack.

        Args:
            patches_PC: uint8 [P, C], on the device, of the pack's images in order.
            plan: of the same images' grids.
            stage: `pre_merger` for what the merger would get, before its norm: [M, merge_size² · D].

        Returns:
            Merged tokens [M, O] in the compute dtype, in input order.
        """
        computed_MO = self.forward_in_window_order(patches_PC, plan, stage)
        out_MO = torch.empty_like(computed_MO)
        out_MO[plan.order_M] = computed_MO
        return out_MO

    @torch.inference_mode()
    def forward_in_window_order(self, patches_PC: Tensor, plan: PackPlan, stage: Stage = "merged") -> Tensor:
        """As `forward`, but row i is input token `plan.order_M[i]`: for those who put rows in an order of their own."""
        merged = stage == "merged"
        x_PD = self._blocks_fused(patches_PC, plan, merged) if self.fused else self._blocks(patches_PC, plan, merged)
        x_MD = x_PD.view(-1, self.config.merge_size**2 * self.config.width)
        if not merged:
            return x_MD
        return self._exact(functional.gelu(self._exact(x_MD, *self.merger[:2])), *self.merger[2:])

    def _blocks(self, patches_PC: Tensor, plan: PackPlan, norm: bool) -> Tensor:
        """Patches to the merger's input, normalised if asked, [P, D] in window order."""
        config = self.config
        x_PD = self.embed(patches_PC).unflatten(0, (-1, config.merge_size**2))[plan.order_M].flatten(0, 1)
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
        return rms_norm(x_PD, self.merger_norm) if norm else x_PD

    def _blocks_fused(self, patches_PC: Tensor, plan: PackPlan, norm: bool) -> Tensor:
        """`_blocks` for a GPU: a pass through memory between two matrix products, and the residual stream in place."""
        from pipeline import fused

        config = self.config
        (chunk,) = plan.chunks
        weight = self.patch_weight_still
        if patches_PC.shape[1] != weight.shape[1]:
            weight = self.patch_weight_frames
        padded = aligned_values(weight.shape[1])
        values = fused.normalize(patches_PC, self.mean, self.std, padded, self.dtype)
        x_PD = functional.linear(values, functional.pad(weight, (0, padded - weight.shape[1])))
        x_PD = x_PD.unflatten(0, (-1, config.merge_size**2))[plan.order_M].flatten(0, 1)
        added_PD = None
        for number, block in enumerate(self.blocks):
            normed_PD = fused.add_rms_norm(x_PD, added_PD, block.norm1, RMS_NORM_EPS)
            qkv_PX = self._linear(normed_PD, block.qkv, block.qkv_bias)
            fused.rotate_(qkv_PX, plan.cos_PE, plan.sin_PE, config.num_heads)
            q_PHE, k_PHE, v_PHE = qkv_PX.view(len(x_PD), 3, config.num_heads, -1).unbind(1)
            segments = plan.frames if number in config.full_attention_blocks else chunk.windows
            added_PD = self._linear(attend(q_PHE, k_PHE, v_PHE, segments), block.proj, block.proj_bias)
            normed_PD = fused.add_rms_norm(x_PD, added_PD, block.norm2, RMS_NORM_EPS)
            gated_PI = fused.silu_mul(self._linear(normed_PD, block.gate_up, block.gate_up_bias))
            added_PD = self._linear(gated_PI, block.down, block.down_bias)
        normed_PD = fused.add_rms_norm(x_PD, added_PD, self.merger_norm, RMS_NORM_EPS)
        return normed_PD if norm else x_PD

    def _queries(self, x_PD: Tensor, block: _Block, plan: PackPlan, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        return self._before(
            x_PD[rows], block.norm1, block.qkv, block.qkv_bias, plan.cos_PE[rows], plan.sin_PE[rows],
            self.config.num_heads, self._linear,
        )  # fmt: skip

    def _finish(self, x_PD: Tensor, attended_PD: Tensor, block: _Block) -> Tensor:
        return self._after(
            x_PD, attended_PD, block.proj, block.proj_bias, block.norm2, block.gate_up, block.gate_up_bias, block.down,
            block.down_bias, self._linear,
        )  # fmt: skip


def aligned_values(count: int) -> int:
    """Values of a patch, padded to rows of whole 16 bytes."""
    return -(-count // 8) * 8


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _put(x_PD: Tensor, chunk: Chunk, rows_PD: Tensor) -> Tensor:
    """The residual stream with one chunk replaced: in place, unless the chunk is all of it."""
    if rows_PD.shape[0] == x_PD.shape[0]:
        return rows_PD
    x_PD[chunk.rows] = rows_PD
    return x_PD
