"""Format: what a kind of source must be able to do, once for all stages that ask.

Listing, planning, indexing, preparing, carrying and sampling ask a format by name (`formats.format_named`), and never
what it is. A new one is a module in `formats/` with a subclass, an entry in `formats.FORMATS`, and its tests.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import pyarrow as pa

from ..errors import DamagedPart, SourceError, listing_error
from ..storage.large import Encoded
from .carried_values import Carried
from .drawing import Drawing, Draws
from .found_columns import FoundColumn
from .listing import Listing
from .part import Part, SourceFile, SourcePlace
from .planned import check_unchanged
from .sample import IndexedSample


class Facts(Protocol):
    """Takes what a format finds in a part."""

    def __call__(self, sample: IndexedSample, data: Encoded, /) -> IndexedSample:
        """Completes a sample by the facts about its bytes; what is wrong with them becomes its status."""
        ...

    def leave(self, name: str, /) -> None:
        """Counts a member of the part that is no sample's and is left alone."""
        ...


class NoFacts:
    """Finds nothing, where only keys are wanted."""

    def __call__(self, sample: IndexedSample, data: Encoded, /) -> IndexedSample:
        return sample

    def leave(self, name: str, /) -> None:
        """Counts nothing."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column, field or member is a sample's image, which its video, and which its key.

    Attributes:
        media: what is looked for: image, video, or auto for both.
    """

    image: str = "image"
    key: str | None = None
    media: str = "image"
    video: str = "video"

    @property
    def needed(self) -> tuple[str, str]:
        """The column that a source must have, and the setting that names it."""
        return (self.image, "image_column") if self.media == "image" else (self.video, "video_column")

    @property
    def lists(self) -> int:
        """How deep lists in that column may be: a row has several images, and several videos of several frames."""
        return 1 if self.media == "image" else 2

    def of(self, sample: IndexedSample) -> str:
        """The column that holds a sample's bytes: its image's, or its video's."""
        return self.image if sample.video is None else self.video


def columns_drawn(drawing: Drawing) -> Columns:
    """The columns of rows that are drawn from: their keys do not matter."""
    return Columns(image=drawing.image_column, media=drawing.media, video=drawing.video_column)


@dataclass(frozen=True, kw_only=True)
class MembersRule:
    """A decision by which rule a tar's members form samples: as `source.members` spells it, and why, in a line."""

    members: str = "grouped"
    why: str = ""

    @property
    def said(self) -> str:
        """The decision in a line, "" where there was nothing to decide."""
        return f"source.members: auto took {self.members}: {self.why}" if self.why else ""


@dataclass(frozen=True, kw_only=True)
class MediaRule:
    """A decision what is looked for: image, or auto for videos, too; and why, in a line, where it is worth one."""

    media: str = "image"
    why: str = ""


class UnitBytes(NamedTuple):
    """The encoded bytes of some samples, None where one has no image; and of each its carried members by suffix.

    Of a video they may be left where they lie.
    """

    encoded: list[Encoded | None]
    members: list[dict[str, bytes]]


class UnitReader(Protocol):
    """Reads the bytes of one unit after another; may keep files open in between."""

    def read(self, part: Part, samples: Sequence[IndexedSample], suffixes: Collection[str] = ()) -> UnitBytes:
        """Reads a unit's bytes, in as few requests as the format allows.

        Args:
            suffixes: of the members beside an image that are wanted, too.

        Raises:
            SourceError: a file changed since it was planned, or cannot be read.
        """
        ...

    def carried(
        self, part: Part, samples: Sequence[IndexedSample], schema: pa.Schema, members: Sequence[dict[str, bytes]]
    ) -> Carried:
        """A row of carried values for each sample, null where the source has none.

        Args:
            members: as `read` gives them.

        Raises:
            SourceError: it cannot be read, or a value would not come back equal.
        """
        ...

    def close(self) -> None: ...


class SourceFormat(ABC):
    """One kind of source.

    Attributes:
        name: as the configuration spells it.
        suffixes: of its files, in lower case.
        has_columns: whether rows or lines have columns that can be keys.
        takes_any_name: whether a file that is named in full is one of this format, whatever its suffix.
        files_per_part: how many files of the listing form a part.
        is_of_images: whether each of its files is an image, and so a sample.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    has_columns: ClassVar[bool] = False
    takes_any_name: ClassVar[bool] = True
    files_per_part: int = 1
    is_of_images: ClassVar[bool] = False

    def refuses(self, path: str) -> str:
        """Why a file of the source cannot be read, by its name; "" where nothing is wrong with it."""
        return ""

    def leaves_alone(self, path: str) -> bool:
        """Whether a file below a folder is no data, by its path there, though its suffix is that of data."""
        return False

    def left_alone_in(self, folder: str) -> Callable[[str], bool]:
        """Returns `leaves_alone` for a folder's files, of which more may be known than their names. Raises OSError."""
        return self.leaves_alone

    def suffixes_of(self, media: str) -> tuple[str, ...]:
        """Suffixes of the files that hold what is looked for."""
        return self.suffixes

    def media_rule(self, listing: Listing, columns: Columns) -> MediaRule:
        """Decides what `source.media: auto` comes to, by what lies there."""
        return MediaRule()

    @abstractmethod
    def check(self, listing: Listing, columns: Columns, uri: str) -> None:
        """Raises RequestError: the source holds no image, or lacks a column."""

    def members_rule(self, listing: Listing, columns: Columns) -> MembersRule:
        """Decides what `source.members: auto` comes to, by what lies there; it says nothing where there are no tars."""
        return MembersRule()

    def spans(self, place: SourcePlace, file: SourceFile) -> list[SourceFile]:
        """Cuts a file into parts; at least one.

        Raises:
            RequestError, SourceBusy: it cannot be read.
            DamagedPart: it is not what it should be, from its start or from some place on.
        """
        return [file]

    def keys(self, place: SourcePlace, span: SourceFile, columns: Columns) -> Iterator[str]:
        """Yields the keys of a part's samples, before any is known to be a repeat, as `samples` gives them.

        Asked while a file of several parts is planned, if there is a key column: a format should read no image here.

        Raises:
            RequestError, SourceBusy: the file cannot be read.
        """
        part = Part(number=0, format=self.name, root=place.root, files=(span,))
        path = os.path.join(place.root, span.path)
        try:
            for sample in self.samples(part, columns, NoFacts()):
                yield sample.key
        except DamagedPart:
            return  # for the index to report: of what is damaged it has no sample
        except (OSError, SourceError) as error:
            raise listing_error(f"source: {path}: its keys cannot be read: {error}", error) from error

    @abstractmethod
    def samples(self, part: Part, columns: Columns, facts: Facts) -> Iterator[IndexedSample]:
        """Reads a part once and yields its samples, in the order in which their bytes stand.

        Raises:
            SourceError: a file changed since it was planned, or cannot be read.
            DamagedPart: the list of samples cannot be trusted from there on. What stands whole before the damage has
                been yielded by then.
        """

    def check_unchanged(self, part: Part) -> None:
        """Makes sure, after a part was read, that its files are still what was planned. Raises SourceError."""
        for file in part.files:
            check_unchanged(part.root, file)

    @abstractmethod
    def reader(self, columns: Columns) -> UnitReader:
        """Returns a reader of the bytes of this format's units."""

    @abstractmethod
    def carried_schema(self, listing: Listing, names: Sequence[str], decided: pa.Schema | None = None) -> pa.Schema:
        """The types of carried columns, from all of a listing.

        Args:
            decided: the types that an output has already, where the listing is of files that were added.

        Raises:
            RequestError: the source lacks one, its values have no one type or not the one that is decided, or no
                output can hold it.
        """

    def columns_found(self, listing: Listing) -> list[FoundColumn]:
        """Returns the columns, fields or kinds of members of the first samples; none where there are none.

        Raises:
            RequestError, SourceError, OSError: it cannot be read.
        """
        return []

    @abstractmethod
    def draw(self, listing: Listing, drawing: Drawing) -> Draws:
        """Draws samples for an estimate; each draw knows nothing of the others.

        Raises:
            OSError, DamagedPart, ArrowException, KeyError: a file cannot be read.
        """
