"""Names: which of them are left alone in folders and tars, and how one that is no UTF-8 is written."""

from __future__ import annotations

import os
import re

# What desktops, network disks and notebooks put beside people's files.
LEFT_ALONE = frozenset({"__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found"})
_ESCAPED = re.compile(r"\\x[0-9a-f]{2}")


def is_left_alone(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data: hidden, or a system's own."""
    return name in LEFT_ALONE or (name.startswith(".") and name not in (".", ".."))


def left_alone_in(path: str) -> str:
    """Returns the first component of a relative path that is left alone, with a slash if it is a folder; or ""."""
    components = path.split("/")
    for number, name in enumerate(components):
        if is_left_alone(name):
            return name if number == len(components) - 1 else name + "/"
    return ""


def escaped(path: str) -> str:
    """A path as text that can be stored: each byte that is no UTF-8 as `\\xNN`.

    Args:
        path: as Python gives it, such bytes as halves of surrogates.

    A backslash that would read as such an escape is written as `\\x5c`, so that no two paths become one.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        pass
    else:
        if not _ESCAPED.search(path):
            return path
    plain = _ESCAPED.sub(lambda match: r"\x5c" + match[0][1:], path)
    return plain.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unescaped(path: str) -> str:
    """The inverse of `escaped`: a path that the system knows."""
    if not _ESCAPED.search(path):
        return path
    pieces = _ESCAPED.split(path)
    found = [bytes([int(match[2:], 16)]) for match in _ESCAPED.findall(path)]
    raw = pieces[0].encode("utf-8", "surrogateescape")
    for byte, piece in zip(found, pieces[1:], strict=True):
        raw += byte + piece.encode("utf-8", "surrogateescape")
    return os.fsdecode(raw)
