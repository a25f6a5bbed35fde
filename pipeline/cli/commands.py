"""The list of commands; errors to exit codes.

Exit codes: 0 done; 1 the run failed or is incomplete; 2 the request itself is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Protocol

from ..errors import DamagedPart, EncodeError, OutputError, RequestError, RunFailed, SourceError
from .console import Interrupted, catch_signals, print_any_text

COMMANDS = {
    "plan": "index the source and say what a run would cost",
    "run": "encode what is not committed yet",
    "status": "how far a run is",
    "stats": "token statistics of an output",
    "verify": "check an output against its records",
    "encode": "the tower on its own: images in, tokens out",
    "bench": "measure against the reference implementation, side by side (in a checkout)",
}


class Command(Protocol):
    """A command's module."""

    __doc__: str | None
    add_arguments: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(prog="visionbake", description="visionbake COMMAND: errors to exit codes")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=_list_commands())
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        parser.print_usage(sys.stderr)
        print(_list_commands(), file=sys.stderr)
        return 2
    chosen = parser.parse_args(words[:1])
    return run_command(chosen.command, words[1:])


def _list_commands() -> str:
    return "; ".join(f"{name}: {what}" for name, what in COMMANDS.items())


def run_command(name: str, arguments: list[str] | None = None) -> int:
    """Runs one of COMMANDS with its words, by default the process's own; returns the exit code."""
    if name == "bench":
        from .bench import run_bench

        return run_bench(sys.argv[1:] if arguments is None else arguments)
    return run_module(name, importlib.import_module(f".{name}", __package__), arguments)


def run_module(name: str, command: Command, arguments: list[str] | None = None) -> int:
    """Runs a command's module; turns its errors into a line and an exit code."""
    parser = argparse.ArgumentParser(prog=f"visionbake {name}", description=command.__doc__)
    command.add_arguments(parser)
    parsed = parser.parse_args(arguments)
    print_any_text()
    catch_signals()
    try:
        return int(command.main(parsed))
    except RequestError as error:
        print(f"visionbake {name}: {error}", file=sys.stderr, flush=True)
        return 2
    except (RunFailed, OutputError, SourceError, DamagedPart, EncodeError, OSError) as error:
        print(f"visionbake {name}: {error}", file=sys.stderr, flush=True)
        return 1
    except (Interrupted, KeyboardInterrupt) as error:
        print(
            f"visionbake {name}: interrupted ({error or 'SIGINT'}); what is committed stays. Give the same command "
            "again to go on.",
            file=sys.stderr,
            flush=True,
        )
        return 1
