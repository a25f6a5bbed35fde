"""Encode what is not committed yet, and print a summary. Run again after any interruption: it goes on."""

from __future__ import annotations

import argparse
import sys
import time

from tqdm import tqdm

from ..run.progress import Progress
from ..run.runner import run
from ..run.summary import Summary
from .console import add_json_argument, bytes_text, catch_signals, ignored_text, print_json, say, seconds_text
from .requested import add_request_arguments, requested_config

LINE_EVERY_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_request_arguments(parser)
    parser.add_argument("--max-pixels", type=int, metavar="N", help="budget of one image (preprocess.max_pixels)")
    add_json_argument(parser)


class Reporter:
    """A progress bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: tqdm | None = None
        self._said = time.monotonic()

    def say(self, line: str) -> None:
        # Ray sets handlers of its own when it starts, which is when it has things to say.
        if self._bar is not None:
            self._bar.write(line)
        elif self._quiet:
            print(line, file=sys.stderr, flush=True)
        else:
            say(line)

    def __call__(self, progress: Progress, seconds: float, encoder_seconds: float) -> None:
        catch_signals()
        if self._quiet:
            return
        totals = progress.totals
        busy = totals.seconds["encode"] / max(1e-9, encoder_seconds)
        more = progress.parts_cut < progress.parts - len(progress.failed_parts)
        rates = (
            f"{totals.tokens / max(seconds, 1e-9):,.0f} tokens/s, {totals.rows / max(seconds, 1e-9):,.1f} images/s, "
            f"encoders busy {min(busy, 1):.0%}"
        )
        done, known = totals.units, progress.units_known - progress.units_before
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(unit=" units", dynamic_ncols=True)
            self._bar.total = None if more else known
            self._bar.n = done
            self._bar.set_postfix_str(f"{totals.samples:,} samples, {rates}", refresh=True)
        elif time.monotonic() - self._said >= LINE_EVERY_SECONDS:
            self._said = time.monotonic()
            left = ""
            if done and not more:
                left = f", {seconds_text(seconds / done * (known - done))} left"
            say(
                f"{seconds_text(seconds)} parts {progress.parts_indexed}/{progress.parts} indexed, units {done}/{known}"
                f"{'+' if more else ''}, {totals.samples:,} samples, {rates}{left}"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def print_summary(summary: Summary) -> None:
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
        f"{summary.wall_seconds:.1f} s"
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
    reporter = Reporter(quiet=arguments.json)
    try:
        summary = run(config, say=reporter.say, report=reporter)
    finally:
        reporter.close()
    if arguments.json:
        print_json(summary.as_dict())
    else:
        print_summary(summary)
    if not summary.complete:
        print(f"visionbake run: {_way_on(summary)}", file=sys.stderr)
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
