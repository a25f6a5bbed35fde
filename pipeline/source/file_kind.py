"""File kind: what a file is by its first bytes, to stand behind what is wrong with it.

Apart from `unknown`, which a process that decodes images loads: it needs no storage.
"""

from __future__ import annotations

from ..storage.files import open_input
from .unknown import LOOKED_AT, name_of_any


def file_is(path: str, *no_news: str) -> str:
    """Names a file by its first bytes, to stand behind what is wrong with it; "" where that is not known.

    Args:
        no_news: how names begin that are left out.
    """
    try:
        with open_input(path, forwards=False) as stream:
            name = name_of_any(stream.read(LOOKED_AT))
    except OSError:
        return ""
    return f"; it is {name}" if name and not name.startswith(no_news) else ""
