"""The documentation against the code. Catches: a message that is explained and no longer said."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.output.record import CommitRecord
from pipeline.output.shard import DATA_SCHEMA, SAMPLES_SCHEMA

ROOT = Path(__file__).parent.parent
CODE = re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text("utf-8") for path in (ROOT / "pipeline").rglob("*.py")))
MESSAGES = (ROOT / "docs" / "cluster.md").read_text("utf-8").partition("## Messages")[2]
TEXTS = [
    text
    for row in MESSAGES.splitlines()
    if row.startswith("| `")
    for text in re.findall("`([^`]+)`", row[: row.index(" | ")])
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_message_that_is_explained_is_one_that_is_said(text: str) -> None:
    pieces = [piece.strip() for piece in re.split("…|10", text)]
    assert [piece for piece in pieces if piece not in CODE] == []


def test_there_are_messages_to_hold() -> None:
    assert len(TEXTS) > 30


def test_the_page_of_an_output_has_every_column_and_every_field() -> None:
    page = (ROOT / "docs" / "output.md").read_text("utf-8")
    names = [
        *DATA_SCHEMA.names,
        *SAMPLES_SCHEMA.names,
        *(one.name for one in fields(CommitRecord) if one.name != "errors"),
    ]
    assert [name for name in names if f"`{name}`" not in page] == []
