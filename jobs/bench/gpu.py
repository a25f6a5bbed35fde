"""The tower on a GPU: what each part costs, against the reference as installed and helped as far as it can be."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.bench.mixes import (
    IDLE_UNITS,
    LARGE,
    MATRICES,
    PACK_PATCHES,
    SEED,
    UNIT_TOKENS,
    Call,
    Packs,
    log_normal_grids,
    matrices_call,
    matrix_call,
    mixes,
    packed,
    patches_of,
    seconds_of,
    useful_flops,
    window_pairs,
)
from jobs.bench.peers import pixel_values
from jobs.bench.peers_helped import compiled_graphs, helped_reference
from pipeline.encode.unit import UnitEncoder
from pipeline.index.units import Unit
from pipeline.prepare.unit import PreparedSample, PreparedUnit
from pipeline.run.fleet import CALLS
from pipeline.source.sample import IndexedSample
from pipeline.tower.attention import attend
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.pack_plan import Grid
from pipeline.tower.reference import reference_tower, run_reference
from pipeline.tower.tower import Tower


def bench_gpu(arguments: argparse.Namespace) -> dict[str, object]:
    device, dtype = torch.device("cuda"), getattr(torch, arguments.dtype or "bfloat16")
    model = arguments.model or "random:7b"
    checkpoint = Checkpoint(model)  # made before the first token is timed
    results: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
    }

    def part(name: str, measure: Callable[[], object]) -> None:
        """One failing part must not cost the others' results: it is named in the table."""
        started = time.perf_counter()
        try:
            results[name] = measure()
        except Exception as error:  # noqa: BLE001 - a measurement turned into a record
            results[name] = f"FAILED: {type(error).__name__}: {error}"[:2000]
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        if arguments.json not in (None, "-"):  # a process that is ended keeps what it has measured
            Path(arguments.json).write_text(json.dumps({"encoder": results}, indent=2) + "\n", encoding="utf-8")
        torch.cuda.empty_cache()

    part("first_token_seconds", lambda: _first_token(model, arguments.dtype or "bfloat16"))
    tower = Tower(checkpoint, dtype, device, compile_blocks=True)
    results["attention"] = tower.kernel
    part("parity", lambda: _parity(checkpoint, tower))
    part("mixes", lambda: _mixes(checkpoint, tower, arguments.repeats))
    part("kernels_of_one_A_pack", lambda: _kernels(tower))
    part("attention_tflops", lambda: _attention(tower, arguments.repeats))
    part("fp8", lambda: _fp8(checkpoint, tower, arguments.repeats))
    part("pack_sizes", lambda: _pack_sizes(tower, arguments.repeats))
    part("bits", lambda: _bits(tower))
    part("units", lambda: _units(tower))
    return results


def _first_token(model: str, dtype: str) -> float:
    """From a process's start to its first tokens, imports, weights and compiling included."""
    code = (
        "import sys, torch\n"
        "from pipeline.tower.checkpoint import Checkpoint\n"
        "from pipeline.tower.tower import Tower\n"
        "dtype, device = getattr(torch, sys.argv[2]), torch.device('cuda')\n"
        "tower = Tower(Checkpoint(sys.argv[1]), dtype, device, compile_blocks=True)\n"
        "patches = torch.randint(0, 256, (5184, tower.patch_weight_still.shape[1]), dtype=torch.uint8).cuda()\n"
        "print(float(tower.forward(patches, tower.plan([(1, 72, 72)])).float().norm()))\n"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, model, dtype], check=True, capture_output=True)
    return time.perf_counter() - started


def _parity(checkpoint: Checkpoint, tower: Tower) -> dict[str, object]:
    """Relative RMS against the reference in fp32, ours and the reference's own."""
    grids: list[Grid] = [(1, 22, 14), (1, 42, 58), (1, 2, 90), (1, 8, 8)]
    patches = torch.randint(0, 256, (patches_of(grids), tower.patch_weight_still.shape[1]), dtype=torch.uint8).to(
        tower.device
    )
    ours = tower.forward(patches, tower.plan(grids)).double()
    pixels = pixel_values(tower, patches)
    exact = run_reference(reference_tower(checkpoint, torch.float32, tower.device), pixels, grids).double()
    torch.cuda.empty_cache()
    theirs = run_reference(
        reference_tower(checkpoint, tower.dtype, tower.device), pixels.to(tower.dtype), grids
    ).double()
    return {
        "ours_relative_rms": float((ours - exact).norm() / exact.norm()),
        "reference_relative_rms": float((theirs - exact).norm() / exact.norm()),
    }


def _mixes(checkpoint: Checkpoint, tower: Tower, repeats: int) -> dict[str, object]:
    """Ours beside the reference as installed and helped. A peer that raises costs its own figures only."""
    device, dtype = tower.device, tower.dtype
    problems: dict[str, str] = {}
    graphs = compiled_graphs()  # of what this process did before
    peers: dict[str, Callable[..., Tensor]] = {}

    def tried(name: str, make: Callable[[], Any]) -> Any:
        """Returns a peer's step's result; None where it raises, which is noted. Older versions lack much."""
        try:
            return make()
        except Exception as error:  # noqa: BLE001 - a measurement turned into a record
            problems[name] = f"{type(error).__name__}: {error}"[:500]
            return None

    reference = tried("reference", lambda: reference_tower(checkpoint, dtype, device))
    if reference is not None:
        peers["reference"] = lambda pixels, grids: run_reference(reference, pixels, grids)
    helped = tried("helped", lambda: helped_reference(checkpoint, dtype, device))
    if helped is not None:
        peers["helped"] = helped
    matrix, matrix_flops = matrix_call(device, dtype)
    results: dict[str, object] = {}
    shapes: set[int] = set()
    for name, grids in mixes().items():
        packs = Packs(tower, grids)
        shapes |= set(map(patches_of, grids))
        calls: dict[str, Call] = {"ours": packs.ours, "matrix": matrix, "matrices": matrices_call(matrix)}
        for peer, run in peers.items():
            candidate = packs.reference(run)
            if tried(peer, candidate) is not None:
                calls[peer] = candidate
        seconds = tried("all", lambda calls=calls: seconds_of(calls, repeats, device))  # type: ignore[misc]
        if seconds is None:  # a peer that ran once and then did not
            alone = {call: run for call, run in calls.items() if call not in peers}
            seconds = seconds_of(alone, repeats, device)
        results[name] = _row_of_mix(name, grids, tower, seconds, matrix_flops)
        del packs, calls
        torch.cuda.empty_cache()
    if "helped" in peers:
        # A block is compiled for each shape, once for windows and once for whole frames.
        results["helped_graphs"], results["helped_graphs_expected"] = compiled_graphs() - graphs, 2 * len(shapes)
        if results["helped_graphs"] != results["helped_graphs_expected"]:
            problems["helped_graphs"] = "not every shape was compiled once: the helped reference is not at its best"
    return results | ({"problems": problems} if problems else {})


def _row_of_mix(
    name: str, grids: list[list[Grid]], tower: Tower, seconds: dict[str, float], matrix_flops: float
) -> dict[str, object]:
    flops = sum(useful_flops(pack, tower) for pack in grids)
    rate, kept = matrix_flops / seconds["matrix"], matrix_flops * MATRICES / seconds["matrices"]
    row: dict[str, object] = {"patches": sum(map(patches_of, grids))}
    row |= {"matrix_tflops": rate / 1e12, "matrix_tflops_of_50_in_a_row": kept / 1e12}
    for call in ("ours", "reference", "helped"):
        if call in seconds:
            row[f"{call}_seconds"] = seconds[call]
            row[f"{call}_share_of_matrix_rate"] = flops / seconds[call] / rate
            row[f"{call}_share_of_rate_in_a_row"] = flops / seconds[call] / kept
    for peer, ratio in (("reference", "ratio"), ("helped", "ratio_to_helped")):
        if peer in seconds:
            row[ratio] = seconds[peer] / seconds["ours"]
    return row | {"asked_share": {"A": 0.65, "B": 0.65, "C": 0.55}[name]}


def _kernels(tower: Tower) -> dict[str, float]:
    """Milliseconds of each kernel over one pack, the longest first."""
    packs = Packs(tower, mixes()["A"][:1])
    packs.ours()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        packs.ours()
        torch.cuda.synchronize()
    spent: Counter[str] = Counter()
    for event in profile.events():
        spent[event.name[:90]] += event.device_time_total / 1e3
    return {name: round(value, 3) for name, value in spent.most_common(25)}


def _attention(tower: Tower, repeats: int) -> dict[str, object]:
    """Each block kind's attention by itself, ours and what else torch has for it."""
    config, device = tower.config, tower.device
    results: dict[str, object] = {}

    def qkv(count: int) -> list[Tensor]:
        shape = (count, 3, config.num_heads, config.head_dim)
        return list(torch.randn(shape, device=device, dtype=tower.dtype).unbind(1))

    photos = mixes()["A"][0]
    for name, grids in (("photos", photos), ("large", [LARGE])):
        plan = tower.plan(grids)
        q, k, v = qkv(patches_of(grids))
        full = 4.0 * config.width * sum(t * (h * w) ** 2 for t, h, w in grids)
        windows = 4.0 * config.width * sum(window_pairs(grid, tower) for grid in grids)
        calls: dict[str, tuple[Call, float]] = {
            "full": (lambda q=q, k=k, v=v, plan=plan: attend(q, k, v, plan.frames), full),  # type: ignore[misc]
            "windows": (
                lambda q=q, k=k, v=v, plan=plan: attend(q, k, v, plan.chunks[0].windows),  # type: ignore[misc]
                windows,
            ),
        }
        if len(grids) == 1:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):

                def one(q: Tensor = q, k: Tensor = k, v: Tensor = v, backend: Any = backend) -> Tensor:
                    with sdpa_kernel(backend):
                        qh, kh, vh = (x.transpose(0, 1)[None] for x in (q, k, v))
                        return torch.nn.functional.scaled_dot_product_attention(qh, kh, vh)

                calls[f"full by SDPA {backend.name.lower()}"] = (one, full)
        else:
            count = len(q) // 64

            def dense(q: Tensor = q, k: Tensor = k, v: Tensor = v, count: int = count) -> Tensor:
                qw, kw, vw = (x[: count * 64].unflatten(0, (count, 64)).transpose(1, 2) for x in (q, k, v))
                return torch.nn.functional.scaled_dot_product_attention(qw, kw, vw)

            calls["windows by dense SDPA"] = (dense, 4.0 * config.width * count * 64**2)
        for call, (run, flops) in calls.items():
            try:
                seconds = seconds_of({"": run}, repeats, device)[""]
                results[f"{name}, {call}"] = {"tflops": flops / seconds / 1e12, "milliseconds": seconds * 1e3}
            except RuntimeError as error:  # a backend that does not take this head size
                results[f"{name}, {call}"] = str(error).splitlines()[0][:200]
    return results


def _fp8(checkpoint: Checkpoint, tower: Tower, repeats: int) -> dict[str, object]:
    fp8 = Tower(checkpoint, torch.bfloat16, tower.device, compile_blocks=True, linear="fp8")
    grids = mixes()["A"][0]
    exact, ours = Packs(tower, [grids]), Packs(fp8, [grids])
    seconds = seconds_of({"exact": exact.ours, "fp8": ours.ours}, repeats, tower.device)
    patches = exact.patches[0][0]
    exact_MO, ours_MO = (one.forward(patches, one.plan(grids)).double() for one in (tower, fp8))
    cosine_M = torch.nn.functional.cosine_similarity(exact_MO, ours_MO, dim=-1)
    return {
        "ratio": seconds["exact"] / seconds["fp8"],
        "asked": 1.3,
        "cosine_min": float(cosine_M.min()),
        "cosine_mean": float(cosine_M.mean()),
        "relative_rms": float((ours_MO - exact_MO).norm() / exact_MO.norm()),
    }


def _pack_sizes(tower: Tower, repeats: int) -> dict[str, float]:
    """Patches per second in packs of several budgets: a small pack's residual stream fits the L2 cache."""
    results = {}
    for budget in (8192, 16_384, 32_768, 65_536):
        packs = Packs(tower, packed(log_normal_grids(1000, 0.48), budget, max(1, 65_536 // budget)))
        seconds = seconds_of({"": packs.ours}, repeats, tower.device)[""]
        results[str(budget)] = sum(map(patches_of, packs.packs)) / seconds
    return results


def _bits(tower: Tower) -> dict[str, bool]:
    """Whether a pack's bits repeat, and whether an image's bits depend on the pack it is in."""
    grids = mixes()["A"][0]
    patches = torch.randint(0, 256, (patches_of(grids), tower.patch_weight_still.shape[1]), dtype=torch.uint8).to(
        tower.device
    )
    first = tower.forward(patches, tower.plan(grids))
    again = tower.forward(patches, tower.plan(grids))
    half = grids[: len(grids) // 2]
    alone = tower.forward(patches[: patches_of(half)], tower.plan(half))
    other = torch.cat([patches[: patches_of(half)], 255 - patches[patches_of(half) :]])
    return {
        "same_pack_twice": torch.equal(first, again),
        "other_neighbours_of_the_same_size": torch.equal(
            first[: len(alone)], tower.forward(other, tower.plan(grids))[: len(alone)]
        ),
        "half_of_the_pack": torch.equal(first[: len(alone)], alone),
    }


def _units(tower: Tower) -> dict[str, object]:
    """Consecutive units as a run encodes them: three threads, uploads, copies back and shards written."""
    from pipeline.output.commit import commit_unit
    from pipeline.output.settings import ShardSettings
    from pipeline.storage.scratch import Scratch

    grids: list[Grid] = []
    for grid in log_normal_grids(1000, 0.48):
        if patches_of([*grids, grid]) // 4 > UNIT_TOKENS:
            break
        grids.append(grid)
    patches = np.random.default_rng(SEED).integers(
        0, 256, (patches_of(grids), tower.patch_weight_still.shape[1]), dtype=np.uint8
    )
    encoder = UnitEncoder(tower, max_patches=PACK_PATCHES, stored_dtype="bfloat16")
    settings = ShardSettings(
        fingerprint="",
        tower_sha256="",
        stage="merged",
        dtype="bfloat16",
        hidden_size=tower.config.width_of("merged"),
        merge_size=tower.config.merge_size,
        row_group_bytes=32 << 20,
        device="",
    )

    def unit(number: int) -> PreparedUnit:
        samples = tuple(
            PreparedSample(facts=IndexedSample(key=str(image), source=""), status="ok", image=image, clamped="none")
            for image in range(len(grids))
        )
        place = Unit(part=0, number=number, first=0, count=len(grids), tokens=len(patches) // 4, patches=len(patches))
        return PreparedUnit(unit=place, samples=samples, grids=tuple(grids), patches_PC=patches)

    encoder.encode(unit(0))
    numbers = iter(range(IDLE_UNITS))
    turn = threading.Lock()
    written: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "samples"):
            Path(folder, name).mkdir()

        def work() -> None:
            with Scratch(folder) as scratch:
                while True:
                    with turn:
                        number = next(numbers, None)
                    if number is None:
                        return
                    encoded = encoder.encode(unit(number))
                    started = time.perf_counter()
                    commit_unit(unit(number), encoded, Path(folder), scratch, settings)
                    written.append(time.perf_counter() - started)
                    Path(folder, "data", f"part-{unit(number).unit.id}.parquet").unlink()

        threads = [threading.Thread(target=work) for _ in range(CALLS + 1)]
        activity = getattr(torch.profiler.ProfilerActivity, tower.device.type.upper())
        with torch.profiler.profile(activities=[activity]) as profile:
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            wall = time.perf_counter() - started
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_time_total and not event.name.lower().startswith("mem")
    )
    busy, end = 0.0, 0.0
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    flops = useful_flops(grids, tower) * IDLE_UNITS
    return {
        "units": len(written),
        "tokens_per_second": len(patches) // 4 * IDLE_UNITS / wall,
        "wall_seconds": wall,
        # What is judged: threads start before the first kernel, and the last unit is written after the last one.
        "idle": 1 - busy / (end - spans[0][0]) if spans else 1.0,
        "idle_of_wall": 1 - busy / 1e6 / wall,
        "asked_idle": 0.03,
        "useful_tflops": flops / wall / 1e12,
        "write_seconds_of_a_unit": statistics.median(written),
    }
