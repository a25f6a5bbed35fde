"""Scratch: a process group's private folder for files that are not published yet."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from ..errors import BUSY_NODE_DISK, OutputError, StorageBusy, output_error, writing
from ..process import private_folder
from . import remote_publish, remote_read
from .files import AnyPath, as_path
from .remote import RemotePath

STALE_SCRATCH_SECONDS = 24 * 3600
NODE_SCRATCH = "visionbake"  # this user's folder for scratch on a node


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """The file itself, or a copy of an object in the temporary folder while the block runs.

    Raises:
        OSError: it cannot be read, or (StorageBusy of this node) the temporary folder takes no copy.
    """
    if isinstance(path, Path):
        yield path
        return
    try:
        private_folder(NODE_SCRATCH)
        made = tempfile.TemporaryDirectory(dir=_node_scratch())
    except OSError as error:
        if error.errno not in BUSY_NODE_DISK:
            raise
        raise StorageBusy(error.errno, str(error), str(_node_scratch()), here=True) from error
    with made as folder:
        copy = Path(folder, path.name)
        remote_read.download(path.uri, copy)
        yield copy


@contextmanager
def writing_scratch(path: Path) -> Iterator[None]:
    """Turns the system's errors while a file in scratch is written into an OutputError that names it.

    Where scratch is on a disk of this node alone, one that is full or broken is an OutputBusy of this node.
    """
    with writing(path, node_disk=path.is_relative_to(_node_scratch())):
        yield


class Scratch:
    """This process group's private folder.

    Of a local output it is `OUTPUT/_tmp/<nonce>/`, on the same file system, so that publishing is a hard link; of a
    remote one it is in the temporary folder of each node. Only scratch of the own nonce, or older than a day, is ever
    removed: another driver may be at work in the same output.
    """

    def __init__(self, output: str | Path | RemotePath, nonce: str | None = None) -> None:
        self.output = as_path(output)
        self._there = nonce is not None  # another process has made it
        self.nonce = nonce or uuid.uuid4().hex
        parent = _node_scratch() if isinstance(self.output, RemotePath) else self.output / "_tmp"
        self.folder = parent / self.nonce
        self._made_output = False

    def path(self, name: str) -> Path:
        """A fresh path; the random part keeps twins in one process group apart.

        Raises:
            OutputError: it cannot be made, or the output has vanished since: its disk may be gone, and what was written
                then would lie on another.
        """
        try:
            if isinstance(self.output, Path) and not self.output.exists():
                if self._there:
                    raise OutputError(f"{self.output} has vanished")
                self._made_output = True
            if isinstance(self.output, RemotePath):
                private_folder(NODE_SCRATCH)
            self.folder.mkdir(parents=True, exist_ok=True)
            self._there = True
        except OSError as error:
            node_disk = isinstance(self.output, RemotePath)
            raise output_error(f"cannot write to {self.folder}: {error}", error, node_disk=node_disk) from error
        return self.folder / f"{uuid.uuid4().hex[:8]}-{name}"

    def remove(self) -> None:
        """Removes the own scratch, any that is older than a day, and an output that was made for nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(self.output, RemotePath):
            stale = datetime.now(UTC) - timedelta(seconds=STALE_SCRATCH_SECONDS)
            with suppress(OSError):  # who may not list uploads may still write
                remote_publish.remove_unfinished(self.output.uri, lambda name, begun: begun < stale)
        self.remove_stale()
        with suppress(OSError):  # another driver's scratch is in it, or it cleans up too, or there is an output
            self.folder.parent.rmdir()
            if self._made_output and isinstance(self.output, Path):
                self.output.rmdir()

    def remove_stale(self) -> None:
        """Removes what processes that were killed more than a day ago have left here."""
        with suppress(OSError):
            for entry in os.scandir(self.folder.parent):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SCRATCH_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _node_scratch() -> Path:
    """Returns this user's folder for scratch on this node."""
    return Path(tempfile.gettempdir()) / f"{NODE_SCRATCH}-{os.getuid()}"
