"""Print the completion of the commands' words, for a shell to read: eval "$(visionbake completion bash)"."""

from __future__ import annotations

import argparse

import shtab

from .commands import COMMANDS, load_command
from .console import say
from .parser import add_common_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"))


def main(arguments: argparse.Namespace) -> int:
    parser = argparse.ArgumentParser(prog="visionbake")
    commands = parser.add_subparsers()
    for name, what in COMMANDS.items():
        one = commands.add_parser(name, help=what)
        if name != "bench":
            load_command(name).add_arguments(one)
            add_common_arguments(one)
    say(shtab.complete(parser, shell=arguments.shell))
    return 0
