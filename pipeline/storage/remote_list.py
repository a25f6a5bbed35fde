"""Listing remote storage for names that are known to be many: a page at a time, nothing kept but what was asked for."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from glob import has_magic

from .client import client_of, named
from .local import State
from .remote import below, pages, state_of_info
from .uri import S3, WHOLE_OBJECTS, scheme_of

PAGE_NAMES = 1000  # of a listing of S3
FEW = 16  # names that are not worth a listing
COSTS_LESS = 4  # times


def names(folder: str, prefix: str = "") -> Iterator[str]:
    """The names of the files in a folder that begin with a prefix, as they are listed; none where there is no folder.

    On S3 a page of a thousand at a time: what a client keeps of a name is 1.5 KB. Raises OSError.
    """
    if scheme_of(folder) in S3:
        for info in pages(folder, f"{below(folder)}{prefix}"):
            name = info["Key"][len(below(folder)) :]
            if name and "/" not in name:
                yield name
        return
    client, path = client_of(folder)
    try:
        with named(folder):
            if scheme_of(folder) in WHOLE_OBJECTS and prefix:
                found = [{"name": name, "type": "file"} for name in client.find(path, prefix=prefix)]
            else:
                found = client.ls(path, detail=True)
    except FileNotFoundError:
        return
    for info in found:
        if info["type"] == "file" and (name := posixpath.basename(info["name"])).startswith(prefix):
            yield name


def states_of(uris: Sequence[str]) -> dict[str, State]:
    """The states of objects that are listed together at less cost than each is asked for; of the others none.

    On S3 a page of a thousand names costs what one question does. Raises OSError.
    """
    if len(uris) < FEW or scheme_of(uris[0]) not in S3 or any(has_magic(uri) for uri in uris):
        return {}
    prefix = _common_start(uris)
    folder, _, start = prefix.rpartition("/")
    if folder.count("/") < 2:  # not even of one bucket
        return {}
    wanted, start_of_keys, found = set(uris), below(folder), {}
    for number, info in enumerate(pages(folder, start_of_keys + start)):
        if number >= len(uris) * PAGE_NAMES // COSTS_LESS:  # most of what lies there is something else
            break
        uri = f"{folder}/{info['Key'][len(start_of_keys) :]}"
        if uri in wanted:
            found[uri] = state_of_info(info | {"size": info["Size"]})
    return found


def _common_start(texts: Sequence[str]) -> str:
    """Returns the characters that all texts begin with."""
    first, last = min(texts), max(texts)
    return first[
        : next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    ]
