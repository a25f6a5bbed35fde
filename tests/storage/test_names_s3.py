"""Names in object storage. Catches: a key that is taken for a pattern, a system's file that is taken for an image."""

from __future__ import annotations

from collections import Counter
from typing import Any

import fsspec
import pytest
from s3_server import BUCKET, S3Server

from pipeline.config import Source
from pipeline.source.lister import list_files
from pipeline.source.members import FilesBeside
from pipeline.source.resolve import resolve_source

URI = f"s3://{BUCKET}"


def put(*keys: str) -> None:
    """Objects that hold their own names."""
    files: Any = fsspec.filesystem("s3", use_listings_cache=False)
    for key in keys:
        files.pipe_file(f"{BUCKET}/in/{key}", key.encode())


def listed_files(uri: str, ignored: Counter[str] | None = None) -> list[str]:
    return [file.path for file in list_files(resolve_source(Source(uri=uri)), ignored)]


@pytest.mark.parametrize(
    ("keys", "uri", "found"),
    [
        (["set[1]/a.tar", "set1/b.tar"], "set[1]/*.tar", ["a.tar"]),
        (["pics{a/a.tar"], "pics{a/*.tar", ["a.tar"]),
        (["pics{a/1.jpg"], "pics{a", ["1.jpg"]),
        (["a[1].tar", "a1.tar"], "a[1].tar", ["a[1].tar"]),
        (["cost$/a.tar", "cost$/b.TAR"], "cost$/*.tar", ["a.tar", "b.TAR"]),
        (["a%20b/1.jpg"], "a%20b", ["1.jpg"]),
    ],
)
def test_keys_that_exist_as_they_are_written_come_first(
    keys: list[str], uri: str, found: list[str], s3: S3Server
) -> None:
    put(*keys)
    assert listed_files(f"{URI}/in/{uri}") == found


def test_what_is_left_alone_in_a_folder_is_so_in_a_bucket(s3: S3Server) -> None:
    put("a.jpg", "._a.jpg", "@eaDir/b.jpg", "x/__MACOSX/c.jpg", "x/.ipynb_checkpoints/d.jpg", "x/e.JPE", "n.txt")
    ignored: Counter[str] = Counter()
    assert listed_files(f"{URI}/in", ignored) == ["a.jpg", "x/e.JPE"]
    assert ignored == {".jpg (hidden)": 1, "@eaDir/": 1, "__MACOSX/": 1, ".ipynb_checkpoints/": 1, ".txt": 1}


def test_objects_beside_an_image_are_found_in_any_case(s3: S3Server) -> None:
    put("a.JPG", "a.TXT", "b.jpg", "b.txt", "c.jpg")
    beside = FilesBeside(["txt"])
    found = [beside.read(f"{URI}/in/{name}") for name in ("a.JPG", "b.jpg", "c.jpg")]
    assert found == [{"txt": b"a.TXT"}, {"txt": b"b.txt"}, {}]
