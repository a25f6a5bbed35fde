"""Units of several threads on one device: memory, queues, whose seconds are whose, and what is measured beside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stand_in_gpu import stand_in_gpu
from test_encode_unit import prepared_unit, spoil

from pipeline.encode.encoded import EncodedUnit
from pipeline.encode.pinned import ROUND_TO, PinnedBlocks
from pipeline.encode.queues import Mark
from pipeline.encode.unit import UnitEncoder
from pipeline.errors import EncodeError
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.linear import has_fp8_on_cpu
from pipeline.tower.tower import Tower

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tower(checkpoint: Checkpoint) -> Tower:
    return Tower(checkpoint, torch.float32, CPU)


def encoder_of(tower: Tower) -> UnitEncoder:
    return UnitEncoder(tower, max_patches=10_000, stored_dtype="float32")


def in_a_thread(call: Callable[[], Any]) -> Any:
    """What a call returns in a thread of its own."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join(60)
    return results[0]


def without_memory(encoder: UnitEncoder, patch: pytest.MonkeyPatch, lacks: Callable[[], bool]) -> list[int]:
    """Allocating a unit fails for as long as it is so. Returns the attempts that failed."""
    real, failed = encoder._state, []

    def limited(*arguments: Any) -> Any:
        if lacks():
            assert len(failed) < 1000, "it is tried again and again"
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory (made by a test)")
        return real(*arguments)

    patch.setattr(encoder, "_state", limited)
    return failed


def test_a_unit_that_does_not_fit_is_tried_again_once_kept_memory_is_given_back(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in_gpu() as gpu:
        encoder = encoder_of(Tower(checkpoint, torch.float32, torch.device("cuda")))
        failed = without_memory(encoder, monkeypatch, lambda: not gpu.emptied)
        assert encoder.encode(prepared_unit([0, 1, 2])).finite_N.all()
        assert (len(failed), gpu.emptied) == (1, 1)


def test_a_unit_that_does_not_fit_beside_another_waits_for_it(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(tower)
    first, second = prepared_unit([0, 1, 2]), prepared_unit([2, 1, 0])
    failed = without_memory(encoder, monkeypatch, lambda: encoder._on_device > 0)
    fetch, other = encoder._queues.fetch, []

    def fetched(*arguments: Any) -> Any:
        if not other:  # the first one's: the second comes while it holds the device's memory
            other.append(threading.Thread(target=lambda: other.append(encoder.encode(second))))
            other[0].start()
            while not failed:
                pass
        return fetch(*arguments)

    monkeypatch.setattr(encoder._queues, "fetch", fetched)
    ours = encoder.encode(first)
    other[0].join(60)
    assert failed == [1]
    assert torch.equal(ours.tokens_MO, other[1].tokens_MO)


def test_a_unit_that_fits_in_no_way_is_named(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(tower)
    failed = without_memory(encoder, monkeypatch, lambda: len(failed) < 4)
    for _ in range(2):  # each is tried twice
        with pytest.raises(
            EncodeError, match=r"unit 000000-0000: its \d+ patches' tokens do not fit on cpu; lower output"
        ):
            encoder.encode(prepared_unit([0, 1, 2]))
    assert len(failed) == 4
    assert encoder.encode(prepared_unit([0, 1, 2])).finite_N.all()


def test_the_seconds_of_a_unit_that_is_tried_again_are_its_own(tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each forward takes a second here; another thread's unit goes between the first and the second try."""
    encoder, clock, others = encoder_of(tower), [0.0], []
    prepared = prepared_unit([0, 1, 2])
    spoil(tower, 1, prepared, float("nan"), monkeypatch)
    forward, fetch = tower.forward_in_window_order, encoder._queues.fetch

    def slow(*arguments: Any) -> Any:
        clock[0] += 1
        return forward(*arguments)

    def fetched(*arguments: Any) -> Any:
        if not others:
            others.append(None)
            others[0] = in_a_thread(lambda: encoder.encode(prepared))
        return fetch(*arguments)

    monkeypatch.setattr(tower, "forward_in_window_order", slow)
    monkeypatch.setattr(encoder._queues, "fetch", fetched)
    monkeypatch.setattr(encoder._queues, "mark", lambda: Mark(at=clock[0]))
    ours = encoder.encode(prepared)
    assert [ours.seconds["encode"], others[0].seconds["encode"]] == [2.0, 2.0]


def test_each_thread_fetches_through_a_queue_of_its_own(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through one, a unit's rows would wait behind another's, whose copy may wait for packs launched later."""
    with stand_in_gpu() as gpu:
        encoder = encoder_of(Tower(checkpoint, torch.float32, torch.device("cuda")))
        copy = torch.Tensor.copy_
        monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *a, **b: (gpu.note("copy"), copy(self, *a, **b))[1])
        prepared = prepared_unit([0, 1, 2])
        units = [in_a_thread(lambda: [encoder.encode(prepared) for _ in range(2)]) for _ in range(2)]
        queues: dict[int, set[str]] = {}
        for number, (what, _, queue, _) in enumerate(one for one in gpu.used if one[0] == "copy"):
            assert what == "copy"
            queues.setdefault(number // (len(gpu.used) // 2), set()).add(queue)
        first, second = queues.values()
        assert len(first) == len(second) == 1
        assert not first & second and "default" not in first | second
        assert all(torch.equal(units[0][0].tokens_MO, unit.tokens_MO) for pair in units for unit in pair)


def test_pinned_blocks_are_about_as_large_as_what_is_asked_for_and_used_again() -> None:
    with stand_in_gpu() as gpu:
        blocks = PinnedBlocks()
        blocks.reserve(70 << 20)
        assert gpu.pinned == [80 << 20]  # not 128
        first = blocks.like(torch.empty(35 << 20, dtype=torch.bfloat16))
        assert gpu.pinned == [80 << 20]
        held = first[:10].fill_(7)
        del first
        second = blocks.like(torch.empty(35 << 20, dtype=torch.bfloat16)).fill_(8)
        assert gpu.pinned == [80 << 20] * 2  # the first is still held, by a view
        assert held.tolist() == [7] * 10 and second[0] == 8
        del held
        third = blocks.like(torch.empty(3, 10 << 20, dtype=torch.uint8))
        assert third.shape == (3, 10 << 20) and len(gpu.pinned) == 2
        del second, third
        blocks.like(torch.empty(100 << 20, dtype=torch.uint8))
        assert gpu.pinned[2:] == [-(-(100 << 20) // ROUND_TO) * ROUND_TO]
        assert blocks.like(torch.empty(10)).tolist() is not None and len(gpu.pinned) == 3  # small ones are torch's


@pytest.mark.skipif(not has_fp8_on_cpu(), reason="an older torch: fp8 by rows on GPUs only")
def test_the_error_of_fp8_is_measured_on_the_first_unit_then_on_one_in_64_without_a_turn(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(Tower(checkpoint, torch.bfloat16, CPU, linear="fp8"))
    encoder.stored_dtype = "bfloat16"
    prepared, measure = prepared_unit([0, 1, 2]), encoder._fp8_error.measure
    turns: list[EncodedUnit] = []

    def measured(*arguments: Any) -> Any:
        # While it is measured, another thread encodes a unit: the device is not held.
        turns.append(in_a_thread(lambda: encoder.encode(prepared)))
        return measure(*arguments)

    first = None
    monkeypatch.setattr(encoder._fp8_error, "measure", measured)
    first = encoder.encode(prepared)
    monkeypatch.setattr(encoder._fp8_error, "measure", lambda *a: {"relative_rms": 1.0})
    units = [first, turns[0], *(encoder.encode(prepared) for _ in range(63))]
    said = [unit.errors["fp8_linear"] for unit in units]
    assert [one["measured"] for one in said] == [True] + [False] * 63 + [True]
    assert said[0]["key"] == "k2" and said[0]["bfloat16"]["relative_rms"] > 0
    assert said[1] == {"measured": False}
