"""Publish: a complete file appears under its final name, or not at all.

Local file systems publish by a hard link, which never replaces; object stores by one PUT or one completed multipart
upload, create-if-absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ..errors import output_error
from ..fault import fault_point
from . import remote_publish
from .files import AnyPath
from .remote import RemotePath
from .scratch import writing_scratch


def sync_file(path: Path) -> None:
    """Flushes a file that a library has written. Raises OutputError."""
    with writing_scratch(path), open(path, "rb") as stream:
        os.fsync(stream.fileno())


def sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_new(scratch: Path, final: AnyPath) -> bool:
    """Publishes a complete, flushed file under its final name, never replacing.

    Returns:
        False if the name exists already; then nothing changed and the scratch file is still there.

    Raises:
        OutputError: the file system or the storage refuses.
    """
    try:
        if isinstance(final, RemotePath):
            if not remote_publish.upload(scratch, final.uri, replace=False):
                return False
            scratch.unlink()
            return True
        _make_folder(final.parent)
        fault_point(f"publish={final.name}")
        try:
            os.link(scratch, final)
        except FileExistsError:
            return False
        sync_directory(final.parent)
        scratch.unlink()
    except OSError as error:
        raise output_error(f"cannot publish {final}: {error}", error) from error
    return True


def _make_folder(folder: Path) -> None:
    """Within an output, never an output that has vanished: see `Scratch.path`. The deepest is `OUTPUT/plan/index`."""
    if folder.parent.name == "plan":
        folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)


def publish_over(scratch: Path, final: AnyPath) -> None:
    """Publishes over whatever stands there: for the few files that describe the run. Raises OutputError."""
    try:
        if isinstance(final, RemotePath):
            remote_publish.upload(scratch, final.uri, replace=True)
            scratch.unlink()
            return
        _make_folder(final.parent)
        os.replace(scratch, final)
        sync_directory(final.parent)
    except OSError as error:
        raise output_error(f"cannot publish {final}: {error}", error) from error


def remove_unfinished(output: AnyPath, committed: Callable[[str], bool]) -> None:
    """Removes what killed processes, and twins that came too late, left unfinished of shards that are committed.

    A local one's lies in their scratch.
    """
    if isinstance(output, RemotePath):
        with suppress(OSError):  # it costs space, and nothing else
            for folder in ("data", "samples"):
                remote_publish.remove_unfinished((output / folder).uri, lambda name, begun: committed(name))


def write_text(path: Path, text: str) -> None:
    """Writes and flushes a small file. Raises OutputError."""
    with writing_scratch(path), open(path, "x", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
