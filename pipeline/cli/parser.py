"""Parser: a command's words, with one line for what is wrong with them."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any, NoReturn

from .console import print_to

USAGE_CODE = 2


class Parser(argparse.ArgumentParser):
    """An argparse parser that says in a line what is wrong, with the option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        hint = ""
        if message.startswith("unrecognized arguments: "):
            given = [word.partition("=")[0] for word in message.split()[2:] if word.startswith("-")]
            near = [found[0] for word in given if (found := difflib.get_close_matches(word, self.options(), 1))]
            hint = f"; did you mean {near[0]}?" if near else ""
        print_to(sys.stderr, f"{self.prog}: {message}{hint} ({self.prog} --help)")
        raise SystemExit(USAGE_CODE)

    def options(self) -> list[str]:
        return list(self._option_string_actions)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Prints help; where nobody reads any more, nothing."""
        print_to(file or sys.stderr, message.rstrip("\n"))


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every command takes."""
    parser.add_argument("-q", "--quiet", action="store_true", help="the result alone: nothing of how it is going")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="what libraries log, too, and where an error arose"
    )
