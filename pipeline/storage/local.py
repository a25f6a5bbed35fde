"""Local file systems: the same questions as `remote` answers of object storage.

A name that is no UTF-8 is given, and taken, as `names.escaped` writes it. Only regular files are ever opened: a named
pipe would be waited for without end.
"""

from __future__ import annotations

import errno
import glob as globbing
import os
import stat
from collections.abc import Iterator
from typing import IO

from .names import escaped, is_left_alone, unescaped

State = tuple[int, int, str]  # size, mtime in ns, ETag

# What a file that is there will answer however often it is asked, and who asks must be allowed to.
_REFUSED = (errno.EACCES, errno.EPERM)
UNKNOWN_STATE: State = (0, 0, "")  # of what may not be looked at
_LEADS_NOWHERE = (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    return os.path.exists(actual(path))


def is_folder(path: str) -> bool:
    """Whether there is such a folder."""
    return os.path.isdir(actual(path))


def actual(path: str) -> str:
    """The path that the system knows, of one that may be escaped."""
    decoded = unescaped(path)
    return decoded if decoded == path or os.path.lexists(decoded) else path


def state_of(path: str) -> State:
    """Size, mtime in ns, and no ETag; of a link that cannot be followed the link's own.

    Of what may not be looked at it is nothing.

    Raises:
        OSError: it cannot be said; EISDIR: it is neither a regular file nor such a link.
    """
    path = actual(path)
    try:
        facts = os.stat(path)
    except OSError as error:
        if error.errno not in _LEADS_NOWHERE + _REFUSED:
            raise
        if not os.path.islink(path):
            if error.errno in _REFUSED:  # in a folder that lists its names and no more
                return UNKNOWN_STATE
            raise
        facts = os.lstat(path)
    if (kind := _kind(facts.st_mode)) and not stat.S_ISLNK(facts.st_mode):
        raise OSError(errno.EISDIR, f"is {kind}, not a file", path)
    return facts.st_size, facts.st_mtime_ns, ""


def open_regular(path: str) -> IO[bytes]:
    """Opens a file to read it. Raises OSError: it cannot be read; EISDIR: it is no regular file."""
    # Without O_NONBLOCK a named pipe would not even be opened before somebody writes into it.
    number = os.open(actual(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if (kind := _kind(os.fstat(number).st_mode)) is None:
        return open(number, "rb")
    os.close(number)
    raise OSError(errno.EISDIR, f"is {kind}, not a file", path)


def _kind(mode: int) -> str | None:
    return None if stat.S_ISREG(mode) else next((kind for check, kind in _KINDS if check(mode)), "no regular file")


def why_unreadable(path: str) -> str:
    """Says why a file that is there cannot be read, if that is how it lies there; else "".

    A file that is gone, and storage that does not answer, are no such reasons.
    """
    path = actual(path)
    try:
        link = os.readlink(path) if os.path.islink(path) else ""
        with open_regular(path):
            return ""
    except OSError as error:
        if error.errno in _REFUSED:
            return f"it cannot be read: {error.strerror}"
        if link and error.errno in _LEADS_NOWHERE:
            return f"it is a link to {escaped(link)}, which leads nowhere ({error.strerror})"
        return str(error.strerror) if error.errno == errno.EISDIR else ""


def why_unlistable(folder: str) -> str:
    """Says why a folder cannot be listed, if who asks may not; else ""."""
    try:
        with os.scandir(actual(folder)):
            return ""
    except OSError as error:
        return f"folder cannot be listed: {error.strerror}" if error.errno in _REFUSED else ""


def glob(pattern: str) -> dict[str, State | None]:
    """The files and folders that a pattern names; their states are asked for later."""
    return dict.fromkeys(map(escaped, globbing.glob(pattern, recursive=True)))


def walk(root: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, State | None]]:
    """Every file below a folder, by its path relative to it, in the order of the paths' code points.

    Depth first, and one folder's names at a time. No folder is entered twice: a link to one that is met anyway, or
    that another link led to, is not followed. What `names.is_left_alone` says is not entered either: such a folder
    comes as its path with a slash behind it. So does a folder that may not be listed, but with a state.

    Args:
        suffixes: in lower case; of files with other ones no state is asked for, nor of what is left alone or no
            regular file.

    Raises:
        OSError: a file, or a folder that may be, cannot be read; or the folder itself may not be listed.
    """
    return _Walk(root, suffixes).below("")


class _Walk:
    """One walk over a folder. `linked` has the device and inode of every folder that a link led to, or below one."""

    def __init__(self, root: str, suffixes: tuple[str, ...]) -> None:
        self._root, self._suffixes = actual(root), suffixes
        self._real_root = os.path.realpath(self._root)
        self._linked: set[tuple[int, int]] = set()

    def below(self, folder: str, *, through_link: bool = False) -> Iterator[tuple[str, State | None]]:
        """Walks one folder; `folder` is as the system has it, with a slash behind."""
        here = os.path.join(self._root, folder)
        if through_link:
            facts = os.stat(here)
            if (facts.st_dev, facts.st_ino) in self._linked:
                return
            self._linked.add((facts.st_dev, facts.st_ino))
        try:
            with os.scandir(here) as entries:
                found = sorted((name, *facts) for entry in entries for name, facts in self._named(entry))
        except PermissionError:
            if not folder or not why_unlistable(here):
                raise
            yield escaped(folder), UNKNOWN_STATE
            return
        for name, plain, regular, is_link in found:
            if name.endswith("/"):
                if is_left_alone(plain):
                    yield escaped(folder) + name, None
                else:
                    yield from self.below(f"{folder}{plain}/", through_link=through_link or is_link)
                continue
            path = escaped(folder) + name
            if not regular or is_left_alone(plain) or not name.lower().endswith(self._suffixes):
                yield path, None
                continue
            try:
                state = state_of(os.path.join(self._root, folder, plain))
            except FileNotFoundError:  # deleted since the folder was read
                continue
            yield path, state

    def _named(self, entry: os.DirEntry[str]) -> Iterator[tuple[str, tuple[str, bool, bool]]]:
        """A folder's entry by its escaped name, with what it is; none for a link that is not to be followed."""
        is_link = entry.is_symlink()
        if _is_folder(entry):
            if not is_link or is_left_alone(entry.name) or not self._is_met_anyway(entry.path):
                yield escaped(entry.name) + "/", (entry.name, False, is_link)
            return
        leads_nowhere = is_link and not os.path.exists(entry.path)
        regular = leads_nowhere or entry.is_file(follow_symlinks=True)
        yield escaped(entry.name), (entry.name, regular, is_link)

    def _is_met_anyway(self, link: str) -> bool:
        """Whether a link leads to a folder that the walk meets by its own name, or that holds the walk's root."""
        target = os.path.realpath(link)
        if (self._real_root + os.sep).startswith(target.rstrip(os.sep) + os.sep):
            return True
        inside = target.startswith(self._real_root.rstrip(os.sep) + os.sep)
        return inside and not any(map(is_left_alone, os.path.relpath(target, self._real_root).split(os.sep)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=True)
    except OSError as error:  # a link that leads to itself, or to where one may not look
        if error.errno not in _LEADS_NOWHERE + _REFUSED or not entry.is_symlink():
            raise
        return False
