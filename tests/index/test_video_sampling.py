"""Frames and sizes are the references' own, over thousands of clips; what they fail on has a rule."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import qwen_vl_utils.vision_process as utils
import torch
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize as resize_qwen2
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as resize_qwen3
from transformers.video_utils import VideoMetadata

from pipeline.config import Video
from pipeline.errors import RequestError
from pipeline.index.video_rules import RULES, resolve_sampling
from pipeline.index.video_sampling import clip_size, frame_count, frame_indices, plan_clip
from pipeline.index.video_times import second_per_grid, span_of, timestamps

RATES = (24.0, 25.0, 30.0, 30000 / 1001, 12.8, 60.0, 7.3, 120.0, 0.5)
FUSED = torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def sampling_of(model_type="qwen2_5_vl", patch_size=14, **fields):
    return resolve_sampling(Video(**fields), model_type, patch_size, 2)


def our_frames(total, fps, sampling):
    return frame_indices(total, frame_count(total, fps, sampling), sampling).tolist()


def clips(count, shortest=2):
    rng = np.random.default_rng(18)
    lengths = np.concatenate([rng.integers(shortest, 400, count // 2), rng.integers(shortest, 300_000, count // 2)])
    return [(int(length), float(rng.choice(RATES))) for length in lengths]


@pytest.mark.parametrize("fields", [{"fps": 2}, {"fps": 1.0}, {"fps": 4, "max_frames": 64}, {"num_frames": 8}])
def test_frames_of_qwen2_are_the_processors(fields) -> None:
    sampling, processor = sampling_of(**fields), Qwen2VLVideoProcessor()
    for total, fps in clips(600, shortest=8):
        expected = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=fps), **fields).tolist()
        assert our_frames(total, fps, sampling) == expected, (total, fps)


def test_every_count_of_qwen2_is_the_processors() -> None:
    """Counting in floats gives one frame more at times, and another frame near the end of long clips."""
    more = 0
    for total in [*range(2, 90), *range(30_000, 30_000 + 40)]:
        for number in range(2, min(total, 80) + 1, 2):
            expected = torch.arange(0, total, total / number).int().tolist()
            assert our_frames(total, 25.0, sampling_of(num_frames=number)) == expected
            more += len(expected) > number
    assert more


@pytest.mark.parametrize("fields", [{}, {"fps": 1.0}, {"fps": 4, "max_frames": 64}, {"num_frames": 9}])
def test_frames_of_qwen3_are_the_processors(fields) -> None:
    sampling = sampling_of("qwen3_vl", 16, **fields)
    processor = Qwen3VLVideoProcessor(**{name: value for name, value in fields.items() if name == "max_frames"})
    asked = {name: value for name, value in fields.items() if name != "max_frames"}
    for total, fps in clips(600):
        expected = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=fps), **asked).tolist()
        assert our_frames(total, fps, sampling) == expected, (total, fps)


@pytest.mark.skipif(not FUSED, reason="torch's own linspace is another one here")
@pytest.mark.parametrize("fields", [{}, {"fps": 1.0}, {"fps": 4, "max_frames": 65, "min_frames": 5}, {"num_frames": 9}])
def test_frames_of_qwen_vl_utils_are_its_own(fields) -> None:
    sampling = sampling_of(sampler="qwen_vl_utils", **fields)
    element = {{"num_frames": "nframes"}.get(name, name): value for name, value in fields.items()}
    for total, fps in clips(600, shortest=10):
        number = utils.smart_nframes(element, total_frames=total, video_fps=fps)
        expected = torch.linspace(0, total - 1, number).round().long().tolist()
        assert our_frames(total, fps, sampling) == expected, (total, fps)


def sizes(count):
    rng = np.random.default_rng(7)
    sides = np.exp(rng.uniform(math.log(9), math.log(4500), (count, 2))).astype(int)
    return [(int(h), int(w), int(n)) for (h, w), n in zip(sides, rng.integers(2, 800, count), strict=True)]


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_omni", "qwen3_omni_moe"])
def test_sizes_of_qwen2_are_the_processors(model_type) -> None:
    sampling = sampling_of(model_type)
    for height, width, count in sizes(2000):
        try:
            expected = resize_qwen2(height, width, 28, sampling.min_pixels, sampling.max_pixels)
        except ValueError:
            with pytest.raises(ValueError, match="aspect ratio"):
                clip_size(count, height, width, sampling)
        else:
            assert clip_size(count, height, width, sampling)[:2] == expected


@pytest.mark.parametrize("budgets", [{}, {"min_pixels": 131_072, "max_pixels": 786_432}])
def test_sizes_of_qwen3_are_the_processors(budgets) -> None:
    sampling = sampling_of("qwen3_5", 16, **budgets)
    for height, width, count in sizes(3000):
        try:
            limits = {"min_pixels": sampling.min_pixels, "max_pixels": sampling.max_pixels}
            expected = resize_qwen3(count, height, width, factor=32, **limits)
        except ValueError:
            with pytest.raises(ValueError, match="aspect ratio"):
                clip_size(count, height, width, sampling)
        else:
            assert clip_size(count, height, width, sampling)[:2] == expected


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize(
    "budgets",
    [{}, {"min_pixels": 16 * 784, "max_pixels": 64 * 784, "total_pixels": 2_000_000}, {"total_pixels": 10**6}],
)
def test_sizes_of_qwen_vl_utils_are_its_own(patch_size, budgets) -> None:
    """The package's own `fetch_video`, of which only the decoding and the resizing itself are taken out."""
    sampling = sampling_of("qwen3_vl", patch_size, sampler="qwen_vl_utils", **budgets)
    asked = SimpleNamespace(size=None)

    def read(_element):
        return SimpleNamespace(shape=(count, 3, height, width)), {}, 2.0

    def resize(_video, size, **_options):
        asked.size = tuple(size)
        return torch.zeros(1)

    with (
        mock.patch.object(utils, "get_video_reader_backend", return_value="decord"),
        mock.patch.dict(utils.VIDEO_READER_BACKENDS, {"decord": read, "torchvision": read}),
        mock.patch.object(utils.transforms.functional, "resize", resize),
    ):
        for height, width, count in sizes(1500):
            count -= count % 2
            if max(height, width) / min(height, width) > 200:
                continue
            utils.fetch_video({"video": "x", **budgets}, image_patch_size=patch_size)
            expected = tuple(max(sampling.factor, side) for side in asked.size)  # it rounds sides down to nothing
            assert clip_size(count, height, width, sampling)[:2] == expected


def test_times_are_the_processors() -> None:
    rng = np.random.default_rng(3)
    for total, fps in clips(200, shortest=4):
        frames = np.sort(rng.integers(0, total, int(rng.integers(1, 20))))
        expected = Qwen3VLProcessor._calculate_timestamps(None, frames.tolist(), fps, 2)
        assert timestamps(frames, fps) == expected
        metadata = VideoMetadata(total_num_frames=total, fps=fps, frames_indices=frames.tolist())
        assert second_per_grid(len(frames), total, fps, sampling_of("qwen2_5_vl", fps=2)) == 2 / metadata.sampled_fps
    assert second_per_grid(8, 240, 24.0, sampling_of("qwen2_5_omni", fps=4)) == 0.5
    assert second_per_grid(8, 240, 24.0, sampling_of("qwen3_omni_moe")) == 2.0


@pytest.mark.parametrize("sampler", ["transformers", "qwen_vl_utils"])
@pytest.mark.parametrize("model_type", sorted(RULES))
@pytest.mark.parametrize("fields", [{}, {"fps": 2}, {"num_frames": 1}, {"num_frames": 6}])
def test_any_clip_gives_tokens(sampler, model_type, fields) -> None:
    """One frame, fewer than a pair, fewer than asked for: each reference fails on one of them."""
    sampling = sampling_of(model_type, 16, sampler=sampler, **fields)
    for total in (1, 2, 3, 5):
        plan = plan_clip(total, 25.0, 48, 64, sampling)
        assert len(plan.frames)
        assert 0 <= plan.frames.min() <= plan.frames.max() < total
        assert plan.grid[0] == -(-len(plan.frames) // 2)
        assert plan.grid[1:] == (plan.height // 16, plan.width // 16)


def test_a_narrow_clip_keeps_a_side() -> None:
    """qwen-vl-utils rounds it down to nothing."""
    budgets = {"min_pixels": 784, "max_pixels": 1568}
    height, width, _ = clip_size(2, 30, 4500, sampling_of(sampler="qwen_vl_utils", **budgets))
    assert (height, width) == (28, 476)


@pytest.mark.parametrize(
    ("fields", "model_type", "says"),
    [
        ({"total_pixels": 10**6}, "qwen2_5_vl", "total_pixels: sampler transformers has no budget for a whole clip"),
        ({"total_pixels": 10**6}, "qwen3_vl", "total_pixels: sampler transformers has no such field in this family"),
        ({"max_frames": 8}, "qwen2_vl", "max_frames: sampler transformers takes every frame in this family"),
        ({"min_frames": 8}, "qwen2_5_omni", "min_frames: sampler transformers takes every frame"),
        ({"sampler": "qwen_vl_utils", "max_pixels": 784}, "qwen2_vl", "at least min_pixels 100352, the default"),
        ({}, "llava", "model type llava is none of qwen2_vl"),
    ],
)
def test_what_a_sampler_does_not_have_is_refused(fields, model_type, says) -> None:
    with pytest.raises(RequestError, match=says):
        resolve_sampling(Video(**fields), model_type, 14, 2)


@pytest.mark.parametrize(
    "fields", [{"fps": 2, "num_frames": 8}, {"min_frames": 8, "max_frames": 4}, {"max_frames": 1}, {"fps": 0.0}]
)
def test_an_impossible_value_is_refused(fields) -> None:
    with pytest.raises(ValueError, match=r"num_frames|max_frames|fps"):
        Video(**fields)


def test_spans_of_qwen_vl_utils_are_its_own() -> None:
    rng = np.random.default_rng(11)
    checked = 0
    for total, fps in clips(400):
        times, length = np.arange(total) / fps, total / fps
        start, end = sorted(float(value) for value in rng.uniform(0, length * 1.2, 2))
        span = {"video_start": start, "video_end": end}
        try:
            first, last, count = utils.calculate_video_frame_range(span, total, fps)
        except ValueError:
            continue
        assert span_of(times, fps, start, end, "utils") == (first, count)
        assert last == first + count - 1
        checked += 1
    assert checked > 100


def test_a_span_is_what_is_shown_in_it() -> None:
    times = np.array([0.0, 0.1, 0.2, 1.0, 2.0, 2.1])
    assert span_of(times, 3.0, 0.1, 1.0, "qwen2") == (1, 3)
    assert span_of(times, 3.0, None, 0.25, "qwen3") == (0, 3)
    assert span_of(times, 3.0, 0.3, 0.9, "qwen3") == (2, 1)  # between two frames: the one that is still shown
    assert span_of(times, 3.0, 1.0, None, "qwen2") == (3, 3)
    assert span_of(times, 3.0, 1.5, 1.5, "qwen2") == span_of(times, 3.0, 1.0, 1.0, "utils") == (3, 1)
    assert span_of(times, 3.0, -1.0, 0.1, "qwen2") == span_of(times, 3.0, 0.0, 0.1, "qwen2") == (0, 2)
    with pytest.raises(ValueError, match="begins at 0 s and ends at -1 s"):
        span_of(times, 3.0, -2.0, -1.0, "qwen3")
    with pytest.raises(ValueError, match="begins at 9"):
        span_of(times, 3.0, 9.0, 10.0, "qwen2")
    with pytest.raises(ValueError, match="ends at 1"):
        span_of(times, 3.0, 2.0, 1.0, "utils")
