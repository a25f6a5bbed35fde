"""What docs/cluster.md says first: `ray start --head` with a token, then `ray job submit` from a fresh clone."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import RAY, REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_fresh_clone_submits_the_demo_to_two_nodes(ray_nodes: dict[str, str], tmp_path: Path) -> None:
    clone, output = tmp_path / "clone", tmp_path / "out"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def submit(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        """Again for as long as Ray itself says so: its agents may be slow to start."""
        deadline = time.monotonic() + 120
        while "No available agent" in (done := submit_once(*words, **changes)).stderr and time.monotonic() < deadline:
            time.sleep(2)
        return done

    def submit_once(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                RAY,
                "job",
                "submit",
                "--address",
                ray_nodes["DASHBOARD"],
                "--working-dir",
                ".",
                "--",
                "python",
                "-m",
                "jobs.run",
                "configs/demo.yaml",
                *words,
            ],
            capture_output=True,
            text=True,
            cwd=clone,
            env=environment | changes,
            timeout=300,
        )

    photos = f"source.uri={clone / 'tests' / 'data' / 'photos'}"  # each node unpacks a working directory of its own
    done = submit("--set", f"output.uri={output}", "--set", photos, "--set", "cluster.encoders=2")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "samples           10 in = 10 rows + 0 rejects" in lines
    assert any(line.startswith("this run") and "tokens/s" in line for line in lines)
    assert (output / "_SUCCESS").exists()
    refused = submit("--set", "output.uri=out/relative")
    assert refused.returncode == 1
    assert "is relative: in a Ray job" in refused.stdout
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 32)
    refused = submit("--set", f"output.uri={output}", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert refused.returncode != 0
    assert "is committed" not in refused.stdout
