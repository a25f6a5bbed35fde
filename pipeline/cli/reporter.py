"""Reporter: how a run goes, while it goes: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time

from tqdm import tqdm

from ..run.progress import Progress
from .console import say, seconds_text, warn
from .signals import keep_signals

TICK_SECONDS = 0.5
COUNTED = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images [{elapsed}<{remaining}{postfix}]"
UNCOUNTED = "{desc}{n_fmt} images [{elapsed}{postfix}]"
# Between two lines where there is no terminal: at first, and at most; in between a tenth of the time that has passed.
SHORTEST_SECONDS, LONGEST_SECONDS = 2.0, 60.0


class Reporter:
    """Told by a run what it is doing; tells whoever looks on, from a thread of its own, also while a call takes long.

    Args:
        quiet: nothing but what the run has to say, and that to stderr.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._began = time.monotonic()
        self._said = self._began
        self._doing = ""
        self._counts = ""
        self._shown: tuple[int, int | None] = (0, None)
        self._terminal = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="reporter", daemon=True)
        if not quiet:
            self._thread.start()

    def say(self, line: str) -> None:
        """Prints a line, above the bar where there is one."""
        with self._lock:
            if self._bar is not None:
                self._bar.write(line)
            elif self._quiet:
                warn(line)
            else:
                say(line)

    def doing(self, what: str) -> None:
        """Notes what a run is doing now; shown at once, as nobody knows how long it will take."""
        with self._lock:
            self._doing = what
        if not self._quiet:
            self._show(at_once=not self._terminal)

    def __call__(self, progress: Progress, seconds: float, encoder_seconds: float) -> None:
        """Notes a run's progress."""
        keep_signals()  # Ray sets handlers of its own when it starts
        with self._lock:
            self._note(progress, seconds, encoder_seconds)

    def _note(self, progress: Progress, seconds: float, encoder_seconds: float) -> None:
        totals, done = progress.totals, progress.samples_done
        more = progress.parts_cut < progress.parts - len(progress.failed_parts)
        self._shown = (done, None if more else progress.samples_to_do)
        if not done:
            waits = "" if progress.encoders else ", waiting for an encoder"
            if progress.parts_indexed < progress.parts:
                self._doing = f"indexing, {progress.parts_indexed} of {progress.parts} parts{waits}"
            else:
                self._doing = f"{'preparing the first images' if progress.encoders else 'loading the tower'}"
            self._counts = ""
            return
        self._doing = "" if not more else f"indexing, {progress.parts_indexed} of {progress.parts} parts"
        units = f"units {totals.units}/{progress.units_known - progress.units_before}{'+' if more else ''}"
        rates = f"{done / max(seconds, 1e-9):,.1f} images/s"
        if totals.units:
            busy = totals.seconds["encode"] / max(1e-9, encoder_seconds)
            rates += f", {totals.tokens / max(seconds, 1e-9):,.0f} tokens/s, encoders busy {min(busy, 1):.0%}"
        left = "" if more else f", {seconds_text(seconds / done * (progress.samples_to_do - done))} left"
        self._counts = f"{units}, {rates}" + ("" if self._terminal else left)

    def _tick(self) -> None:
        while not self._closed.wait(TICK_SECONDS):
            self._show()

    def _show(self, *, at_once: bool = False) -> None:
        """Draws the bar, or prints a line if one is due."""
        now = time.monotonic()
        with self._lock:
            if self._closed.is_set():
                return
            if self._terminal:
                self._draw()
                return
            pause = min(max(SHORTEST_SECONDS, (now - self._began) / 10), LONGEST_SECONDS)
            if not at_once and now - self._said < pause:
                return
            self._said = now
            done, total = self._shown
            words = [self._doing] if self._doing else []
            if done:
                of = "" if not total else f"/{total:,} images ({done / total:.0%})"
                words.append(f"{done:,}{of or ' images'}, {self._counts}")
            say(f"{seconds_text(now - self._began)} {'; '.join(words)}")

    def _draw(self) -> None:
        done, total = self._shown
        if self._bar is None:
            self._bar = tqdm(dynamic_ncols=True, leave=False)
        self._bar.total, self._bar.n = total, done
        self._bar.bar_format = COUNTED if total else UNCOUNTED
        self._bar.set_description_str(self._doing, refresh=False)
        self._bar.set_postfix_str(self._counts, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Takes the bar away; what is said afterwards stands below what was."""
        self._closed.set()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
