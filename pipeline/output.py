"""The output as a whole: its fingerprint, dataset.json, what is committed, totals, the card and _SUCCESS."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pyarrow as pa

from pipeline import remote
from pipeline.card import data_set_card
from pipeline.carry import schema_of_text
from pipeline.config import Config
from pipeline.errors import RequestError
from pipeline.files import (
    AnyPath,
    Scratch,
    lists_by_prefix,
    names_in,
    publish_new,
    publish_over,
    remove_unfinished,
    write_text,
)
from pipeline.layout import SCHEMA_VERSION, samples_path
from pipeline.remote import RemotePath
from pipeline.shard import read_metadata
from pipeline.units import Geometry

READS_AT_ONCE = 32
RECORDED_PACKAGES = ("visionbake", "ray", "transformers", "numpy", "safetensors", "huggingface_hub", "pydantic")


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def config_facts(config: Config, tower_sha256: str) -> dict[str, object]:
    """The part of the fingerprint that is known before any device is: flat, so that a difference has a name.

    The checkpoint counts by its tensors, not by the path or revision it was found at.
    """
    facts: dict[str, object] = {"schema_version": SCHEMA_VERSION, "tower_sha256": tower_sha256}
    for section, without in (
        ("preprocess", ()),
        ("model", ("path", "revision", "compile")),
        ("pack", ()),
        ("output", ("uri",)),
    ):
        for name, value in getattr(config, section).model_dump().items():
            if name not in without:
                facts[f"{section}.{name}"] = value
    facts["source.image_column"] = config.source.image_column
    facts["source.key_column"] = config.source.key_column
    facts["source.carry"] = list(config.source.carry)
    facts["limits.max_image_pixels"] = config.limits.max_image_pixels
    facts["cluster.threads_per_encoder"] = config.cluster.threads_per_encoder
    return facts


def fingerprint_of(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_output(output: AnyPath, facts: dict[str, object]) -> None:
    """Raises RequestError if the output cannot take this run: a file, foreign, not writable, or another run's."""
    try:
        names = _names_at(output)
    except OSError as error:
        raise RequestError(f"output.uri: {output} cannot be read: {error}") from error
    foreign = names - {"plan", "_tmp"}  # all that a run writes before dataset.json
    if "plan" in names and "dataset.json" not in names and not (output / "plan" / "plan.json").exists():
        inside = names_in(output / "plan")
        foreign |= {"plan"} if inside else set()
    if foreign and "dataset.json" not in names:
        raise RequestError(f"output.uri: {output} is not empty and not an output of visionbake ({sorted(foreign)[0]})")
    stored = stored_facts(output)
    for name, value in facts.items():
        if stored is not None and stored.get(name) != value:
            raise RequestError(
                f"output.uri: {output} is another run's: {name} is {stored.get(name)!r} there and {value!r} here; use "
                "another output.uri"
            )


def _names_at(output: AnyPath) -> set[str]:
    """What stands in the output. Raises RequestError: it is a file or, on a local file system, cannot be written to."""
    if isinstance(output, RemotePath):
        if output.exists():
            raise RequestError(f"output.uri: {output} is a file")
        try:
            return {entry["name"].rstrip("/") for entry in remote.entries(output.uri)}
        except FileNotFoundError:
            return set()
    if output.exists() and not output.is_dir():
        raise RequestError(f"output.uri: {output} is a file")
    folder = output
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"output.uri: {output} is not writable")
    return set(os.listdir(output)) if output.is_dir() else set()


def stored_facts(output: AnyPath) -> dict[str, object] | None:
    """The fingerprint's facts of an output, None before its first run."""
    path = output / "dataset.json"
    if not path.exists():
        return None
    facts = read_dataset(output).get("fingerprint_facts")
    if not isinstance(facts, dict):
        raise RequestError(f"output.uri: {output}: dataset.json is not one of visionbake's")
    return facts


def read_dataset(output: AnyPath) -> dict[str, Any]:
    """dataset.json. Raises RequestError if the folder is not an output."""
    try:
        tree = dict(json.loads((output / "dataset.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(f"{output} is not an output of visionbake: dataset.json: {error}") from error
    for name in ("config", "fingerprint", "fingerprint_facts", "hidden_size", "merge_size", "patch_size", "device"):
        if name not in tree:
            raise RequestError(f"{output} is not an output of visionbake: dataset.json has no {name}")
    return tree


def geometry_of(dataset: dict[str, Any]) -> Geometry:
    """What decided the grids of an output, from its dataset.json."""
    config = dataset["config"]
    return Geometry(
        patch_size=dataset["patch_size"], merge_size=dataset["merge_size"], temporal_patch_size=2,
        min_pixels=config["preprocess"]["min_pixels"], max_pixels=config["preprocess"]["max_pixels"],
        max_image_pixels=config["limits"]["max_image_pixels"],
    )  # fmt: skip


def stored_carry(output: AnyPath) -> pa.Schema | None:
    """The carried columns' types as an earlier run decided them. None if there was none."""
    if not (output / "dataset.json").exists():
        return None
    text = read_dataset(output).get("carried_schema")
    return schema_of_text(text) if text else None


def write_dataset(
    output: AnyPath, config: Config, facts: dict[str, object], sizes: dict[str, Any], scratch: Scratch
) -> None:
    """Writes dataset.json, once: a later run has been found to agree with it."""
    tree = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint_of(facts),
        "fingerprint_facts": facts,
        "config": config.model_dump(),
        **sizes,
        "device": facts["device"],
        "versions": {name: version_of(name) for name in RECORDED_PACKAGES} | {"python": platform.python_version()},
    }
    path = scratch.path("dataset.json")
    write_text(path, json.dumps(tree, indent=2) + "\n")
    if not publish_new(path, output / "dataset.json"):
        check_output(output, facts)  # another run may have come first a moment ago


class CommittedUnits:
    """Which units are committed, by the names of their samples shards. A bit a unit."""

    def __init__(self, output: AnyPath, parts: int | None = None) -> None:
        self._bits: dict[int, int] = {}
        self.count = 0
        # An object store lists by prefix: a thousand parts at a time, so that no listing is of all shards.
        split = parts is not None and lists_by_prefix(output)
        prefixes = [f"part-{first:03d}" for first in range(-(-(parts or 0) // 1000))] if split else ["part-"]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            for names in pool.map(lambda prefix: names_in(output / "samples", prefix), prefixes):
                for name in names:
                    part, _, number = name.removeprefix("part-").removesuffix(".parquet").partition("-")
                    if part.isdigit() and number.isdigit():
                        self.add(int(part), int(number))

    def add(self, part: int, number: int) -> None:
        if not self.has(part, number):
            self._bits[part] = self._bits.get(part, 0) | 1 << number
            self.count += 1

    def has(self, part: int, number: int) -> bool:
        return bool(self._bits.get(part, 0) >> number & 1)

    def unit_ids(self, without: CommittedUnits | None = None) -> Iterator[str]:
        """In order; only those that an earlier look had not found."""
        for part, bits in sorted(self._bits.items()):
            if without is not None:
                bits &= ~without._bits.get(part, 0)
            number = 0
            while bits:
                if bits & 1:
                    yield f"{part:06d}-{number:04d}"
                bits >>= 1
                number += 1


@dataclass(kw_only=True)
class Totals:
    """Sums over commit records."""

    units: int = 0
    samples: int = 0
    rows: int = 0
    tokens: int = 0
    embedding_bytes: int = 0
    data_bytes: int = 0
    halvings: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    reject_examples: dict[str, list[str]] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, record: dict[str, Any]) -> None:
        self.merge(
            Totals(
                units=1,
                samples=record["rows_in"],
                rows=record["rows_out"],
                tokens=record["tokens"],
                embedding_bytes=record["embedding_bytes"],
                data_bytes=record["data_size"],
                halvings=record["halvings"],
                rejects=Counter(record["rejects"]),
                reject_examples=record["reject_examples"],
                seconds=Counter(record["seconds"]),
            )
        )

    def merge(self, other: Totals) -> None:
        self.units += other.units
        self.samples += other.samples
        self.rows += other.rows
        self.tokens += other.tokens
        self.embedding_bytes += other.embedding_bytes
        self.data_bytes += other.data_bytes
        self.halvings += other.halvings
        self.rejects.update(other.rejects)
        for reason, keys in other.reject_examples.items():
            kept = self.reject_examples.setdefault(reason, [])
            kept.extend(keys[: 3 - len(kept)])
        self.seconds.update(other.seconds)

    @property
    def rejected(self) -> int:
        return sum(self.rejects.values())

    def as_dict(self) -> dict[str, object]:
        return {
            "units": self.units,
            "samples": self.samples,
            "rows": self.rows,
            "rejected": self.rejected,
            "rejects": dict(sorted(self.rejects.items())),
            "tokens": self.tokens,
            "embedding_bytes": self.embedding_bytes,
            "data_bytes": self.data_bytes,
            "halvings": self.halvings,
        }


def read_records(output: AnyPath, unit_ids: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The records of committed units, footer by footer. Raises OutputError."""
    remaining = iter(unit_ids)
    with ThreadPoolExecutor(READS_AT_ONCE if isinstance(output, RemotePath) else 1) as pool:
        while run := list(itertools.islice(remaining, 1024)):
            yield from pool.map(lambda unit_id: read_metadata(samples_path(output, unit_id)), run)


def totals_of(output: AnyPath, unit_ids: Iterable[str]) -> Totals:
    """Sums the records of committed units."""
    totals = Totals()
    for record in read_records(output, unit_ids):
        totals.add(record)
    return totals


def remove_success(output: AnyPath) -> None:
    path = output / "_SUCCESS"
    if path.exists():  # who may only write new objects may run into a new output
        path.unlink(missing_ok=True)


def write_success(output: AnyPath, totals: Totals, skipped: list[str], scratch: Scratch) -> None:
    """Writes the data set card, and _SUCCESS last."""
    remove_unfinished(output, lambda name: samples_path(output, _unit_of(name)).exists())
    dataset = read_dataset(output)
    _replace_text(output / "README.md", data_set_card(dataset, totals), scratch)
    tree = totals.as_dict() | {"fingerprint": dataset["fingerprint"], "skipped_parts": skipped}
    _replace_text(output / "_SUCCESS", json.dumps(tree, indent=2) + "\n", scratch)


def _unit_of(name: str) -> str:
    return name.removeprefix("part-").partition(".")[0]


def _replace_text(path: AnyPath, text: str, scratch: Scratch) -> None:
    fresh = scratch.path(path.name)
    write_text(fresh, text)
    publish_over(fresh, path)
