"""The families: three implementations for nine model types, a module each with what is only its own.

family       what a family is made of, and how its numbers are read
qwen2_vl     Qwen2-VL
qwen2_5_vl   Qwen2.5-VL, and the tower of Qwen2.5-Omni
qwen3_vl     Qwen3-VL, dense and mixture, the tower of Qwen3-Omni, Qwen3.5, Qwen4

To add one: docs/architecture.md, "Adding a family".
"""

from __future__ import annotations

from .family import Family
from .qwen2_5_vl import QWEN2_5_VL
from .qwen2_vl import QWEN2_VL
from .qwen3_vl import QWEN3_VL

FAMILIES: dict[str, Family] = {one.name: one for one in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)}
MODEL_TYPES: dict[str, Family] = {
    model_type: family for family in FAMILIES.values() for form in family.forms for model_type in form.model_types
}
# A tower saved by itself, and an Omni's thinker, have types of their own.
PARTS = ("_vision", "_vision_encoder", "_thinker")


def family_of(model_type: object) -> tuple[str, Family] | None:
    """The model type of a whole checkpoint, and its family; None for a type that is none of them."""
    if not isinstance(model_type, str):
        return None
    for part in ("", *PARTS):
        whole = model_type.removesuffix(part)
        if model_type.endswith(part) and whole in MODEL_TYPES:
            return whole, MODEL_TYPES[whole]
    return None
