"""Sample: one image of the source, with the facts about its bytes that its part's index keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .. import rejects

LONGEST_ERROR = 1000  # characters


@dataclass(frozen=True, kw_only=True)
class IndexedSample:
    """One image's facts. `offset` and `length` place its bytes in `source`; `member` is its full name in a tar.

    Attributes:
        offset: of a Parquet file the row, of a manifest the line's first byte.
        path: the image's own file, where a row or line names one.
        item: its number in the row's list of images.
        group: the row group, -1 elsewhere.
        members: the other members of a tar's sample, for carrying.
    """

    key: str
    source: str
    member: str | None = None
    offset: int = 0
    length: int = 0
    sha256: str | None = None
    format: str | None = None
    width: int | None = None
    height: int | None = None
    orientation: int | None = None
    path: str | None = None
    item: int | None = None
    group: int = -1
    members: list[dict[str, Any]] | None = None
    status: str = rejects.OK
    error: str | None = None

    def rejected(self, reason: str, message: str) -> IndexedSample:
        """The same sample with a status out of `rejects.STATUSES`, and what is wrong with it in words."""
        return replace(self, status=reason, error=message[:LONGEST_ERROR])
