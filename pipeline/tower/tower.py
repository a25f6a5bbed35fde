"""The vision tower of every family: packed images in, merged vision tokens out.

    P patches, C values of a patch, M merged tokens (P / merge_size²), D width of the tower, O width of a row of the
    output, H heads, E width of a head, I width of the MLP. Tensors carry these letters as a suffix.

One forward runs over the patches of many images, one after the other. Inside, merged tokens are permuted so that every
attention window (or frame, where there are none) is a run of rows; the merger's output is put back in input order. What
grids decide is computed beforehand (`plan_pack`), so that the forward itself never waits for the device.

    patches ─▶ patch embedding (+ learned positions) ─▶ blocks ─▶ merger ─▶ main stream
                                                          └─ after some of them ─▶ a merger each ─▶ further streams

Source: transformers 5.23; `families/` names the file of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .attention import attend, choose_kernel
from .block import NORM_EPS, BlockKind, BlockWeights, project_and_mlp, queries_keys_values, take_block
from .checkpoint import Checkpoint
from .config import Stage
from .device import on_device
from .linear import Fp8Rows, LinearKernel, Weight, choose_linear, linear_of
from .merger import Merger, merge, merge_normed, take_merger
from .pack_plan import CPU_CHUNK_ROWS, Chunk, Grid, Kernel, PackPlan, Segments, plan_pack
from .positions import learned_positions


class Tower:
    """The tower's weights on one device.

    Args:
        checkpoint: whose tower's tensors are loaded.
        dtype: of weights and computation, bfloat16 or float32.
        compile_blocks: on a GPU, whether what lies between matrix products is fused into Triton kernels; on a CPU,
            whether the two halves of a block around attention go through torch.compile.
        linear: `exact`, or `fp8` for the matrix products of the blocks (not of patch embedding and merger).
        attention: see `choose_kernel`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        *,
        compile_blocks: bool = False,
        linear: str = "exact",
        attention: str = "auto",
    ) -> None:
        self.config, self.checkpoint = checkpoint.config, checkpoint
        self.dtype, self.device = dtype, device
        self.kernel: Kernel = choose_kernel(device, dtype, attention)
        self.chunk_rows = CPU_CHUNK_ROWS
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
        # A still image fills both frames of a patch with the same values: in fp32 their weights can be summed. In a
        # narrow dtype the sum of two weights that are exact would be rounded, 3 to 5 % more error in the tokens.
        self.sums_frames = dtype == torch.float32
        self.patch_weight_still = patch_weight.sum(2).flatten(1).to(device=device, dtype=dtype)
        self.patch_weight_frames = patch_weight.flatten(1).to(device=device, dtype=dtype)
        self.patch_bias = weights.pop("patch_embed.proj.bias", None)
        self.positions_ND = weights.pop("pos_embed.weight", None)
        self.kind = BlockKind(self.config.num_heads, self.config.activation)
        self.blocks = [take_block(weights, number, self.linear_kernel) for number in range(self.config.depth)]
        self.residual_by_product = self.fused and self.linear_kernel == "torch"
        self._lacks = _sums_of_biases(self.blocks) if self.residual_by_product else []
        self.merger = take_merger(weights, "merger", exact)
        self.stream_mergers = [take_merger(weights, f"deepstack.{n}", exact) for n in range(self.config.streams)]
        self.mean = torch.tensor(self.config.image_mean, device=device) * (1 / (1 / 255))
        self.std = torch.tensor(self.config.image_std, device=device) * (1 / (1 / 255))
        self._before, self._after = queries_keys_values, project_and_mlp
        if compile_blocks and not self.fused:
            # dynamic: packs differ in their number of rows. No autotuning: a choice by timing could change bits.
            self._before = torch.compile(queries_keys_values, dynamic=True, fullgraph=True)
            self._after = torch.compile(project_and_mlp, dynamic=True, fullgraph=True)
        if dtype == torch.float32 and device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False

    def plan(self, grids: Sequence[Grid]) -> PackPlan:
        with on_device(self.device):
            return plan_pack(grids, self.config, self.kernel, self.device, self.chunk_rows)

    def normalize(self, patches_PC: Tensor) -> Tensor:
        """uint8 [P, C] to float32 [P, C]: the reference's rescaling and normalising in one step, to the bit."""
        planes = patches_PC.float().view(patches_PC.shape[0], self.config.in_channels, -1)
        return ((planes - self.mean[:, None]) / self.std[:, None]).flatten(1)

    def embed(self, patches_PC: Tensor) -> Tensor:
        """Patch embedding: uint8 [P, 3·p²] of one frame, or [P, 3·t·p²] of t frames, to [P, D]."""
        patches_PC, weight = self._frames_and_weight(patches_PC)
        return self._exact(self.normalize(patches_PC).to(self.dtype), weight, self.patch_bias)

    def _frames_and_weight(self, patches_PC: Tensor) -> tuple[Tensor, Tensor]:
        """The patches as they are multiplied, a still's frame twice where weights are not summed, and their weight."""
        if patches_PC.shape[1] == self.patch_weight_frames.shape[1]:
            return patches_PC, self.patch_weight_frames
        if self.sums_frames:
            return patches_PC, self.patch_weight_still
        planes = patches_PC.view(patches_PC.shape[0], self.config.in_channels, 1, -1)
        return planes.expand(-1, -1, self.config.temporal_patch_size, -1).flatten(1), self.patch_weight_frames

    @torch.inference_mode()
    def forward(self, patches_PC: Tensor, plan: PackPlan, stage: Stage = "merged") -> Tensor:
        """Encodes one pack.

        Args:
            patches_PC: uint8 [P, C], on the device, of the pack's images in order.
            plan: of the same images' grids.
            stage: `pre_merger` for what the mergers would get, before their norms: [M, merge_size² · D] each.

        Returns:
            Merged tokens [M, O] in the compute dtype, in input order: the main stream, then the further ones.
        """
        with on_device(self.device):
            computed_MO = self.forward_in_window_order(patches_PC, plan, stage)
            out_MO = torch.empty_like(computed_MO)
            out_MO[plan.order_M] = computed_MO
            return out_MO

    @torch.inference_mode()
    def forward_in_window_order(self, patches_PC: Tensor, plan: PackPlan, stage: Stage = "merged") -> Tensor:
        """Encodes one pack as `forward` does, but leaves row i being input token `plan.order_M[i]`."""
        run = self._blocks_fused if self.fused else self._blocks
        with on_device(self.device):
            streams = run(patches_PC, plan, stage)
            return streams[0] if len(streams) == 1 else torch.cat(streams, 1)

    def _blocks(self, patches_PC: Tensor, plan: PackPlan, stage: Stage) -> list[Tensor]:
        """Patches to the streams of the output, in window order."""
        config = self.config
        x_PD = self._in_window_order(self.embed(patches_PC), plan)
        further: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            if config.attends_fully(number):
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
            if number in config.deepstack_blocks:
                further.append(self._stream(x_PD, self.stream_mergers[len(further)], stage))
        return [self._stream(x_PD, self.merger, stage), *further]

    def _blocks_fused(self, patches_PC: Tensor, plan: PackPlan, stage: Stage) -> list[Tensor]:
        """`_blocks` for a GPU: a pass through memory between two matrix products, and the residual stream in place."""
        from . import fused

        config = self.config
        (chunk,) = plan.chunks
        patches_PC, weight = self._frames_and_weight(patches_PC)
        padded = aligned_values(weight.shape[1])
        values = fused.normalize(patches_PC, self.mean, self.std, padded, self.dtype)
        x_PD = functional.linear(values, functional.pad(weight, (0, padded - weight.shape[1])), self.patch_bias)
        del values
        x_PD = self._in_window_order(x_PD, plan)
        added_PD = None
        further: list[Tensor] = []
        fp8 = self.linear_kernel == "fp8"
        for number, block in enumerate(self.blocks):
            lacks_D = self._lacking(number - 1, 1)
            normed_PD = fused.add_norm(x_PD, added_PD, block.norm1, NORM_EPS, fp8, lacks_D)
            if number - 1 in config.deepstack_blocks:  # the block before has been added only now
                further.append(self._stream(_whole(x_PD, lacks_D), self.stream_mergers[len(further)], stage))
            segments = plan.frames if config.attends_fully(number) else chunk.windows
            attended_PD = self._attended_fused(normed_PD, block, plan, segments)
            added_PD = self._added(x_PD, attended_PD, block.proj, block.proj_bias)
            normed_PD = fused.add_norm(x_PD, added_PD, block.norm2, NORM_EPS, fp8, self._lacking(number, 0))
            del attended_PD, added_PD  # each a twelfth of what a pack takes at its most, which is within the MLP
            up_PI = self._linear(normed_PD, block.up, block.up_bias)
            inner_PI = (fused.activate_fp8 if fp8 else fused.activate)(up_PI, config.activation)
            del normed_PD, up_PI
            added_PD = self._added(x_PD, inner_PI, block.down, block.down_bias)
            del inner_PI
        lacks_D = self._lacking(config.depth - 1, 1)
        normed_PD = fused.add_norm(x_PD, added_PD, self.merger.norm, NORM_EPS, False, lacks_D)
        assert isinstance(normed_PD, Tensor)
        if config.depth - 1 in config.deepstack_blocks:
            further.append(self._stream(_whole(x_PD, lacks_D), self.stream_mergers[len(further)], stage))
        if stage == "pre_merger":
            return [self._stream(_whole(x_PD, lacks_D), self.merger, stage), *further]
        return [merge_normed(normed_PD.view(-1, config.merged_width), self.merger, self._exact), *further]

    def _lacking(self, number: int, product: int) -> Tensor | None:
        """Returns what the stream lacks after a block's product (0: attention's, 1: the MLP's), float32 [D]."""
        return self._lacks[2 * number + product] if self._lacks and number >= 0 else None

    def _added(self, x_PD: Tensor, inner_PX: Tensor | Fp8Rows, weight: Weight, bias_D: Tensor) -> Tensor | None:
        """A product that is added to the residual stream: at once, or returned for the next norm to add."""
        if self._lacks and isinstance(inner_PX, Tensor) and isinstance(weight, Tensor):
            x_PD.addmm_(inner_PX, weight.t())  # beta is 1
            return None
        return self._linear(inner_PX, weight, bias_D)

    def _attended_fused(
        self, normed_PD: Tensor | Fp8Rows, block: BlockWeights, plan: PackPlan, segments: Segments
    ) -> Tensor | Fp8Rows:
        """Attention of a block, [P, D], before its projection. The qkv product does not outlive it."""
        from . import fused

        qkv_PX = self._linear(normed_PD, block.qkv, block.qkv_bias)
        fused.rotate_(qkv_PX, plan.cos_PE, plan.sin_PE, self.config.num_heads)
        q_PHE, k_PHE, v_PHE = qkv_PX.view(len(qkv_PX), 3, self.config.num_heads, -1).unbind(1)
        attended_PD = attend(q_PHE, k_PHE, v_PHE, segments)
        return fused.quantize(attended_PD) if self.linear_kernel == "fp8" else attended_PD

    def _in_window_order(self, x_PD: Tensor, plan: PackPlan) -> Tensor:
        """Embedded patches in the computed order, with their learned positions if there are any."""
        x_PD = x_PD.unflatten(0, (-1, self.config.merge_size**2))[plan.order_M].flatten(0, 1)
        if plan.learned is not None and self.positions_ND is not None:
            x_PD += learned_positions(self.positions_ND, plan.learned)
        return x_PD

    def _stream(self, x_PD: Tensor, merger: Merger, stage: Stage) -> Tensor:
        """One stream of the output, from the residual stream, which goes on to change: a copy."""
        if stage == "merged":
            return merge(x_PD, merger, self._exact)
        return x_PD.clone().view(-1, self.config.merged_width)

    def _queries(self, x_PD: Tensor, block: BlockWeights, plan: PackPlan, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        rotary = plan.cos_PE[rows], plan.sin_PE[rows]
        return self._before(x_PD[rows], block, rotary, self.kind, self._linear)

    def _finish(self, x_PD: Tensor, attended_PD: Tensor, block: BlockWeights) -> Tensor:
        return self._after(x_PD, attended_PD, block, self.kind, self._linear)


def aligned_values(count: int) -> int:
    """Values of a patch, padded to rows of whole 16 bytes."""
    return -(-count // 8) * 8


def _sums_of_biases(blocks: Sequence[BlockWeights]) -> list[Tensor]:
    """The biases of the products so far, after each: what a stream that they add to lacks. float32 [D] each."""
    biases = [bias.float() for block in blocks for bias in (block.proj_bias, block.down_bias)]
    return list(torch.stack(biases).cumsum(0))


def _whole(x_PD: Tensor, lacks_D: Tensor | None) -> Tensor:
    return x_PD if lacks_D is None else (x_PD + lacks_D).to(x_PD.dtype)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _put(x_PD: Tensor, chunk: Chunk, rows_PD: Tensor) -> Tensor:
    """The residual stream with one chunk replaced: in place, unless the chunk is all of it."""
    if rows_PD.shape[0] == x_PD.shape[0]:
        return rows_PD
    x_PD[chunk.rows] = rows_PD
    return x_PD
