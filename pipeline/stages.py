"""The stages as they stand in a process: what an actor holds, and what the inline engine calls. No Ray in here.

PrepareStage  index a part; prepare a unit            (CPU)
EncodeStage   encode a unit, write it and commit it   (GPU; CPU where there is none)
"""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL
import pyarrow
import torch

from pipeline.checkpoint import Checkpoint
from pipeline.commit import Committed, commit_unit
from pipeline.encode import UnitEncoder
from pipeline.encoder import Tower
from pipeline.errors import OutputError
from pipeline.fault import fault_point
from pipeline.files import Scratch, as_path
from pipeline.guard import GuardedReader, ImageReader
from pipeline.index import index_part
from pipeline.index_read import read_index_rows
from pipeline.linear import openblas_version
from pipeline.output import version_of
from pipeline.parts import Part, Plan
from pipeline.prepare import PreparedUnit, prepare_unit
from pipeline.process import keep_freed_memory, peak_memory_bytes
from pipeline.remote import is_remote
from pipeline.settings import ShardSettings, StageSettings
from pipeline.unit_reader import UnitReader
from pipeline.units import Unit


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
        self._reader = UnitReader(settings.image_column)
        self._plan: Plan | None = None
        self._part: Part | None = None
        self._index: tuple[int, bytes] | None = None
        keep_freed_memory()
        torch.set_num_threads(1)

    def identity(self) -> dict[str, object]:
        """What decides the patches' bytes on this machine."""
        return {"pillow": PIL.__version__, "jpeg_decoder": jpeg_decoder(), "torch": torch.__version__.split("+")[0]}

    def index(self, number: int, guarded: bool = False) -> int:
        """Indexes a part; returns its number of samples. Raises as `index_part`."""
        settings = self._settings
        fault_point("index")
        return index_part(
            self._load(number), settings.image_column, settings.on_damaged, settings.output, self._scratch,
            settings.key_column, self._reader_of_images(guarded),
        )  # fmt: skip

    def _reader_of_images(self, guarded: bool) -> ImageReader:
        return self._guard if guarded or self._guarded else self._images

    def close(self) -> None:
        """Ends the child process, if there is one."""
        self._guard.close()

    def prepare(self, unit: Unit, guarded: bool = False) -> PreparedUnit:
        """Prepares one unit. Raises SourceError."""
        settings = self._settings
        torch.set_num_threads(1)
        fault_point("prepare")
        try:
            part = self._load(unit.part)
            samples = read_index_rows(self._index_of(unit.part), unit.first, unit.count)
        except OSError as error:
            if not is_remote(settings.output) and not Path(settings.output).exists():
                raise OutputError(f"{settings.output} has vanished: {error}") from error
            raise
        try:
            return prepare_unit(
                unit, part, samples, settings.geometry, settings.deduplicate, self._reader, settings.carry,
                self._reader_of_images(guarded),
            )  # fmt: skip
        finally:
            if not self._guarded:
                self._guard.close()  # it holds as much memory as its largest image took

    def _index_of(self, number: int) -> Any:
        """Of an output in object storage the part's whole index, fetched once for all its units."""
        assert self._plan is not None
        path = self._plan.index_path(number)
        if isinstance(path, Path):
            return path
        if self._index is None or self._index[0] != number:
            self._index = (number, path.read_bytes())
        return io.BytesIO(self._index[1])

    def _load(self, number: int) -> Part:
        if self._part is None or self._part.number != number:
            if self._plan is None or number >= self._plan.num_parts:
                self._plan = Plan(self._settings.output)
            self._part = self._plan.part(number)
        return self._part


def jpeg_decoder() -> str:
    version = version_of("simplejpeg")
    return f"simplejpeg {version}" if version else f"pillow {PIL.__version__}"


def device_name(device: torch.device) -> str:
    """The device's model; for a CPU its instruction set, which is what decides bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def choose_device() -> torch.device:
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


class EncodeStage:
    """Encodes and commits units. Two calls may run at once: one encodes while the other writes.

    Args:
        number: which of the run's encoders this is, for the records.
    """

    def __init__(self, settings: StageSettings, device: str | None = None, number: int = 0) -> None:
        self._settings = settings
        self._number = number
        self._scratch = Scratch(settings.output, settings.nonce)
        self._scratch.remove_stale()
        chosen = torch.device(device) if device else choose_device()
        keep_freed_memory()
        self.compiled = settings.compile == "on" or (settings.compile == "auto" and chosen.type == "cuda")
        torch.set_num_threads(settings.threads)
        checkpoint = Checkpoint(settings.model_path, settings.model_revision)
        self._tower_sha256 = checkpoint.sha256()  # of what this process reads: another node may find another folder
        tower = Tower(
            checkpoint,
            getattr(torch, settings.dtype),
            chosen,
            compile_blocks=self.compiled,
            linear=settings.linear,
        )
        self._encoder = UnitEncoder(
            tower,
            max_patches=settings.max_patches,
            stored_dtype=settings.stored_dtype,
            on_overflow=settings.on_overflow,
            threads=settings.threads,
            stage=settings.stage,
        )

        self._warm_up_seconds = self._warm_up(tower) if chosen.type == "cuda" else 0.0

    def _warm_up(self, tower: Tower) -> float:
        """Loads and compiles kernels before the first unit comes; returns how long that took."""
        started = time.perf_counter()
        side = 2 * tower.config.window_merged * tower.config.merge_size
        values = tower.patch_weight_still.shape[1]
        patches_PC = torch.zeros(side**2, values, dtype=torch.uint8, device=tower.device)
        tower.forward(patches_PC, tower.plan([(1, side, side)]), self._settings.stage)
        torch.cuda.synchronize(tower.device)
        return time.perf_counter() - started

    def identity(self) -> dict[str, object]:
        """What decides the tokens' bytes on this machine."""
        tower = self._encoder.tower
        return {
            "tower_sha256": self._tower_sha256,
            "torch": torch.__version__.split("+")[0],
            "cuda": torch.version.cuda if tower.device.type == "cuda" else None,
            "pyarrow": pyarrow.__version__,
            "device": device_name(tower.device),
            "attention": tower.kernel,
            "compiled": self.compiled,
            "linear": openblas_version() if tower.linear_kernel == "openblas" else tower.linear_kernel,
        }

    def encode(self, prepared: PreparedUnit, shard_settings: ShardSettings) -> Committed:
        """Encodes, writes and commits one unit. Raises EncodeError, OutputError."""
        fault_point("before_encode")
        encoded = self._encoder.encode(prepared)
        encoded_at = time.time()
        if self._warm_up_seconds:  # shown beside the stages, once, and no part of their rates
            encoded = replace(encoded, seconds=encoded.seconds | {"warm_up": self._warm_up_seconds})
            self._warm_up_seconds = 0.0
        fault_point("after_encode")
        try:
            committed = commit_unit(
                prepared, encoded, as_path(self._settings.output), self._scratch, shard_settings, self._number,
                encoded_at,
            )  # fmt: skip
        except OSError as error:
            raise OutputError(f"cannot write to {self._settings.output}: {error}") from error
        return replace(committed, peak_memory_bytes=peak_memory_bytes())
