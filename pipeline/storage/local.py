"""Local file systems: the same questions as `remote` answers of object storage."""

from __future__ import annotations

import glob as globbing
import os
from collections.abc import Iterator

State = tuple[int, int, str]  # size, mtime in ns, ETag


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    return os.path.exists(path)


def is_folder(path: str) -> bool:
    """Whether there is such a folder."""
    return os.path.isdir(path)


def state_of(path: str) -> State:
    """Size, mtime in ns, and no ETag. Raises OSError."""
    facts = os.stat(path)
    return facts.st_size, facts.st_mtime_ns, ""


def glob(pattern: str) -> dict[str, State | None]:
    """The files and folders that a pattern names; their states are asked for later."""
    return dict.fromkeys(globbing.glob(pattern, recursive=True))


def walk(root: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, State | None]]:
    """Every file below a folder, by its path relative to it, in the order of the paths' code points.

    Depth first, and one folder's names at a time. A link to a folder that holds it is not followed.

    Args:
        suffixes: in lower case; of files with other ones no state is asked for.

    Raises:
        OSError: a folder or file cannot be read.
    """
    return _walk(root, "", suffixes)


def _walk(root: str, below: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, State | None]]:
    names: list[str] = []
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=True):
                names.append(entry.name)
            elif not entry.is_symlink() or not _is_above(entry.path):
                names.append(entry.name + "/")
    names.sort()
    for name in names:
        path = below + name
        if name.endswith("/"):
            yield from _walk(root, path, suffixes)
        else:
            yield path, state_of(os.path.join(root, path)) if name.lower().endswith(suffixes) else None


def _is_above(link: str) -> bool:
    """Whether a link leads to a folder that holds it: following it would never end."""
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return (here + os.sep).startswith(target.rstrip(os.sep) + os.sep)
