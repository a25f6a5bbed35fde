"""Times and sizes of frame images are the references'."""

from __future__ import annotations

import numpy as np
import pytest
import qwen_vl_utils.vision_process as utils
from clips import drawing
from PIL import Image
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata, make_batched_metadata

from pipeline.config import Video
from pipeline.index.video_frames import plan_of_frames, timing_of_frames
from pipeline.index.video_rules import resolve_sampling
from pipeline.rejects import Reject
from pipeline.sampling import VideoSampling
from pipeline.source.sample import VideoFacts


def sampling_of(model_type: str, sampler: str = "transformers", **fields: object) -> VideoSampling:
    return resolve_sampling(Video(sampler=sampler, **fields), model_type, 14, 2)


def facts(count: int, **fields: object) -> VideoFacts:
    return VideoFacts(is_frames=True, frames=count, **fields)


@pytest.mark.parametrize("fps", [None, 1.0, 7.3])
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_what_is_told_of_times_is_what_transformers_tells(count: int, fps: float | None) -> None:
    """Without a rate it takes 24 frames a second."""
    if fps is None:
        (metadata,) = make_batched_metadata([np.zeros((count, 28, 28, 3), np.uint8)], None)
        assert metadata.fps is None
    else:
        metadata = VideoMetadata(total_num_frames=count, fps=fps, frames_indices=list(range(count)))
    timing = timing_of_frames(facts(count, fps=fps), sampling_of("qwen3_vl"))
    assert timing.timestamps == Qwen3VLProcessor._calculate_timestamps(None, list(range(count)), metadata.fps or 24, 2)
    assert timing.second_per_grid == 2 / metadata.sampled_fps
    assert timing.times == (metadata.timestamps if fps else None)


@pytest.mark.parametrize("fps", [None, 1.0, 7.3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_told_of_times_is_what_qwen_vl_utils_tells(count: int, fps: float | None) -> None:
    frames = [Image.fromarray(drawing(index, 64, 48)) for index in range(count)]
    asked = {"video": frames} | ({} if fps is None else {"sample_fps": fps})
    (_, metadata), sampled = utils.fetch_video(asked, return_video_metadata=True, return_video_sample_fps=True)
    timing = timing_of_frames(facts(count, fps=fps), sampling_of("qwen2_5_vl", "qwen_vl_utils"))
    indices = metadata["frames_indices"]
    assert timing.timestamps == Qwen3VLProcessor._calculate_timestamps(None, indices, metadata["fps"], 2)
    assert timing.second_per_grid == 2 / sampled


def test_times_count_as_they_are() -> None:
    timing = timing_of_frames(facts(3, times=[1.0, 2.0, 7.0], fps=1 / 3), sampling_of("qwen3_vl"))
    assert (timing.times, timing.timestamps, timing.second_per_grid) == ([1.0, 2.0, 7.0], [1.5, 7.0], 6.0)
    still = timing_of_frames(facts(1, times=[3.0]), sampling_of("qwen2_5_vl"))
    assert (still.times, still.timestamps, still.second_per_grid) == ([3.0], [3.0], 2 / 24)


def test_omni_models_are_told_what_their_processors_say() -> None:
    assert timing_of_frames(facts(4), sampling_of("qwen2_5_omni")).second_per_grid == 1.0
    assert timing_of_frames(facts(4), sampling_of("qwen3_omni_moe")).second_per_grid == 2.0
    assert timing_of_frames(facts(4, fps=4.0), sampling_of("qwen2_5_omni")).second_per_grid == 0.5


SIZES = [(64, 48), (64, 48), (66, 50), (640, 48)]


@pytest.mark.parametrize("others", [1, 2, 3])
def test_frames_of_several_sizes_are_taken_where_the_reference_takes_them(others: int) -> None:
    """transformers stacks them as they are, qwen-vl-utils as it has resized each."""
    (width, height), *_ = sizes = [SIZES[0], SIZES[others]]
    images = [Image.fromarray(drawing(0, *size)) for size in sizes]
    reasons: set[str] = set()
    video = facts(2, sizes=[[1, *sizes[1]]] if sizes[1] != sizes[0] else None)

    def is_taken(sampling: VideoSampling) -> bool:
        try:
            plan_of_frames(video, width, height, sampling, 10**9)
        except Reject as reject:
            reasons.add(reject.reason)
            return False
        return True

    def stacks(processor: object, video: object) -> bool:
        try:
            processor(videos=[video], do_sample_frames=False, return_tensors="pt")
        except (RuntimeError, ValueError):
            return False
        return True

    def fetches() -> bool:
        try:
            utils.fetch_video({"video": images})
        except RuntimeError:
            return False
        return True

    assert is_taken(sampling_of("qwen2_5_vl")) == stacks(Qwen2VLVideoProcessor(), images)
    assert is_taken(sampling_of("qwen3_vl")) == stacks(Qwen3VLVideoProcessor(), images)
    assert is_taken(sampling_of("qwen2_5_vl", "qwen_vl_utils")) == fetches()
    assert reasons == (set() if others == 1 else {"corrupt"})
    assert fetches() == (others < 3)


def test_each_frame_is_held_to_the_limit_of_pixels() -> None:
    video = facts(2, sizes=[[1, 100, 100]])
    with pytest.raises(Reject, match="frame 1 of 100x100 is over") as raised:
        plan_of_frames(video, 50, 50, sampling_of("qwen2_5_vl", "qwen_vl_utils"), 9999)
    assert raised.value.reason == "too_many_pixels"
    with pytest.raises(Reject, match="frame 0 of 50x50 is over"):
        plan_of_frames(video, 50, 50, sampling_of("qwen2_5_vl"), 2499)
    with pytest.raises(Reject, match="aspect ratio") as raised:
        plan_of_frames(facts(2), 4020, 20, sampling_of("qwen2_5_vl"), 10**9)
    assert raised.value.reason == "aspect_ratio"
