"""Links of tars: the member that each of them ends at, in the same tar, whichever of the two stands first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from ..errors import DamagedPart
from ..storage.names import left_alone_in
from .tar import Member, TarStream, walk

MOST_LINKS = 40  # of a chain, as systems have it


def ends_of(
    stream: TarStream, links: Sequence[Member], known: Callable[[str], Member | None]
) -> Iterator[tuple[Member, Member | None]]:
    """Yields each link with the regular member that it leads to, by way of other links too; None where there is none.

    The tar's headers are walked again only for members that nobody keeps: hidden ones, and those without a suffix.

    Args:
        known: gives a regular member that is no such one, by its name.

    Raises:
        SourceError: the tar cannot be read.
    """
    if not links:
        return
    leads_to = {link.name: str(link.link) for link in links}
    ends = [_last_name(link, leads_to, known) for link in links]
    kept_by_nobody = _members(stream, {name for name in ends if known(name) is None and _may_be_left_out(name)})
    for link, name in zip(links, ends, strict=True):
        yield link, known(name) or kept_by_nobody.get(name)


def _last_name(link: Member, leads_to: dict[str, str], known: Callable[[str], Member | None]) -> str:
    """The name at the end of a chain of links, or one of a ring that has no end."""
    name = str(link.link)
    for _ in range(MOST_LINKS):
        if name not in leads_to or known(name) is not None:
            break
        name = leads_to[name]
    return name


def _may_be_left_out(name: str) -> bool:
    return bool(left_alone_in(name)) or "." not in name.rpartition("/")[2]


def _members(stream: TarStream, names: set[str]) -> dict[str, Member]:
    """The first regular member of each name, as far as the tar is whole. Raises SourceError."""
    found: dict[str, Member] = {}
    if not names:
        return found
    stream.seek(0)
    with suppress(DamagedPart):  # the first walk has reported it
        for member, _ in walk(stream, wanted=()):
            if member.name in names and member.link is None and not member.sparse:
                found.setdefault(member.name, member)
                if len(found) == len(names):
                    break
    return found
