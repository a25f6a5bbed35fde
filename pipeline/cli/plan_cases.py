"""Plan's cases: the budgets of pixels, rates of frames and models that one `plan` compares, from one index."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import RequestError
from ..estimate.estimate import Case, Writing
from ..grid import Geometry
from ..index.video_rules import resolve_sampling
from ..run.request import Request, request_of_model


@dataclass(frozen=True, kw_only=True)
class PlanCase:
    """One case, and whose it is.

    Attributes:
        request: of its model.
        names: what tells it from the others, by the names that the answer has for it.
    """

    request: Request
    case: Case
    names: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Everything compared of each model: the words behind `--max-pixels` and `--fps`, None where there are none.

    Attributes:
        encodes: whether its tower is measured, too.
    """

    budgets: str | None
    fps: str | None
    encodes: bool


def models_of(text: str | None) -> list[str]:
    """The models that `--model A,B` names; a path that exists is one, whatever stands in it."""
    if text is None or Path(text).exists():
        return [] if text is None else [text]
    models = [word.strip() for word in text.split(",")]
    if not all(models):
        raise RequestError(f"--model: {text}: must be models, one or several with commas between them")
    return list(dict.fromkeys(models))


def cases_of_plan(config: Config, first: Request, models: list[str], compared: Compared) -> list[PlanCase]:
    """Every model with every budget and rate.

    Args:
        config: as it was asked for, nothing of it resolved.
        first: the request of the first model.

    Raises:
        RequestError: naming the option.
    """
    wanted_fps = fps_of(compared.fps)
    if wanted_fps and first.geometry.video is None:
        raise RequestError("--fps: there is no video in the source")
    found: list[PlanCase] = []
    for number, model in enumerate(models or [config.model.path]):
        request = first if not number else request_of_model(first, config, model, weights=compared.encodes)
        tower = request.checkpoint.config
        writing = Writing.of(request.config, tower.width_of(config.output.stage), tower.streams)
        for fps in wanted_fps or (None,):
            geometry = request.geometry if fps is None else _at_rate(request, config, fps)
            for budget in budgets_of(geometry, compared.budgets):
                case = Case(geometry=replace(geometry, max_pixels=budget), writing=writing)
                named = {"model": model} if len(models) > 1 else {}
                found.append(PlanCase(request=request, case=case, names=named | _names(case.geometry)))
    return found


def _at_rate(request: Request, config: Config, fps: float) -> Geometry:
    """Raises RequestError: the sampler has no rate."""
    tower = request.checkpoint.config
    video = config.preprocess.video.model_copy(update={"fps": fps, "num_frames": None})
    sampling = resolve_sampling(video, tower.model_type, tower.patch_size, tower.merge_size)
    return replace(request.geometry, video=sampling)


def _names(geometry: Geometry) -> dict[str, Any]:
    """How clips are sampled; nothing of a source without."""
    if geometry.video is None:
        return {}
    if geometry.video.num_frames is not None:
        return {"num_frames": geometry.video.num_frames}
    return {"fps": geometry.video.fps if geometry.video.fps is not None else "every frame"}


def budgets_of(geometry: Geometry, text: str | None) -> list[int]:
    """The budgets of pixels that are asked for. Raises RequestError."""
    if text is None:
        return [geometry.max_pixels]
    budgets = [int(word) for word in text.split(",") if word.strip().isdecimal()]
    low = max(geometry.factor**2, geometry.min_pixels)
    if len(budgets) != len(text.split(",")) or min(budgets, default=0) < low:
        raise RequestError(f"--max-pixels: {text}: must be integers of at least {low}, such as 501760,1003520")
    return budgets


def fps_of(text: str | None) -> list[float]:
    """The rates that are asked for. Raises RequestError."""
    try:
        rates = [float(word) for word in text.split(",")] if text is not None else []
    except ValueError:
        rates = [0.0]
    if any(not (rate > 0 and math.isfinite(rate)) for rate in rates):
        raise RequestError(f"--fps: {text}: must be positive numbers, such as 1,2,4")
    return rates
