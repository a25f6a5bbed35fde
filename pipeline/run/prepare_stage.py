"""PrepareStage: what a process on a CPU does: index a part, prepare a unit. No Ray in here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import PIL

from ..errors import OutputError, is_busy, output_error
from ..fault import fault_point
from ..index.read import read_index_rows
from ..index.units import Unit
from ..index.write import index_part
from ..output.fingerprint import version_of
from ..prepare.guard import GuardedReader, ImageReader
from ..prepare.unit import Preparation, PreparedUnit, prepare_unit
from ..process import keep_freed_memory
from ..source.format import UnitReader
from ..source.formats import format_named
from ..source.part import Part
from ..source.plan import Plan
from ..storage.files import has_vanished, small_file
from ..storage.scratch import Scratch
from .settings import StageSettings

VIDEO_LIBRARIES = ("libavformat", "libavcodec", "libswscale")


class PrepareStage:
    """Indexes parts and prepares units. One thread.

    Args:
        guarded: every image is read in a child process. Else only on request, by `guarded` of a call: an image that
            crashes its decoder, or takes longer than `sample_seconds`, then ends this process.
    """

    def __init__(self, settings: StageSettings, *, guarded: bool = False) -> None:
        self._settings = settings
        self._guarded = guarded
        self._images = ImageReader(settings.sample_seconds)
        self._guard = GuardedReader(settings.sample_seconds)
        self._scratch = Scratch(settings.output, settings.nonce)
        self._scratch.remove_stale()
        self._columns = settings.columns
        self._reader: UnitReader | None = None
        self._plan: Plan | None = None
        self._part: Part | None = None
        self._index: tuple[int, Any] | None = None
        keep_freed_memory()

    def identity(self) -> dict[str, object]:
        """Says what decides the patches' bytes on this machine."""
        facts: dict[str, object] = {
            "pillow": PIL.__version__,
            "jpeg_decoder": jpeg_decoder(),
            "torch": (version_of("torch") or "").split("+")[0],
        }
        return facts | ({"video_decoder": video_decoder()} if self._settings.geometry.video else {})

    def index(self, number: int, guarded: bool = False) -> int:
        """Indexes a part; returns its number of samples. Raises as `index_part`."""
        settings = self._settings
        fault_point("index")
        with self._reading_plan():
            part = self._load(number)
        assert self._plan is not None
        final, images = self._plan.index_path(number), self._reader_of_images(guarded)
        return index_part(part, self._columns, final, self._scratch, images, on_damaged=settings.on_damaged)

    def _reader_of_images(self, guarded: bool) -> ImageReader:
        return self._guard if guarded or self._guarded else self._images

    def close(self) -> None:
        """Ends the child process, if there is one."""
        self._guard.close()

    def prepare(self, unit: Unit, guarded: bool = False) -> PreparedUnit:
        """Prepares one unit.

        Raises:
            SourceError: the source cannot be read (SourceBusy: waiting may help).
            OutputBusy: the plan cannot be read at the moment.
        """
        # Not before: it takes seconds and most of this process's memory, and indexing has no use for it.
        import torch

        torch.set_num_threads(1)
        fault_point("prepare")
        with self._reading_plan():
            part = self._load(unit.part)
            samples = read_index_rows(self._index_of(unit.part), unit.first, unit.count)
        try:
            return prepare_unit(unit, part, samples, self._preparation(part, guarded))
        finally:
            if not self._guarded:
                self._guard.close()  # it holds as much memory as its largest image took

    @contextmanager
    def _reading_plan(self) -> Iterator[None]:
        """Raises OutputError for a plan that has vanished with its output, OutputBusy where waiting may help."""
        output = self._settings.output
        try:
            yield
        except OSError as error:
            if has_vanished(output):
                raise OutputError(f"{output} has vanished: {error}") from error
            if is_busy(error):
                raise output_error(f"the plan in {output} cannot be read: {error}", error) from error
            raise

    def _preparation(self, part: Part, guarded: bool) -> Preparation:
        if self._reader is None:
            self._reader = format_named(part.format).reader(self._columns)
        return Preparation(
            geometry=self._settings.geometry,
            deduplicate=self._settings.deduplicate,
            reader=self._reader,
            images=self._reader_of_images(guarded),
            carry=self._settings.carry,
            on_changed=self._settings.on_changed,
        )

    def _index_of(self, number: int) -> Any:
        """Opens a part's index; of an output in object storage it is fetched once for all of the part's units."""
        assert self._plan is not None
        if self._index is None or self._index[0] != number:
            self._index = (number, small_file(self._plan.index_path(number)))
        file = self._index[1]
        if isinstance(file, io.BytesIO):
            file.seek(0)
        return file

    def _load(self, number: int) -> Part:
        if self._part is None or self._part.number != number:
            if self._plan is None or number >= self._plan.num_parts:
                self._plan = Plan(self._settings.output)
            self._part = self._plan.part(number)
        return self._part


def video_decoder() -> str:
    """The versions that decide the pixels of clips: PyAV's, and those of the libraries in it."""
    import av  # only where there are videos

    libraries = (f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in VIDEO_LIBRARIES)
    return ", ".join([f"av {av.__version__}", *libraries])


def jpeg_decoder() -> str:
    version = version_of("simplejpeg")
    return f"simplejpeg {version}" if version else f"pillow {PIL.__version__}"
