"""The tower against the reference tower, in one run on one device: time, share of the matrix rate, parity, idle time.

On a CPU: one thread, fp32, the real width, 8 blocks; ours against the reference with SDPA, attention's own rate apart.
Another family: `--model random:qwen3_vl_wide`; another mix: `--grid 48x60`, one image of so many patches.
On a GPU: bf16, the real dimensions, over three mixes of image sizes; against the reference as installed, and helped as
far as it can be; the cost of each kernel; attention by itself; fp8; idle time over consecutive units; the first token.

Needs neither Ray nor the packages of the configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from jobs.bench.gpu import bench_gpu
from jobs.bench.mixes import (
    CPU_PATCHES,
    Call,
    Packs,
    frame_flops,
    log_normal_grids,
    matrix_call,
    patches_of,
    seconds_of,
    useful_flops,
)
from pipeline.tower.attention import attend
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.pack_plan import Grid
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.tower.tower import Tower


def bench_cpu(arguments: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(1)
    device, dtype = torch.device("cpu"), getattr(torch, arguments.dtype or "float32")
    model = arguments.model or "random:wide"
    checkpoint = Checkpoint(model)
    tower = Tower(checkpoint, dtype, device)
    reference = reference_tower(checkpoint, dtype, device)
    grids = _grids(arguments.grid, checkpoint.config.patch_size)
    packs = Packs(tower, [grids])
    theirs = packs.reference(lambda pixels, grids: run_reference(reference, pixels, grids))
    ours_MO, theirs_MO = packs.ours(), theirs()
    matrix, matrix_flops = matrix_call(device, dtype)
    attention = _attention(tower, grids)
    calls = {"ours": packs.ours, "reference": theirs, "matrix": matrix, "attention": attention}
    seconds = seconds_of(calls, arguments.repeats, device)
    flops, rate = useful_flops(grids, tower), matrix_flops / seconds["matrix"]
    full = sum(map(tower.config.attends_fully, range(tower.config.depth)))
    frames = frame_flops(grids, tower)
    width = checkpoint.config.out_width
    errors = [
        float((ours - exact).abs().max() / exact.abs().max())
        for ours, exact in zip(ours_MO.float().split(width, 1), theirs_MO.float().split(width, 1), strict=True)
    ]
    return {
        "device": f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread",
        "load": os.getloadavg()[0],
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
        "linear": tower.linear_kernel,
        "images": len(grids),
        "patches": patches_of(grids),
        "ours_seconds": seconds["ours"],
        "reference_seconds": seconds["reference"],
        "ratio": seconds["reference"] / seconds["ours"],
        "matrix_gflops": rate / 1e9,
        "ours_gflops": flops / seconds["ours"] / 1e9,
        "reference_gflops": flops / seconds["reference"] / 1e9,
        "ours_share_of_matrix_rate": flops / seconds["ours"] / rate,
        "full_attention_gflops": frames / seconds["attention"] / 1e9,
        "full_attention_share_of_work": full * frames / flops,
        "full_attention_share_of_time": full * seconds["attention"] / seconds["ours"],
        "largest_error_of_each_stream": errors,
    }


def _grids(grid: str | None, patch: int) -> list[Grid]:
    """One image of the given rows and columns of patches, or photos of mixed sizes."""
    if grid:
        height, width = (int(side) for side in grid.split("x"))
        return [(1, height, width)]
    grids: list[Grid] = []
    for one in log_normal_grids(64, 0.48, patch=patch):
        if patches_of([*grids, one]) <= CPU_PATCHES:
            grids.append(one)
    return grids


def _attention(tower: Tower, grids: list[Grid]) -> Call:
    """The attention of one block that attends to whole frames, on the views that a block gives it."""
    config, plan = tower.config, tower.plan(grids)
    turned = torch.randn(patches_of(grids), 3, config.num_heads, config.head_dim).to(tower.dtype)
    q_PHE, k_PHE, v_PHE = turned.unbind(1)
    return lambda: attend(q_PHE, k_PHE, v_PHE, plan.frames)


def bench_encoder(arguments: argparse.Namespace) -> dict[str, object]:
    return bench_gpu(arguments) if torch.cuda.is_available() else bench_cpu(arguments)


def main() -> int:
    """`python -m jobs.bench.encoder`: where only torch, transformers and what lies below the Ray layer is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"))
    parser.add_argument("--grid", help="one image of so many patches, 48x60")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    results = {"encoder": bench_encoder(arguments)}
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
