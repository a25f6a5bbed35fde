"""Report: the findings of `verify`, of all parts or of some."""

from __future__ import annotations

from dataclasses import dataclass, field

from .totals import Totals


@dataclass(kw_only=True)
class Report:
    """The findings: what was checked, and what is wrong. `missing` is what a run that goes on would still do."""

    units: int = 0
    samples: int = 0
    rows: int = 0
    no_image: int = 0
    tokens: int = 0
    bytes_checked: int = 0
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # parts, by source.on_damaged: skip

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"proven": self.proven}

    @property
    def proven(self) -> bool:
        return not self.problems and not self.missing


@dataclass(kw_only=True)
class PartsChecked:
    """The findings about a range of parts: all that a report of the whole is made of.

    Attributes:
        totals: of the readable records.
        expected: the numbers of each part's units, by part.
    """

    report: Report = field(default_factory=Report)
    totals: Totals = field(default_factory=Totals)
    expected: dict[int, int] = field(default_factory=dict)

    def merge(self, later: PartsChecked) -> None:
        """Adds what was found of later parts."""
        self.totals.merge(later.totals)
        self.expected |= later.expected
        self.report.bytes_checked += later.report.bytes_checked
        for name in ("problems", "missing", "uncommitted", "skipped"):
            getattr(self.report, name).extend(getattr(later.report, name))
