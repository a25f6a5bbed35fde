"""Fields: every setting there is, with its type, its default and its meaning.

Names and defaults are the public contract; `visionbake config` and docs/configuration.md print the meanings from here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


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


DTYPE_SPELLINGS = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}


def spelt_out(dtype: str) -> str:
    """The dtype that another common spelling means."""
    word = dtype.lower().removeprefix("torch.")
    return DTYPE_SPELLINGS.get(word, word)


def _dtype(value: object) -> object:
    return spelt_out(value) if isinstance(value, str) else value


AutoOrPositive = Annotated[int | str, BeforeValidator(_auto_or_positive)]
Uri = Annotated[str, BeforeValidator(_uri)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), use_attribute_docstrings=True
    )


class Source(_Section):
    uri: Uri
    """A folder, tar, Parquet, Arrow, JSONL, JSON, CSV or text file, a brace or glob of them, or a folder of them;
    local, s3://, gs://, hdfs:// or hf://."""

    format: Literal["auto", "folder", "webdataset", "parquet", "arrow", "jsonl", "json", "csv", "text"] = "auto"
    """How the source is read; auto decides by what lies there, and says so."""

    media: Literal["auto", "image", "video"] = "auto"
    """Media that are looked for. auto: images, and videos where the source has some; decided once."""

    image_column: str = "image"
    """The column or field that holds the image: bytes, {bytes, path}, a path, a data: value, or a list of those. In
    tars the suffix of the image member, where samples have several."""

    video_column: str = "video"
    """The column or field that holds a video: bytes, {bytes, path}, a path, or a list of those. `start` and `end`
    beside it, in seconds, choose a span. A list of images is one video, a list of lists several; `fps` or `times`
    beside it say when its frames are shown."""

    key_column: str | None = None
    """The column that holds the key; null: derived from the place in the source."""

    members: Literal["auto", "grouped", "each"] = "auto"
    """Tars. grouped: WebDataset's rule, one sample a key; each: every image is a sample; auto looks at the first
    images."""

    carry: list[str] = Field(default_factory=list)
    """Columns, fields or tar members that are copied to the output."""

    on_damaged: Literal["fail", "skip", "salvage"] = "fail"
    """A file that is damaged in its structure. fail: its part fails; skip: it is left out and listed; salvage: what
    stands whole before the damage is taken."""

    on_changed: Literal["fail", "reject"] = "fail"
    """A planned file that has vanished or holds other bytes. fail: the run is refused; reject: its samples that are not
    committed become rejects."""


class Video(_Section):
    """How clips are sampled and sized. What is null is the family's own, which is written out in the output."""

    sampler: Literal["transformers", "qwen_vl_utils"] = "transformers"
    """Whose choice of frames and sizes: the family's own video processor, or the package qwen-vl-utils."""

    fps: float | None = Field(default=None, gt=0, le=1000, allow_inf_nan=False)
    """Frames taken of a second of film."""

    num_frames: int | None = Field(default=None, ge=1, le=1 << 20)
    """Frames taken of each clip, in place of fps."""

    min_frames: int | None = Field(default=None, ge=1, le=1 << 20)
    """The fewest frames that are taken of a clip."""

    max_frames: int | None = Field(default=None, ge=2, le=1 << 20)
    """The most frames that are taken of a clip."""

    min_pixels: int | None = Field(default=None, ge=1)
    """The least size, as the sampler counts it: of a frame, or of all frames together."""

    max_pixels: int | None = Field(default=None, ge=1)
    """The largest size, as the sampler counts it."""

    total_pixels: int | None = Field(default=None, ge=1)
    """qwen_vl_utils only: the budget of all frames of a clip together."""

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
    min_pixels: int | None = Field(default=None, ge=1)
    """Smaller images are scaled up to it: height times width after resizing. null: the checkpoint's own, which is
    written out in the output's configuration."""

    max_pixels: int | None = Field(default=None, ge=784)
    """Larger images are scaled down to it: the budget of tokens of one image. null: the checkpoint's own."""

    video: Video = Video()
    """How clips are sampled and sized; of sources that have some."""

    @model_validator(mode="after")
    def _ordered(self) -> Preprocess:
        if self.max_pixels is not None and self.min_pixels is not None and self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels ({self.max_pixels}) must be at least min_pixels ({self.min_pixels})")
        return self


class Model(_Section):
    path: Uri
    """A Hub id, a local folder with config.json and *.safetensors, or random:SIZE."""

    revision: str | None = None
    """A commit, tag or branch of a Hub id."""

    dtype: Annotated[Literal["auto", "bfloat16", "float32"], BeforeValidator(_dtype)] = "auto"
    """Dtype of weights and computation. auto: bfloat16 where the device multiplies it fast (GPUs; CPUs with AMX or
    AVX512-BF16), else float32; what it came to is in the output's configuration."""

    linear: Literal["exact", "fp8"] = "exact"
    """exact, or fp8 for the matrix products of the blocks, with its error recorded."""

    attention: Literal["auto", "fa2", "cudnn", "fa4"] = "auto"
    """Attention over whole frames on a GPU. auto: what has been shown to repeat its bits, FA2 today; fa4 needs its
    package, flash-attn-4."""

    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_off)] = "auto"
    """Fused kernels between matrix products; auto: on for CUDA, off for a CPU."""

    @model_validator(mode="after")
    def _fp8_in_bfloat16(self) -> Model:
        if self.linear == "fp8" and self.dtype == "float32":
            raise ValueError(f"linear fp8 needs dtype bfloat16, not {self.dtype}")
        return self


class Pack(_Section):
    max_patches: int = Field(default=32_768, ge=4)
    """The most patches of one forward pass; an image with more runs alone."""

    deduplicate: bool = True
    """Encode identical files of a unit once, and write the tokens for each."""


class Output(_Section):
    uri: Uri
    """Where the output lies: a folder, or object storage."""

    format: Literal["parquet", "webdataset"] = "parquet"
    """Format of the data shards."""

    stage: Literal["merged", "pre_merger"] = "merged"
    """merged: the tokens that a language model takes; pre_merger: what the merger would get."""

    deepstack: bool = True
    """Families that have them: the further streams behind the merged tokens, in width."""

    dtype: Annotated[Literal["bfloat16", "float16", "float32", "int8", "fp8"], BeforeValidator(_dtype)] = "bfloat16"
    """How tokens are stored; int8 and fp8 have a scale for each token."""

    on_overflow: Literal["fail", "clamp"] = "fail"
    """float16 only: a value beyond its range fails its unit, or is clamped and counted."""

    shard_tokens: int = Field(default=65_536, ge=1)
    """The most tokens of one data shard, unless one image has more."""

    row_group_bytes: int = Field(default=33_554_432, ge=1, le=1 << 30)
    """About how many bytes of embeddings a Parquet row group has."""


class Cluster(_Section):
    engine: Literal["ray", "inline"] = "ray"
    """ray, or inline: the same stages in one process, without Ray."""

    address: Uri = "auto"
    """Address of a Ray cluster; auto: the one that runs here, else one is started on this machine."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto takes GPUs, and the CPU only on a machine without; cuda waits for GPUs; cpu."""

    encoders: AutoOrPositive = "auto"
    """How many processes encode; auto: one for each GPU, or one on a machine without."""

    preprocessors: AutoOrPositive = "auto"
    """How many processes read, decode and resize; auto follows the CPUs of the nodes."""

    threads_per_encoder: int = Field(default=1, ge=1, le=1024)
    """Threads of an encoder on a CPU; part of the fingerprint."""

    mixed_devices: bool = False
    """Whether encoders may be of different kinds, whose bits differ."""

    in_flight: AutoOrPositive = "auto"
    """Bytes of prepared patches that may wait on a node; auto: a share of its memory."""


class Limits(_Section):
    max_image_pixels: int = Field(default=178_956_970, ge=1)
    """Larger images are rejects (too_many_pixels), before they are decoded."""

    max_rejected_fraction: float = Field(default=0.1, ge=0, le=1)
    """A run with more rejects than this share stops; checked from 1000 samples on, and at the end."""

    attempts: int = Field(default=3, ge=1)
    """How often a unit is tried before it is set aside."""

    sample_seconds: float = Field(default=60.0, gt=0, le=86_400, allow_inf_nan=False)
    """The longest that decoding one image may take."""

    unit_seconds: Annotated[float | str, BeforeValidator(_auto_or_seconds)] = "auto"
    """An encoder that does not answer for so long is replaced; auto: ten minutes, or ten times the median."""


class Config(_Section):
    source: Source
    """Where the images come from."""

    preprocess: Preprocess = Preprocess()
    """How they are resized."""

    model: Model
    """The tower."""

    pack: Pack = Pack()
    """How images share forward passes."""

    output: Output
    """The form of the output, and its place."""

    cluster: Cluster = Cluster()
    """Who does the work."""

    limits: Limits = Limits()
    """Bounds of images, time and failures."""
