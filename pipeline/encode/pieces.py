"""Pieces: what is packed. An image is one; a clip is one, or several along time where it is larger than a forward.

Frames never attend to each other, and a clip's tokens stand frame pair after frame pair: so a piece's patches and
tokens lie together. Images and clips share no pack: a pack's rows are of one width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..grid import offsets
from ..tower.pack_plan import Grid
from .pack import Size, pack_images


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some of the frame pairs of a distinct image or clip; of an image its one frame.

    Attributes:
        image: its number among the unit's distinct ones.
        grid: of the piece.
        first_row: its first patch among those of its medium.
        first_patch: the same among all of the unit's: its first token, times merge_size².
        is_last: whether no other piece of the same one follows.
    """

    image: int
    grid: Grid
    is_clip: bool
    first_row: int
    first_patch: int
    is_last: bool

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def size(self) -> Size:
        """Its size to the packer."""
        return Size(patches=self.patches, frame_patches=self.grid[1] * self.grid[2])

    def halves(self) -> list[Piece]:
        """The same frame pairs in two pieces; itself where there is one pair."""
        t = self.grid[0]
        return self._cut([t // 2, t - t // 2]) if t > 1 else [self]

    def _cut(self, lengths: Sequence[int]) -> list[Piece]:
        _, h, w = self.grid
        starts = offsets(lengths).tolist()
        return [
            Piece(
                image=self.image,
                grid=(length, h, w),
                is_clip=self.is_clip,
                first_row=self.first_row + start * h * w,
                first_patch=self.first_patch + start * h * w,
                is_last=self.is_last and number == len(lengths) - 1,
            )
            for number, (start, length) in enumerate(zip(starts, lengths, strict=False))
        ]

    def within(self, budget: int) -> list[Piece]:
        """The same frame pairs in pieces of about equal length, within a budget of patches where one pair is."""
        t, h, w = self.grid
        count = -(-t // max(1, budget // (h * w)))
        return self._cut([t * (number + 1) // count - t * number // count for number in range(count)])


def pieces_of(grids: Sequence[Grid], clips: int, max_patches: int) -> list[Piece]:
    """Cuts a unit's distinct images and clips into what is packed.

    Args:
        clips: how many of the grids are of clips: the last ones.
        max_patches: of one forward.
    """
    patches = [t * h * w for t, h, w in grids]
    starts, images = offsets(patches).tolist(), len(grids) - clips
    whole = [
        Piece(
            image=number,
            grid=grid,
            is_clip=number >= images,
            first_row=start - (starts[images] if number >= images else 0),
            first_patch=start,
            is_last=True,
        )
        for number, (grid, start) in enumerate(zip(grids, starts, strict=False))
    ]
    return [piece for one in whole for piece in (one.within(max_patches) if one.is_clip else [one])]


def pack_pieces(pieces: Sequence[Piece], budget: int, linear_patches: int) -> list[list[Piece]]:
    """Chooses the forwards of one unit, as `pack_images` does: first those of images, then those of clips."""
    packs: list[list[Piece]] = []
    for is_clip in (False, True):
        same = [piece for piece in pieces if piece.is_clip is is_clip]
        chosen = pack_images([piece.size for piece in same], budget, linear_patches)
        packs += [[same[number] for number in pack] for pack in chosen]
    return packs
