"""Clips of a unit: their patches, one file after another. All clips of a file are made in one pass over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import rejects
from ..grid import Geometry, offsets
from ..index.video_facts import header_of, plan_of
from ..index.video_sampling import ClipPlan
from ..rejects import Reject
from ..source.format import UnitBytes, UnitReader
from ..source.part import Part
from ..source.sample import IndexedSample
from ..storage.large import Encoded
from .decode import Uint8
from .guard import ImageReader


@dataclass(frozen=True, kw_only=True)
class PreparedClip:
    """A clip whose patches are made: its plan, and its number among those."""

    plan: ClipPlan
    number: int


class UnitClips:
    """The patches of a unit's distinct clips while they are made.

    Args:
        patches: of all clips of the unit, at most.
        samples: of the unit; those that are lost, by their index, are not asked for.
        deduplicate: whether clips of the same frames of the same bytes are made once.
    """

    def __init__(
        self,
        patches: int,
        samples: Sequence[IndexedSample],
        lost: Mapping[int, Reject],
        geometry: Geometry,
        *,
        deduplicate: bool,
    ) -> None:
        sampling = geometry.video
        self._samples, self._geometry, self._deduplicate = samples, geometry, deduplicate
        self._patches_PC = np.empty((patches, 0 if sampling is None else sampling.row_bytes), np.uint8)
        self._count = 0
        self._results: dict[int, PreparedClip | Reject] = {}
        self._of_file: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            if sample.video is not None and sample.status == rejects.OK and index not in lost:
                self._of_file.setdefault(str(sample.sha256), []).append(index)
        self.grids: list[tuple[int, int, int]] = []

    def filled(self) -> Uint8:
        """uint8 [P, C], the distinct clips' patches one after the other."""
        return self._patches_PC[: self._count]

    def prepare(self, index: int, data: Encoded, images: ImageReader) -> PreparedClip:
        """Prepares a clip, and with the first one of a file all of the file's. Raises Reject."""
        if index not in self._results:
            self._prepare_file(self._of_file[str(self._samples[index].sha256)], data, images)
        result = self._results[index]
        if isinstance(result, Reject):
            raise result
        return result

    def _prepare_file(self, indices: Sequence[int], data: Encoded, images: ImageReader) -> None:
        clips: dict[object, list[int]] = {}
        plans: list[ClipPlan] = []
        for index in indices:
            sample = self._samples[index]
            assert sample.video is not None and sample.width is not None and sample.height is not None
            try:
                plan = plan_of(sample.video, sample.width, sample.height, self._geometry)
            except Reject as reject:
                self._results[index] = reject
                continue
            key: object = plan.frames.tobytes() if self._deduplicate else index
            if key not in clips:
                plans.append(plan)
            clips.setdefault(key, []).append(index)
        if not plans:
            return
        ends = (self._count + offsets([plan.patches for plan in plans])).tolist()
        rows = [self._patches_PC[end - plan.patches : end] for plan, end in zip(plans, ends[1:], strict=True)]
        found = self._make(self._samples[indices[0]], data, plans, rows, images)
        for plan, rows_PC, problem, twins in zip(plans, rows, found, clips.values(), strict=True):
            if problem is None:
                if rows_PC.ctypes.data != self._patches_PC[self._count :].ctypes.data:  # behind one that is none
                    self._patches_PC[self._count : self._count + plan.patches] = rows_PC
                self._count += plan.patches
                self.grids.append(plan.grid)
            for index in twins:
                self._results[index] = problem or PreparedClip(plan=plan, number=len(self.grids) - 1)

    def _make(
        self,
        first: IndexedSample,
        data: Encoded,
        plans: Sequence[ClipPlan],
        rows: Sequence[Uint8],
        images: ImageReader,
    ) -> Sequence[Reject | None]:
        """Makes the patches of clips of the same bytes; of each None, or why it is not whole. `first`: one of them."""
        sampling = self._geometry.video
        assert sampling is not None
        if not first.of_frames:
            from .video import VideoFile, prepare_clips  # it brings av

            file = VideoFile(key=first.key, source=data, header=header_of(first))
            return prepare_clips(file, plans, sampling, rows, images)
        from .video_frames import prepare_frames

        assert isinstance(data, bytes)
        try:
            prepare_frames(first.key, data, plans[0], sampling, rows[0], images)
        except Reject as reject:
            return [reject] * len(plans)
        for rows_PC in rows[1:]:  # all of them are taken: they are the same, each where it belongs
            rows_PC[:] = rows[0]
        return [None] * len(plans)


def read_once(part: Part, samples: Sequence[IndexedSample], names: Sequence[str], reader: UnitReader) -> UnitBytes:
    """Reads samples; a file that several clips in a row are of is read, and held, once. Raises as `UnitReader.read`."""
    if not samples:
        return UnitBytes([], [])
    twins: dict[int, int] = {}  # each repeated clip's sample, and the first one of its file
    first_of: dict[tuple[str, str], int] = {}
    for index, sample in enumerate(samples):
        if sample.video is not None and (sample.path is not None or sample.of_frames) and sample.sha256 is not None:
            first = first_of.setdefault((sample.path or "", sample.sha256), index)
            if first != index:
                twins[index] = first
    if not twins:
        return reader.read(part, samples, names)
    # Rows name files: they have no members beside them.
    asked = [index for index in range(len(samples)) if index not in twins]
    found = dict(zip(asked, reader.read(part, [samples[index] for index in asked], names).encoded, strict=True))
    encoded = [found[twins.get(index, index)] for index in range(len(samples))]
    return UnitBytes(encoded, [{} for _ in samples])
