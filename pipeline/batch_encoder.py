"""The tower as a step of a Ray Data pipeline, or of anything else that hands over batches as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from .encode.dtypes import array_of
from .rejects import Reject
from .vision_encoder import Embedding, ImageLike, VisionEncoder

Columns = dict[str, Any]


class BatchEncoder:
    """A class for `map_batches` that adds the tokens of a column of images or videos to a batch.

    `dataset.map_batches(BatchEncoder, fn_constructor_args=[model], fn_constructor_kwargs={"column": "path"},
    batch_size=64, concurrency=1, num_gpus=1)`. The tower is loaded once an actor.

    Added are `image_embeds`, an array [M, W] a row (bfloat16 as uint16, since NumPy has none; it is the dtype that
    `torch.from_numpy(…).view(torch.bfloat16)` takes), `grid_thw` int64 [n, 3], and of a model with further streams
    `deepstack_embeds` [S, M, W]. An image that is damaged costs its own row alone: no tokens, a grid of zeros, and
    `error` says the reason; it is "" of all others.

    Args:
        model: a local directory, a Hub id, or `random:SIZE`.
        column: paths, encoded bytes, or pixels uint8 [H, W, 3] as `ray.data.read_images` gives them.
        options: as of `VisionEncoder.from_pretrained`. With `video`, rows also have `timestamps` (an array of seconds)
            and `second_per_grid` (NaN of an image).

    Raises:
        RequestError: the checkpoint or an argument is wrong, or a file cannot be read.
    """

    def __init__(self, model: str, *, column: str = "bytes", **options: Any) -> None:
        self.column, self._timed = column, "video" in options
        self.encoder = VisionEncoder.from_pretrained(model, **options)

    def __call__(self, batch: Columns) -> Columns:
        found = self.encoder.encode_each([_image(value) for value in batch[self.column]])
        tower = self.encoder.tower
        none = array_of(torch.empty((0, tower.config.out_width), dtype=tower.dtype))
        rows = [_columns(one, none, tower.config.streams, timed=self._timed) for one in found]
        added: Columns = {name: _column([row[name] for row in rows]) for name in (rows[0] if rows else ())}
        return dict(batch) | added


def _image(value: Any) -> ImageLike:
    return Image.fromarray(value) if isinstance(value, np.ndarray) else value


def _column(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Values of a column; arrays of several shapes, or of what may be several shapes in another batch, as objects."""
    if not isinstance(values[0], np.ndarray) or values[0].shape == (3,):
        return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _columns(found: Embedding | Reject, none: npt.NDArray[Any], streams: int, *, timed: bool) -> Columns:
    """Returns what one row gets."""
    if isinstance(found, Reject):
        tokens, further = none, [none] * streams
        row: Columns = {"grid_thw": np.zeros(3, np.int64), "error": f"{found.reason}: {found.message}"}
    else:
        tokens, further = array_of(found.image_embeds), [array_of(one) for one in found.deepstack_embeds]
        row = {"grid_thw": np.array(found.grid_thw, np.int64), "error": ""}
    row["image_embeds"] = tokens
    if streams:
        row["deepstack_embeds"] = np.stack(further)
    if timed:
        video = None if isinstance(found, Reject) else found.video
        row["timestamps"] = np.array(video.timestamps if video else (), np.float64)
        row["second_per_grid"] = video.second_per_grid if video else np.nan
    return row
