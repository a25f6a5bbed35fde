"""Pictures of an output's samples: the image as the tower saw it, with its patches, and the norms of its tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw

from ... import rejects
from ...encode.dtypes import STORED, is_scaled, norms_of, restore, scale_bytes, scale_of
from ...errors import OutputError, SourceError
from ...index.read import find_index_row
from ...index.video_facts import header_of, plan_of
from ...output.info import read_dataset
from ...output.layout import unit_id_of
from ...prepare.decode import Uint8
from ...prepare.guard import GuardedReader
from ...prepare.patches import resize
from ...source.formats import format_named
from ...source.frame_bytes import split_frames
from ...source.plan import Plan
from ...source.sample import IndexedSample
from ...storage.files import AnyPath, read_input, small_file
from ...storage.large import Encoded

SHOWN_PIXELS = 400  # the longer side of an image on the page
PARTS_SEARCHED = 64  # for a reject, whose row does not name its shard
LEAST_STEP = 4.0  # pixels between edges
EDGE = (255, 255, 255, 70)


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

    def heat(self, row: dict[str, Any]) -> Image.Image:
        """The L2 norms of the tokens, a pixel each, from dark to bright. Raises OutputError, OSError."""
        from matplotlib import colormaps

        merge = self._info.merge_size
        pairs, height, width = row["grid_thw"]  # of a clip, frame pair under frame pair
        norms = self._norms(row)
        low, high = float(norms.min()), float(norms.max())
        colours = colormaps["viridis"]((norms - low) / max(high - low, 1e-9))[..., :3]
        return Image.fromarray((colours * 255).astype(np.uint8).reshape(pairs * height // merge, width // merge, 3))

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
        """The image, or a clip's first frame that was taken, as it was resized, with the edges of its patches.

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
        planes = resize(pixels, row["resized_height"], row["resized_width"])
        scale = min(1.0, SHOWN_PIXELS / max(row["resized_width"], row["resized_height"]))
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
        if sample.of_frames:
            assert isinstance(data, bytes)
            return self._images.still(sample.key, next(split_frames(data)))
        assert sample.width is not None and sample.height is not None
        plan = plan_of(sample.video, sample.width, sample.height, self._info.geometry)
        taken: list[Uint8] = []
        self._images.frames(
            sample.key, data, header_of(sample), plan.frames[:1], lambda index, pixels: taken.append(pixels.copy())
        )
        return taken[0]

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
