"""Check every shard of an output against its record, and every sample of the source against the shards."""

from __future__ import annotations

import argparse
import re
from typing import Any

from ..errors import RequestError
from ..output.report import Report
from ..output.verify import Verifier
from ..process import install_hint
from .console import add_json_argument, bytes_text, check_installed, output_of, print_json, say, warn

SHOWN = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output of a run")
    parser.add_argument("--sample", type=int, metavar="N", help="encode N samples again with the reference and compare")
    parser.add_argument(
        "--parts", type=_parts, metavar="A-B", help="only these parts; totals and _SUCCESS are then left out"
    )
    parser.add_argument("--ray", action="store_true", help="check on a Ray cluster, ranges of parts at a time")
    parser.add_argument("--address", default="auto", help="the cluster of --ray, as cluster.address")
    add_json_argument(parser)


def _parts(text: str) -> range:
    """Parses `A-B`, both included, or one part. Raises ArgumentTypeError."""
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", text, re.ASCII)
    first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (1, 0)
    if last < first:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of parts such as 0-99")
    return range(first, last + 1)


def _checked(verifier: Verifier, arguments: argparse.Namespace) -> Report:
    """Checks what is asked for, where it is asked for. Raises RequestError."""
    parts: range | None = arguments.parts
    if parts is not None and parts.stop > verifier.plan.num_parts:
        raise RequestError(f"--parts: there are {verifier.plan.num_parts} parts, 0-{verifier.plan.num_parts - 1}")
    if not arguments.ray:
        return verifier.verify(parts=parts)
    try:
        from ..run.verify_ray import checker_on
    except ImportError as error:
        raise RequestError(f"--ray: ray is not installed ({error})") from error

    return verifier.verify(parts=parts, check=checker_on(arguments.address, str(verifier.output), warn))


def main(arguments: argparse.Namespace) -> int:
    if arguments.sample is not None and arguments.sample < 1:
        raise RequestError(f"--sample: must be positive, not {arguments.sample}")
    output = output_of(arguments.output)
    if arguments.sample:
        check_installed("--sample", "bench", "transformers", "torchvision")
    verifier = Verifier(output)
    report = _checked(verifier, arguments)
    compared = compare_with_reference(verifier, arguments.sample) if arguments.sample and report.proven else []
    for row in compared:
        if row["relative_rms"] > row["limit"]:
            report.problems.append(
                f"{row['key']}: {row['relative_rms']:.2g} from the reference, over {row['limit']:.2g}"
            )
    if arguments.json:
        print_json(report.as_dict() | ({"compared": compared} if compared else {}))
        return 0 if report.proven else 1
    say(f"units      {report.units:,}")
    rejected = report.samples - report.rows - report.no_image
    without = f", {report.no_image:,} without an image" if report.no_image else ""
    say(f"samples    {report.samples:,}: {report.rows:,} rows, {rejected:,} rejects{without}")
    say(f"tokens     {report.tokens:,}")
    say(f"read       {bytes_text(report.bytes_checked)} of data shards")
    if compared:
        worst = max(row["relative_rms"] for row in compared)
        say(f"reference  {len(compared)} samples encoded again, at most {worst:.2g} away (relative RMS)")
    elif arguments.sample:
        say("reference  not compared: what is there is not what the records say")
    for line in report.skipped:
        say(f"skipped    {line}")
    for line in report.uncommitted:
        say(f"left over  {line}: complete, without a record; the next run adopts or replaces it")
    for kind, lines in (("MISSING", report.missing), ("PROBLEM", report.problems)):
        for line in lines[:SHOWN]:
            warn(f"{kind}  {line}")
        if len(lines) > SHOWN:
            warn(f"{kind}  and {len(lines) - SHOWN} more")
    if report.proven:
        but = f", {len(report.skipped)} damaged parts left out" if report.skipped else ""
        what = "of these parts" if arguments.parts is not None else "of the plan"
        say(f"proven     every sample {what} is here once{but}; every shard is what its record says")
    return 0 if report.proven else 1


def compare_with_reference(verifier: Verifier, count: int) -> list[dict[str, Any]]:
    """Encodes accepted samples again with the reference; see `compare.compared`.

    Raises:
        RequestError: the reference is not installed, the checkpoint is gone, or the output is not of merged tokens.
    """
    try:
        from .compare import compared

        return compared(verifier, count)
    except ImportError as error:
        raise RequestError(f"--sample: {error}; {install_hint('bench')}") from error
