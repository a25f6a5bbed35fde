"""The tower on its own: encode images, print grid and tokens."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config_fields import Video, spelt_out
from ..errors import OutputError, RequestError
from ..storage.location import shown_location
from ..vision_encoder import Embedding, VisionEncoder
from .console import add_json_argument, check_file, print_json, say

if TYPE_CHECKING:
    from torch import Tensor

MAX_FPS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="FILE", help="JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF, or a video")
    parser.add_argument("--model", required=True, metavar="M", help="Hub id, local directory, or random:tiny")
    parser.add_argument("--dtype", default="auto", metavar="D", type=spelt_out, choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--min-pixels", type=int, help="of images; by default the checkpoint's own")
    parser.add_argument("--max-pixels", type=int, help="of images; by default the checkpoint's own")
    parser.add_argument("--fps", type=float, help="frames taken of a second of film; by default the family's own")
    parser.add_argument(
        "--save",
        metavar="FILE.safetensors",
        help="image_embeds, deepstack_embeds and image_grid_thw of all images; of videos video_embeds and so on",
    )
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    for name in ("min_pixels", "max_pixels"):
        if (asked := getattr(arguments, name)) is not None and asked < 1:
            raise RequestError(f"--{name.replace('_', '-')}: must be positive, not {asked}")
    check_file("--save", arguments.save)
    if (fps := arguments.fps) is not None and not 0 < fps <= MAX_FPS:
        raise RequestError(f"--fps: must be positive and at most {MAX_FPS}, not {fps}")
    for file in arguments.images:  # before anything large is loaded
        if "://" not in file and not Path(file).exists():
            raise RequestError(f"{shown_location(file)} does not exist")
    encoder = VisionEncoder.from_pretrained(
        arguments.model,
        arguments.dtype,
        min_pixels=arguments.min_pixels,
        max_pixels=arguments.max_pixels,
        video=Video(fps=fps),
    )
    embeddings = encoder.encode(arguments.images)
    rows = [
        {
            "image": image,
            "grid_thw": list(embedding.grid_thw),
            "num_tokens": embedding.image_embeds.shape[0],
            "hidden_size": embedding.image_embeds.shape[1],
            **({"streams": len(embedding.deepstack_embeds)} if embedding.deepstack_embeds else {}),
            **({"timestamps": list(embedding.video.timestamps)} if embedding.video else {}),
            "norm_mean": round(float(embedding.image_embeds.float().norm(dim=-1).mean()), 4),
        }
        for image, embedding in zip(arguments.images, embeddings, strict=True)
    ]
    if arguments.save:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = _tensors(embeddings)
        try:
            save_file(tensors, arguments.save)
        except (OSError, SafetensorError) as error:
            raise OutputError(f"--save {arguments.save}: {error}") from error
    if arguments.json:
        print_json(rows)
        return 0
    for row in rows:
        say(
            f"{row['image']}: grid_thw {tuple(row['grid_thw'])}, {row['num_tokens']} tokens of {row['hidden_size']}, "
            f"mean norm {row['norm_mean']}"
        )
    return 0


def _tensors(embeddings: Sequence[Embedding]) -> dict[str, Tensor]:
    """The tensors that are saved: of all images together, and of all videos."""
    import torch

    tensors: dict[str, Tensor] = {}
    for media, deepstack in (("image", "deepstack_embeds"), ("video", "deepstack_video_embeds")):
        chosen = [one for one in embeddings if (one.video is not None) == (media == "video")]
        if not chosen:
            continue
        tensors[f"{media}_embeds"] = torch.cat([one.image_embeds for one in chosen])
        tensors[f"{media}_grid_thw"] = torch.tensor([one.grid_thw for one in chosen])
        if chosen[0].deepstack_embeds:  # [streams, all tokens, width]
            tensors[deepstack] = torch.cat([torch.stack(one.deepstack_embeds) for one in chosen], 1)
    return tensors
