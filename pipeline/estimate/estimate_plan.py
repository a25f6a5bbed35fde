"""Estimate of a plan: each part's index is read once, for all cases, on all cores where parts are many."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import rejects
from ..errors import RunFailed
from ..grid import Geometry
from ..index.read import IndexFacts, read_index_facts
from ..index.units import cut_ends, resized_of
from ..output.clip_statistics import clip_hash
from ..process import usable_cores
from ..source.plan import Plan
from ..storage.files import AnyPath, map_ahead
from .duplicates import Duplicates, Hashes, repeated
from .estimate import Case, Estimate, SourceFacts, branches_of, tokens_of_sizes
from .film import Film, PlannedClips, planned_clips
from .written import EqualImages

Int64 = npt.NDArray[np.int64]
READ_AHEAD = 4
PARTS_AT_ONCE = 8
RUNS_WORTH_PROCESSES = 8  # some 500 000 samples; to start a process takes a second
MAX_PROCESSES = 8


@dataclass(frozen=True, kw_only=True)
class PartsEstimate:
    """The sums over some parts, and their images by hash and size (0×0 where the header is a reject).

    Attributes:
        clips: of each case, the clips by hash and tokens: what another rate takes of a file is another clip.
    """

    estimates: list[Estimate]
    clips: list[tuple[Hashes, npt.NDArray[np.int32]]]
    source: SourceFacts
    hash_N: Hashes
    height_N: Int64
    width_N: Int64


def estimate_parts(paths: Sequence[AnyPath], cases: Sequence[Case]) -> PartsEstimate:
    """Reads the index of each part once, for all cases."""
    estimates = [Estimate(max_pixels=case.geometry.max_pixels) for case in cases]
    source = SourceFacts()
    images: list[tuple[Hashes, Int64, Int64]] = []
    clips: list[list[_Clips]] = [[] for _ in cases]
    deduplicate = any(case.writing.deduplicate for case in cases)  # it is the same in all
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        remote = bool(paths) and not isinstance(paths[0], Path)
        read = map_ahead(pool, read_index_facts, paths, READ_AHEAD) if remote else map(read_index_facts, paths)
        for facts in read:
            index = facts.arrays
            source.add(index)
            # A reject is no copy: not the first one either.
            facts = replace(facts, hash_N=facts.hash_N * index.accepted_N)
            again = repeated(facts.hash_N) if deduplicate else np.zeros(0, np.int64)
            for one, case, of_case in zip(estimates, cases, clips, strict=True):
                of_case.append(_clips_of(facts, case.geometry))
                one.merge(_of_case(facts, case, of_case[-1], again))
            image_N = index.accepted_N.copy()  # of clips the size says nothing of their tokens
            image_N[list(index.clips)] = False
            images.append((facts.hash_N, index.height_N * image_N, index.width_N * image_N))
    hash_N, height_N, width_N = (np.concatenate(columns) for columns in zip(*images, strict=True))
    return PartsEstimate(
        estimates=estimates,
        source=source,
        hash_N=hash_N * (height_N > 0),
        height_N=height_N,
        width_N=width_N,
        clips=[
            (
                np.concatenate([one.hash_C for one in some]),
                np.concatenate([one.planned.figures.tokens_C for one in some]),
            )
            for some in clips
        ],
    )


@dataclass(frozen=True, kw_only=True)
class _Clips:
    """The clips of a part, as one case has them, and a hash of each that is accepted."""

    planned: PlannedClips
    hash_C: Hashes


def _clips_of(facts: IndexFacts, geometry: Geometry) -> _Clips:
    index = facts.arrays
    planned = planned_clips(index.clips, index.height_N, index.width_N, geometry)
    pairs = zip(facts.hash_N[planned.rows_C].tolist(), planned.plans, strict=True)
    return _Clips(planned=planned, hash_C=np.array([clip_hash(of, plan.frames) for of, plan in pairs], np.uint64))


def _of_case(facts: IndexFacts, case: Case, clips: _Clips, again: Int64) -> Estimate:
    """Args: again: the samples whose hash stands in the part more than once, as `repeated` gives them."""
    index, geometry = facts.arrays, case.geometry
    height_N, width_N = resized_of(index, geometry)
    tokens_N, is_image_N = height_N * width_N // geometry.factor**2, index.accepted_N.copy()
    rows_C = clips.planned.rows_C
    tokens_N[rows_C] = clips.planned.figures.tokens_C
    is_image_N[list(index.clips)] = False
    ends = cut_ends(index, tokens_N, case.writing.shard_tokens)
    usable = tokens_N > 0
    large_N = is_image_N & (index.width_N * index.height_N > geometry.max_image_pixels)
    by_size = Counter(clips.planned.rejected.values())
    by_size[rejects.TOO_MANY_PIXELS] += int(large_N.sum())
    by_size[rejects.ASPECT_RATIO] += int((is_image_N & ~large_N & ~usable).sum())
    branches = branches_of(index.height_N, index.width_N, height_N * width_N, geometry)
    film = Film()
    film.add(clips.planned.figures)
    hash_N = facts.hash_N
    if index.clips:  # of one file those are equal of which the same frames are taken
        hash_N = hash_N.copy()
        hash_N[rows_C] = clips.hash_C
        again = again[repeated(hash_N[again])]
    unit_A, hash_A, tokens_A = np.searchsorted(ends, again, side="right"), hash_N[again], tokens_N[again]
    once_A = (hash_A[1:] == hash_A[:-1]) & (unit_A[1:] == unit_A[:-1]) & (hash_A[1:] != 0) & (tokens_A[1:] > 0)
    repeated_clips = np.isin(rows_C, again[1:][once_A])
    film.repeats = int(repeated_clips.sum())
    film.repeated_seconds = float(clips.planned.figures.seconds_C[repeated_clips].sum(dtype=np.float64))
    return Estimate(
        max_pixels=geometry.max_pixels,
        samples=len(tokens_N),
        units=len(ends),
        rejects=facts.rejects + by_size,
        no_image=facts.no_image,
        histogram=np.bincount(tokens_N[usable], minlength=1),
        branches=_branches(branches, usable & is_image_N) + film.branches,
        unit_duplicates=int(once_A.sum()),
        unit_duplicate_tokens=int(tokens_A[1:][once_A].sum()),
        film=film,
    )


def _branches(of_images: dict[str, npt.NDArray[np.bool_]], usable: npt.NDArray[np.bool_]) -> Counter[str]:
    """How many images took each of BRANCHES."""
    return Counter({name: int((usable & branch_N).sum()) for name, branch_N in of_images.items()})


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How parts are shared out to processes: so many at a time, where there are so many runs of them."""

    parts_at_once: int = PARTS_AT_ONCE
    runs_worth_processes: int = RUNS_WORTH_PROCESSES


ON_MANY = Sharing()


def estimate_plan(plan: Plan, cases: Sequence[Case], sharing: Sharing = ON_MANY) -> tuple[list[Estimate], SourceFacts]:
    """Estimates all parts, on all cores where there are many. Raises RunFailed: one of its processes was killed."""
    estimates = [Estimate(max_pixels=case.geometry.max_pixels) for case in cases]
    source, duplicates = SourceFacts(), Duplicates()
    paths = [plan.index_path(part) for part in range(plan.num_parts)]
    step = sharing.parts_at_once
    runs = [paths[first : first + step] for first in range(0, len(paths), step)]
    of_run = partial(estimate_parts, cases=cases)
    with ExitStack() as stack:
        results: Iterator[PartsEstimate]
        if len(runs) < sharing.runs_worth_processes:
            results = map(of_run, runs)
        else:
            workers = min(MAX_PROCESSES, usable_cores())
            # Threads take longer than one alone: most of it is many small steps under the interpreter's lock.
            pool = ProcessPoolExecutor(workers, get_context("spawn"), _leave_interrupts_to_the_command)
            results = map_ahead(stack.enter_context(pool), of_run, runs, 2 * workers)
        equal_clips = [EqualImages(stack) for _ in cases]
        try:
            for part in results:
                source.merge(part.source)
                duplicates.add(part.hash_N, part.height_N, part.width_N)
                for one, other, equal, clips in zip(estimates, part.estimates, equal_clips, part.clips, strict=True):
                    one.merge(other)
                    equal.add(*clips)
        except BrokenProcessPool as error:
            raise RunFailed(f"a process that read the index was killed: {error}") from error
        for one, equal in zip(estimates, equal_clips, strict=True):
            one.duplicates, one.duplicate_tokens = equal.again() if one.film.clips else (0, 0)
    height_D, width_D, copies_D = duplicates.again()
    source.duplicates_of_one_in = duplicates.one_of
    for one, case in zip(estimates, cases, strict=True):
        tokens_D = tokens_of_sizes(height_D, width_D, case.geometry)
        one.duplicates += int(copies_D[tokens_D > 0].sum())
        one.duplicate_tokens += int((tokens_D * copies_D).sum())
    return estimates, source


def _leave_interrupts_to_the_command() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
