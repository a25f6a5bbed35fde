"""Family: what an implementation has of its own, as data, and how its numbers are read from config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import RequestError

Norm = Literal["rms", "layer"]
Activation = Literal["silu_gated", "quick_gelu", "gelu_tanh"]
# What no tower is beyond, and what must not be counted to.
LARGEST_NUMBER = 1 << 20
QKV = "attn.qkv."
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How the checkpoints of some model types are published.

    Attributes:
        prefix: of the tower's tensors.
        renames: pairs of our part of a name and theirs, replaced in this order.
        split_qkv: queries, keys and values are three tensors, `attn.q`, `attn.k`, `attn.v`.
        in_thinker: the tower's dimensions are in `thinker_config.vision_config`.
        streams: whether there are further streams ("deepstack").
    """

    model_types: tuple[str, ...]
    prefix: str
    renames: tuple[tuple[str, str], ...] = ()
    split_qkv: bool = False
    in_thinker: bool = False
    streams: bool = False

    def stored(self, name: str) -> str:
        """Their name of one of our tensors, behind the prefix."""
        for ours, theirs in self.renames:
            name = name.replace(ours, theirs)
        return name

    def pieces(self, name: str) -> tuple[str, ...]:
        """Their names of what makes up one of our tensors, in order."""
        stored = self.stored(name)
        return split_names(stored) if self.split_qkv and QKV in stored else (stored,)


def split_names(name: str) -> tuple[str, ...]:
    """The three names of what is one tensor elsewhere: queries, keys, values."""
    return tuple(name.replace(QKV, f"attn.{one}.") for one in "qkv")


@dataclass(frozen=True, kw_only=True)
class Family:
    """An implementation of the tower.

    Attributes:
        title: for messages.
        forms: of the checkpoints that it reads.
        norm: of blocks and mergers.
        activation: of the blocks' MLP; a merger's is always the exact GELU.
        hidden_act: how config.json spells `activation`.
        patch_bias: whether the patch embedding has a bias.
        patch_size: where config.json does not say.
        image_mean, image_std: where the preprocessor does not say.
        read: the fields of a `TowerConfig` that are spelled in a way of the family's own.
    """

    name: str
    title: str
    forms: tuple[Form, ...]
    norm: Norm
    activation: Activation
    hidden_act: str
    patch_bias: bool
    patch_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    read: Callable[[Numbers, Form], dict[str, Any]]

    def form(self, model_type: str) -> Form:
        return next(form for form in self.forms if model_type in form.model_types)


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of a vision_config; `path` is what the user calls the checkpoint."""

    vision: Mapping[str, Any]
    path: str

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of these that is given. Raises RequestError: none is, or it is no integer from 1."""
        for name in names:
            value = self.vision.get(name)
            if value is not None:
                if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_NUMBER:
                    known = f"an integer from 1 to {LARGEST_NUMBER}"
                    raise self.error(f"vision_config.{name} is {value!r:.80}, not {known}")
                return value
        if default is None:
            raise self.error(f"vision_config.{names[0]} is missing")
        return default

    def blocks(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of block numbers. Raises RequestError."""
        value = self.vision.get(name)
        if value is None:
            return default
        if not isinstance(value, list) or not all(type(block) is int for block in value):
            raise self.error(f"vision_config.{name} is {value!r:.80}, not a list of block numbers")
        return tuple(value)

    def error(self, text: str) -> RequestError:
        return RequestError(f"model.path: {self.path}: {text}")
