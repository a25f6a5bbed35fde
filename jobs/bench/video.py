"""Preparing videos against transformers' own path with PyAV, one core, and against decoding alone."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config import Video
from pipeline.index.video_header import VideoHeader, read_video_header
from pipeline.index.video_rules import resolve_sampling
from pipeline.index.video_sampling import ClipPlan, plan_clip
from pipeline.prepare.guard import ImageReader
from pipeline.prepare.video import VideoFile, prepare_clips
from pipeline.sampling import VideoSampling

CLIPS = Path(__file__).resolve().parents[2] / "tests" / "data" / "videos"
LONG_SECONDS, SHORT_SECONDS, LONG_FRAMES = 60, 12, 768
RATE, WIDTH, HEIGHT = 25, 1920, 1080
SAMPLING = resolve_sampling(Video(), "qwen3_vl", 16, 2)


def bench_video(arguments: argparse.Namespace) -> dict[str, object]:
    """Measures each clip on one core: bytes to patches, the reference's paths, and every frame decoded and let go.

    In seconds of the processor, the least of some runs: a busy machine takes none of them. A minute of 1080p as a whole
    is more memory than a small machine has: the reference that decodes everything first is measured on its beginning.
    """
    from transformers import Qwen3VLVideoProcessor

    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # also what libav and libswscale count threads by
    try:
        with tempfile.TemporaryDirectory() as folder:
            processor = Qwen3VLVideoProcessor(
                size={"shortest_edge": SAMPLING.min_pixels, "longest_edge": SAMPLING.max_pixels}
            )
            films = [
                make_film(Path(folder) / f"film-1080p-{seconds}s.mp4", seconds * RATE)
                for seconds in (SHORT_SECONDS, LONG_SECONDS)
            ]
            paths = [*sorted(CLIPS.glob("*.mp4")), *films]
            results: dict[str, object] = {path.stem: _one_clip(path, processor, arguments.repeats) for path in paths}
            results["768_frames_of_1080p"] = peak_of_768_frames(paths[-1])
    finally:
        os.sched_setaffinity(0, cores)
    return results | {"asked": 2.5}


def _one_clip(path: Path, processor: Any, repeats: int) -> dict[str, float]:
    repeats = 1 if f"-{LONG_SECONDS}s" in path.name else repeats
    calls: dict[str, Callable[[], object]] = {
        "ours": partial(prepare, path, SAMPLING),
        "reference": partial(_reference, path, processor),
        "reference_whole": partial(_reference_whole, path, processor),
        "decoding": partial(_decode_all, path),
        "index": partial(read_video_header, path),
    }
    if f"-{LONG_SECONDS}s" in path.name:
        del calls["reference_whole"]
    seconds = {name: min(_cpu_seconds(call) for _ in range(repeats)) for name, call in calls.items()}
    return {
        "frames": len(_plan_of(read_video_header(path), SAMPLING).frames),
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "ratio": seconds["reference"] / seconds["ours"],
        "ratio_whole": seconds.get("reference_whole", float("nan")) / seconds["ours"],
        "decoding_by_ours": seconds["decoding"] / seconds["ours"],
    }


def _cpu_seconds(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def prepare(path: Path, sampling: VideoSampling, header: VideoHeader | None = None) -> np.ndarray:
    """A file's patches, uint8 [P, C]: its header is read first, unless it is given."""
    header = header or read_video_header(path)
    plan = _plan_of(header, sampling)
    rows_PC = np.empty((plan.patches, sampling.row_bytes), np.uint8)
    file = VideoFile(key=path.name, source=path, header=header)
    assert prepare_clips(file, [plan], sampling, [rows_PC], ImageReader()) == [None]
    return rows_PC


def _plan_of(header: VideoHeader, sampling: VideoSampling) -> ClipPlan:
    return plan_clip(header.frames, header.fps, header.height, header.width, sampling)


def _reference_whole(path: Path, processor: Any) -> object:
    """Decodes every frame to RGB, then samples: what `load_video` and a processor do, called one after the other."""
    from transformers.video_utils import load_video

    video, metadata = load_video(str(path), backend="pyav")
    return processor(videos=[video], video_metadata=[metadata], do_sample_frames=True, return_tensors="pt")


def _reference(path: Path, processor: Any) -> object:
    """Samples first, and makes RGB of those frames: the processor's own path, were its decoder PyAV."""
    from transformers.video_utils import read_video_pyav

    video, metadata = read_video_pyav(str(path), processor.sample_frames)
    return processor(videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")


def _decode_all(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def peak_of_768_frames(path: Path) -> dict[str, float]:
    """The memory that a process grows by beyond a clip's patches, in MB, while it prepares 768 frames of 1080p."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        grown, patches = pool.apply(_grown, (path,))
    return {"patches_mb": patches, "beyond_them_mb": grown - patches, "asked": 500}


def _grown(path: Path) -> tuple[float, float]:
    torch.set_num_threads(1)
    sampling = resolve_sampling(Video(num_frames=LONG_FRAMES, max_pixels=LONG_FRAMES * 448 * 784), "qwen3_vl", 16, 2)
    prepare(CLIPS / "carphone_pristine.mp4", SAMPLING)  # what a preparer has loaded by then
    before = _peak_mb()
    rows_PC = prepare(path, sampling)
    return _peak_mb() - before, rows_PC.nbytes / 1e6


def _peak_mb() -> float:
    # Not ru_maxrss: a new process has that of the one that it was forked from.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def make_film(path: Path, frames: int) -> Path:
    """Writes a film of 1080p whose picture moves and has grain, H.264 with B-frames, one key frame in ten seconds."""
    import av

    random = np.random.default_rng(7)
    grain = random.integers(0, 24, (HEIGHT + 64, WIDTH + 64, 3), np.uint8)
    y, x = np.mgrid[: HEIGHT + 64, : WIDTH + 64]
    picture = np.stack([x // 8, y // 5, (x + y) // 12], -1).astype(np.uint8) + grain
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "g": "250", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            top, left = index % 64, index * 3 % 64
            pixels = np.ascontiguousarray(picture[top : top + HEIGHT, left : left + WIDTH])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return path
