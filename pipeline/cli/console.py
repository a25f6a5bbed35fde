"""Console: what all commands share: printing, arguments, files."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from ..errors import OutputError, RequestError
from ..process import install_hint
from ..storage.files import AnyPath, absolute, is_folder
from ..storage.location import check_location, shown_location

IGNORED_SAID = 8


def seconds_since_start() -> float:
    """Since this process began, which is when its command was typed."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux
        return time.process_time()


def print_any_text() -> None:
    """From now on a name that the terminal's encoding lacks is printed escaped, where it would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_to(stream: IO[str] | None, text: str) -> None:
    """Prints a line or some. Where nobody reads any more (`… | head`) the command goes on, and is silent."""
    if stream is None:  # it was closed before the command began
        return
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # also for what a library prints there, and the flush at the end
        os.close(nowhere)


def say(line: str) -> None:
    """Prints a line of the result."""
    print_to(sys.stdout, line)


def warn(line: str) -> None:
    """Prints a line beside the result, which a program may be reading."""
    print_to(sys.stderr, line)


def output_of(text: str) -> AnyPath:
    """The place that a command's OUTPUT names. Raises RequestError if there is nothing."""
    check_location("OUTPUT", text)
    output = absolute(text)
    if not is_folder(output):
        there = output.exists()
        raise RequestError(f"{text} is a file, not an output" if there else f"{shown_location(text)} does not exist")
    return output


def ignored_text(ignored: Mapping[str, int]) -> str:
    """Says what was left alone: how many in all, and of the most frequent kinds how many each."""
    total, kinds = sum(ignored.values()), sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    some = ", ".join(f"{count:,} {name or 'without extension'}" for name, count in kinds[:IGNORED_SAID])
    return f"{total:,} left alone: {some}{', …' if len(kinds) > IGNORED_SAID else ''}"


def print_json(tree: object, indent: int | None = 2) -> None:
    say(json.dumps(tree, indent=indent))


def check_file(option: str, path: str | None) -> None:
    """Makes sure, before any work, that a file can be written where an option says. Raises RequestError."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir():
        raise RequestError(f"{option} {path} is a folder; give a file's name")
    if not folder.is_dir():
        raise RequestError(f"{option} {path}: there is no folder {folder}")
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise RequestError(f"{option} {path} cannot be written")


def check_installed(option: str, extra: str, *modules: str) -> None:
    """Makes sure, before any work, that what an option takes is installed. Raises RequestError."""
    for name in modules:
        try:
            missing = importlib.util.find_spec(name) is None
        except (ImportError, ValueError):
            missing = True
        if missing:
            raise RequestError(f"{option}: {name} is not installed: {install_hint(extra)}")


def write_page(path: str, text: str) -> None:
    """Raises OutputError."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--html: cannot write {path}: {error}") from error


def bytes_text(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError


def number_text(value: object) -> str:
    """A number with three digits that matter, or all of an integer; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"


def seconds_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result for a program")
