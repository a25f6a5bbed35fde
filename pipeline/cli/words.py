"""Words: the names of an estimate's numbers as people read them, and how each number is written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import RequestError
from .console import bytes_text, number_text

WORDS = {
    "language_model_tokens": "length in the language model",
    "tokens_mean": "tokens, mean",
    "tokens_max": "tokens, most",
    "share_clamped_min": "enlarged to min_pixels",
    "share_clamped_max": "reduced to max_pixels",
    "share_scaled_up": "scaled up",
    "deepstack_bytes": "bytes of the further streams among those",
    "duplicates": "equal ones",
    "duplicate_tokens": "tokens of those",
    "duplicates_within_units": "equal within a unit: encoded once",
    "duplicate_tokens_within_units": "tokens of those, saved",
    "data_bytes": "output",
    "tokens_per_second": "tokens a second, one device",
    "prepare_core_hours": "core hours of preparing",
    "cores_per_device": "cores for each device",
    "seconds": "seconds of film",
    "frames": "frames taken",
    "frames_mean": "frames of a clip, mean",
    "tokens_per_film_second": "tokens a second of film, mean",
    "calibrated_on": "calibrated on",
    "break_even_price_per_terabyte": "pays in epoch 2 below, a terabyte",
    "break_even_epochs": "pays from so many epochs",
    "fps": "frames a second",
    "max_pixels": "max_pixels",
}
MEDIA = {"image": "images", "video": "clips"}
PERCENTILE = re.compile(r"(.+)_p(\d+)")
SYMBOLS = "€$£¥"
_MONEY = re.compile(rf"\s*([{SYMBOLS}]?)\s*([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)\s*([{SYMBOLS}]|[A-Za-z]{{2,4}})?\s*")


@dataclass(frozen=True, kw_only=True)
class Money:
    """An amount, and in which currency; "" where none was named."""

    amount: float
    currency: str = ""

    @classmethod
    def parse(cls, option: str, text: str) -> Money:
        """Reads `2.5`, `2.5 EUR`, `$2.5`. Raises RequestError, naming the option."""
        match = _MONEY.fullmatch(text)
        if not match or (match[1] and match[3]) or not float(match[2]) > 0:
            raise RequestError(f"{option}: {text}: must be a positive number, with a currency or none, such as 2.5EUR")
        return cls(amount=float(match[2]), currency=(match[1] or match[3] or "").upper())


def money_text(amount: float, currency: str) -> str:
    """An amount in its currency: `$2.5`, `2.5 EUR`."""
    text = f"{amount:,.2f}" if 0.01 <= amount < 100 else number_text(amount)
    return f"{currency}{text}" if currency in SYMBOLS and currency else f"{text} {currency}".rstrip()


def words_of(name: str) -> str:
    """Words for a number: `video.tokens_p95` is `clips: tokens, p95`."""
    media, _, own = name.rpartition(".")
    match = PERCENTILE.fullmatch(own)
    if match:
        said = f"{WORDS.get(match[1], match[1].replace('_', ' ')).removesuffix(', mean')}, p{match[2]}"
    else:
        said = WORDS.get(own, own.replace("_", " "))
    return f"{MEDIA[media]}: {said}" if media and own not in ("images", "clips") else said


def value_text(name: str, value: Any, currency: str = "") -> str:
    """A number with its unit; of an interval the middle and both ends."""
    own = name.rpartition(".")[2]
    if isinstance(value, dict) and "estimate" in value:
        middle, low, high = (value_text(name, value[end], currency) for end in ("estimate", "low", "high"))
        return f"{middle} ({low} to {high})"
    if isinstance(value, dict):
        return ", ".join(f"{key} {value_text(own, number, currency)}" for key, number in value.items()) or "none"
    if value is None:
        return "unknown"
    if own in ("price", "break_even_price_per_terabyte"):
        return money_text(float(value), currency)
    if "bytes" in own:
        return bytes_text(float(value))
    if own.startswith("share_") or own == "busy_share":
        return f"{100 * value:.1f} %"
    return number_text(value)


def flat(tree: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a tree, with those of `media` under `image.` and `video.`; lists are left out."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if name == "media":
            for media, figures in value.items():
                found |= {f"{media}.{own}": number for own, number in flat(figures).items()}
        elif not isinstance(value, list):
            found[name] = value
    return found
