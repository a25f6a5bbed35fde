"""Patches of videos are bit-equal to the references', fed with the same frames and what is known of them."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cache
from unittest import mock

import av
import numpy as np
import pytest
import qwen_vl_utils.vision_process as utils
import torch
from clips import FRAMES, MADE, NAMES, clip_of, damaged, flipped, made
from PIL import Image
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

import pipeline.prepare.guard as guard_module
from pipeline.config import Video
from pipeline.index.video_frames import plan_frames
from pipeline.index.video_header import read_video_header
from pipeline.index.video_rules import resolve_sampling
from pipeline.index.video_sampling import ClipPlan, plan_clip
from pipeline.prepare.guard import GuardedReader, ImageReader
from pipeline.prepare.video import VideoFile, prepare_clips
from pipeline.prepare.video_decode import decode_frames
from pipeline.prepare.video_frames import prepare_frame
from pipeline.rejects import Reject

pytestmark = pytest.mark.slow

ALL = [*NAMES, *MADE]
FUSED = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
MANY = [name for name in ALL if name not in ("one.mp4", "three.mp4")]


@cache
def all_frames(name: str) -> np.ndarray:
    """Every frame as PyAV gives it on one thread, upright: uint8 [T, H, W, 3]."""
    with av.open(io.BytesIO(clip_of(name))) as container:
        container.streams.video[0].thread_count = 1
        return np.stack(
            [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90 % 4) for f in container.decode(video=0)]
        )


def sampling_of(model_type="qwen2_5_vl", patch_size=14, **fields):
    return resolve_sampling(Video(**fields), model_type, patch_size, 2)


def clips_of(data, header, plans, sampling, rows, reader=None):
    file = VideoFile(key="clip", source=data, header=header)
    return prepare_clips(file, plans, sampling, rows, reader or ImageReader())


def ours(name, sampling, **span):
    """Plan and uint8 [P, C] of a whole clip."""
    data = clip_of(name)
    header = read_video_header(data)
    plan = plan_clip(header.frames, header.fps, header.height, header.width, sampling)
    rows = np.full((plan.patches, sampling.row_bytes), 7, np.uint8)
    assert clips_of(data, header, [plan], sampling, [rows]) == [None]
    return plan, rows


def processed(processor, frames, rate=25.0, asked=None):
    """The processor's own frames, patches before normalising, and grid; all frames where nothing is asked for."""
    metadata = VideoMetadata(total_num_frames=len(frames), fps=rate)
    index = np.arange(len(frames)) if asked is None else np.asarray(processor.sample_frames(metadata, **asked))
    result = processor(
        videos=[torch.from_numpy(np.ascontiguousarray(frames[index])).permute(0, 3, 1, 2)],
        do_sample_frames=False,
        do_normalize=False,
        do_rescale=False,
        return_tensors="pt",
    )
    return index.tolist(), result["pixel_values_videos"].numpy(), tuple(result["video_grid_thw"][0].tolist())


@pytest.mark.parametrize("name", MANY)
def test_patches_are_those_of_qwen2(name) -> None:
    sampling = sampling_of(fps=3, min_pixels=3136, max_pixels=64 * 784)
    plan, rows = ours(name, sampling)
    size = {"shortest_edge": 3136, "longest_edge": 64 * 784}
    fps = read_video_header(clip_of(name)).fps
    frames, expected, grid = processed(Qwen2VLVideoProcessor(size=size), all_frames(name), fps, {"fps": 3})
    assert plan.frames.tolist() == frames and plan.grid == grid
    assert np.array_equal(rows, expected)


@pytest.mark.parametrize("name", MANY)
def test_patches_are_those_of_qwen3(name) -> None:
    sampling = sampling_of("qwen3_vl", 16, max_pixels=40 * 200 * 1024)
    plan, rows = ours(name, sampling)
    size = {"shortest_edge": 4096, "longest_edge": 40 * 200 * 1024}
    fps = read_video_header(clip_of(name)).fps
    frames, expected, grid = processed(Qwen3VLVideoProcessor(size=size), all_frames(name), fps, {})
    assert plan.frames.tolist() == frames and plan.grid == grid
    assert np.array_equal(rows, expected)


def test_normalised_pixels_have_the_references_bits() -> None:
    """What leaves the device's normalising: two frames' channels by the same mean and deviation as an image's."""
    plan, rows = ours("h264.mp4", sampling_of(fps=2))
    processor = Qwen2VLVideoProcessor(size={"shortest_edge": 3136, "longest_edge": 12_845_056})
    video = torch.from_numpy(all_frames("h264.mp4")).permute(0, 3, 1, 2)
    metadata = VideoMetadata(total_num_frames=FRAMES, fps=25.0)
    expected = processor(videos=[video], video_metadata=[metadata], do_sample_frames=True, fps=2, return_tensors="pt")[
        "pixel_values_videos"
    ]
    mean, deviation = (torch.tensor(values) * 255 for values in (processor.image_mean, processor.image_std))
    pixels = torch.from_numpy(rows).reshape(plan.patches, 3, 2 * 14 * 14).float()
    normalised = ((pixels - mean[:, None]) / deviation[:, None]).flatten(1)
    assert torch.equal(normalised, expected)


@pytest.mark.skipif(not FUSED, reason="torch's own linspace is another one here")
@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("patch_size", [14, 16])
def test_patches_are_those_of_qwen_vl_utils(name, patch_size) -> None:
    """`fetch_video`, with PyAV in the place of its decoders, then a processor that resizes no more."""
    budget = {"max_pixels": 160 * 32 * 32} if name in NAMES else {}
    sampling = sampling_of("qwen3_vl", patch_size, sampler="qwen_vl_utils", **budget)
    plan, rows = ours(name, sampling)
    header = read_video_header(clip_of(name))

    def read(element):
        frames = torch.from_numpy(all_frames(name)).permute(0, 3, 1, 2)
        count = utils.smart_nframes(element, total_frames=len(frames), video_fps=header.fps)
        index = torch.linspace(0, len(frames) - 1, count).round().long()
        return frames[index], {"frames_indices": index}, 2.0

    with (
        mock.patch.object(utils, "get_video_reader_backend", return_value="decord"),
        mock.patch.dict(utils.VIDEO_READER_BACKENDS, {"decord": read}),
    ):
        video, metadata = utils.fetch_video(
            {"video": name, **budget}, image_patch_size=patch_size, return_video_metadata=True
        )
    processor = Qwen3VLVideoProcessor(patch_size=patch_size)
    result = processor(
        videos=[video], do_resize=False, do_sample_frames=False, do_normalize=False, do_rescale=False,
        return_tensors="pt",
    )  # fmt: off
    assert plan.frames.tolist() == metadata["frames_indices"].tolist()
    assert plan.grid == tuple(result["video_grid_thw"][0].tolist())
    assert np.array_equal(rows, result["pixel_values_videos"].numpy())


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("sampler", ["transformers", "qwen_vl_utils"])
def test_a_single_frame_is_doubled(model_type, sampler) -> None:
    """As the same frame twice would be: every sampler's reference fails on one."""
    sampling = sampling_of(model_type, 16, sampler=sampler)
    plan, rows = ours("one.mp4", sampling)
    assert plan.frames.tolist() == [0] and plan.grid[0] == 1
    halves = rows.reshape(len(rows), 3, 2, 256)
    assert np.array_equal(halves[:, :, 0], halves[:, :, 1])
    data, header = clip_of("three.mp4"), read_video_header(clip_of("three.mp4"))
    pair = ClipPlan(frames=np.array([0, 0]), height=plan.height, width=plan.width, grid=plan.grid, clamped="none")
    twice = np.empty_like(rows)
    assert clips_of(data, header, [pair], sampling, [twice]) == [None]
    assert twice.any() and twice.shape == rows.shape
    assert np.array_equal(twice.reshape(-1, 3, 2, 256)[:, :, 0], twice.reshape(-1, 3, 2, 256)[:, :, 1])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("asked", [[0, -1], [-1], [1, 5, 6], [24, 31], list(range(0, 50, 7))])
def test_frames_are_those_of_decoding_everything(name, asked) -> None:
    """Whatever is left out: frames between two entries, and frames that no other refers to."""
    frames = all_frames(name)
    wanted = np.unique(np.array(asked) % len(frames))
    got = dict(decode_frames(clip_of(name), read_video_header(clip_of(name)), wanted))
    assert list(got) == wanted.tolist()
    assert all(np.array_equal(pixels, frames[index]) for index, pixels in got.items())


def test_spans_of_one_file_are_made_in_one_pass() -> None:
    data, sampling = clip_of("bikes.mp4"), sampling_of("qwen3_vl", 16, max_pixels=8 * 100 * 1024)
    header = read_video_header(data)
    plans = [plan_clip(count, header.fps, 272, 640, sampling, first) for first, count in ((0, 250), (40, 60), (90, 30))]
    rows = [np.empty((plan.patches, sampling.row_bytes), np.uint8) for plan in plans]
    opened = mock.Mock(wraps=av.open)
    with mock.patch.object(av, "open", opened):
        assert clips_of(data, header, plans, sampling, rows) == [None] * 3
    assert opened.call_count == 1
    for plan, got in zip(plans, rows, strict=True):
        alone = np.empty_like(got)
        clips_of(data, header, [plan], sampling, [alone])
        assert np.array_equal(got, alone)


def test_damage_costs_the_clips_that_it_is_in() -> None:
    data, header = made("h264.mp4"), read_video_header(made("h264.mp4"))
    sampling = sampling_of("qwen3_vl", 16, num_frames=4)
    plans = [plan_clip(10, header.fps, 48, 64, sampling, first) for first in (0, 36)]
    rows = [np.empty((plan.patches, sampling.row_bytes), np.uint8) for plan in plans]
    cut = data[: data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2]
    first, second = clips_of(cut, header, plans, sampling, rows)
    assert first is None and second is not None and second.reason == "truncated"
    whole = np.empty_like(rows[0])
    clips_of(data, header, plans[:1], sampling, [whole])
    assert np.array_equal(rows[0], whole)


def test_a_clip_that_does_not_decode_is_corrupt() -> None:
    data = damaged(made("h264.mp4"), 20, concealed=False)
    header = read_video_header(data)
    plan = plan_clip(50, header.fps, 48, 64, sampling_of())
    rows = np.empty((plan.patches, sampling_of().row_bytes), np.uint8)
    (reject,) = clips_of(data, header, [plan], sampling_of(), [rows])
    assert reject is not None and reject.reason == "corrupt"


def test_damage_that_a_decoder_conceals_is_concealed_as_ever() -> None:
    """Frames that were left out would be missing where it looks for something to put in their place."""
    concealed = 0
    for seed in range(24):
        data = flipped(made("h264.mp4"), 2, seed)
        with av.open(io.BytesIO(data)) as container:
            container.streams.video[0].thread_count = 1
            try:
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            except av.error.InvalidDataError:
                continue
        got = dict(decode_frames(data, read_video_header(data), np.arange(0, 50, 7)))
        assert all(np.array_equal(pixels, frames[index]) for index, pixels in got.items())
        concealed += any((pixels != all_frames("h264.mp4")[index]).any() for index, pixels in got.items())
    assert concealed > 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_frame_images_are_a_video(count) -> None:
    frames = all_frames("h264.mp4")[:count]
    for sampling, processor in (
        (sampling_of(), Qwen2VLVideoProcessor(size={"shortest_edge": 3136, "longest_edge": 12_845_056})),
        (sampling_of("qwen3_vl", 16), Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25_165_824})),
    ):
        plan, rows = images_of(frames, sampling)
        doubled = frames if count > 1 else np.repeat(frames, 2, 0)
        _, expected, grid = processed(processor, doubled)
        assert plan.grid == grid and np.array_equal(rows, expected)


@pytest.mark.parametrize("budget", [{}, {"min_pixels": 9 * 784, "max_pixels": 100 * 784}])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_frame_images_of_qwen_vl_utils_are_resized_twice(count, budget) -> None:
    frames = all_frames("carphone_pristine.mp4")[:count]
    plan, rows = images_of(frames, sampling_of(sampler="qwen_vl_utils", **budget))
    video = utils.fetch_video({"video": [Image.fromarray(frame) for frame in frames], **budget})
    result = Qwen2VLVideoProcessor()(
        videos=[video], do_resize=False, do_normalize=False, do_rescale=False, return_tensors="pt"
    )
    assert plan.grid == tuple(result["video_grid_thw"][0].tolist())
    assert np.array_equal(rows, result["pixel_values_videos"].numpy())


def images_of(frames, sampling):
    plan = plan_frames(len(frames), frames.shape[2], frames.shape[1], sampling)
    rows = np.empty((plan.patches, sampling.row_bytes), np.uint8)
    for position, pixels in enumerate(frames):
        prepare_frame(position, pixels, plan, sampling, rows)
    return plan, rows


@pytest.fixture
def guarded():
    reader = GuardedReader(1.0, start_seconds=10.0)
    yield reader
    reader.close()


def test_a_child_gives_the_same(guarded, tmp_path) -> None:
    data, sampling = made("turned.mp4"), sampling_of("qwen3_vl", 16, num_frames=7)
    header = read_video_header(data)
    (tmp_path / "a.mp4").write_bytes(data)
    for source in (data, tmp_path / "a.mp4", io.BytesIO(data)):
        again = guarded.video_header("clip", source)
        assert (again.frames, again.pts_N.tolist()) == (header.frames, header.pts_N.tolist())
        plan, rows = ours("turned.mp4", sampling)
        got = np.empty_like(rows)
        assert clips_of(source, header, [plan], sampling, [got], guarded) == [None]
        assert np.array_equal(got, rows)
    for source, reason in ((made("sound.m4a"), "unidentified"), (made("cut.mp4"), "truncated")):
        with pytest.raises(Reject) as caught:
            guarded.video_header("clip", source)
        assert caught.value.reason == reason


@pytest.mark.slow
@pytest.mark.parametrize(("point", "action"), [("decode", "exit"), ("frame", "exit"), ("decode", "sleep=100")])
def test_a_decoder_that_dies_costs_one_clip(point, action, guarded, monkeypatch, tmp_path) -> None:
    data, sampling = made("h264.mp4"), sampling_of("qwen3_vl", 16, num_frames=6)
    plan, rows = ours("h264.mp4", sampling)
    header = read_video_header(data)
    monkeypatch.setenv("VISIONBAKE_FAULT", f"{point}=bad:{action}@+{tmp_path / 'fired'}")
    got = np.empty_like(rows)
    bad = VideoFile(key="bad", source=data, header=header)
    (reject,) = prepare_clips(bad, [plan], sampling, [np.empty_like(rows)], guarded)
    assert reject is not None and reject.reason == "crash"
    assert (tmp_path / "fired").read_bytes() == b"..."
    assert clips_of(data, header, [plan], sampling, [got], guarded) == [None]
    assert np.array_equal(got, rows)


def test_a_child_that_dies_once_goes_on_where_it_was(guarded, monkeypatch, tmp_path) -> None:
    data, sampling = made("h264.mp4"), sampling_of("qwen3_vl", 16, num_frames=6)
    plan, rows = ours("h264.mp4", sampling)
    monkeypatch.setenv("VISIONBAKE_FAULT", f"frame=clip:exit@{tmp_path / 'fired'}")
    got = np.empty_like(rows)
    assert clips_of(data, read_video_header(data), [plan], sampling, [got], guarded) == [None]
    assert (tmp_path / "fired").exists() and np.array_equal(got, rows)


def test_a_long_film_has_more_time() -> None:
    header = replace(read_video_header(made("one.mp4")), duration=600.0, frames=15_000)
    assert guard_module._longer_by_length(header) == 11
    assert guard_module._longer_by_length(replace(header, frames=60)) == 2  # damaged times make no hour of it
