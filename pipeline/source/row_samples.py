"""Row samples: what rows name or hold as indexed samples, and their bytes, read again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import rejects
from ..rejects import Reject
from ..storage.large import Encoded, LargeFile
from .keys import digests_in, key_digest
from .named_image import NamedImage, inline_bytes, listed, named_frames, read_image_file
from .sample import IndexedSample


def indexed(images: Iterator[NamedImage], source: str, facts: Any, repeated: bytes = b"") -> Iterator[IndexedSample]:
    """Named images as indexed samples; a second one with a key, in this part or an earlier one, is a duplicate.

    Args:
        source: the file that names them.
        facts: completes a sample by the facts about its bytes.
        repeated: see `SourceFile`.
    """
    keys: set[str] = set()
    before = digests_in(repeated)
    last: tuple[tuple[str | None, ...], Encoded] = ((), b"")  # of the last video: several questions follow one another
    for image in images:
        sample = IndexedSample(
            key=image.key,
            source=source,
            offset=image.offset,
            path=image.path,
            item=image.item,
            group=image.group,
            video=image.video,
        )
        if image.problem and image.reason == rejects.NO_IMAGE:
            yield sample.rejected(rejects.NO_IMAGE, image.problem)
        elif image.key in keys or (before and key_digest(image.key) in before):
            yield sample.rejected(rejects.DUPLICATE_KEY, f"the key {image.key} stands in {source} more than once")
        elif image.problem:
            yield sample.rejected(image.reason, image.problem)
        else:
            files = image.video_files
            try:
                data = last[1] if files and files == last[0] else image.read()
            except Reject as reject:
                yield sample.rejected(reject.reason, reject.message)
            else:
                last = (files, data) if files else last
                yield facts(replace(sample, length=len(data)), data)
        keys.add(image.key)


def reread_image_file(sample: IndexedSample) -> Encoded | None:
    """The file of an indexed sample that names one; None if it has vanished. Raises SourceError: it cannot be read."""
    assert sample.path is not None
    return read_image_file(sample.path, is_video=sample.video is not None)


def reread_cell(value: Any, sample: IndexedSample, path: str) -> bytes | None:
    """The bytes of an indexed sample that its row's cell holds; or those of the frames that the cell lists.

    Args:
        value: the cell, or of a sample with an `item` that one of its list.
        path: the file that the cell stands in.

    Returns:
        None where it holds none, or where a frame's file has vanished.

    Raises:
        SourceError: a frame's file cannot be read.
    """
    if not sample.of_frames:
        return inline_bytes(value)
    clip = named_frames(listed(value) or (), path, sample.key, sample.source)
    try:
        data = clip.read() if clip.frames else None
    except Reject:
        return None
    assert not isinstance(data, LargeFile)
    return data
