"""Runs tests in copies of the checkout, each time in a fork of a process that has the heavy libraries already.

Loading torch and the others takes ten times as long as most tests. What is forked has loaded them, none of the
checkout's own modules, and has no thread of Python's, so that a child starts as a new Python would, at once.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("pipeline", "jobs", "tests", "configs", "docs", "pyproject.toml", "README.md", "Makefile")
# Not ray, which reads its mode when it is imported, nor polars, whose threads would be missing in a fork.
HEAVY = (
    *("torch", "numpy", "pyarrow.parquet", "pyarrow.compute", "pyarrow.dataset", "safetensors.torch", "duckdb"),
    *("PIL.JpegImagePlugin", "PIL.PngImagePlugin", "simplejpeg", "pydantic", "yaml", "tqdm", "transformers"),
    *("torchvision", "huggingface_hub", "s3fs", "aiobotocore.session", "moto.server", "fsspec.implementations.local"),
    *("pytest", "hypothesis.strategies"),
)
PASSED, FAILED = 0, 1  # what pytest ends with


@dataclass(frozen=True, kw_only=True)
class Change:
    """A text of a file of the copy, which stands there once, and what stands there instead while the tests run."""

    file: str
    line: str
    planted: str


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Tests to run.

    Attributes:
        tests: pytest's names.
        change: what is planted; None: nothing.
        seconds: after which they are taken to hang.
    """

    tests: tuple[str, ...]
    change: Change | None = None
    seconds: float = 120.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a trial.

    Attributes:
        code: what pytest ended with; None where it did not end, negative where a signal ended it.
        said: what it wrote.
        seconds: of the wall.
    """

    code: int | None
    said: str
    seconds: float


class Bench:
    """A copy of the checkout, in which one trial at a time runs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self._scratch = folder / "tmp"
        self._said = folder / "said"
        self.root.mkdir(parents=True)
        for name in COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, self.root / name)

    def begin(self, trial: Trial) -> None:
        self.trial, self._began = trial, time.monotonic()
        self._scratch.mkdir()
        if trial.change is not None:
            file = self.root / trial.change.file
            self._before = file.read_text(encoding="utf-8")
            file.write_text(self._before.replace(trial.change.line, trial.change.planted), encoding="utf-8")
        sys.stdout.flush()
        self._child = os.fork()
        if self._child == 0:
            self._be_pytest()

    def _be_pytest(self) -> None:
        """Runs the tests in this process, which is a child, and ends it."""
        code = 70
        try:
            os.setsid()
            adopt_orphans()
            said = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(self.root)
            # Bytecode of the line before, of the same size and second, would be taken for the new one's.
            os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(self.root), "TMPDIR": str(self._scratch)}
            sys.dont_write_bytecode = True
            tempfile.tempdir = None
            forget_the_checkout()
            sys.path.insert(0, str(self.root))

            import pytest

            code = int(pytest.main(["-x", "-q", "--no-header", *self.trial.tests]))
        finally:
            end_children()
            sys.stdout.flush()
            os._exit(code)

    def ended(self) -> Outcome | None:
        """What came of the trial, where it has ended or is now ended by force; else None."""
        seconds = time.monotonic() - self._began
        hangs = seconds > self.trial.seconds
        if os.waitid(os.P_PID, self._child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None and not hangs:
            return None
        for process in [*descendants(self._child), self._child]:
            kill(process)
        status = os.waitpid(self._child, 0)[1]
        if self.trial.change is not None:
            (self.root / self.trial.change.file).write_text(self._before, encoding="utf-8")
        shutil.rmtree(self._scratch, ignore_errors=True)
        return Outcome(
            code=None if hangs else os.waitstatus_to_exitcode(status),
            said=self._said.read_text(encoding="utf-8", errors="replace") if self._said.exists() else "",
            seconds=seconds,
        )


def forget_the_checkout() -> None:
    """Takes what came from this checkout out of the modules and of the path: the copy is what is imported."""
    here = str(REPOSITORY) + os.sep
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(here) and "site-packages" not in module.__file__:
            del sys.modules[name]
    sys.path[:] = [
        entry
        for entry in sys.path
        if not (os.path.abspath(entry) + os.sep).startswith(here) or "site-packages" in entry
    ]


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def descendants(process: int) -> list[int]:
    """The processes that it has started, and those that they have, as /proc has them now."""
    found: list[int] = []
    for child in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            mine = [int(word) for word in child.read_text().split()]
        except OSError:
            continue  # a thread that has ended
        for one in mine:
            found += [*descendants(one), one]
    return found


def adopt_orphans() -> None:
    """What its children leave behind becomes this process's, which can then end it."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def end_children() -> None:
    """Ends what this process has started, and what its children have left."""
    while mine := descendants(os.getpid()):
        for process in mine:
            kill(process)
        with suppress(ChildProcessError):  # raised when there is none left
            while os.waitpid(-1, 0):
                pass


def load(libraries: Iterable[str]) -> None:
    """Imports them. Raises RuntimeError: one has started a thread, which a fork would not have."""
    for name in libraries:
        importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if threading.active_count() > 1:
        raise RuntimeError(f"no fork is safe beside {threading.enumerate()[1:]}")
    gc.collect()
    gc.freeze()  # so that a child's collector leaves the pages shared


def run_trials(
    trials: Iterable[Trial], workers: int, libraries: Iterable[str] = HEAVY
) -> Iterator[tuple[Trial, Outcome]]:
    """Runs them, so many at a time and each in a copy of its own; yields each when it has ended."""
    load(libraries)
    adopt_orphans()
    waiting = iter(trials)
    with tempfile.TemporaryDirectory(prefix="visionbake-mutants-") as folder:
        free = [Bench(Path(folder) / str(number)) for number in range(workers)]
        busy: list[Bench] = []
        try:
            while True:
                while free and (trial := next(waiting, None)) is not None:
                    busy.append(free.pop())
                    busy[-1].begin(trial)
                if not busy:
                    break
                time.sleep(0.02)
                for bench in [*busy]:
                    if (outcome := bench.ended()) is not None:
                        busy.remove(bench)
                        free.append(bench)
                        yield bench.trial, outcome
        finally:
            end_children()
