"""Items: one image or video of an output as a reader gives it, and batches of them. M tokens, O values of a row.

A stored row is `[main | stream 0 | stream 1 | …]`. An item has the main stream as `image_embeds` and the further ones,
where there are any, as the list `deepstack_embeds`. A video's item has the same names: its tokens are `image_embeds`,
frame pair after frame pair, and the first number of its `grid_thw` counts the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..encode.dtypes import split_streams

Item = dict[str, Any]
EMBEDS, DEEPSTACK, GRID = "image_embeds", "deepstack_embeds", "grid_thw"
IMAGE, VIDEO = "image", "video"


def item_of(rows_MO: Tensor, streams: int) -> Item:
    """The streams of whole rows, each a tensor of its own: whoever keeps one of them keeps no more."""
    if not streams:
        return {EMBEDS: rows_MO}
    main_MO, *further = (one.contiguous() for one in split_streams(rows_MO, streams).unbind(1))
    return {EMBEDS: main_MO, DEEPSTACK: further}


def medium_of(item: Item) -> str:
    """`image` or `video`. Outputs of images alone do not say it."""
    return item.get("media") or IMAGE


def by_medium(items: Sequence[Item]) -> dict[str, list[Item]]:
    """The images and the videos among items, each in their order; only media that there are."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(medium_of(item), []).append(item)
    return found


def rows_of(item: Item) -> Tensor:
    """Whole rows [M, O], as they are stored: what vLLM takes of a model with further streams."""
    further = item.get(DEEPSTACK)
    return torch.cat([item[EMBEDS], *further], -1) if further else item[EMBEDS]


def streams_of(items: Sequence[Item]) -> int:
    """How many further streams each has. Items of one output have equally many."""
    return len(items[0].get(DEEPSTACK, ())) if items else 0


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """A batch: `image_embeds` of all items one after the other, `image_grid_thw` [n, 3], the rest as lists.

    `deepstack_embeds`, where items have it, is a list of one tensor a stream, of all items as `image_embeds` is.
    Videos stand among images in the order of the items; `media`, of outputs that have any, says which they are.
    """
    batch: dict[str, Any] = {
        EMBEDS: torch.cat([item[EMBEDS] for item in items]),
        "image_grid_thw": torch.stack([item[GRID] for item in items]),
    }
    if streams := streams_of(items):
        batch[DEEPSTACK] = [torch.cat([item[DEEPSTACK][level] for item in items]) for level in range(streams)]
    for name in items[0]:
        if name not in (EMBEDS, DEEPSTACK, GRID):
            batch[name] = [item[name] for item in items]
    return batch
