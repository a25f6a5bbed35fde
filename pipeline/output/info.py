"""Data set information: what dataset.json says of an output."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..errors import RequestError, is_busy, output_error
from ..grid import Geometry
from ..sampling import VideoSampling
from ..storage.files import AnyPath


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """One output.

    Attributes:
        config: the configuration, resolved, as a tree.
        fingerprint_facts: what decides a byte, by name; `fingerprint` is their digest.
        hidden_size: values of a row: of a token in all of its streams.
        streams: how many further streams a row has behind its main one.
        carried_schema: the carried columns' types, as `carry.schema_text` writes them; "" or None of none.
        device: that its tokens were encoded on.
        versions: of packages that decide no byte.
    """

    schema_version: int
    fingerprint: str
    fingerprint_facts: dict[str, Any]
    config: dict[str, Any]
    hidden_size: int
    merge_size: int
    patch_size: int
    device: str
    temporal_patch_size: int = 2  # of outputs that an earlier version began
    streams: int = 0
    carried_schema: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The content of dataset.json."""
        return asdict(self) | {"stream_width": self.stream_width}

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> DatasetInfo:
        """The inverse of `to_json`; fields of later versions are left alone.

        Raises:
            TypeError: a field is missing or is something else, or the configuration lacks what every reader needs.
        """
        known = {one.name for one in fields(cls)}
        info = cls(**{name: value for name, value in tree.items() if name in known})
        for names, kind, what in _KINDS:
            for name in names:
                if type(getattr(info, name)) is not kind:
                    raise TypeError(f"{name} is not {what}")
        for section, name in _NEEDED:
            if not isinstance(info.config.get(section), dict) or name not in info.config[section]:
                raise TypeError(f"config lacks {section}.{name}")
        return info

    @property
    def stream_width(self) -> int:
        """Values of one stream of a row."""
        return self.hidden_size // (1 + self.streams)

    @property
    def geometry(self) -> Geometry:
        """The sizes and budgets that decided the grids of this output."""
        return Geometry(
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            temporal_patch_size=self.temporal_patch_size,
            min_pixels=self.config["preprocess"]["min_pixels"],
            max_pixels=self.config["preprocess"]["max_pixels"],
            max_image_pixels=self.config["limits"]["max_image_pixels"],
            video=self.sampling,
        )

    @property
    def sampling(self) -> VideoSampling | None:
        """How clips were sampled and sized; None of an output that has none."""
        facts = self.fingerprint_facts.get("preprocess.video")
        return None if facts is None else VideoSampling(**facts)


_KINDS: tuple[tuple[tuple[str, ...], type, str], ...] = (
    (("fingerprint_facts", "config", "versions"), dict, "an object"),
    (("schema_version", "hidden_size", "merge_size", "patch_size"), int, "a number"),
    (("temporal_patch_size", "streams"), int, "a number"),
    (("fingerprint", "device"), str, "text"),
)
_NEEDED = (
    *(("output", name) for name in ("dtype", "format", "shard_tokens")),
    *(("preprocess", name) for name in ("min_pixels", "max_pixels")),
    ("limits", "max_image_pixels"),
)


def read_dataset(output: AnyPath) -> DatasetInfo:
    """dataset.json. Raises RequestError if the folder is not an output."""
    try:
        return DatasetInfo.from_json(dict(json.loads((output / "dataset.json").read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = str(error).replace("DatasetInfo.__init__() missing", "it lacks").replace("required keyword-only ", "")
        if is_busy(error):
            raise output_error(f"{output}: dataset.json cannot be read: {error}", error) from error
        raise RequestError(f"{output} is not an output of visionbake: dataset.json: {reason}") from error
