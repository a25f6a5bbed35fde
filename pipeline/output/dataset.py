"""The output as a whole: its fingerprint, dataset.json, what is committed, totals, the card and _SUCCESS."""

from __future__ import annotations

import json
import platform

import pyarrow as pa

from ..errors import RequestError, is_busy, output_error, writing
from ..source.carry import schema_of_text
from ..storage.files import AnyPath, can_be_written, names_at
from ..storage.publish import publish_new, publish_over, remove_unfinished, write_text
from ..storage.scratch import Scratch
from .card import data_set_card
from .fingerprint import LATER_FIELDS, version_of
from .info import DatasetInfo, read_dataset
from .layout import OUTPUT_NAMES, PLAN_NAMES, samples_path, unit_id_of
from .totals import Totals

RECORDED_PACKAGES = ("visionbake", "ray", "transformers", "numpy", "safetensors", "huggingface_hub", "pydantic")


def check_output(output: AnyPath, facts: dict[str, object]) -> None:
    """Raises RequestError if the output cannot take this run: a file, foreign, not writable, or another run's."""
    names = _names_at(output, OUTPUT_NAMES)
    planned = _names_at(output / "plan", PLAN_NAMES) if "plan/" in names else set()
    if not can_be_written(output):
        raise RequestError(f"output.uri: {output} is not writable")
    foreign = names - {"plan/", "_tmp/"}  # all that a run writes before dataset.json
    # Asked for by name as well: another run may be making its files while they are listed.
    if planned and "plan.json" not in planned and not (output / "plan" / "plan.json").exists():
        foreign.add("plan/")  # an empty one is what a run leaves that was killed before it could describe it
    if foreign and "dataset.json" not in names and not (output / "dataset.json").exists():
        first = sorted(foreign)[0].rstrip("/")
        raise RequestError(f"output.uri: {output} is not empty and not an output of visionbake ({first})")
    if (stored := stored_facts(output)) is None:
        return
    stored = LATER_FIELDS | stored
    for name, value in (LATER_FIELDS | facts).items():
        if (there := stored.get(name)) != value:
            raise RequestError(
                f"output.uri: {output} is another run's: {name} is {there!r} there and {value!r} here; use another "
                "output.uri"
            )


def _names_at(folder: AnyPath, expected: tuple[str, ...]) -> set[str]:
    """The names in a folder, as `names_at`. Raises RequestError: one of those expected is a file for a folder."""
    try:
        names = names_at(folder)
    except NotADirectoryError as error:
        raise RequestError(f"output.uri: {folder} is a file") from error
    except OSError as error:
        message = f"output.uri: {folder} cannot be read: {error}"
        raise (output_error(message, error) if is_busy(error) else RequestError(message)) from error
    for name in expected:
        other = name.rstrip("/") if name.endswith("/") else f"{name}/"
        # An object store may have both of one name.
        if other in names and (name.endswith("/") or name not in names):
            found, needed = ("file", "folder") if name.endswith("/") else ("folder", "file")
            raise RequestError(
                f"output.uri: {folder / name.rstrip('/')} is a {found}, where an output has a {needed}; move it away, "
                "or use another output.uri"
            )
    return names


def stored_facts(output: AnyPath) -> dict[str, object] | None:
    """The fingerprint's facts of an output, None before its first run."""
    return read_dataset(output).fingerprint_facts if (output / "dataset.json").exists() else None


def stored_carry(output: AnyPath) -> pa.Schema | None:
    """The carried columns' types as an earlier run decided them. None if there was none."""
    if not (output / "dataset.json").exists():
        return None
    text = read_dataset(output).carried_schema
    return schema_of_text(text) if text else None


def write_dataset(output: AnyPath, info: DatasetInfo, scratch: Scratch) -> None:
    """Writes dataset.json, once: a later run has been found to agree with it."""
    path = scratch.path("dataset.json")
    write_text(path, json.dumps(info.to_json(), indent=2) + "\n")
    if not publish_new(path, output / "dataset.json"):
        check_output(output, info.fingerprint_facts)  # another run may have come first a moment ago


def recorded_versions() -> dict[str, str | None]:
    """The versions of packages that decide no byte, and Python's."""
    return {name: version_of(name) for name in RECORDED_PACKAGES} | {"python": platform.python_version()}


def is_complete(output: AnyPath) -> bool:
    """Whether an output says that it is."""
    return (output / "_SUCCESS").exists()


def remove_success(output: AnyPath) -> None:
    """Raises OutputError."""
    path = output / "_SUCCESS"
    with writing(path):
        if path.exists():  # who may only write new objects may run into a new output
            path.unlink(missing_ok=True)


def write_success(output: AnyPath, totals: Totals, skipped: list[str], scratch: Scratch) -> None:
    """Writes the data set card, and _SUCCESS last."""
    remove_unfinished(output, lambda name: _is_committed(output, name))
    dataset = read_dataset(output)
    _replace_text(output / "README.md", data_set_card(dataset, totals), scratch)
    tree = totals.as_dict() | {"fingerprint": dataset.fingerprint, "skipped_parts": skipped}
    _replace_text(output / "_SUCCESS", json.dumps(tree, indent=2) + "\n", scratch)


def _is_committed(output: AnyPath, name: str) -> bool:
    """Whether a shard's unit is committed, by the shard's name; of another's file False."""
    try:
        return samples_path(output, str(unit_id_of(name))).exists()
    except ValueError:
        return False


def _replace_text(path: AnyPath, text: str, scratch: Scratch) -> None:
    fresh = scratch.path(path.name)
    write_text(fresh, text)
    publish_over(fresh, path)
