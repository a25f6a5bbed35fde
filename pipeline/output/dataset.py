"""The output as a whole: its fingerprint, dataset.json, what is committed, totals, the card and _SUCCESS."""

from __future__ import annotations

import json
import platform
from typing import Any

import pyarrow as pa

from ..config import Config
from ..errors import RequestError
from ..grid import Geometry
from ..source.carry import schema_of_text
from ..storage.files import AnyPath, can_be_written, names_at
from ..storage.publish import publish_new, publish_over, remove_unfinished, write_text
from ..storage.scratch import Scratch
from .card import data_set_card
from .fingerprint import fingerprint_of, version_of
from .layout import SCHEMA_VERSION, samples_path
from .totals import Totals

RECORDED_PACKAGES = ("visionbake", "ray", "transformers", "numpy", "safetensors", "huggingface_hub", "pydantic")


def check_output(output: AnyPath, facts: dict[str, object]) -> None:
    """Raises RequestError if the output cannot take this run: a file, foreign, not writable, or another run's."""
    try:
        names = names_at(output)
    except NotADirectoryError as error:
        raise RequestError(f"output.uri: {output} is a file") from error
    except OSError as error:
        raise RequestError(f"output.uri: {output} cannot be read: {error}") from error
    if not can_be_written(output):
        raise RequestError(f"output.uri: {output} is not writable")
    foreign = names - {"plan", "_tmp"}  # all that a run writes before dataset.json
    if "plan" in names and not (output / "plan" / "plan.json").exists() and names_at(output / "plan"):
        foreign.add("plan")  # an empty one is what a run leaves that was killed before it could describe it
    if foreign and "dataset.json" not in names:
        raise RequestError(f"output.uri: {output} is not empty and not an output of visionbake ({sorted(foreign)[0]})")
    stored = stored_facts(output)
    for name, value in facts.items():
        if stored is not None and stored.get(name) != value:
            raise RequestError(
                f"output.uri: {output} is another run's: {name} is {stored.get(name)!r} there and {value!r} here; use "
                "another output.uri"
            )


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
    """Returns the geometry that decided the grids of an output, from its dataset.json."""
    config = dataset["config"]
    return Geometry(
        patch_size=dataset["patch_size"],
        merge_size=dataset["merge_size"],
        temporal_patch_size=2,
        min_pixels=config["preprocess"]["min_pixels"],
        max_pixels=config["preprocess"]["max_pixels"],
        max_image_pixels=config["limits"]["max_image_pixels"],
    )


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
