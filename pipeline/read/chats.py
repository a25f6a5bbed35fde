"""Chats: which images and videos messages name, and LLaVA records as messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..errors import RequestError
from .items import IMAGE, VIDEO

PLACEHOLDERS = {"<image>": IMAGE, "<video>": VIDEO}  # of LLaVA's conversations
_FIELDS = {IMAGE: ("image", "path", "url"), VIDEO: ("video", "path", "url")}


def flat(names: Any) -> list[str]:
    """Names in one list, however they are nested; none of None."""
    if names is None:
        return []
    if isinstance(names, str):
        return [names]
    return [name for one in names for name in flat(one)]


def is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def image_names(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Lists what a chat's image parts name, in order. Raises RequestError for a part that names nothing."""
    return _names(messages, IMAGE)


def video_names(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Lists what a chat's video parts name, in order. Raises RequestError for a part that names nothing."""
    return _names(messages, VIDEO)


def _names(messages: Sequence[dict[str, Any]], medium: str) -> list[str]:
    names: list[str] = []
    for message in messages:
        content = message["content"]
        for part in content if isinstance(content, list) else []:
            if part.get("type") in (medium, f"{medium}_url"):
                name = next((part[field] for field in _FIELDS[medium] if isinstance(part.get(field), str)), None)
                if name is None:
                    raise RequestError(f"a part of type {medium} without {medium}, path or url: {sorted(part)}")
                names.append(name)
    return names


def from_llava(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A LLaVA record (`image`, `video`, `conversations`) as chat messages.

    `<image>` stands for an image and `<video>` for a video. In a record of videos alone `<image>` is a video too, as
    LLaVA-Video has it.

    Raises:
        RequestError: it has more or fewer images or videos than places for them.
    """
    names = {IMAGE: flat(record.get("image")), VIDEO: flat(record.get("video"))}
    medium_of = PLACEHOLDERS | ({"<image>": VIDEO} if names[VIDEO] and not names[IMAGE] else {})
    remaining = {medium: iter(given) for medium, given in names.items()}
    messages: list[dict[str, Any]] = []
    for turn in record["conversations"]:
        role = {"human": "user", "gpt": "assistant", "system": "system"}.get(turn["from"], turn["from"])
        content: list[dict[str, Any]] = []
        for number, (placeholder, piece) in enumerate(_pieces(turn["value"])):
            if placeholder is not None:
                medium = medium_of[placeholder]
                name = next(remaining[medium], None)
                if name is None:
                    raise RequestError(f"a LLaVA record has more {placeholder} than {medium}s: {record.get('id')}")
                content.append({"type": medium, medium: name})
            if text := (piece.lstrip("\n") if number else piece):
                content.append({"type": "text", "text": text})
        messages.append({"role": role, "content": content})
    for medium, rest in remaining.items():
        if next(rest, None) is not None:
            raise RequestError(f"a LLaVA record has more {medium}s than places for them: {record.get('id')}")
    return messages


def _pieces(value: str) -> list[tuple[str | None, str]]:
    """A turn's text, cut before each placeholder: the placeholder, None at first, and what follows it."""
    first, *rest = re.split(f"({'|'.join(PLACEHOLDERS)})", value)
    return [(None, first), *zip(rest[::2], rest[1::2], strict=True)]
