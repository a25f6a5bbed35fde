"""The first minute on a GPU: rates at the tower's own shapes, each kernel's, attention's candidates, fp8. No weights.

A line that fails costs itself only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jobs.bench.mixes import LARGE, mixes, patches_of, timed
from pipeline.tower import fused
from pipeline.tower.attention import attend, choose_kernel
from pipeline.tower.block import NORM_EPS, NormWeights
from pipeline.tower.config import TowerConfig
from pipeline.tower.linear import Fp8Rows, fp8_linear, quantize_rows
from pipeline.tower.pack_plan import Grid, plan_pack
from pipeline.tower.random_tower import SIZES

PATCHES = 29_228  # of a pack of mix A
REPEATS = 10
MATRIX = 8192  # the side of the square product that rates are compared with


class Probe:
    """Measures calls on a GPU, and keeps what it has found."""

    def __init__(self, config: TowerConfig, patches: int) -> None:
        self.config, self.patches, self.device = config, patches, torch.device("cuda")
        self.found: dict[str, object] = {}

    def rows(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def measure(self, name: str, call: Callable[[], object], work: float, unit: str) -> None:
        """Microseconds, and 1e12 of `work` a second: floating-point operations, or bytes."""
        try:
            call()
            seconds = statistics.median(timed(call, self.device) for _ in range(REPEATS))
            self.found[name] = {"us": seconds * 1e6, unit: work / seconds / 1e12}
        except Exception as error:  # noqa: BLE001 - a measurement turned into a record
            self.found[name] = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[
                :300
            ]
        print(f"{name:40} {self.found[name]}", flush=True)

    def products(self) -> None:
        """Each product of a block, in bfloat16 and in fp8: with rows quantized by a pass of its own, and alone."""
        width, inner = self.config.width, -(-self.config.intermediate // 128) * 128
        side = MATRIX
        left, right = self.rows(side, side), self.rows(side, side)
        self.measure(f"matrix {side}", lambda: left @ right, 2.0 * side**3, "tflops")
        self.measure(
            f"matrix {side}, 50 in a row", lambda: [left @ right for _ in range(50)], 100.0 * side**3, "tflops"
        )
        shapes = {"qkv": (3 * width, width), "proj": (width, width), "up": (2 * inner, width), "down": (width, inner)}
        for name, (n, k) in shapes.items():
            x, weight, bias = self.rows(self.patches, k), self.rows(n, k), self.rows(n)
            stream, work = self.rows(self.patches, n), 2.0 * self.patches * n * k
            self.measure(name, partial(functional.linear, x, weight, bias), work, "tflops")
            added = partial(torch.addmm, stream, x, weight.t(), out=stream)
            self.measure(f"{name} with beta 1", added, work, "tflops")
            weight8, rows8 = quantize_rows(weight), quantize_rows(x)
            self.measure(f"{name}, fp8 and a pass", partial(_quantized_first, x, weight8, bias), work, "tflops")
            self.measure(f"{name}, fp8", partial(fp8_linear, rows8, weight8, bias), work, "tflops")

    def passes(self) -> None:
        """Each kernel between two products, by the bytes that it must move."""
        count, width, inner = self.patches, self.config.width, -(-self.config.intermediate // 128) * 128
        x, y, qkv, up = (self.rows(count, size) for size in (width, width, 3 * width, 2 * inner))
        norm = NormWeights(self.rows(width), None)
        cos, sin = (torch.rand(count, self.config.head_dim // 2, device=self.device) for _ in range(2))
        heads, turned = self.config.num_heads, 8.0 * width + 4.0 * self.config.head_dim
        calls: dict[str, tuple[Callable[[], object], float]] = {
            "add_norm": (lambda: fused.add_norm(x, y, norm, NORM_EPS), 8.0 * width),
            "add_norm, fp8": (lambda: fused.add_norm(x, y, norm, NORM_EPS, True), 7.0 * width),
            "rotate": (lambda: fused.rotate_(qkv, cos, sin, heads), turned),
            "silu_mul": (lambda: fused.silu_mul(up), 6.0 * inner),
            "silu_mul, fp8": (lambda: fused.activate_fp8(up, "silu_gated"), 5.0 * inner),
            "quantize": (lambda: fused.quantize(x), 3.0 * width),
        }
        for name, (call, row_bytes) in calls.items():
            self.measure(name, call, count * row_bytes, "tbytes_a_second")

    def attention(self, name: str, grids: list[Grid]) -> None:
        """Whole frames and windows as we have them, and cuDNN's ways, with how far those are from ours."""
        plan = plan_pack(grids, self.config, choose_kernel(self.device, torch.bfloat16), self.device)
        heads, size = self.config.num_heads, self.config.head_dim
        q, k, v = self.rows(patches_of(grids), 3, heads, size).unbind(1)
        frames, windows = plan.frames, plan.chunks[0].windows
        full = 4.0 * self.config.width * sum(t * (h * w) ** 2 for t, h, w in grids)
        self.measure(f"{name}: frames, varlen", lambda: attend(q, k, v, frames), full, "tflops")
        self.measure(
            f"{name}: windows, varlen", lambda: attend(q, k, v, windows), 256.0 * self.config.width * len(q), "tflops"
        )

        def cudnn() -> Tensor:
            ends, longest = frames.cu_seqlens, frames.max_length
            out: Any = torch.ops.aten._cudnn_attention_forward(q, k, v, None, ends, ends, longest, longest, False)
            return out[0]

        self.measure(f"{name}: frames, cuDNN varlen", cudnn, full, "tflops")

        def bits() -> None:
            ours, theirs = attend(q, k, v, frames).float(), cudnn().flatten(1)
            away = float((ours - theirs.float()).norm() / ours.norm())
            self.found[f"{name}: cuDNN"] = {"relative_rms": away, "repeats": torch.equal(theirs, cudnn().flatten(1))}

        self.guarded(f"{name}: cuDNN", bits)

    def guarded(self, name: str, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a measurement turned into a record
            self.found[name] = f"FAILED: {type(error).__name__}: {error}"[:300]


def _quantized_first(x_RK: Tensor, weight: Fp8Rows, bias_N: Tensor) -> Tensor:
    return fp8_linear(fused.quantize(x_RK), weight, bias_N)


def probe(config: TowerConfig = SIZES["7b"], patches: int = PATCHES) -> dict[str, object]:
    """All of it, in the order of its worth."""
    one = Probe(config, patches)
    one.found |= {"torch": torch.__version__, "device": torch.cuda.get_device_name()}
    for name, step in {
        "products": one.products,
        "passes": one.passes,
        "A": lambda: one.attention("A", mixes()["A"][0]),
        "B": lambda: one.attention("B", mixes()["B"][0]),
        "large": lambda: one.attention("large", [LARGE]),
    }.items():
        one.guarded(name, step)
        torch.cuda.empty_cache()
    return one.found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    found = probe()
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"probe": found}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
