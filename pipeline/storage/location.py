"""Locations as a configuration writes them: what exists so comes first, and what cannot be one is refused."""

from __future__ import annotations

import os
import sys

from ..errors import RequestError, listing_error
from . import uri
from .files import absolute_uri, is_relative, kind_of
from .remote import check_uri, is_remote


def literal_prefix(location: str, special: str) -> tuple[str, str]:
    """Splits an absolute location where a component with a special character does not exist as it is written.

    Returns:
        What exists so, as far as it was asked (only where such a character stands), and the rest; "" if there is none.

    Raises:
        OSError: storage does not say.
    """
    scheme, separator, path = location.rpartition("://")
    components = path.split("/")
    for number, component in enumerate(components):
        if any(character in component for character in special):
            here = scheme + separator + "/".join(components[: number + 1])
            if not (kind_of(here).is_folder(here) or kind_of(here).exists(here)):
                return scheme + separator + "/".join(components[:number]), "/".join(components[number:])
    return location, ""


def check_location(field: str, text: str) -> None:
    """Makes sure that a location of the configuration can be one, before anything is read or written.

    Raises:
        RequestError: it cannot be used, and why: a URI of no storage, another machine's file, a variable that nobody
            expands, a home folder that nobody knows; or of this machine, where names of files are not taken for UTF-8.
    """
    check_uri(field, text)
    encoding = sys.getfilesystemencoding()
    if not is_remote(text) and encoding.lower().replace("_", "-") != "utf-8":  # keys would depend on the locale
        raise RequestError(
            f"{field}: {text}: this process takes names of files for {encoding}, not for UTF-8; set PYTHONUTF8=1, or a "
            "locale such as LC_ALL=C.UTF-8"
        )
    if not is_remote(text) and text.startswith("~") and not uri.is_file_uri(text):
        user = text.partition("/")[0]
        # Else an empty HOME would make `~/out` a folder of the root's.
        known = os.path.expanduser(user) not in ("", "/", user) or os.path.lexists(user)
        if not known:
            raise RequestError(f"{field}: {text}: no home folder is known for {user}; write the path out")
    if "$" not in text:
        return
    try:
        _, rest = literal_prefix(absolute_uri(text), "$")
    except OSError as error:
        raise listing_error(f"{field}: {text} cannot be read: {error}", error) from error
    if rest:
        raise RequestError(
            f"{field}: {text}: there is nothing called {rest.partition('/')[0]}, and variables are not expanded in a "
            f'configuration; write the path out, or have the shell do so: --set {field}="{text}"'
        )


def shown_location(text: str) -> str:
    """A location as it was written and, of a relative one, what it came to: where that was looked for is often why."""
    return f"{text} ({absolute_uri(text)})" if is_relative(text) else text
