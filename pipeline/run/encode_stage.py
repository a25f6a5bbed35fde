"""EncodeStage: what a process with a device does: encode a unit, write it and commit it. No Ray in here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pyarrow
import torch

from ..encode.unit import UnitEncoder
from ..errors import output_error
from ..fault import fault_point
from ..output.commit import commit_unit
from ..output.committed import Committed
from ..output.settings import Encoding, ShardSettings
from ..prepare.unit import PreparedUnit
from ..process import DaemonThreads, keep_freed_memory, peak_memory_bytes
from ..storage.files import as_path
from ..storage.scratch import Scratch
from ..tower.attention import kernel_version
from ..tower.checkpoint import Checkpoint
from ..tower.device import choose_device, choose_dtype, device_name, dtype_name
from ..tower.linear import openblas_version
from ..tower.tower import Tower
from .settings import StageSettings


class EncodeStage:
    """Encodes and commits units. Several calls may run at once: one encodes while the others write.

    For a GPU the calls are made by threads of its own, which are warm when the first unit comes: a thread's first
    product makes handles, its first fetch pins memory, and large products have kernels of their own.

    Args:
        device: auto, cuda or cpu; see `choose_device`.
        number: which of the run's encoders this is, for the records.
        calls: that may be made at once.
    """

    def __init__(self, settings: StageSettings, device: str = "auto", number: int = 0, *, calls: int = 1) -> None:
        self._settings = settings
        self._number = number
        self.under_way: dict[str, int] = {}  # images encoded so far, by unit
        self.on_pack: Callable[[], None] = lambda: None
        self._scratch = Scratch(settings.output, settings.nonce)
        self._scratch.remove_stale()
        chosen = choose_device(device)
        keep_freed_memory()
        self.compiled = settings.compile == "on" or (settings.compile == "auto" and chosen.type == "cuda")
        torch.set_num_threads(settings.threads)
        checkpoint = Checkpoint(
            settings.model_path, settings.model_revision, deepstack=settings.deepstack, patient=True
        )
        self._tower_sha256 = checkpoint.sha256()  # of what this process reads: another node may find another folder
        tower = Tower(
            checkpoint,
            choose_dtype("bfloat16" if settings.linear == "fp8" else settings.dtype, chosen),
            chosen,
            compile_blocks=self.compiled,
            linear=settings.linear,
            attention=settings.attention,
        )
        self._encoder = UnitEncoder(
            tower,
            max_patches=settings.max_patches,
            stored_dtype=settings.stored_dtype,
            on_overflow=settings.on_overflow,
            threads=settings.threads,
            stage=settings.stage,
        )
        self._threads = DaemonThreads(calls) if chosen.type == "cuda" else None
        self._warm_up_seconds = self._warm_up(self._threads, calls) if self._threads else 0.0

    def _warm_up(self, threads: DaemonThreads, calls: int) -> float:
        """Loads and compiles kernels before the first unit comes, in each thread; returns how long that took."""
        started = time.perf_counter()
        all_there = threading.Barrier(calls)

        def one() -> None:
            all_there.wait()  # so that each thread takes one
            self._encoder.warm_up(self._settings.shard_tokens)

        for warm in [threads.submit(one) for _ in range(calls)]:
            warm.result()
        return time.perf_counter() - started

    def identity(self) -> dict[str, object]:
        """Says what decides the tokens' bytes on this machine."""
        tower = self._encoder.tower
        facts = {
            "tower_sha256": self._tower_sha256,
            "torch": torch.__version__.split("+")[0],
            "cuda": torch.version.cuda if tower.device.type == "cuda" else None,
            "pyarrow": pyarrow.__version__,
            "device": device_name(tower.device),
            "model.dtype": dtype_name(tower.dtype),
            "attention": kernel_version(tower.kernel),
            "compiled": self.compiled,
            "linear": openblas_version() if tower.linear_kernel == "openblas" else tower.linear_kernel,
        }
        if tower.residual_by_product:
            facts["residual"] = "product"
        if not tower.sums_frames:  # outputs in bfloat16 of earlier versions lack it: their encoders summed the weights
            facts["patch_embedding"] = "frames"
        return facts

    def encode(self, prepared: PreparedUnit, shard_settings: ShardSettings) -> Committed:
        """Encodes, writes and commits one unit. Raises EncodeError, OutputError (OutputBusy: waiting may help)."""
        if self._threads:
            return self._threads.submit(self._encode, prepared, shard_settings).result()
        return self._encode(prepared, shard_settings)

    def _encode(self, prepared: PreparedUnit, shard_settings: ShardSettings) -> Committed:
        fault_point("before_encode")
        unit = prepared.unit.id
        self.under_way[unit] = 0

        def count(images: int) -> None:
            self.under_way[unit] += images
            self.on_pack()

        try:
            encoded = self._encoder.encode(prepared, count)
        finally:
            del self.under_way[unit]
        encoded_at = time.time()
        if self._warm_up_seconds:  # shown beside the stages, once, and no part of their rates
            encoded = replace(encoded, seconds=encoded.seconds | {"warm_up": self._warm_up_seconds})
            self._warm_up_seconds = 0.0
        fault_point("after_encode")
        try:
            encoding = Encoding(encoder=self._number, encoded_at=encoded_at)
            output = as_path(self._settings.output)
            committed = commit_unit(prepared, encoded, output, self._scratch, shard_settings, encoding)
        except OSError as error:
            raise output_error(f"cannot write to {self._settings.output}: {error}", error) from error
        return replace(committed, peak_memory_bytes=peak_memory_bytes())
