"""Request: a configuration checked against the world, before anything is written."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.carry import carried_schema
from pipeline.checkpoint import Checkpoint
from pipeline.config import Config
from pipeline.errors import DamagedPart, RequestError, SourceError
from pipeline.files import AnyPath, absolute
from pipeline.headers import EXTENSIONS
from pipeline.output import stored_carry
from pipeline.remote import check_uri, is_remote
from pipeline.rows import check_columns
from pipeline.settings import StageSettings
from pipeline.sources import SourcePlace, files_of_output_in, list_files, resolve_source
from pipeline.tar import TarStream, walk
from pipeline.units import Geometry

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job


@dataclass(frozen=True, kw_only=True)
class Request:
    """A configuration that has been checked against the world: nothing is written yet."""

    config: Config
    output: AnyPath
    place: SourcePlace
    checkpoint: Checkpoint
    geometry: Geometry
    ignored: Counter[str]
    carry: pa.Schema


def check_request(config: Config, *, weights: bool = True) -> Request:
    """Everything that can be found wrong before anything is written. Raises RequestError.

    Args:
        weights: False if nothing will be encoded: the checkpoint's tensors are then not downloaded.
    """
    check_uri("output.uri", config.output.uri)
    local = not is_remote(config.output.uri)
    if (
        os.environ.get(JOB_VARIABLE)
        and local
        and not os.path.isabs(os.path.expanduser(config.output.uri.removeprefix("file://")))
    ):
        raise RequestError(
            f"output.uri: {config.output.uri} is relative: in a Ray job it would land in a temporary copy of the "
            "working directory; give an absolute path"
        )
    output = absolute(config.output.uri)
    place = resolve_source(config.source)
    if below := files_of_output_in(place, str(output)):
        raise RequestError(
            f"output.uri: {config.output.uri} lies in the source: {below} would be taken for one of its files; write "
            "elsewhere"
        )
    checkpoint = Checkpoint(config.model.path, config.model.revision, weights=weights)
    ignored = check_source(config, place)
    geometry = Geometry(
        patch_size=checkpoint.config.patch_size,
        merge_size=checkpoint.config.merge_size,
        temporal_patch_size=checkpoint.config.temporal_patch_size,
        min_pixels=config.preprocess.min_pixels,
        max_pixels=config.preprocess.max_pixels,
        max_image_pixels=config.limits.max_image_pixels,
    )
    for name in config.source.carry:
        if config.output.format == "webdataset" and name.lower() in ("json", "safetensors"):
            raise RequestError(f"source.carry: {name} is a member that WebDataset shards have already; leave it out")
    carry = stored_carry(output) if config.source.carry else None
    return Request(
        config=config, output=output, place=place, checkpoint=checkpoint, geometry=geometry, ignored=ignored,
        carry=carried_schema(config.source, place) if carry is None else carry,
    )  # fmt: skip


def check_source(config: Config, place: SourcePlace) -> Counter[str]:
    """Raises RequestError if the source holds no image; returns the other files' extensions, counted."""
    if config.source.key_column is not None and place.format in ("folder", "webdataset"):
        raise RequestError(f"source.key_column: a source of format {place.format} has no columns")
    ignored: Counter[str] = Counter()
    files = list_files(place, ignored)
    if place.format == "folder":
        if not sum(1 for _ in files):  # all of it: a name or folder that cannot be read is found before anything starts
            others = ", ".join(f"{count} {suffix or 'without extension'}" for suffix, count in ignored.most_common(3))
            hint = f"; it holds {others}" if others else ": it is empty"
            if ignored[".tar"] or ignored[".tgz"]:
                hint += f"; for its tars write {config.source.uri.rstrip('/')}/*.tar"
            raise RequestError(f"source.uri: {config.source.uri} holds no image ({', '.join(EXTENSIONS)}){hint}")
        return ignored
    if place.format in ("parquet", "jsonl"):
        first = next(files, None)
        if first is None:
            raise RequestError(f"source.uri: {config.source.uri} holds no {place.format} file")
        if place.format == "parquet":
            check_columns(place, first, config.source.image_column, config.source.key_column)
        return ignored
    for file in files:
        # Damage is for the index to report; here only the first image is looked for.
        with suppress(DamagedPart, SourceError), TarStream(os.path.join(place.root, file.path)) as stream:
            suffixes = (*EXTENSIONS, "." + config.source.image_column.lower())
            if any(member.name.lower().endswith(suffixes) for member, _ in walk(stream, wanted=())):
                return ignored
            continue
        return ignored
    raise RequestError(f"source.uri: {config.source.uri} holds no image ({', '.join(EXTENSIONS)}) in any tar")


def stage_settings(request: Request, nonce: str) -> StageSettings:
    config = request.config
    return StageSettings(
        output=str(request.output),
        nonce=nonce,
        image_column=config.source.image_column,
        key_column=config.source.key_column,
        carry=request.carry,
        on_damaged=config.source.on_damaged,
        geometry=request.geometry,
        deduplicate=config.pack.deduplicate,
        model_path=os.path.abspath(local) if (local := Path(config.model.path).expanduser()).is_dir()
        else config.model.path,
        model_revision=request.checkpoint.revision,
        dtype=config.model.dtype,
        compile=config.model.compile,
        linear=config.model.linear,
        stage=config.output.stage,
        max_patches=config.pack.max_patches,
        stored_dtype=config.output.dtype,
        on_overflow=config.output.on_overflow,
        threads=config.cluster.threads_per_encoder,
        sample_seconds=config.limits.sample_seconds,
    )  # fmt: skip
