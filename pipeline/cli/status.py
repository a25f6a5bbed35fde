"""How far a run is, from what it has committed; also while it runs elsewhere."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from ..index.read import read_index_arrays
from ..index.units import cut_units
from ..output.info import read_dataset
from ..output.ledger import CommittedUnits, folded_parts, read_committed
from ..output.ledger_file import PACE
from ..output.pace import FoldedWorks, Recent, Work, work_of
from ..output.totals import Totals
from ..source.plan import Plan
from ..storage.files import READS_AT_ONCE, AnyPath, map_ahead, requests_at_once
from .console import add_json_argument, bytes_text, output_of, print_json, say, seconds_text
from .signals import Interrupted

WATCH_SECONDS = 2.0
ENCODERS_SHOWN = 16
LATE_SECONDS = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output of a run")
    parser.add_argument("--watch", action="store_true", help="look again every two seconds until it is complete")
    add_json_argument(parser)


class Status:
    """Reads what is new since the last look: an index is cut, and a record summed, once.

    A part whose records are folded is done: it is neither cut nor is any of its shards opened.

    Raises:
        RequestError: there is neither a run nor a plan.
    """

    def __init__(self, output: AnyPath) -> None:
        self._output = output
        if not (output / "plan" / "plan.json").exists():
            read_dataset(output)  # says what is wrong
        self._unit_tokens: dict[int, npt.NDArray[np.int64]] = {}
        self._done: dict[int, int] = {}  # units of the parts that were read from their ledger
        self._seen: CommittedUnits | None = None
        self._recent = Recent()
        self.totals = Totals()

    def look(self) -> dict[str, Any]:
        plan = Plan(self._output)
        indexed = plan.indexed_parts()
        begun = (self._output / "dataset.json").exists()  # else it is planned, and no more
        committed = CommittedUnits(self._output, plan.num_parts)
        fresh = self._read(committed)
        if begun:
            self._cut(plan, sorted(indexed - self._unit_tokens.keys() - self._done.keys()))
        self._recent.add(fresh)
        now = time.time()
        pace = self._recent.pace(now)
        rate = pace.tokens_per_second if pace else 0.0
        known = sum(len(tokens) for tokens in self._unit_tokens.values()) + sum(self._done.values())
        tokens_left = sum(self._tokens_left_of(part, committed) for part in self._unit_tokens)
        return {
            "output": str(self._output),
            "begun": begun,
            "complete": (self._output / "_SUCCESS").exists(),
            "parts": plan.num_parts,
            "parts_indexed": len(indexed),
            "units_known": known,
            "units_committed": committed.count,
            "tokens_left": tokens_left,
            **self.totals.as_dict(),
            "pace": asdict(pace) if pace else None,
            "seconds_left": tokens_left / rate if rate > 0 else None,
            "encoders": self._recent.encoders(now),
        }

    def _read(self, committed: CommittedUnits) -> list[Work]:
        """Sums the records of the units that the last look had not found; returns what tells of the pace."""
        folded = folded_parts(self._output) if committed.count else set()
        works: list[Work] = []
        in_ledgers = FoldedWorks()
        for one in read_committed(self._output, committed, folded, PACE, without=self._seen):
            if isinstance(one, list):
                for record in one:
                    self.totals.add(record)
                    if (work := work_of(record)) is not None:
                        works.append(work)
            else:
                self.totals.merge(one.totals)
                self._unit_tokens.pop(one.part, None)
                self._done[one.part] = len(one.numbers)
                in_ledgers.add(one.table)
        self._seen = committed
        return sorted(works + in_ledgers.latest(), key=lambda work: (work.ended, work.encoder))

    def _tokens_left_of(self, part: int, committed: CommittedUnits) -> int:
        tokens = self._unit_tokens[part]
        if committed.count_of(part) == len(tokens):
            return 0
        done = [number for number in committed.numbers(part) if number < len(tokens)]
        return int(tokens.sum() - tokens[done].sum())

    def _cut(self, plan: Plan, parts: list[int]) -> None:
        dataset = read_dataset(self._output)
        paths = [plan.index_path(part) for part in parts]
        with ThreadPoolExecutor(requests_at_once(self._output)) as pool:
            for part, index in zip(parts, map_ahead(pool, read_index_arrays, paths, READS_AT_ONCE), strict=True):
                units = cut_units(part, index, dataset.geometry, dataset.config["output"]["shard_tokens"])
                self._unit_tokens[part] = np.array([unit.tokens for unit in units], np.int64)


def pace_line(look: dict[str, Any]) -> str:
    """How fast it goes, and how long what is known of would take at that."""
    pace = look["pace"]
    parts = [f"{pace['images_per_second']:,.1f} images/s", f"{pace['tokens_per_second']:,.0f} tokens/s"]
    parts.append(f"{pace['busy_encoders']:.1f} encoders busy")
    if not look["complete"]:
        more = " for what is indexed" if look["parts_indexed"] != look["parts"] else ""
        parts.append(f"{seconds_text(look['seconds_left'] or 0.0)} left{more}")
        if pace["seconds_since"] > LATE_SECONDS:
            parts.append(f"the last unit {seconds_text(pace['seconds_since'])} ago")
    return "    " + ", ".join(parts)


def line_of(status: dict[str, object]) -> str:
    if not status["begun"]:
        return f"planned: {status['parts_indexed']} of {status['parts']} parts are indexed; nothing is encoded yet"
    more = "+" if status["parts_indexed"] != status["parts"] else ""
    without = f" + {status['no_image']:,} without an image" if status["no_image"] else ""
    return (
        f"parts {status['parts_indexed']}/{status['parts']} indexed, units {status['units_committed']}/"
        f"{status['units_known']}{more} committed, {status['samples']:,} samples = {status['rows']:,} rows + "
        f"{status['rejected']:,} rejects{without}, {status['tokens']:,} tokens, "
        f"{bytes_text(float(str(status['data_bytes'])))}"
        f"{', complete' if status['complete'] else ''}"
    )


def encoder_line(encoders: list[dict[str, float]], complete: bool) -> str:
    """Each encoder's busy share in its last minute; of many the least busy ones."""
    shown = sorted(encoders, key=lambda one: one["busy_share"])[:ENCODERS_SHOWN]
    words = []
    for one in sorted(shown, key=lambda one: one["encoder"]):
        late = not complete and one["seconds_since"] > LATE_SECONDS
        ago = f" (its last unit {seconds_text(one['seconds_since'])} ago)" if late else ""
        words.append(f"{one['encoder']:.0f}: {100 * one['busy_share']:.0f} %{ago}")
    mean = sum(one["busy_share"] for one in encoders) / len(encoders)
    least = "" if len(shown) == len(encoders) else f" {100 * mean:.0f} % on average; the least busy:"
    many = f"{len(encoders)} encoders" if len(encoders) > 1 else "1 encoder"
    return f"    {many}, busy in their last minute of work:{least} {', '.join(words)}"


def view_of(look: dict[str, Any]) -> list[str]:
    """Returns the lines that show a look."""
    lines = [line_of(look)]
    if look["pace"]:
        lines.append(pace_line(look))
    if look["rejects"]:
        lines.append("    rejects: " + ", ".join(f"{reason} {count:,}" for reason, count in look["rejects"].items()))
    if look["encoders"]:
        lines.append(encoder_line(look["encoders"], look["complete"]))
    return lines


def main(arguments: argparse.Namespace) -> int:
    try:
        return _show(arguments)
    except (KeyboardInterrupt, Interrupted):
        if arguments.watch:
            return 0  # how one stops watching
        raise


def _show(arguments: argparse.Namespace) -> int:
    status = Status(output_of(arguments.output))
    above = 0  # lines of the look before, which a terminal shows the next one in place of
    while True:
        look = status.look()
        if arguments.json:
            print_json(look, indent=None if arguments.watch else 2)
        else:
            lines = view_of(look)
            again = f"\x1b[{above}F\x1b[J" if above and sys.stdout.isatty() else ""
            say(again + "\n".join(lines))
            columns = shutil.get_terminal_size().columns
            above = sum(-(-len(line) // columns) for line in lines)
        if not arguments.watch or look["complete"]:
            return 0
        time.sleep(WATCH_SECONDS)
