"""All that the first minutes on a GPU are for, in one command: the probe, the tests that need a GPU, the benchmark.

    python -m jobs.bench.first_hour --json FILE

Within ten minutes. Each step is a process of its own with its own limit: one that fails, hangs or brings the device
down costs itself. FILE is written after each step, with the end of what it printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

SECONDS = 590.0  # of all steps
TAIL = 6000  # characters kept of what a step printed


@dataclass(frozen=True, kw_only=True)
class Step:
    """`words` are Python's arguments; `{json}` in them is a file that it writes its figures to."""

    name: str
    words: tuple[str, ...]
    seconds: float


STEPS = (
    Step(name="probe", words=("-m", "jobs.bench.probe", "--json", "{json}"), seconds=100),
    Step(name="tests", words=("-m", "pytest", "-m", "cuda", "-v", "--durations=10", "tests/tower"), seconds=260),
    Step(name="encoder", words=("-m", "jobs.bench.encoder", "--repeats", "3", "--json", "{json}"), seconds=590),
)


def run_steps(steps: Sequence[Step], file: Path, seconds: float = SECONDS) -> dict[str, object]:
    """Runs each step within its own limit and what is left of all."""
    results: dict[str, object] = {}
    ends = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            results[step.name] = _run(
                step, Path(folder, f"{step.name}.json"), min(step.seconds, ends - time.monotonic())
            )
            file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def _run(step: Step, figures: Path, seconds: float) -> dict[str, object]:
    if seconds <= 0:
        return {"outcome": "no time was left"}
    words = [sys.executable, *(word.replace("{json}", str(figures)) for word in step.words)]
    printed = figures.with_suffix(".txt")
    started = time.monotonic()
    with open(printed, "wb") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(seconds)
            outcome = "done" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            outcome = f"ended after {seconds:.0f} s"
        finally:
            end_all_of(process)
    result: dict[str, object] = {"outcome": outcome, "seconds": round(time.monotonic() - started, 1)}
    print(f"{step.name}: {outcome}, {result['seconds']} s", file=sys.stderr, flush=True)
    try:
        result |= json.loads(figures.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if "{json}" in step.words:
            result["figures"] = f"none: {type(error).__name__}"
    return result | {"printed": printed.read_text(encoding="utf-8", errors="replace")[-TAIL:]}


def end_all_of(process: subprocess.Popen[bytes]) -> None:
    """Ends a step with the processes that it started: one that is left would hold memory of the device."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", required=True)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"first_hour: torch {torch.__version__} sees no GPU here", file=sys.stderr)
        return 2
    results = run_steps(STEPS, Path(arguments.json))
    return 0 if all(isinstance(one, dict) and one["outcome"] == "done" for one in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
