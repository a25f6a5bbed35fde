"""Totals: sums over commit records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from .record import CommitRecord


@dataclass(kw_only=True)
class Totals:
    """Sums over commit records: samples = rows + rejects + no_image."""

    units: int = 0
    samples: int = 0
    rows: int = 0
    no_image: int = 0
    tokens: int = 0
    embedding_bytes: int = 0
    data_bytes: int = 0
    halvings: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    reject_examples: dict[str, list[str]] = field(default_factory=dict)
    nulled: Counter[str] = field(default_factory=Counter)
    reject_errors: dict[str, str] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, record: CommitRecord) -> None:
        """Adds one committed unit."""
        self.merge(
            Totals(
                units=1,
                samples=record.rows_in,
                rows=record.rows_out,
                no_image=record.no_image,
                tokens=record.tokens,
                embedding_bytes=record.embedding_bytes,
                data_bytes=record.data_size,
                halvings=record.halvings,
                rejects=Counter(record.rejects),
                reject_examples=record.reject_examples,
                nulled=Counter(record.nulled),
                reject_errors=record.reject_errors,
                seconds=Counter(record.seconds),
            )
        )

    def merge(self, other: Totals) -> None:
        self.units += other.units
        self.samples += other.samples
        self.rows += other.rows
        self.no_image += other.no_image
        self.tokens += other.tokens
        self.embedding_bytes += other.embedding_bytes
        self.data_bytes += other.data_bytes
        self.halvings += other.halvings
        self.rejects.update(other.rejects)
        self.nulled.update(other.nulled)
        for reason, keys in other.reject_examples.items():
            kept = self.reject_examples.setdefault(reason, [])
            kept.extend(keys[: 3 - len(kept)])
        for reason, error in other.reject_errors.items():
            self.reject_errors.setdefault(reason, error)
        for stage, seconds in other.seconds.items():
            # Records have ten-thousandths of a second: rounded to those, a sum is the same in any order.
            self.seconds[stage] = round(self.seconds[stage] + seconds, 4)

    @property
    def rejected(self) -> int:
        return sum(self.rejects.values())

    @property
    def images(self) -> int:
        """Samples that have an image, rejects included."""
        return self.samples - self.no_image

    def reject_lines(self) -> list[str]:
        """A line for each reason: how many there are, three of their keys, and what is wrong with the first of them."""
        return [
            f"{reason} {count} (such as {', '.join(self.reject_examples.get(reason, []))})"
            + (f": {error}" if (error := self.reject_errors.get(reason)) else "")
            for reason, count in self.rejects.most_common()
        ]

    def to_json(self) -> dict[str, object]:
        """All of it, as a JSON object."""
        tree = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in tree.items()}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Totals:
        """The inverse of `to_json`. Raises KeyError, TypeError: it is something else."""
        counters = {name: Counter(tree[name]) for name in ("rejects", "seconds")}
        counters["nulled"] = Counter(tree.get("nulled", {}))  # what earlier versions do not say
        return cls(**{**tree, **counters})

    def as_dict(self) -> dict[str, object]:
        """The sums by name, as _SUCCESS and the commands give them."""
        return {
            "units": self.units,
            "samples": self.samples,
            "rows": self.rows,
            "rejected": self.rejected,
            "rejects": dict(sorted(self.rejects.items())),
            "no_image": self.no_image,
            "carried_nulled": dict(sorted(self.nulled.items())),
            "tokens": self.tokens,
            "embedding_bytes": self.embedding_bytes,
            "data_bytes": self.data_bytes,
            "halvings": self.halvings,
        }
