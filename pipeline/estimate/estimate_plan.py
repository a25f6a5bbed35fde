"""Estimate of a plan: each part's index is read once, for all budgets of pixels, on all cores where parts are many."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from ..index.units import clip_plans, cut_ends, resized_of
from ..index.video_sampling import ClipPlan
from ..process import usable_cores
from ..rejects import Reject
from ..source.plan import Plan
from ..storage.files import AnyPath, map_ahead
from .duplicates import Duplicates, Hashes, repeated
from .estimate import Estimate, SourceFacts, Writing, branches_of, tokens_of_sizes

Int64 = npt.NDArray[np.int64]
READ_AHEAD = 4
PARTS_AT_ONCE = 8
RUNS_WORTH_PROCESSES = 8  # some 500 000 samples; to start a process takes a second
MAX_PROCESSES = 8


@dataclass(frozen=True, kw_only=True)
class PartsEstimate:
    """The sums over some parts, and their images by hash and size (0×0 where the header is a reject)."""

    estimates: list[Estimate]
    source: SourceFacts
    hash_N: Hashes
    height_N: Int64
    width_N: Int64


def estimate_parts(
    paths: Sequence[AnyPath], geometry: Geometry, budgets: Sequence[int], writing: Writing
) -> PartsEstimate:
    """Reads the index of each part once, for all budgets of pixels."""
    estimates = [Estimate(max_pixels=budget) for budget in budgets]
    source = SourceFacts()
    images: list[tuple[Hashes, Int64, Int64]] = []
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        remote = bool(paths) and not isinstance(paths[0], Path)
        read = map_ahead(pool, read_index_facts, paths, READ_AHEAD) if remote else map(read_index_facts, paths)
        for facts in read:
            index = facts.arrays
            source.add(index)
            # A reject is no copy: not the first one either.
            facts = replace(facts, hash_N=facts.hash_N * index.accepted_N)
            again = repeated(facts.hash_N) if writing.deduplicate else np.zeros(0, np.int64)
            for one in estimates:
                one.merge(_of_budget(facts, replace(geometry, max_pixels=one.max_pixels), writing.shard_tokens, again))
            image_N = index.accepted_N.copy()  # of clips the size says nothing of their tokens
            image_N[list(index.clips)] = False
            images.append((facts.hash_N, index.height_N * image_N, index.width_N * image_N))
    hash_N, height_N, width_N = (np.concatenate(columns) for columns in zip(*images, strict=True))
    return PartsEstimate(estimates=estimates, source=source, hash_N=hash_N, height_N=height_N, width_N=width_N)


def _of_budget(facts: IndexFacts, geometry: Geometry, shard_tokens: int, again: Int64) -> Estimate:
    """Args: again: the samples whose hash stands in the part more than once, as `repeated` gives them."""
    index = facts.arrays
    height_N, width_N = resized_of(index, geometry)
    image_tokens_N = height_N * width_N // geometry.factor**2
    tokens_N, is_image_N = image_tokens_N.copy(), index.accepted_N.copy()
    clips = clip_plans(index, geometry)
    for row, plan in clips.items():
        tokens_N[row] = 0 if isinstance(plan, Reject) else plan.patches // geometry.merge_size**2
        is_image_N[row] = False
    ends = cut_ends(index, tokens_N, shard_tokens)
    usable = tokens_N > 0
    large_N = is_image_N & (index.width_N * index.height_N > geometry.max_image_pixels)
    by_size = Counter(plan.reason for plan in clips.values() if isinstance(plan, Reject))
    by_size[rejects.TOO_MANY_PIXELS] += int(large_N.sum())
    by_size[rejects.ASPECT_RATIO] += int((is_image_N & ~large_N & ~usable).sum())
    branches = branches_of(index.height_N, index.width_N, height_N * width_N, geometry)
    unit_A, hash_A, tokens_A = np.searchsorted(ends, again, side="right"), facts.hash_N[again], image_tokens_N[again]
    once_A = (hash_A[1:] == hash_A[:-1]) & (unit_A[1:] == unit_A[:-1]) & (hash_A[1:] != 0) & (tokens_A[1:] > 0)
    return Estimate(
        max_pixels=geometry.max_pixels,
        samples=len(tokens_N),
        units=len(ends),
        rejects=facts.rejects + by_size,
        no_image=facts.no_image,
        histogram=np.bincount(tokens_N[usable], minlength=1),
        branches=_branches(branches, usable & is_image_N, clips.values()),
        unit_duplicates=int(once_A.sum()),
        unit_duplicate_tokens=int(tokens_A[1:][once_A].sum()),
    )


def _branches(
    of_images: dict[str, npt.NDArray[np.bool_]], usable: npt.NDArray[np.bool_], clips: Iterable[ClipPlan | Reject]
) -> Counter[str]:
    """How many samples took each of BRANCHES."""
    found = Counter({name: int((usable & branch_N).sum()) for name, branch_N in of_images.items()})
    clamped = (f"clamped_{plan.clamped}" for plan in clips if not isinstance(plan, Reject))
    found.update(name for name in clamped if name in of_images)
    return found


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How parts are shared out to processes: so many at a time, where there are so many runs of them."""

    parts_at_once: int = PARTS_AT_ONCE
    runs_worth_processes: int = RUNS_WORTH_PROCESSES


ON_MANY = Sharing()


def estimate_plan(
    plan: Plan, geometry: Geometry, budgets: Sequence[int], writing: Writing, sharing: Sharing = ON_MANY
) -> tuple[list[Estimate], SourceFacts]:
    """Estimates all parts, on all cores where there are many. Raises RunFailed: one of its processes was killed."""
    estimates = [Estimate(max_pixels=budget) for budget in budgets]
    source, duplicates = SourceFacts(), Duplicates()
    paths = [plan.index_path(part) for part in range(plan.num_parts)]
    step = sharing.parts_at_once
    runs = [paths[first : first + step] for first in range(0, len(paths), step)]
    of_run = partial(estimate_parts, geometry=geometry, budgets=budgets, writing=writing)
    with ExitStack() as stack:
        results: Iterator[PartsEstimate]
        if len(runs) < sharing.runs_worth_processes:
            results = map(of_run, runs)
        else:
            workers = min(MAX_PROCESSES, usable_cores())
            # Threads take longer than one alone: most of it is many small steps under the interpreter's lock.
            pool = ProcessPoolExecutor(workers, get_context("spawn"), _leave_interrupts_to_the_command)
            results = map_ahead(stack.enter_context(pool), of_run, runs, 2 * workers)
        try:
            for part in results:
                source.merge(part.source)
                duplicates.add(part.hash_N, part.height_N, part.width_N)
                for one, other in zip(estimates, part.estimates, strict=True):
                    one.merge(other)
        except BrokenProcessPool as error:
            raise RunFailed(f"a process that read the index was killed: {error}") from error
    height_D, width_D, copies_D = duplicates.again()
    source.duplicates_of_one_in = duplicates.one_of
    for one in estimates:
        tokens_D = tokens_of_sizes(height_D, width_D, replace(geometry, max_pixels=one.max_pixels))
        one.duplicates = int(copies_D[tokens_D > 0].sum())
        one.duplicate_tokens = int((tokens_D * copies_D).sum())
    return estimates, source


def _leave_interrupts_to_the_command() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
