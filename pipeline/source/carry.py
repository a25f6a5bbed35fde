"""Carried columns: what of a source stands beside each image in the output, types kept.

Columns of Parquet, fields of a manifest, members of a tar or files beside an image by their suffix. Their types are
decided once, from all of the source, when a run starts, and written to dataset.json.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa

from ..errors import RequestError
from .formats import format_named
from .listing import Listing
from .part import SourceFile, SourcePlace


def carried_schema(names: Sequence[str], listing: Listing, reserved: Collection[str] = ()) -> pa.Schema:
    """The carried columns' names and types.

    Args:
        reserved: the output's own columns.

    Raises:
        RequestError: a name that the output has already, that the source lacks, or whose values have no one type.
    """
    for name in names:
        if name in reserved:
            raise RequestError(f"source.carry: {name} is a column of the output itself; rename it in the source")
        if names.count(name) > 1:
            raise RequestError(f"source.carry: {name} stands there twice")
    return format_named(listing.place.format).carried_schema(listing, names) if names else pa.schema([])


def check_carried(schema: pa.Schema, place: SourcePlace, added: Iterator[SourceFile]) -> None:
    """Makes sure that files that were added to a source have values of the types that its output has already.

    Raises:
        RequestError: one has not.
    """
    format_named(place.format).carried_schema(Listing(place, added, Counter()), schema.names, schema)


def schema_text(schema: pa.Schema) -> str:
    """A schema as text, for JSON."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of_text(text: str) -> pa.Schema:
    """The schema that `schema_text` gave."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
