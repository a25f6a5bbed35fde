"""Encode what is not committed yet, and print a summary. Run again after any interruption: it goes on."""

from __future__ import annotations

import argparse

from ..run.runner import run
from ..run.summary import Summary
from .console import add_json_argument, bytes_text, ignored_text, print_json, say, seconds_since_start, warn
from .reporter import Reporter
from .requested import add_request_arguments, requested_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser)
    parser.add_argument("--max-pixels", type=int, metavar="N", help="budget of one image (preprocess.max_pixels)")
    add_json_argument(parser)


def print_summary(summary: Summary, since_typed: float) -> None:
    """Args: since_typed: seconds since the command was."""
    totals, seconds = summary.totals, max(summary.wall_seconds, 1e-9)
    this = summary.this_run
    stages = ", ".join(f"{stage} {value:.1f} s" for stage, value in sorted(this.seconds.items()))
    say("")
    say(f"output            {summary.output}{'' if summary.complete else '   (incomplete)'}")
    without = f" + {totals.no_image:,} without an image" if totals.no_image else ""
    say(f"samples           {totals.samples:,} in = {totals.rows:,} rows + {totals.rejected:,} rejects{without}")
    for number, line in enumerate(totals.reject_lines() or ["none"]):
        say(f"{'' if number else 'rejects':18}{line}")
    if totals.nulled:
        nulled = ", ".join(f"{name} {count:,}" for name, count in sorted(totals.nulled.items()))
        say(f"carried           values that are no text became null: {nulled}")
    say(f"tokens            {totals.tokens:,}")
    say(
        f"bytes             {bytes_text(totals.embedding_bytes)} of embeddings, "
        f"{bytes_text(totals.data_bytes)} of shards"
    )
    say(f"units             {totals.units:,}, {summary.already_committed:,} of them committed before this run")
    say(
        f"this run          {this.rows / seconds:,.2f} images/s, {this.tokens / seconds:,.0f} tokens/s in "
        f"{summary.wall_seconds:.1f} s of encoding; {since_typed:.1f} s since the command was typed"
    )
    say(f"seconds by stage  {stages or 'nothing to do'}")
    say(f"encoders busy     {summary.busy_share:.0%}")
    say(
        f"peak memory       {bytes_text(summary.peak_memory_bytes)} in the largest process, "
        f"{bytes_text(summary.driver_peak_memory_bytes)} in the driver"
    )
    if summary.ignored:
        say(f"other files       {ignored_text(summary.ignored)}")
    for skipped in summary.skipped_parts:
        say(f"skipped           {skipped}")
    for problem in summary.problems:
        say(f"FAILED            {problem}")


def main(arguments: argparse.Namespace) -> int:
    config = requested_config(arguments, "run")
    reporter = Reporter(quiet=arguments.json or arguments.quiet)
    try:
        summary = run(config, say=reporter.say, report=reporter, doing=reporter.doing)
    finally:
        reporter.close()
    if arguments.json:
        print_json(summary.as_dict())
    else:
        print_summary(summary, seconds_since_start())
    if not summary.complete:
        warn(f"visionbake run: {_way_on(summary)}")
        return 1
    return 0


def _way_on(summary: Summary) -> str:
    """Says that a run is incomplete, and what can help: to run again only where that can."""
    lasting, failed = summary.beyond_help, len(summary.problems)
    text = f"{failed} units or parts failed (above); the rest is committed."
    if lasting:
        which = "They" if lasting == failed else f"{lasting} of them"
        text += (
            f" {which} would fail again: mend or replace what is named, leave it out (source.on_damaged: skip), or "
            "change the setting that is named."
        )
    if lasting < failed:
        text += " Run again to try " + ("the others again." if lasting else "them again.")
    return text
