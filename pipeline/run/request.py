"""Request: a configuration checked against the world, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from ..config_fields import Config, Source
from ..errors import RequestError
from ..grid import Geometry
from ..index.video_rules import resolve_sampling, written_out
from ..output.dataset import stored_carry
from ..output.shard import RESERVED_COLUMNS
from ..output.shard_formats import shard_format
from ..output.video_schema import VIDEO_COLUMNS
from ..process import in_background
from ..sampling import VideoSampling
from ..source.carry import carried_schema
from ..source.format import Columns
from ..source.formats import format_named
from ..source.lister import list_source
from ..source.listing import Listing
from ..source.media import BOTH, IMAGE, VIDEO
from ..source.part import SourcePlace
from ..source.planned_source import is_planned, planned_media
from ..source.resolve import files_of_output_in, resolve_source
from ..storage.files import AnyPath, absolute, is_relative
from ..storage.hub import HUB
from ..storage.location import check_location
from ..storage.uri import scheme_of
from ..tower.checkpoint import Checkpoint, local_folder
from ..tower.geometry import geometry_of
from .settings import StageSettings

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job


@dataclass(frozen=True, kw_only=True)
class Request:
    """A configuration that has been checked against the world: nothing is written yet.

    Its source is being listed in the background since the request was checked: `listed` waits for that. What the
    checkpoint decides stands written out in `config`.
    """

    config: Config
    output: AnyPath
    place: SourcePlace
    checkpoint: Checkpoint
    geometry: Geometry
    carry: pa.Schema
    listing: Future[Listing]

    def listed(self, timeout_seconds: float | None = None) -> Listing:
        """The source's files. Raises RequestError as `list_source`, TimeoutError."""
        return self.listing.result(timeout_seconds)

    def understood(self, facts: Mapping[str, object]) -> str:
        """Says in one line what is encoded by what. `facts`: those of an encoder's identity."""
        listing, media = self.listed(), _media_words(self.place.media, self.geometry)
        files = f"{listing.count:,} {'file' if listing.count == 1 else 'files'}"
        if listing.videos:
            files += f", {listing.videos:,} of them videos"
        return (
            f"{self.config.source.uri}: {self.place.format}, {media}, {files}; {self.config.model.path} "
            f"({self.checkpoint.config.model_type}) in {facts['model.dtype']} on {facts['device']}"
        )


def _media_words(media: str, geometry: Geometry) -> str:
    sampling = geometry.video
    if sampling is None:
        return "images"
    if sampling.num_frames is not None:
        frames = f"{sampling.num_frames} frames each"
    elif sampling.fps is not None:
        frames = f"{sampling.fps:g} frames a second"
    else:
        frames = "every frame"
    return f"{'videos' if media == VIDEO else 'images and videos'} ({frames})"


def check_request(config: Config, *, weights: bool = True) -> Request:
    """Everything that can be found wrong before anything is written, but what a listing of the source shows.

    Args:
        weights: False if nothing will be encoded: the checkpoint's tensors are then not downloaded.

    Raises:
        RequestError: naming the field.
    """
    check_location("output.uri", config.output.uri)
    if scheme_of(config.output.uri) == HUB:
        raise RequestError(
            f"output.uri: {config.output.uri}: the Hub is read from, not written to; write elsewhere and upload it by "
            "`hf upload-large-folder`"
        )
    if os.environ.get(JOB_VARIABLE) and is_relative(config.output.uri):
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
    if config.source.key_column is not None and not format_named(place.format).has_columns:
        raise RequestError(f"source.key_column: a source of format {place.format} has no columns")
    for name in config.source.carry:
        if name.lower() in shard_format(config.output.format).own_members:
            raise RequestError(f"source.carry: {name} is a member that WebDataset shards have already; leave it out")
    media = planned_media(output, config.source.media)
    wanted = replace(place, media=media or BOTH)
    listing = in_background(partial(_list, config.source, wanted, output, decide=media is None))
    checkpoint = Checkpoint(
        config.model.path, config.model.revision, weights=weights, deepstack=config.output.deepstack
    )
    geometry = _geometry(config, checkpoint)
    place = _place_of(listing, place, media)
    geometry = replace(geometry, video=_sampling(config, place, checkpoint))
    carry = _carried(config, output, listing, geometry, checkpoint.config.streams)
    return Request(
        config=_resolved(config, place, checkpoint, geometry),
        output=output,
        place=place,
        checkpoint=checkpoint,
        geometry=geometry,
        carry=carry,
        listing=listing,
    )


def request_of_model(request: Request, config: Config, model: str, *, weights: bool) -> Request:
    """The same request of another model, for estimates: its source is not listed again.

    Args:
        config: as it was asked for, before the first model was looked at.
        weights: as of `check_request`.

    Raises:
        RequestError: as `check_request`.
    """
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": model, "revision": None})})
    checkpoint = Checkpoint(model, weights=weights, deepstack=config.output.deepstack)
    geometry = replace(_geometry(config, checkpoint), video=_sampling(config, request.place, checkpoint))
    resolved = _resolved(config, request.place, checkpoint, geometry)
    return replace(request, config=resolved, checkpoint=checkpoint, geometry=geometry)


def _geometry(config: Config, checkpoint: Checkpoint) -> Geometry:
    """The sizes of images. Raises RequestError."""
    return geometry_of(
        checkpoint.config,
        min_pixels=config.preprocess.min_pixels,
        max_pixels=config.preprocess.max_pixels,
        max_image_pixels=config.limits.max_image_pixels,
        spelling="preprocess.{}",
    )


def _place_of(listing: Future[Listing], place: SourcePlace, media: str | None) -> SourcePlace:
    """The place with what is looked for. Where that is not decided yet, it hangs on what lies there: that is awaited.

    A listing that fails decides nothing: it says why where it is asked for.
    """
    if media is not None:
        return replace(place, media=media)
    return replace(place, media=IMAGE) if listing.exception() is not None else listing.result().place


def _sampling(config: Config, place: SourcePlace, checkpoint: Checkpoint) -> VideoSampling | None:
    """How clips are sampled, with every default written out; None of a source without. Raises RequestError."""
    if place.media == IMAGE:
        return None
    tower = checkpoint.config
    return resolve_sampling(config.preprocess.video, tower.model_type, tower.patch_size, tower.merge_size)


def _carried(config: Config, output: AnyPath, listing: Future[Listing], geometry: Geometry, streams: int) -> pa.Schema:
    """The carried columns' types, those of an earlier run if there was one. Raises RequestError."""
    if not config.source.carry:
        return pa.schema([])
    for name in shard_format(config.output.format).names_of_streams if streams else ():
        if name in config.source.carry:
            raise RequestError(f"source.carry: {name} stands in each KEY.json already, of a model with further streams")
    reserved = RESERVED_COLUMNS | (frozenset(VIDEO_COLUMNS.names) if geometry.video else frozenset())
    carry = stored_carry(output) or carried_schema(config.source.carry, listing.result(), reserved)
    for field in carry:
        if not shard_format(config.output.format).holds(field.type):
            raise RequestError(
                f"source.carry: {field.name} is {field.type}, which the JSON of a WebDataset shard cannot hold; "
                "set output.format to parquet, or make it text in the source"
            )
    return carry


def _resolved(config: Config, place: SourcePlace, checkpoint: Checkpoint, geometry: Geometry) -> Config:
    """The configuration with what the checkpoint decides written out: another checkpoint might decide otherwise."""
    budgets: dict[str, object] = {"min_pixels": geometry.min_pixels, "max_pixels": geometry.max_pixels}
    if geometry.video is not None:
        budgets["video"] = written_out(geometry.video)
    source = config.source if geometry.video is None else config.source.model_copy(update={"media": place.media})
    deepstack = config.output.deepstack
    if not deepstack:  # where there are no further streams to leave out, nothing is left out
        deepstack = not Checkpoint(config.model.path, checkpoint.revision, weights=False).config.streams
    return config.model_copy(
        update={
            "source": source,
            "preprocess": config.preprocess.model_copy(update=budgets),
            "output": config.output.model_copy(update={"deepstack": deepstack}),
        }
    )


def _list(source: Source, place: SourcePlace, output: AnyPath, *, decide: bool) -> Listing:
    """Lists a source, all of it: a name or folder that cannot be read is found before anything is written.

    Args:
        decide: what is looked for, by what lies there.

    Raises:
        RequestError: it holds no image, or what cannot be read.
    """
    listing = list_source(place)
    columns = columns_of(source, place)
    source_format = format_named(place.format)
    if decide:
        rule = source_format.media_rule(listing, columns)
        listing.place = replace(place, media=rule.media, decided="; ".join(filter(None, (place.decided, rule.why))))
        columns = columns_of(source, listing.place)
    if source.members == "auto" and not is_planned(output):
        source_format.members_rule(listing, columns)  # looks here, in the background; planning asks again
    source_format.check(listing, columns, source.uri)
    return listing


def columns_of(source: Source, place: SourcePlace) -> Columns:
    """The columns that a configuration names, and what is looked for."""
    return Columns(image=source.image_column, key=source.key_column, media=place.media, video=source.video_column)


def stage_settings(request: Request, nonce: str) -> StageSettings:
    config = request.config
    return StageSettings(
        output=str(request.output),
        nonce=nonce,
        columns=columns_of(config.source, request.place),
        carry=request.carry,
        on_damaged=config.source.on_damaged,
        on_changed=config.source.on_changed,
        geometry=request.geometry,
        deduplicate=config.pack.deduplicate,
        model_path=str(local) if (local := local_folder(config.model.path)).is_dir() else config.model.path,
        model_revision=request.checkpoint.revision,
        dtype=config.model.dtype,
        compile=config.model.compile,
        linear=config.model.linear,
        attention=config.model.attention,
        stage=config.output.stage,
        deepstack=config.output.deepstack,
        max_patches=config.pack.max_patches,
        shard_tokens=config.output.shard_tokens,
        stored_dtype=config.output.dtype,
        on_overflow=config.output.on_overflow,
        threads=config.cluster.threads_per_encoder,
        sample_seconds=config.limits.sample_seconds,
    )
