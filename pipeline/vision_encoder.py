"""The tower on its own, in one process: images and videos in, tokens out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from . import rejects
from .config_fields import Video, spelt_out
from .encode.dtypes import split_streams
from .encode.unit import UnitEncoder
from .errors import RequestError
from .grid import Geometry
from .index.headers import DECODE_ERRORS
from .index.units import Unit
from .index.video_rules import resolve_sampling
from .index.video_sampling import plan_clip
from .index.video_times import second_per_grid, timestamps
from .prepare.decode import to_rgb
from .prepare.guard import ImageReader
from .prepare.patches import check_size, patches_of_pixels, prepare_image
from .prepare.unit import PreparedSample, PreparedUnit
from .rejects import Reject
from .source.media import BOTH, is_video
from .source.sample import IndexedSample
from .storage.files import read_input
from .storage.held import read_or_leave
from .storage.large import Encoded
from .storage.location import shown_location
from .tower.checkpoint import Checkpoint
from .tower.device import DTYPES, choose_device, choose_dtype, device_named, dtype_name
from .tower.geometry import geometry_of
from .tower.pack_plan import Grid
from .tower.tower import Tower

DEFAULT_VIDEO = Video()
Read = TypeVar("Read")
ImageLike = str | os.PathLike[str] | bytes | Image.Image


@dataclass(frozen=True, kw_only=True)
class VideoTiming:
    """The times of a video's tokens, in seconds.

    Attributes:
        frames: those that were taken; `times`: when each is shown.
        timestamps: of each temporal patch, as the family's language model is told; `second_per_grid` likewise.
        fps, duration: of the file.
    """

    frames: tuple[int, ...]
    times: tuple[float, ...]
    timestamps: tuple[float, ...]
    second_per_grid: float
    fps: float
    duration: float


@dataclass(frozen=True, kw_only=True)
class _Patches:
    """One image or video as the encoder takes it."""

    patches_PC: np.ndarray
    grid: Grid
    video: VideoTiming | None = None


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The tokens of one image, or of one video.

    Attributes:
        image_embeds: [num_tokens, width of the language model], in the encoder's dtype, on the CPU.
        deepstack_embeds: a tensor of the same shape for each further stream, in the order in which the language model
            adds them; none of most families.
        grid_thw: frames (of a video, frame pairs), rows and columns of patches.
        video: of a video, when its frames are shown.
    """

    image_embeds: Tensor
    grid_thw: Grid
    deepstack_embeds: tuple[Tensor, ...] = ()
    video: VideoTiming | None = None


class VisionEncoder:
    """Encodes images and videos as `visionbake run` does.

    Use `from_pretrained`.
    """

    def __init__(self, tower: Tower, geometry: Geometry, max_patches: int) -> None:
        self.tower, self.geometry = tower, geometry
        stored = dtype_name(tower.dtype)
        self._encoder = UnitEncoder(
            tower, max_patches=max_patches, stored_dtype=stored, threads=torch.get_num_threads()
        )

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        *,
        revision: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_patches: int = 32_768,
        max_image_pixels: int = 178_956_970,
        video: Video = DEFAULT_VIDEO,
    ) -> VisionEncoder:
        """Loads a tower.

        Args:
            path: a local directory, a Hub id, or `random:SIZE`.
            dtype: bfloat16 or float32, of weights, computation and result; auto: see `choose_dtype`.
            min_pixels, max_pixels: None for the checkpoint's own.
            device: by default the GPU where there is one.
            video: which frames of videos are taken, and how large they are.

        Raises:
            RequestError: the checkpoint or an argument is wrong; the message says how.
        """
        chosen = choose_device("auto") if device is None else device_named(device)
        if isinstance(dtype, str):
            dtype = spelt_out(dtype)
            if dtype not in ("auto", *DTYPES):
                raise RequestError(f"dtype: must be auto, bfloat16 or float32, not {dtype!r}")
            dtype = choose_dtype(dtype, chosen)
        checkpoint = Checkpoint(path, revision)
        geometry = geometry_of(
            checkpoint.config, min_pixels=min_pixels, max_pixels=max_pixels, max_image_pixels=max_image_pixels
        )
        config = checkpoint.config
        sampling = resolve_sampling(video, config.model_type, config.patch_size, config.merge_size)
        geometry = replace(geometry, video=sampling)
        tower = Tower(checkpoint, dtype, chosen, compile_blocks=chosen.type == "cuda")
        return cls(tower, geometry, max_patches)

    def encode(self, images: Sequence[ImageLike]) -> list[Embedding]:
        """Encodes images and videos, packed together.

        Args:
            images: paths, encoded bytes or PIL images; a path or bytes may be of a video.

        Returns:
            One `Embedding` each, in order.

        Raises:
            RequestError: an image cannot be read or used; the message names it and the reject reason.
        """
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise RequestError("encode takes a list of images; put the one image into a list")
        embeddings: list[Embedding] = []
        for number, found in enumerate(self.encode_each(images)):
            if isinstance(found, Reject):
                raise RequestError(f"{_name(images[number], number)}: {found.reason}: {found.message}") from found
            embeddings.append(found)
        return embeddings

    def encode_each(self, images: Sequence[ImageLike]) -> list[Embedding | Reject]:
        """Encodes what can be encoded; one that is damaged has a `Reject` in its place, which says why.

        Raises:
            RequestError: a file cannot be read.
        """
        prepared: dict[int, _Patches] = {}
        results: dict[int, Embedding | Reject] = {}
        for number, image in enumerate(images):
            try:
                prepared[number] = self._prepare(image, number)
            except Reject as reject:
                results[number] = reject
        if prepared:
            results |= self._encode({number: _name(images[number], number) for number in prepared}, prepared)
        return [results[number] for number in range(len(images))]

    def _encode(self, names: dict[int, str], found: dict[int, _Patches]) -> dict[int, Embedding]:
        """The tokens of what is prepared, by its number."""
        order = sorted(found, key=lambda number: found[number].video is not None)  # videos behind images
        encoded = self._encoder.encode(_unit_of([(names[number], found[number]) for number in order]))
        starts = [0, *encoded.ends_N.tolist()]
        streams_SMO = split_streams(encoded.tokens_MO, self.tower.config.streams).unbind(1)
        embeddings: dict[int, Embedding] = {}
        for number, first, last in zip(order, starts[:-1], starts[1:], strict=True):
            main_MO, *further = (one[first:last].clone(memory_format=torch.contiguous_format) for one in streams_SMO)
            embeddings[number] = Embedding(
                image_embeds=main_MO,
                grid_thw=found[number].grid,
                deepstack_embeds=tuple(further),
                video=found[number].video,
            )
        return embeddings

    def _prepare(self, image: ImageLike, number: int) -> _Patches:
        """Raises Reject: it has no tokens; RequestError: it cannot be read."""
        name = _name(image, number)
        if isinstance(image, Image.Image):
            check_size(image.width, image.height, self.geometry)
            try:
                pixels = np.asarray(to_rgb(ImageOps.exif_transpose(image)))
            except DECODE_ERRORS as error:
                raise Reject(rejects.CORRUPT, str(error) or type(error).__name__) from error
            return _of_image(patches_of_pixels(pixels, self.geometry))
        if not isinstance(image, bytes) and is_video(os.fspath(image), BOTH):
            return self._prepare_video(name, _read(image, read_or_leave))
        data = image if isinstance(image, bytes) else _read(image, read_input)
        try:
            return _of_image(prepare_image(data, self.geometry))
        except Reject as reject:
            if reject.reason != rejects.UNIDENTIFIED:
                raise
            try:
                return self._prepare_video(name, data)
            except Reject as other:
                raise (reject if other.reason == rejects.UNIDENTIFIED else other) from other

    def _prepare_video(self, name: str, data: Encoded) -> _Patches:
        """Raises Reject."""
        from .prepare.video import VideoFile, prepare_clips  # it brings av

        sampling, reader = self.geometry.video, ImageReader()
        if sampling is None:
            raise Reject(rejects.UNIDENTIFIED, "a video, and this encoder was made for images alone")
        header = reader.video_header(name, data)
        check_size(header.width, header.height, self.geometry)
        try:
            plan = plan_clip(header.frames, header.fps, header.height, header.width, sampling)
        except ValueError as error:
            raise Reject(rejects.ASPECT_RATIO, str(error)) from error
        rows_PC = np.empty((plan.patches, sampling.row_bytes), np.uint8)
        file = VideoFile(key=name, source=data, header=header)
        for reject in prepare_clips(file, [plan], sampling, [rows_PC], reader):
            if reject is not None:
                raise reject
        timing = VideoTiming(
            frames=tuple(plan.frames.tolist()),
            times=tuple(header.times()[plan.frames].tolist()),
            timestamps=tuple(timestamps(plan.frames, header.fps)),
            second_per_grid=second_per_grid(len(plan.frames), header.frames, header.fps, sampling),
            fps=header.fps,
            duration=header.duration,
        )
        return _Patches(patches_PC=rows_PC, grid=plan.grid, video=timing)


def _of_image(prepared: tuple[np.ndarray, Grid]) -> _Patches:
    return _Patches(patches_PC=prepared[0], grid=prepared[1])


def _unit_of(named: Sequence[tuple[str, _Patches]]) -> PreparedUnit:
    """The unit that is encoded: images, and behind them videos, each with its name."""
    images = [one.patches_PC for _, one in named if one.video is None]
    videos = [one.patches_PC for _, one in named if one.video is not None]
    patches = sum(map(len, images + videos))
    return PreparedUnit(
        unit=Unit(part=0, number=0, first=0, count=len(named), tokens=0, patches=patches),
        samples=tuple(
            PreparedSample(facts=IndexedSample(key=name, source=""), status=rejects.OK, image=number)
            for number, (name, _) in enumerate(named)
        ),
        grids=tuple(one.grid for _, one in named),
        patches_PC=np.concatenate(images) if images else np.empty((0, 0), np.uint8),
        clip_patches_PC=np.concatenate(videos) if videos else None,
        clips=len(videos),
    )


def _read(path: str | os.PathLike[str], read: Callable[[str], Read]) -> Read:
    try:
        return read(os.fspath(path))
    except FileNotFoundError as error:
        raise RequestError(f"{shown_location(os.fspath(path))} does not exist") from error
    except OSError as error:
        raise RequestError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error


def _name(image: ImageLike, number: int) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
