"""`visionbake bench`: hands over to `jobs.bench` of the checkout that this package lies in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .console import warn

CHECKOUT = Path(__file__).resolve().parents[2]


def run_bench(arguments: list[str]) -> int:
    """Runs `python -m jobs.bench` with these words; returns its exit code. Not in a checkout: 2, with a line."""
    if not (CHECKOUT / "jobs" / "bench" / "__main__.py").exists():
        warn("visionbake bench: measures in a checkout of the project, and is no part of the package")
        return 2
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: a `jobs` in the current directory is somebody else's.
    words = [sys.executable, "-P", "-m", "jobs.bench", *arguments]
    return subprocess.run(words, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, check=False).returncode
