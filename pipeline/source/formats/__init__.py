"""The formats of sources, one module each: what it is to list, plan, index, read, carry from and draw from one.

folder      image files below a folder
webdataset  tars, by brace or glob: members of one key form a sample
parquet     Parquet files: a range of row groups is a part
arrow       Arrow files, those of `save_to_disk` among them: a range of record batches is a part
jsonl       manifests, an object a line: a range of lines is a part
json_array  manifests, one array of objects
csv_rows    manifests, a row a record below a header
text_list   lists of paths, one a line

To add one: a module with a subclass of `format.SourceFormat`, an entry in FORMATS, its name in `config.py`, how it is
recognised in `resolve.py`, and a door in `tests/doors.py`.
"""

from __future__ import annotations

from ..format import SourceFormat
from .arrow import Arrow
from .csv_rows import Csv
from .folder import Folder
from .json_array import Json
from .jsonl import Jsonl
from .parquet import Parquet
from .text_list import Text
from .webdataset import WebDataset

FORMATS: dict[str, SourceFormat] = {
    one.name: one for one in (Folder(), WebDataset(), Parquet(), Arrow(), Jsonl(), Json(), Csv(), Text())
}


def format_named(name: str) -> SourceFormat:
    """The format of a source or part, by the name that it keeps in the plan."""
    return FORMATS[name]
