"""The one command for a GPU: a step that fails costs only itself, and the probe runs on a stand-in."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from stand_in_gpu import eager_kernels, stand_in_gpu

from jobs.bench import probe as probe_module
from jobs.bench.first_hour import SECONDS, STEPS, Step, main, run_steps
from pipeline.tower.random_tower import SIZES


def python(name: str, code: str, seconds: float = 20) -> Step:
    return Step(name=name, words=("-c", f"import sys; {code}", "{json}"), seconds=seconds)


def test_a_step_that_fails_hangs_or_dies_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    steps = [
        python("fails", "raise SystemExit(3)"),
        python("hangs", "open(sys.argv[1], 'w').write('{\"part\": 1}'); import time; time.sleep(60)", seconds=2),
        python("dies", "import os; os.abort()"),
        python("works", "print('told'); open(sys.argv[1], 'w').write('{\"rate\": 7}')"),
    ]
    results = run_steps(steps, file)
    assert json.loads(file.read_text()) == results
    assert results["fails"]["outcome"] == "ended with 3" and results["fails"]["figures"].startswith("none")
    assert results["hangs"]["outcome"] == "ended after 2 s" and results["hangs"]["part"] == 1
    assert results["dies"]["outcome"].startswith("ended with -")
    assert (results["works"]["outcome"], results["works"]["rate"]) == ("done", 7)
    assert "told" in results["works"]["printed"]


def test_what_a_step_has_started_ends_with_it(tmp_path: Path) -> None:
    """It would hold memory of the device that the next step needs."""
    left = tmp_path / "left"
    code = f"import subprocess; open({str(left)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid)); 1 / 0"
    run_steps([python("leaves", code)], tmp_path / "all.json")
    ends = time.monotonic() + 10
    while is_running(int(left.read_text())):
        assert time.monotonic() < ends
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return Path("/proc", str(process), "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["first_hour", "--json", str(tmp_path / "all.json")])
    assert main() == 2
    assert not (tmp_path / "all.json").exists()


def test_all_steps_are_within_ten_minutes(tmp_path: Path) -> None:
    assert SECONDS < 600
    assert [step.name for step in STEPS] == ["probe", "tests", "encoder"]
    assert sum(step.seconds for step in STEPS[:-1]) < SECONDS - 200  # what is left is the benchmark's
    results = run_steps([python("late", "pass")], tmp_path / "all.json", seconds=0)
    assert results == {"late": {"outcome": "no time was left"}}


def test_the_probe_runs_and_a_line_that_fails_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [(1, 4, 6), (1, 8, 8)]
    monkeypatch.setattr(probe_module, "mixes", lambda: {"A": [small], "B": [[(1, 8, 8)]]})
    monkeypatch.setattr(probe_module, "LARGE", (1, 8, 8))
    config = replace(SIZES["7b"], width=160, num_heads=2, intermediate=64)
    with stand_in_gpu():
        eager_kernels(monkeypatch)
        monkeypatch.setattr(probe_module.fused, "silu_mul", lambda x: 1 / 0)
        monkeypatch.setattr(probe_module, "MATRIX", 64)
        found = probe_module.probe(config, 64)
    failed = {name for name, value in found.items() if str(value).startswith("FAILED")}
    cudnn = {f"{name}: {what}" for name in ("A", "B", "large") for what in ("cuDNN", "frames, cuDNN varlen")}
    assert {"silu_mul"} <= failed <= {"silu_mul"} | cudnn
    assert {"qkv", "qkv, fp8", "down with beta 1", "A: windows, varlen", "rotate", "quantize"} <= found.keys() - failed
