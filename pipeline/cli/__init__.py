"""The commands: `visionbake COMMAND`.

commands   their list; errors to exit codes
signals    SIGINT and SIGTERM, from the first moment on
parser     a command's words, and the line that says what is wrong with them
console    what they share: printing, files
reporter   how a run goes, while it goes
requested  the configuration that a command's words stand for
run, plan, init, config, status, stats, verify, encode, bench, completion   one each
compare    what is stored against the reference, for `verify --sample`
compare_clips  a clip as the reference's own processor has it
plan_cases  the budgets, rates and models that one plan compares
verdict    what an estimate comes to, in sentences
words      the names of its numbers, and how they are written
plan_table  the table of its numbers
calibrate  what one device of this machine encodes in a second
report/    the pages of `plan --html` and `stats --html`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

from .signals import EXIT_CODE, Interrupted, catch_signals, interrupted_text

__all__ = ["main", "run_command"]


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    return _called(lambda commands: commands.main(arguments))


def run_command(name: str, arguments: list[str] | None = None) -> int:
    """Runs one command with its words, by default the process's own; returns the exit code."""
    return _called(lambda commands: commands.run_command(name, arguments))


def _called(call: Callable[[ModuleType], int]) -> int:
    """Loads the commands, which takes a moment that may be interrupted, too."""
    catch_signals()
    try:
        from . import commands

        return call(commands)
    except (Interrupted, KeyboardInterrupt) as error:
        print(interrupted_text("visionbake", str(error) or "SIGINT"), file=sys.stderr)
        return EXIT_CODE
