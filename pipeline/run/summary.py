"""Summary: what a run did, and what its output holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..output.totals import Totals


@dataclass(kw_only=True)
class Summary:
    """The outcome of a run: what it did, and what its output holds. Seconds are wall time unless they are by stage.

    Attributes:
        ignored: files of the source, and members of the tars that were looked at, that were left alone, by extension.
        beyond_help: how many of the problems another run would find as well.
    """

    output: str
    complete: bool
    totals: Totals
    this_run: Totals
    already_committed: int
    wall_seconds: float
    busy_share: float
    peak_memory_bytes: int
    driver_peak_memory_bytes: int
    retries: int
    problems: list[str] = field(default_factory=list)
    beyond_help: int = 0
    skipped_parts: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, object]:
        seconds = max(self.wall_seconds, 1e-9)
        return {
            "output": self.output,
            "complete": self.complete,
            "totals": self.totals.as_dict(),
            "this_run": self.this_run.as_dict(),
            "units_already_committed": self.already_committed,
            "wall_seconds": round(self.wall_seconds, 3),
            "images_per_second": round(self.this_run.rows / seconds, 2),
            "tokens_per_second": round(self.this_run.tokens / seconds, 1),
            "seconds_by_stage": {key: round(value, 3) for key, value in sorted(self.this_run.seconds.items())},
            "encoder_busy_share": round(self.busy_share, 4),
            "peak_memory_bytes": self.peak_memory_bytes,
            "driver_peak_memory_bytes": self.driver_peak_memory_bytes,
            "retries": self.retries,
            "reject_examples": self.totals.reject_examples,
            "reject_errors": self.totals.reject_errors,
            "problems": self.problems,
            "problems_beyond_help": self.beyond_help,
            "skipped_parts": self.skipped_parts,
            "ignored_files": self.ignored.total(),
            "ignored_by_extension": dict(self.ignored.most_common()),
        }
