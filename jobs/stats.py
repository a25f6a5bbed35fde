"""Token statistics of an output."""

from __future__ import annotations

import argparse
import sys

from jobs.cli import run_command
from pipeline.errors import RequestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output of a run")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> int:
    raise RequestError(f"stats {arguments.output}: not yet built in this version of visionbake")


if __name__ == "__main__":
    sys.exit(run_command("stats"))
