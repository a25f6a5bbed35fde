"""A process's share of its machine: cores, memory it has had and how malloc keeps it, its user's folders."""

from __future__ import annotations

import ctypes
import errno
import getpass
import os
import resource
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from .errors import RequestError

T = TypeVar("T")
P = ParamSpec("P")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def peak_memory_bytes() -> int:
    """The largest resident size that this process has had.

    From /proc where there is one: what getrusage says begins with the size of the process that started this one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> None:
    """Tells glibc to keep freed blocks: it returns them to the system, which zeroes every page that is asked for again.

    Measured on a CPU: prepares some 8 % and encodes 3 to 10 % faster. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 256 << 20)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)


def install_hint(extra: str) -> str:
    """How to install an extra: for a checkout, or for a package, by where this code lies."""
    if (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]'"
    return f"pip install 'visionbake[{extra}]'"


def expand_home(path: str) -> str:
    """A path with `~` resolved. Raises RequestError: there is no home folder, and `~` would be a folder's name."""
    expanded = os.path.expanduser(path)
    if expanded == path and (path == "~" or path.startswith("~/")):
        raise RequestError(
            f"{path}: this user has no home folder (HOME is not set, and there is no passwd entry); write the path out"
        )
    return expanded


def private_folder(name: str) -> Path:
    """This user's own folder of this name among the node's temporary files. Raises OSError: it is another user's."""
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OSError(errno.EPERM, "is another user's", str(folder))
    return folder


def cache_folders(name: str) -> list[Path]:
    """Where something that can be made anew may be kept, the best first; the first ones may not be writable."""
    folders = [Path(place) / name for place in (os.environ.get("XDG_CACHE_HOME"),) if place]
    home = os.path.expanduser("~")
    if not folders and os.path.isabs(home):
        folders.append(Path(home) / ".cache" / name)
    with suppress(OSError):  # the others may do
        folders.append(private_folder(f"{name}-cache"))
    return folders


def name_caches() -> None:
    """Gives compilers, which keep what they make in the home folder and by the user's name, a place without either."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):  # no passwd entry, as in a container with any user's number
        os.environ["USER"] = f"uid-{os.getuid()}"
    home = os.path.expanduser("~")
    if not (os.path.isabs(home) and os.access(home, os.W_OK | os.X_OK)):
        os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"triton-{os.getuid()}"))


def in_background(function: Callable[[], T]) -> Future[T]:
    """Calls a function in a thread of its own, which does not keep the process from ending."""
    future: Future[T] = Future()
    threading.Thread(target=_settle, args=(future, function), daemon=True).start()
    return future


class DaemonThreads(Executor):
    """A pool of threads that do not keep the process from ending: for what is done in the background.

    The threads of a ThreadPoolExecutor are waited for when the interpreter ends, whoever has started them.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has a function called by one of the threads."""
        future: Future[T] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads once they have made every call; with `cancel_futures` only those under way."""
        while cancel_futures and not self._calls.empty():
            if (call := self._calls.get()) is not None:
                call[0].cancel()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for what is under way, unless the process is interrupted or has failed: then a call may never end."""
        self.shutdown(wait=kind is None, cancel_futures=kind is not None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            if future.set_running_or_notify_cancel():
                _settle(future, function)


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
        future.set_exception(error)


def usable_cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
