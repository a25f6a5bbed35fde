"""What the README says for a cluster: `ray start --head` with a token, then `ray job submit` from a fresh clone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.slow]
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node as a user starts it; `--block`, so that ending the process ends the cluster and nobody else's."""
    token = tmp_path / "token"
    token.write_text("abcdef0123456789abcdef0123456789")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    dashboard = free_port()
    log = open(tmp_path / "head.log", "w+")
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus", "2", "--port", str(free_port()), "--dashboard-port",
         str(dashboard)],
        env=environment, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in Path(log.name).read_text():
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def test_a_fresh_clone_submits_the_demo(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    clone, output = tmp_path / "clone", tmp_path / "out"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)

    def submit(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "-m", "jobs.run",
             "configs/demo.yaml", *words],
            capture_output=True, text=True, cwd=clone, env=environment | changes, timeout=300,
        )  # fmt: skip

    done = submit("--set", f"output.uri={output}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "samples           10 in = 10 rows + 0 rejects" in done.stdout.splitlines()
    assert (output / "_SUCCESS").exists()
    assert submit("--set", f"output.uri={output}", "--set", "pack.max_patches=-1").returncode == 1
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 32)
    refused = submit("--set", f"output.uri={output}", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert refused.returncode != 0
    assert "is committed" not in refused.stdout


def test_a_run_without_a_cluster_starts_its_own(tmp_path: Path) -> None:
    """As `make demo` does, in an environment that says nothing of Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = [sys.executable, "-m", "jobs.run", "configs/demo.yaml", "--set", f"output.uri={tmp_path / 'out'}"]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "starting one on this machine" in done.stdout
    assert (tmp_path / "out" / "_SUCCESS").exists()
