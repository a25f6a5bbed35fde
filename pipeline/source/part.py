"""Part: what a source is cut into before anything is read, and the files that it names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of the source as it was when it was planned, or a range of it. `path` is relative to the source's root.

    Attributes:
        first, last: of a part of a Parquet file its row groups, of a JSONL file its bytes; else 0.
        row: the number of the first row or line in the file.
        etag: of an object, where the storage gives one; `mtime_ns` is 0 then.
        fate: what became of it since: "", or what makes rejects of its samples (see `states`).
        from_byte, to_byte: the bytes of the file that this part's index vouches for; a file's parts share them out.
        repeated: of one of several parts of a file, the keys that an earlier part has: see `keys.repeats_by_part`.
    """

    path: str
    size: int
    mtime_ns: int
    etag: str = ""
    first: int = 0
    last: int = 0
    row: int = 0
    repeated: bytes = b""
    from_byte: int = 0
    to_byte: int = 0
    fate: str = ""

    @property
    def state(self) -> tuple[int, int, str]:
        """The size, mtime and ETag, none of which may change."""
        return self.size, self.mtime_ns, self.etag


@dataclass(frozen=True, kw_only=True)
class SourcePlace:
    """A source URI made definite: its format, and the folder that paths are relative to."""

    format: str
    root: str
    patterns: tuple[str, ...]  # absolute; the folder itself, or the tars' glob patterns
    media: str = "image"  # what is looked for: see `media`
    decided: str = ""  # how the format was, in a line; empty where there was nothing to decide


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run of the source that is indexed by one call.

    Attributes:
        members: the rule by which a tar's members form samples (`tar_samples`), decided when the source was planned.
        of: how many parts its source has, when it is read.
    """

    number: int
    format: str
    root: str
    files: tuple[SourceFile, ...]
    members: str = "grouped"
    of: int = field(default=0, compare=False)
