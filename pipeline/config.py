"""The configuration file: what may stand in it, and one clear line when something else does.

Everything is checked before anything is read or written. Field names and defaults are the public contract.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .errors import RequestError


def _auto_or_positive(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("must be auto or a positive integer")


def _auto_or_seconds(value: object) -> object:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (number and 0 < float(str(value)) < float("inf")):
        return float(value) if isinstance(value, int) else value
    raise ValueError("must be auto or a positive number of seconds")


def _on_off(value: object) -> object:
    # YAML 1.1 reads a bare `on` as true and `off` as false.
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _uri(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return value


AutoOrPositive = Annotated[int | str, BeforeValidator(_auto_or_positive)]
Uri = Annotated[str, BeforeValidator(_uri)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class Source(_Section):
    uri: Uri
    format: Literal["auto", "folder", "webdataset", "parquet", "arrow", "jsonl", "json", "csv", "text"] = "auto"
    image_column: str = "image"
    key_column: str | None = None
    members: Literal["auto", "grouped", "each"] = "auto"
    carry: list[str] = Field(default_factory=list)
    on_damaged: Literal["fail", "skip", "salvage"] = "fail"
    on_changed: Literal["fail", "reject"] = "fail"


class Video(_Section):
    """How clips are sampled and sized. What is null is the family's own (`index/video_sampling.py` writes it out)."""

    sampler: Literal["transformers", "qwen_vl_utils"] = "transformers"
    fps: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    num_frames: int | None = Field(default=None, ge=1, le=1 << 20)
    min_frames: int | None = Field(default=None, ge=1, le=1 << 20)
    max_frames: int | None = Field(default=None, ge=2, le=1 << 20)
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)
    total_pixels: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_rate(self) -> Video:
        if self.num_frames is not None:
            for name in ("fps", "min_frames", "max_frames"):
                if getattr(self, name) is not None:
                    raise ValueError(f"num_frames and {name} exclude each other")
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and most < least:
                raise ValueError(f"{high} ({most}) must be at least {low} ({least})")
        return self


class Preprocess(_Section):
    min_pixels: int = Field(default=3136, ge=1)
    max_pixels: int = Field(default=12_845_056, ge=784)
    video: Video = Video()

    @model_validator(mode="after")
    def _ordered(self) -> Preprocess:
        if self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels ({self.max_pixels}) must be at least min_pixels ({self.min_pixels})")
        return self


class Model(_Section):
    path: Uri
    revision: str | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    linear: Literal["exact", "fp8"] = "exact"
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_off)] = "auto"

    @model_validator(mode="after")
    def _fp8_in_bfloat16(self) -> Model:
        if self.linear == "fp8" and self.dtype != "bfloat16":
            raise ValueError(f"linear fp8 needs dtype bfloat16, not {self.dtype}")
        return self


class Pack(_Section):
    max_patches: int = Field(default=32_768, ge=4)
    deduplicate: bool = True


class Output(_Section):
    uri: Uri
    format: Literal["parquet", "webdataset"] = "parquet"
    stage: Literal["merged", "pre_merger"] = "merged"
    dtype: Literal["bfloat16", "float16", "float32", "int8", "fp8"] = "bfloat16"
    on_overflow: Literal["fail", "clamp"] = "fail"
    shard_tokens: int = Field(default=65_536, ge=1)
    row_group_bytes: int = Field(default=33_554_432, ge=1, le=1 << 30)


class Cluster(_Section):
    engine: Literal["ray", "inline"] = "ray"
    address: Uri = "auto"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    encoders: AutoOrPositive = "auto"
    preprocessors: AutoOrPositive = "auto"
    threads_per_encoder: int = Field(default=1, ge=1, le=1024)
    mixed_devices: bool = False
    in_flight: AutoOrPositive = "auto"


class Limits(_Section):
    max_image_pixels: int = Field(default=178_956_970, ge=1)
    max_rejected_fraction: float = Field(default=0.1, ge=0, le=1)
    attempts: int = Field(default=3, ge=1)
    sample_seconds: float = Field(default=60.0, gt=0, le=86_400, allow_inf_nan=False)
    unit_seconds: Annotated[float | str, BeforeValidator(_auto_or_seconds)] = "auto"


class Config(_Section):
    source: Source
    preprocess: Preprocess = Preprocess()
    model: Model
    pack: Pack = Pack()
    output: Output
    cluster: Cluster = Cluster()
    limits: Limits = Limits()


def _read_yaml(text: str) -> Any:
    """Reads YAML in which no key of a mapping stands twice: PyYAML would take the last one without a word.

    Raises:
        YAMLError, ValueError, RecursionError: it is no YAML, or has a value that is none.
        _WrittenTwice: a key stands twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        _check_once(root)
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


class _WrittenTwice(Exception):
    """A key of one mapping stands in two lines, which the message names."""


def _check_once(root: yaml.Node | None) -> None:
    """Looks at every mapping, before `<<` mixes them: what that brings in may be written again.

    Raises:
        _WrittenTwice: a key stands twice in one of them.
    """
    waiting: list[yaml.Node] = [] if root is None else [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias may lead back
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                name, line = (key.tag, str(key.value)), key.start_mark.line + 1
                if name in lines:
                    raise _WrittenTwice(f"line {line}: {key.value} is written twice, first in line {lines[name]}")
                lines[name] = line
                waiting.append(value)


def load_config(path: str, overrides: list[str] | None = None) -> Config:
    """Reads and validates a YAML configuration.

    Args:
        path: the YAML file.
        overrides: `a.b=value` strings; the value is read as YAML.

    Raises:
        RequestError: naming the file or the field, and what would be right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"configuration {path}: cannot be read: {error}") from error
    try:
        tree = _read_yaml(text)
    except _WrittenTwice as error:
        raise RequestError(f"configuration {path}: {error}; only one of them can count") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the second of a date that is none
        raise RequestError(f"configuration {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RequestError(f"configuration {path}: must be a mapping with source, model and output")
    for override in overrides or []:
        _set(tree, override)
    return parse_config(tree, where=f"configuration {path}")


def parse_config(tree: dict[str, Any], where: str = "configuration") -> Config:
    """Validates an already parsed tree. Raises RequestError as `load_config` does."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise RequestError(_one_line(where, error)) from error


def _set(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise RequestError(f"--set {override}: must be a.b=value")
    try:
        value = _read_yaml(text)
    except _WrittenTwice as error:
        raise RequestError(f"--set {override}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RequestError(f"--set {override}: the value is not valid YAML") from error
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise RequestError(f"--set {override}: {parent} is not a section")
    node[last] = value


def _one_line(where: str, error: ValidationError) -> str:
    details = error.errors()
    first = details[0]
    field = ".".join(str(part) for part in first["loc"]) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown field; {_known_fields(first['loc'])}"
    elif first["type"] == "missing":
        message = "is missing"
    else:
        message = f"{message[:1].lower()}{message[1:]}, not {first['input']!r}"[:300]
        if first["type"] == "value_error" and first["loc"] in (("preprocess",), ("preprocess", "video"), ("model",)):
            message = first["msg"].removeprefix("Value error, ")
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{where}: {field}: {message}{more}"


def _known_fields(location: tuple[int | str, ...]) -> str:
    model: Any = Config
    for part in location[:-1]:
        model = model.model_fields[str(part)].annotation
    return "known here: " + ", ".join(model.model_fields)
