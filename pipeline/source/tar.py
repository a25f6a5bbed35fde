"""A strict reader of tar structure: member places, and an error for every kind of damage.

The standard library parses single headers (`TarInfo.frombuf`); the walk from header to header is done here, because
`tarfile` takes three of four kinds of truncation for the end of the archive. Nothing is ever extracted: members are
byte ranges, so names with `..`, links and devices cannot do anything.
"""

from __future__ import annotations

import gzip
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

from ..errors import DamagedPart, source_error
from ..storage.files import open_input
from ..storage.names import escaped
from .file_kind import file_is

BLOCK = 512
COMPRESSED_ELSEWHERE = (
    ".tar.bz2",
    ".tar.xz",
    ".tar.zst",
    ".tar.lz4",
    ".tar.lz",
    ".tar.lzma",
    ".tar.z",
    ".tbz2",
    ".tbz",
    ".txz",
    ".tzst",
)
GZIP_SUFFIXES = (".tar.gz", ".tgz")
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_SKIPPED = (tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
# A member's name or its extended header longer than this is no data set's: it would only fill memory.
MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Member:
    """A regular file in a tar: its data is `length` bytes at `offset` of the (decompressed) stream.

    Attributes:
        link: of a link, which has no data, the name of the member that it leads to; a symbolic one may lead elsewhere.
        sparse: whether the data is a sparse file's: pieces that are not the file as it stands.
    """

    name: str
    offset: int
    length: int
    link: str | None = None
    sparse: bool = False


class TarStream:
    """A tar file read forwards, plain or gzip, with a position in the decompressed stream.

    Attributes:
        within: the name of the member whose data is being read by `walk`, None between members.
        ended: whether `walk` has come to the end of all members.

    Raises:
        SourceError: the file cannot be opened or read.
        DamagedPart: the compressed stream is damaged or ends early.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.position = 0
        self.within: str | None = None
        self.ended = False
        self.compressed = self.path.lower().endswith(GZIP_SUFFIXES)
        try:
            self._file = open_input(self.path)
            self._stream: IO[bytes] = gzip.open(self._file) if self.compressed else self._file  # type: ignore[assignment]
        except OSError as error:
            raise source_error(f"{self.path}: cannot be opened: {error}", error) from error

    def read(self, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the stream."""
        try:
            data = self._stream.read(length)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what = "" if self.position else file_is(self.path, "a gzip file")
            raise DamagedPart(f"{self.path}: damaged gzip stream after byte {self.position}: {error}{what}") from error
        except OSError as error:
            raise source_error(f"{self.path}: cannot be read at byte {self.position}: {error}", error) from error
        self.position += len(data)
        return data

    def read_exactly(self, length: int, what: str) -> bytes:
        start = self.position
        pieces: list[bytes] = []
        while length > 0:  # in pieces, so that a header that declares terabytes costs no memory
            piece = self.read(min(length, 1 << 24))
            if not piece:
                raise DamagedPart(f"{self.path}: ends inside {what} that starts at byte {start}")
            pieces.append(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def seek(self, offset: int) -> None:
        """Moves to `offset`; in a gzip stream by reading on (or again from the start)."""
        if offset < self.position or not self.compressed:
            try:
                self._stream.seek(0 if self.compressed else offset)
            except OSError as error:
                raise source_error(f"{self.path}: cannot seek to byte {offset}: {error}", error) from error
            self.position = 0 if self.compressed else offset
        while self.position < offset:
            if not self.read(min(1 << 20, offset - self.position)):
                raise DamagedPart(f"{self.path}: ends before byte {offset}")

    def close(self) -> None:
        self._stream.close()
        self._file.close()

    def __enter__(self) -> TarStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def walk(stream: TarStream, wanted: tuple[str, ...] | None = None) -> Iterator[tuple[Member, bytes | None]]:
    """Yields every regular member and every link.

    A regular member comes with its data where its name ends in one of `wanted` (in any case; None: all), unless it is
    sparse.

    The whole archive is read, up to and including its end marker and the padding behind it.

    Raises:
        DamagedPart: cut anywhere (in a header, in data, in padding, at a member boundary), a damaged or zeroed
            header, data or another tar behind the end marker. The stream then says where (`within`, `ended`).
    """
    path = stream.path
    extended: dict[str, str] = {}
    while True:
        start = stream.position
        block = _block(stream)
        if block is None:
            raise DamagedPart(f"{path}: ends at byte {start} without the end-of-archive marker: the file is cut")
        if not any(block):
            _check_end(stream, start)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            what = file_is(path, "a tar") if not start else ""
            raise DamagedPart(f"{path}: damaged header at byte {start}: {error}{what}") from error
        if info.size < 0:
            raise DamagedPart(f"{path}: damaged header at byte {start}: a size of {info.size}")
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE):
            _read_extended(stream, info, start, extended)
            continue
        sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extended)
        if info.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(stream, block)
        name, size = extended.get("path", info.name), info.size
        name = extended.get("GNU.sparse.name", name)
        if "size" in extended:
            if not extended["size"].isdigit():
                raise DamagedPart(f"{path}: extended header before byte {start} declares a size of {extended['size']}")
            size = int(extended["size"])
        link = extended.get("linkpath", info.linkname)
        extended = {}
        if info.type in _SKIPPED:
            size = 0  # such members carry no data, whatever their header says
        member = Member(name=_clean(name), offset=stream.position, length=size, sparse=sparse)
        if info.type in _REGULAR or sparse:
            stream.within, content = member.name, None
            if not sparse and (wanted is None or member.name.lower().endswith(wanted)):
                content = stream.read_exactly(size, f"member {member.name!r}")
            else:
                _skip(stream, size, f"member {member.name!r}")
            stream.within = None
            yield member, content
        elif info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            yield replace(member, link=_leads_to(member.name, link, info.type)), None
        elif info.type not in _SKIPPED:
            _skip(stream, size, f"member {member.name!r}")
        stream.read_exactly(-size % BLOCK, "padding")


def _read_extended(stream: TarStream, info: tarfile.TarInfo, start: int, extended: dict[str, str]) -> None:
    """Reads a header that says more of the next member: its long name, or pax records. Raises DamagedPart."""
    if info.size > MAX_HEADER_BYTES:
        raise DamagedPart(f"{stream.path}: extended header of {info.size} bytes at byte {start}")
    data = stream.read_exactly(info.size, "an extended header")
    stream.read_exactly(-info.size % BLOCK, "padding")
    if info.type == tarfile.GNUTYPE_LONGNAME:
        extended["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    elif info.type == tarfile.GNUTYPE_LONGLINK:
        extended["linkpath"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    elif info.type == tarfile.XHDTYPE:
        extended.update(_pax_records(data, stream.path, start))


def _skip_sparse_map(stream: TarStream, header: bytes) -> None:
    """Skips the blocks that go on with a sparse file's map, which its header began. Raises DamagedPart.

    Source: GNU tar manual, Basic Tar Format: `isextended` of the header, and of each further block.
    """
    goes_on = header[482]
    while goes_on:
        goes_on = stream.read_exactly(BLOCK, "a sparse file's map")[504]


def _block(stream: TarStream) -> bytes | None:
    block = stream.read(BLOCK)
    if not block:
        return None
    if len(block) < BLOCK:
        start = stream.position - len(block)
        what = "" if start else file_is(stream.path, "a gzip file" if stream.compressed else "a tar")
        raise DamagedPart(f"{stream.path}: ends inside a header at byte {start}{what}")
    return block


def _check_end(stream: TarStream, start: int) -> None:
    """Checks a tar's end: behind one zero block comes another, and nothing but zeros after it."""
    total, first = 0, start + BLOCK
    while data := stream.read(1 << 20):
        if any(data):
            zeros = len(data) - len(data.lstrip(b"\0"))
            block = zeros - (total + zeros) % BLOCK
            header = data[max(0, block) :][:BLOCK]
            if total + block >= BLOCK and _is_header(header + stream.read(BLOCK - len(header))):
                stream.ended = True
                raise DamagedPart(
                    f"{stream.path}: is several tars joined end to end (as by cat): another one begins at byte "
                    f"{first + total + block}; give the tars themselves, or join them with tar --concatenate "
                    "(source.on_damaged: salvage takes the first)"
                )
            raise DamagedPart(f"{stream.path}: zeroed header at byte {start}, with data behind it")
        total += len(data)
    stream.ended = True
    if total < BLOCK:
        raise DamagedPart(f"{stream.path}: ends inside the end-of-archive marker at byte {start}")


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _skip(stream: TarStream, size: int, what: str) -> None:
    remaining = size
    while remaining:
        piece = stream.read(min(remaining, 1 << 22))
        if not piece:
            raise DamagedPart(f"{stream.path}: ends inside {what}")
        remaining -= len(piece)


def _clean(name: str) -> str:
    """A member's name as a key can carry it: no leading `./`, and valid Unicode."""
    while name.startswith("./"):
        name = name[2:]
    return escaped(name)


def _leads_to(name: str, link: str, kind: bytes) -> str:
    """The member that a link names: a hard link by its name in the tar, a symbolic one relative to its own folder."""
    link = _clean(link)
    if kind == tarfile.LNKTYPE or link.startswith("/"):
        return link
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def _pax_records(data: bytes, path: str, start: int) -> dict[str, str]:
    """Parses `length key=value\\n` records. Source: POSIX.1-2001, pax interchange format."""
    records: dict[str, str] = {}
    position = 0
    while position < len(data) and data[position] != 0:
        digits, space, _ = data[position : position + 20].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits) + 1:
            raise DamagedPart(f"{path}: damaged extended header at byte {start}")
        record = data[position + len(digits) + 1 : position + int(digits)]
        key, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n"):
            raise DamagedPart(f"{path}: damaged extended header at byte {start}")
        records[key.decode("utf-8", "surrogateescape")] = value[:-1].decode("utf-8", "surrogateescape")
        position += int(digits)
    return records
