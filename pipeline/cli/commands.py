"""The list of commands; errors to exit codes.

Exit codes: 0 done; 1 the run failed or is incomplete; 2 the request itself is wrong.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Protocol

from ..errors import DamagedPart, EncodeError, OutputError, RequestError, RunFailed, SourceError
from ..output.fingerprint import version_of
from .console import print_any_text, say, warn
from .parser import Parser, add_common_arguments
from .signals import EXIT_CODE, catch_signals, interrupted_text, interruption

# What the world, or a request, may be like.
FAILURES = (RequestError, RunFailed, OutputError, SourceError, DamagedPart, EncodeError, OSError)
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

COMMANDS = {
    "run": "encode a source into an output; given again, it goes on where it stopped",
    "plan": "what a run would take: tokens, bytes, hours",
    "init": "print a commented configuration for a source",
    "config": "every field of the configuration: type, default, meaning",
    "status": "how far a run is",
    "stats": "token statistics of an output, and SQL over it",
    "verify": "check an output against its records and its source",
    "encode": "the tower on its own: images in, tokens out",
    "bench": "measure against the reference implementation, side by side (in a checkout)",
    "completion": "print the completion of these words for bash or zsh",
}
WHAT = """\
visionbake runs the vision tower of a vision-language model once over a data set of images, and keeps its tokens.

    visionbake run photos/ out/ --model Qwen/Qwen2.5-VL-7B-Instruct
    visionbake plan photos/              what that would take, asked before
    visionbake COMMAND --help            what a command takes
"""


class Command(Protocol):
    """A command's module."""

    __doc__: str | None
    add_arguments: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help", "help"):
        (say if words else warn)(_help())
        return 0 if words else 2
    if words[0] == "--version":
        say(f"visionbake {version_of('visionbake') or 'of a checkout'}")
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        warn(f"visionbake: there is no command {words[0]}{hint}\n\n{_list_commands()}")
        return 2
    return run_command(words[0], words[1:])


def _help() -> str:
    return f"{WHAT}\n{_list_commands()}"


def _list_commands() -> str:
    return "\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items())


def run_command(name: str, arguments: list[str] | None = None) -> int:
    """Runs one of COMMANDS with its words, by default the process's own; returns the exit code."""
    if name == "bench":
        from .bench import run_bench

        return run_bench(sys.argv[1:] if arguments is None else arguments)
    given = sys.argv[1:] if arguments is None else arguments
    if name == "run" and given and not {"--json", "-q", "--quiet", "-h", "--help"} & set(given):
        say("reading the request")  # at once: what a run needs takes a second to load
    return run_module(name, load_command(name), arguments)


def load_command(name: str) -> Command:
    """The module of one of COMMANDS but `bench`."""
    module: Command = importlib.import_module(f".{name}", __package__)
    return module


def run_module(name: str, command: Command, arguments: list[str] | None = None) -> int:
    """Runs a command's module; turns its errors into a line and an exit code."""
    parser = Parser(prog=f"visionbake {name}", description=command.__doc__)
    command.add_arguments(parser)
    add_common_arguments(parser)
    print_any_text()
    parsed = parser.parse_args(arguments)
    if parsed.verbose:
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    catch_signals()
    try:
        return int(command.main(parsed))
    except BaseException as error:
        if why := interruption(error):
            warn(interrupted_text(parser.prog, why))
            return EXIT_CODE
        if not isinstance(error, FAILURES):
            raise
        if parsed.verbose:
            warn(traceback.format_exc())
        warn(f"{parser.prog}: {error}")
        return 2 if isinstance(error, RequestError) else 1
