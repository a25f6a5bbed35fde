"""A whole run as somebody at a terminal sees it. Catches: a bar that stands still while images are encoded, silence."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import re
import select
import shutil
import struct
import sys
import termios
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import PHOTOS, REPOSITORY

IMAGES = 164
HERE, ON_RAY = 100_000, 250_000  # pixels of an image: some seconds of work, of which two encoders do more
DRAWN = re.compile(rf"(\d+)/{IMAGES} images")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came at one moment, and how many data shards lay in the output by then."""

    seconds: float
    text: str
    committed: int


def watched_run(output: Path, pixels: int, *words: str, environment: Mapping[str, str]) -> list[Seen]:
    """Runs over copies of a photo in a pseudo-terminal, and reads what it shows. Asserts that the run succeeds."""
    source = output.parent / "photos"
    source.mkdir()
    for number in range(IMAGES):
        shutil.copy(PHOTOS / "cat.jpg", source / f"{number:03d}.jpg")
    # Equal images would be encoded once in each unit.
    options = ["--model", "random:tiny", "--max-pixels", str(pixels), "--set", "pack.deduplicate=false"]
    began = time.monotonic()
    process, terminal = pty.fork()
    if not process:
        os.chdir(REPOSITORY)
        command = [sys.executable, "-m", "jobs.cli", "run", str(source), str(output), *options, *words]
        os.execve(sys.executable, command, {**os.environ, **environment})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    seen: list[Seen] = []
    while True:
        select.select([terminal], [], [])
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            break
        committed = len(list((output / "samples").glob("part-*"))) if (output / "samples").is_dir() else 0
        seen.append(Seen(seconds=time.monotonic() - began, text=piece.decode(errors="replace"), committed=committed))
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "".join(one.text for one in seen)
    return seen


def assert_tells_the_truth(seen: list[Seen]) -> None:
    """The bar is where the run is, by what lies in the output; it never falls silent for long, and speaks at once.

    Shares of the whole time are compared, never seconds: this machine may be busy.
    """
    units = seen[-1].committed
    drawn = [(int(found[-1]) / IMAGES, one.committed / units) for one in seen if (found := DRAWN.findall(one.text))]
    assert len({shown for shown, _ in drawn if 0 < shown < 1}) >= 3, drawn
    assert [shown for shown, _ in drawn] == sorted(shown for shown, _ in drawn)
    shown, committed = min(drawn, key=lambda pair: abs(pair[1] - 0.5))
    assert abs(committed - 0.5) < 0.2, drawn
    assert 0.3 <= shown <= 0.7, drawn
    times = [0.0, *(one.seconds for one in seen)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert gaps[0] < times[-1] / 5, times
    assert max(gaps) < times[-1] / 3, times
    text = "".join(one.text for one in seen)
    assert f"folder, images, {IMAGES} files; random:tiny (qwen2_5_vl) in " in text
    assert f"{IMAGES} in = {IMAGES} rows" in text


@pytest.mark.slow
def test_the_bar_of_a_run_in_one_process(tmp_path: Path) -> None:
    assert_tells_the_truth(watched_run(tmp_path / "out", HERE, "--set", "cluster.engine=inline", environment={}))


@pytest.mark.slow
@pytest.mark.ray
def test_the_bar_of_a_run_on_ray(tmp_path: Path, ray_nodes: dict[str, str]) -> None:
    assert_tells_the_truth(watched_run(tmp_path / "out", ON_RAY, "--set", "cluster.device=cpu", environment=ray_nodes))
