"""Planned source: which source a plan is of, and what was decided about it once: plan.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..storage.files import AnyPath
from .format import Columns
from .media import BOTH, IMAGE
from .part import SourcePlace

if TYPE_CHECKING:  # preparing and encoding run where the configuration's packages are not
    from ..config_fields import Source

PLAN_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class PlannedSource:
    """The source that a plan is of: plan.json.

    Attributes:
        members: the rule by which a tar's members form samples. It was decided once, and a run that goes on takes it.
        media: what is looked for. It was decided once, too.
    """

    version: int
    root: str
    format: str
    image_column: str
    key_column: str | None
    members: str = "grouped"  # of plans that were made before there was a choice
    media: str = "image"
    video_column: str = "video"

    @classmethod
    def of(cls, source: Source, place: SourcePlace, members: str) -> PlannedSource:
        """The source that a configuration names, with the rule that its members are taken by."""
        return cls(
            version=PLAN_VERSION,
            root=place.root,
            format=place.format,
            image_column=source.image_column,
            key_column=source.key_column,
            members=members,
            media=place.media,
            video_column=source.video_column if place.media != IMAGE else cls.video_column,
        )

    @property
    def columns(self) -> Columns:
        """The columns of its rows, and what is looked for."""
        return Columns(image=self.image_column, key=self.key_column, media=self.media, video=self.video_column)

    @classmethod
    def read(cls, described: AnyPath) -> PlannedSource:
        """The inverse of `asdict` as JSON. Raises RequestError: it is no plan of ours."""
        try:
            return cls(**dict(json.loads(described.read_text(encoding="utf-8"))))
        except (IsADirectoryError, ValueError, TypeError) as error:
            raise RequestError(f"{described} is not a plan of visionbake: {error}") from error


def planned_media(output: AnyPath, media: str) -> str | None:
    """Returns what is looked for, by the plan in an output or by `source.media`; None where that is not decided yet.

    Raises:
        RequestError: it is no plan of ours.
    """
    if media != BOTH:
        return media
    return PlannedSource.read(output / "plan" / "plan.json").media if is_planned(output) else None


def is_planned(output: AnyPath) -> bool:
    """Whether there is a plan in an output."""
    return (output / "plan" / "plan.json").exists()
