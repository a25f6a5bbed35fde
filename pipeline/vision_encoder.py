"""The tower on its own, in one process: images in, tokens out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from . import rejects
from .encode.dtypes import split_streams
from .encode.unit import UnitEncoder
from .errors import RequestError
from .grid import Geometry
from .index.headers import DECODE_ERRORS
from .index.units import Unit
from .prepare.decode import to_rgb
from .prepare.patches import check_size, patches_of_pixels, prepare_image
from .prepare.unit import PreparedSample, PreparedUnit
from .rejects import Reject
from .source.sample import IndexedSample
from .tower.checkpoint import Checkpoint
from .tower.device import DTYPES, choose_device, choose_dtype, dtype_name
from .tower.geometry import geometry_of
from .tower.pack_plan import Grid
from .tower.tower import Tower

ImageLike = str | os.PathLike[str] | bytes | Image.Image


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """One image's tokens.

    Attributes:
        image_embeds: [num_tokens, width of the language model], in the encoder's dtype, on the CPU.
        deepstack_embeds: a tensor of the same shape for each further stream, in the order in which the language model
            adds them; none of most families.
        grid_thw: frames, rows and columns of patches.
    """

    image_embeds: Tensor
    grid_thw: Grid
    deepstack_embeds: tuple[Tensor, ...] = ()


class VisionEncoder:
    """Encodes images as `visionbake run` does.

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
    ) -> VisionEncoder:
        """Loads a tower.

        Args:
            path: a local directory, a Hub id, or `random:SIZE`.
            dtype: bfloat16 or float32, of weights, computation and result; auto: see `choose_dtype`.
            min_pixels, max_pixels: None for the checkpoint's own.
            device: by default the GPU where there is one.

        Raises:
            RequestError: the checkpoint or an argument is wrong; the message says how.
        """
        chosen = choose_device("auto") if device is None else torch.device(device)
        if isinstance(dtype, str):
            if dtype not in ("auto", *DTYPES):
                raise RequestError(f"dtype: must be auto, bfloat16 or float32, not {dtype!r}")
            dtype = choose_dtype(dtype, chosen)
        if chosen.type == "cuda" and not torch.cuda.is_available():
            raise RequestError(
                f"device: {device}: torch {torch.__version__} sees no GPU here; device='cpu' encodes without"
            )
        checkpoint = Checkpoint(path, revision)
        geometry = geometry_of(
            checkpoint.config, min_pixels=min_pixels, max_pixels=max_pixels, max_image_pixels=max_image_pixels
        )
        tower = Tower(checkpoint, dtype, chosen, compile_blocks=chosen.type == "cuda")
        return cls(tower, geometry, max_patches)

    def encode(self, images: Sequence[ImageLike]) -> list[Embedding]:
        """Encodes images, packed together.

        Args:
            images: paths, encoded bytes or PIL images.

        Returns:
            One `Embedding` each, in order.

        Raises:
            RequestError: an image cannot be read or used; the message names it and the reject reason.
        """
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise RequestError("encode takes a list of images; put the one image into a list")
        patches, grids = [], []
        for number, image in enumerate(images):
            patches_PC, grid = self._prepare(image, number)
            patches.append(patches_PC)
            grids.append(grid)
        if not grids:
            return []
        prepared = PreparedUnit(
            unit=Unit(part=0, number=0, first=0, count=len(grids), tokens=0, patches=sum(map(len, patches))),
            samples=tuple(
                PreparedSample(
                    facts=IndexedSample(key=_name(image, number), source=""), status=rejects.OK, image=number
                )
                for number, image in enumerate(images)
            ),
            grids=tuple(grids),
            patches_PC=np.concatenate(patches),
        )
        encoded = self._encoder.encode(prepared)
        starts = [0, *encoded.ends_N.tolist()]
        streams_SMO = split_streams(encoded.tokens_MO, self.tower.config.streams).unbind(1)
        embeddings = []
        for first, last, grid in zip(starts[:-1], starts[1:], grids, strict=True):
            main_MO, *further = (one[first:last].clone(memory_format=torch.contiguous_format) for one in streams_SMO)
            embeddings.append(Embedding(image_embeds=main_MO, grid_thw=grid, deepstack_embeds=tuple(further)))
        return embeddings

    def _prepare(self, image: ImageLike, number: int) -> tuple[np.ndarray, Grid]:
        name = _name(image, number)
        try:
            if isinstance(image, Image.Image):
                check_size(image.width, image.height, self.geometry)
                try:
                    pixels = np.asarray(to_rgb(ImageOps.exif_transpose(image)))
                except DECODE_ERRORS as error:
                    raise Reject(rejects.CORRUPT, str(error) or type(error).__name__) from error
                return patches_of_pixels(pixels, self.geometry)
            data = image if isinstance(image, bytes) else _read(image)
            return prepare_image(data, self.geometry)
        except Reject as reject:
            raise RequestError(f"{name}: {reject.reason}: {reject.message}") from reject


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise RequestError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error


def _name(image: ImageLike, number: int) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
