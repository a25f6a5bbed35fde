"""Pictures of an output's samples as the tower saw them, with their patches, and the norms of their tokens.

Of a clip a strip: the first frame of some of its temporal patches, and the norms of each, in colours that they share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw

from ... import rejects
from ...encode.dtypes import STORED, is_scaled, norms_of, restore, scale_bytes, scale_of
from ...errors import OutputError, SourceError
from ...grid import Int64
from ...index.read import find_index_row
from ...index.video_facts import header_of
from ...output.info import read_dataset
from ...output.layout import unit_id_of
from ...prepare.decode import Uint8
from ...prepare.guard import GuardedReader
from ...prepare.patches import resize
from ...sampling import TEMPORAL
from ...source.formats import format_named
from ...source.frame_bytes import split_frames
from ...source.plan import Plan
from ...source.sample import IndexedSample
from ...storage.files import AnyPath, read_input, small_file
from ...storage.large import Encoded

SHOWN_PIXELS = 400  # the longer side of an image on the page
STRIP_FRAMES, STRIP_PIXELS = 6, 240  # of a clip; the longer side of each
PARTS_SEARCHED = 64  # for a reject, whose row does not name its shard
LEAST_STEP = 4.0  # pixels between edges
EDGE = (255, 255, 255, 70)


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Norms of tokens as an image, a pixel each, from dark to bright, and what its darkest and brightest are."""

    image: Image.Image
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A frame of a clip that was taken, when it is shown, and the norms of its temporal patch."""

    frame: Image.Image
    seconds: float
    heat: Image.Image


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Some frames of a clip, and which norms the darkest and the brightest pixel stand for."""

    shots: list[Shot]
    low: float
    high: float


class Pictures:
    """Reads images from the source and norms from the output. A row is one of `samples`, by column."""

    def __init__(self, output: AnyPath) -> None:
        config = read_dataset(output).config
        self._output, self._plan = output, Plan(output)
        self._info, self._dtype = read_dataset(output), config["output"]["dtype"]
        assert self._plan.planned is not None
        self._reader = format_named(self._plan.planned.format).reader(self._plan.planned.columns)
        self._images = GuardedReader(config["limits"]["sample_seconds"])

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *error: object) -> None:
        self._images.close()
        self._reader.close()

    def heat(self, row: dict[str, Any]) -> Heat:
        """The L2 norms of an image's tokens. Raises OutputError, OSError."""
        heats, low, high = self._heats(row)
        return Heat(image=heats[0], low=low, high=high)

    def _heats(self, row: dict[str, Any]) -> tuple[list[Image.Image], float, float]:
        """A map for each temporal patch, in the same colours, and the least and the largest norm."""
        from matplotlib import colormaps

        merge = self._info.merge_size
        pairs, height, width = row["grid_thw"]
        norms = self._norms(row)
        low, high = float(norms.min()), float(norms.max())
        colours = colormaps["viridis"]((norms - low) / max(high - low, 1e-9))[..., :3]
        maps = (colours * 255).astype(np.uint8).reshape(pairs, height // merge, width // merge, 3)
        return [Image.fromarray(one) for one in maps], low, high

    def strip(self, row: dict[str, Any]) -> Strip:
        """Some frames of an accepted clip, in even steps.

        Raises:
            KeyError, Reject, SourceError, OSError: the clip cannot be read any more.
            OutputError: its tokens cannot.
        """
        sample, data = self._bytes_of(row)
        heats, low, high = self._heats(row)
        chosen = np.linspace(0, len(heats) - 1, min(len(heats), STRIP_FRAMES)).round().astype(int).tolist()
        frames = np.array([row["frames"][TEMPORAL * pair] for pair in chosen], np.int64)
        pixels = self._frames(sample, data, frames)
        shots = [
            Shot(
                frame=self._with_patches(pixels[int(index)], row, STRIP_PIXELS),
                seconds=float(row["times"][TEMPORAL * pair] if row["times"] else row["timestamps"][pair]),
                heat=heats[pair],
            )
            for pair, index in zip(chosen, frames, strict=True)
        ]
        return Strip(shots=shots, low=low, high=high)

    def _frames(self, sample: IndexedSample, data: Encoded, frames: Int64) -> dict[int, Uint8]:
        """Frames of a clip by their index. Raises Reject."""
        if sample.of_frames:
            assert isinstance(data, bytes)
            wanted = set(frames.tolist())
            stills = ((index, one) for index, one in enumerate(split_frames(data)) if index in wanted)
            return {index: self._images.still(sample.key, one) for index, one in stills}
        taken: dict[int, Uint8] = {}

        def take(index: int, pixels: Uint8) -> None:
            taken[index] = pixels.copy()

        self._images.frames(sample.key, data, header_of(sample), np.unique(frames), take)
        return taken

    def _norms(self, row: dict[str, Any]) -> np.ndarray:
        """Computes one row's norms, of its main stream, from its own bytes: float32 [num_tokens]."""
        shard, first, last = self._output / row["shard"], row["offset"], row["offset"] + row["length"]
        data = read_input(str(shard), first, last)
        if len(data) != row["length"]:
            raise OutputError(f"{shard}: {len(data)} of {row['length']} bytes at {first}")
        values_MO = torch.frombuffer(bytearray(data), dtype=STORED[self._dtype]).view(row["num_tokens"], -1)
        streams, scale_MS = self._info.streams, None
        if is_scaled(self._dtype) and shard.suffix == ".tar":  # they lie behind the embedding
            behind = read_input(str(shard), last, last + scale_bytes(len(values_MO), streams))
            scale_MS = scale_of(behind, streams)
        elif is_scaled(self._dtype):
            wanted = [("source", "=", row["source"]), ("key", "=", row["key"])]
            scales = pq.read_table(small_file(shard), columns=["scale"], filters=wanted).column("scale")
            scale_MS = scale_of(scales[0].as_py(), streams)
        return np.asarray(norms_of(restore(values_MO, scale_MS), streams)[:, 0])

    def seen(self, row: dict[str, Any]) -> Image.Image:
        """The image as it was resized, with the edges of its patches; of a clip that is a reject, its first frame.

        A reject is shown as it is.

        Raises:
            KeyError, Reject, SourceError, OSError: it cannot be read any more.
        """
        sample, data = self._bytes_of(row)
        pixels = self._pixels(sample, data)
        if row["status"] != rejects.OK:
            image = Image.fromarray(pixels)
            image.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
            return image
        return self._with_patches(pixels, row, SHOWN_PIXELS)

    def _with_patches(self, pixels: Uint8, row: dict[str, Any], longer_side: int) -> Image.Image:
        planes = resize(pixels, row["resized_height"], row["resized_width"])
        scale = min(1.0, longer_side / max(row["resized_width"], row["resized_height"]))
        size = max(1, round(row["resized_width"] * scale)), max(1, round(row["resized_height"] * scale))
        image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).resize(size).convert("RGBA")
        lines = Image.new("RGBA", size, (0, 0, 0, 0))
        drawing = ImageDraw.Draw(lines)
        step = self._info.patch_size * scale
        step *= max(1, math.ceil(LEAST_STEP / step))  # of a large image every second patch's edge, or every fourth
        for edge in np.arange(step, max(size), step).tolist():
            drawing.line([(edge, 0), (edge, size[1])], fill=EDGE)
            drawing.line([(0, edge), (size[0], edge)], fill=EDGE)
        return Image.alpha_composite(image, lines).convert("RGB")

    def _pixels(self, sample: IndexedSample, data: Encoded) -> Uint8:
        """Raises Reject."""
        if sample.video is None:
            assert isinstance(data, bytes)
            return self._images.pixels(sample.key, data, sample.orientation or 1)
        return self._frames(sample, data, np.zeros(1, np.int64))[0]

    def _bytes_of(self, row: dict[str, Any]) -> tuple[IndexedSample, Encoded]:
        first = unit_id_of(row["shard"]).part if row["shard"] else None
        known = range(min(self._plan.num_parts, PARTS_SEARCHED)) if first is None else [first]
        for number in known:
            sample = find_index_row(self._plan.index_path(number), row["source"], row["key"])
            if sample is not None:
                data = self._reader.read(self._plan.part(number), [sample]).encoded[0]
                if data is None:
                    raise SourceError(f"{sample.path} has vanished since it was indexed")
                return sample, data
        raise KeyError(f"{row['key']}: not found in the plan's first {PARTS_SEARCHED} parts")
