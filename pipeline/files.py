"""Local file systems: scratch, publishing without replacing, and flushing both file and directory."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path
from types import TracebackType

from pipeline.errors import OutputError

STALE_SCRATCH_SECONDS = 24 * 3600


class Scratch:
    """This process group's private folder `OUTPUT/_tmp/<nonce>/`.

    On the same file system as the output, so that publishing is a hard link. Only scratch of the own nonce, or older
    than a day, is ever removed: another driver may be at work in the same output.
    """

    def __init__(self, output: str | Path, nonce: str | None = None) -> None:
        self.output = Path(output)
        self.nonce = nonce or uuid.uuid4().hex
        self.folder = self.output / "_tmp" / self.nonce
        self._made_output = False

    def path(self, name: str) -> Path:
        """A fresh path; the random part keeps twins in one process group apart. Raises OutputError."""
        try:
            if not self.output.exists():
                self._made_output = True
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {self.output}: {error}") from error
        return self.folder / f"{uuid.uuid4().hex[:8]}-{name}"

    def remove(self) -> None:
        """Removes the own scratch, any that is older than a day, and an output that was made for nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        parent = self.folder.parent
        if not parent.is_dir():
            return
        try:
            for entry in os.scandir(parent):
                if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SCRATCH_SECONDS:
                    shutil.rmtree(entry.path, ignore_errors=True)
            parent.rmdir()
            if self._made_output:
                self.output.rmdir()
        except OSError:
            pass  # another driver's scratch is in it, or it cleans up too, or there is an output

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def sync_file(path: Path) -> None:
    """Flushes a file that a library has written. Raises OutputError."""
    try:
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error


def sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_new(scratch: Path, final: Path) -> bool:
    """Publishes a complete, flushed file under its final name, never replacing.

    Returns:
        False if the name exists already; then nothing changed and the scratch file is still there.

    Raises:
        OutputError: the file system refuses.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(scratch, final)
        except FileExistsError:
            return False
        sync_directory(final.parent)
        scratch.unlink()
    except OSError as error:
        raise OutputError(f"cannot publish {final}: {error}") from error
    return True


def publish_over(scratch: Path, final: Path) -> None:
    """Publishes over whatever stands there: for a data shard that failed its check and is in no record, and for
    the few files that describe the run. Raises OutputError."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch, final)
        sync_directory(final.parent)
    except OSError as error:
        raise OutputError(f"cannot publish {final}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Writes and flushes a small file. Raises OutputError."""
    try:
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}") from error
