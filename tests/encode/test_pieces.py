"""Pieces of clips. Catches: a frame pair that is lost or twice, packs of both media, and a cut that changes a token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.encode.pieces import pack_pieces, pieces_of
from pipeline.encode.unit import UnitEncoder
from pipeline.index.units import Unit
from pipeline.prepare.unit import PreparedSample, PreparedUnit
from pipeline.source.sample import IndexedSample
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.tower import Tower

GRIDS = ((1, 4, 6), (1, 8, 8), (7, 4, 4), (1, 12, 12), (5, 8, 12))  # two images, three clips
CLIPS = 3


@pytest.mark.parametrize("budget", [4, 40, 96, 1000])
def test_pieces_are_all_of_every_clip_within_the_budget(budget: int) -> None:
    pieces = pieces_of(GRIDS, CLIPS, budget)
    assert [piece for piece in pieces if not piece.is_clip] == pieces[:2]
    ends = np.cumsum([0, *(t * h * w for t, h, w in GRIDS)]).tolist()
    at = 0
    for piece in pieces:
        assert piece.first_patch == at and piece.first_row == at - (ends[2] if piece.is_clip else 0)
        assert not piece.is_clip or piece.patches <= max(budget, piece.grid[1] * piece.grid[2])
        at += piece.patches
        assert piece.is_last == (at in ends)
    packs = pack_pieces(pieces, budget, 1000)
    assert sorted(id(piece) for pack in packs for piece in pack) == sorted(map(id, pieces))
    assert all(len({piece.is_clip for piece in pack}) == 1 for pack in packs)


def prepared(config_patch: int) -> PreparedUnit:
    generator = np.random.default_rng(5)
    patches = [t * h * w for t, h, w in GRIDS]
    images, clips = sum(patches[:-CLIPS]), sum(patches[-CLIPS:])
    width = 3 * config_patch**2
    return PreparedUnit(
        unit=Unit(part=0, number=0, first=0, count=5, tokens=0, patches=images + clips, clip_patches=clips),
        samples=tuple(
            PreparedSample(facts=IndexedSample(key=str(number), source=""), status="ok", image=number)
            for number in range(5)
        ),
        grids=GRIDS,
        patches_PC=generator.integers(0, 256, (images, width), np.uint8),
        clip_patches_PC=generator.integers(0, 256, (clips, 2 * width), np.uint8),
        clips=CLIPS,
    )


def encoder_of(checkpoint: Checkpoint, budget: int) -> UnitEncoder:
    tower = Tower(checkpoint, torch.float32, torch.device("cpu"))
    return UnitEncoder(tower, max_patches=budget, stored_dtype="float32")


def test_a_clip_has_the_same_tokens_however_it_is_cut(checkpoint: Checkpoint) -> None:
    unit = prepared(checkpoint.config.patch_size)
    whole = encoder_of(checkpoint, 10_000).encode(unit)
    cut = encoder_of(checkpoint, 48).encode(unit)
    assert len(cut.packs) > len(whole.packs) == 2
    assert cut.ends_N.tolist() == whole.ends_N.tolist()
    assert torch.allclose(cut.tokens_MO, whole.tokens_MO, rtol=0, atol=1e-5 * float(whole.tokens_MO.abs().max()))


def test_a_clip_that_does_not_fit_is_halved_along_time(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = prepared(checkpoint.config.patch_size)
    whole = encoder_of(checkpoint, 10_000).encode(unit)
    real = Tower.forward_in_window_order

    def limited(self: Tower, patches_PC: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(patches_PC) > 200:
            raise torch.OutOfMemoryError("made by the test")
        return real(self, patches_PC, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Tower, "forward_in_window_order", limited)
    halved = encoder_of(checkpoint, 10_000).encode(unit)
    assert halved.halvings > 1
    assert torch.allclose(halved.tokens_MO, whole.tokens_MO, rtol=0, atol=1e-5 * float(whole.tokens_MO.abs().max()))


def test_progress_counts_a_clip_once(checkpoint: Checkpoint) -> None:
    counted: list[int] = []
    encoder_of(checkpoint, 48).encode(prepared(checkpoint.config.patch_size), counted.append)
    assert sum(counted) == len(GRIDS) and 0 in counted
