"""The tower on its own: encode images, print grid and tokens."""

from __future__ import annotations

import argparse

from ..errors import OutputError, RequestError
from ..vision_encoder import VisionEncoder
from .console import add_json_argument, check_file, print_json, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF")
    parser.add_argument("--model", required=True, metavar="M", help="Hub id, local directory, or random:tiny")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--min-pixels", type=int, help="by default the checkpoint's own")
    parser.add_argument("--max-pixels", type=int, help="by default the checkpoint's own")
    parser.add_argument(
        "--save", metavar="FILE.safetensors", help="image_embeds, deepstack_embeds and image_grid_thw of all images"
    )
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    for name in ("min_pixels", "max_pixels"):
        if (asked := getattr(arguments, name)) is not None and asked < 1:
            raise RequestError(f"--{name.replace('_', '-')}: must be positive, not {asked}")
    check_file("--save", arguments.save)
    encoder = VisionEncoder.from_pretrained(
        arguments.model, arguments.dtype, min_pixels=arguments.min_pixels, max_pixels=arguments.max_pixels
    )
    embeddings = encoder.encode(arguments.images)
    rows = [
        {
            "image": image,
            "grid_thw": list(embedding.grid_thw),
            "num_tokens": embedding.image_embeds.shape[0],
            "hidden_size": embedding.image_embeds.shape[1],
            **({"streams": len(embedding.deepstack_embeds)} if embedding.deepstack_embeds else {}),
            "norm_mean": round(float(embedding.image_embeds.float().norm(dim=-1).mean()), 4),
        }
        for image, embedding in zip(arguments.images, embeddings, strict=True)
    ]
    if arguments.save:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {
            "image_embeds": torch.cat([embedding.image_embeds for embedding in embeddings]),
            "image_grid_thw": torch.tensor([embedding.grid_thw for embedding in embeddings]),
        }
        if embeddings[0].deepstack_embeds:  # [streams, all tokens, width]
            tensors["deepstack_embeds"] = torch.cat([torch.stack(one.deepstack_embeds) for one in embeddings], 1)
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
