"""How far a run is, from what it has committed; also while it runs elsewhere."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.cli import Interrupted, add_json_argument, bytes_text, output_of, print_json, run_command, say, seconds_text
from pipeline.config import parse_config
from pipeline.files import AnyPath
from pipeline.index_read import read_index_arrays
from pipeline.output import CommittedUnits, Totals, read_dataset, read_records
from pipeline.pace import Recent, work_of
from pipeline.parts import Plan
from pipeline.units import Geometry, cut_units

WATCH_SECONDS = 2.0
LOOKS = 16  # that a rate is taken over
ENCODERS_SHOWN = 16
LATE_SECONDS = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="the output of a run")
    parser.add_argument("--watch", action="store_true", help="look again every two seconds until it is complete")
    add_json_argument(parser)


class Status:
    """Reads what is new since the last look: an index is cut, and a record summed, once."""

    def __init__(self, output: AnyPath) -> None:
        dataset = read_dataset(output)
        config = parse_config(dataset["config"])
        self._output = output
        self._shard_tokens = config.output.shard_tokens
        self._geometry = Geometry(
            patch_size=dataset["patch_size"], merge_size=dataset["merge_size"], temporal_patch_size=2,
            min_pixels=config.preprocess.min_pixels, max_pixels=config.preprocess.max_pixels,
            max_image_pixels=config.limits.max_image_pixels,
        )  # fmt: skip
        self._units: dict[int, int] = {}
        self._tokens_known = 0
        self._seen: CommittedUnits | None = None
        self._recent = Recent()
        self.totals = Totals()

    def look(self) -> dict[str, object]:
        plan = Plan(self._output)
        indexed = plan.indexed_parts()
        for part in indexed - self._units.keys():
            index = read_index_arrays(plan.index_path(part))
            units = cut_units(part, index, self._geometry, self._shard_tokens)
            self._units[part] = len(units)
            self._tokens_known += sum(unit.tokens for unit in units)
        committed = CommittedUnits(self._output, plan.num_parts)
        for record in read_records(self._output, committed.unit_ids(self._seen)):
            self.totals.add(record)
            if (work := work_of(record)) is not None:
                self._recent.add(work)
        self._seen = committed
        return {
            "output": str(self._output),
            "complete": (self._output / "_SUCCESS").exists(),
            "parts": plan.num_parts,
            "parts_indexed": len(indexed),
            "units_known": sum(self._units.values()),
            "units_committed": committed.count,
            "tokens_known": self._tokens_known,
            **self.totals.as_dict(),
            "encode_seconds": round(self.totals.seconds["encode"], 3),
            "encoders": self._recent.encoders(time.time()),
        }


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Between two looks. `busy_encoders` is seconds of encoding in a second."""

    images_per_second: float
    tokens_per_second: float
    busy_encoders: float
    seconds_left: float | None


def pace_of(before: dict[str, Any], now: dict[str, Any], seconds: float) -> Pace:
    """How fast it went, and how long what is known of would take at that."""
    rate = (now["tokens"] - before["tokens"]) / seconds
    left = now["tokens_known"] - now["tokens"]
    return Pace(
        images_per_second=(now["rows"] - before["rows"]) / seconds,
        tokens_per_second=rate,
        busy_encoders=(now["encode_seconds"] - before["encode_seconds"]) / seconds,
        seconds_left=left / rate if rate > 0 else None,
    )


def pace_line(pace: Pace, more: bool) -> str:
    left = "no unit was committed meanwhile" if pace.seconds_left is None else f"{seconds_text(pace.seconds_left)} left"
    if more and pace.seconds_left is not None:
        left += " for what is indexed"
    return (
        f"    {pace.images_per_second:,.1f} images/s, {pace.tokens_per_second:,.0f} tokens/s, "
        f"{pace.busy_encoders:.1f} encoders busy, {left}"
    )


def line_of(status: dict[str, object]) -> str:
    more = "+" if status["parts_indexed"] != status["parts"] else ""
    return (
        f"parts {status['parts_indexed']}/{status['parts']} indexed, units {status['units_committed']}/"
        f"{status['units_known']}{more} committed, {status['samples']:,} samples = {status['rows']:,} rows + "
        f"{status['rejected']:,} rejects, {status['tokens']:,} tokens, {bytes_text(float(str(status['data_bytes'])))}"
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
    return f"    {many}, busy in the last minute:{least} {', '.join(words)}"


def view_of(looks: Sequence[tuple[float, dict[str, Any]]]) -> list[str]:
    """What is shown of the last look, with the pace since the first."""
    (then, before), (now, look) = looks[0], looks[-1]
    lines = [line_of(look)]
    if now > then:
        lines.append(pace_line(pace_of(before, look, now - then), look["parts_indexed"] != look["parts"]))
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
    looks: deque[tuple[float, dict[str, Any]]] = deque(maxlen=LOOKS)
    above = 0  # lines of the look before, which a terminal shows the next one in place of
    while True:
        look = status.look()
        looks.append((time.monotonic(), look))
        if arguments.json:
            print_json(look, indent=None if arguments.watch else 2)
        else:
            lines = view_of(looks)
            again = f"\x1b[{above}F\x1b[J" if above and sys.stdout.isatty() else ""
            say(again + "\n".join(lines))
            columns = shutil.get_terminal_size().columns
            above = sum(-(-len(line) // columns) for line in lines)
        if not arguments.watch or look["complete"]:
            return 0
        time.sleep(WATCH_SECONDS)


if __name__ == "__main__":
    sys.exit(run_command("status"))
