"""The wheel, as a user installs it: one package called `visionbake`, whatever else is called `jobs` or `pipeline`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import PHOTOS, REPOSITORY, files_of
from pages import steps_of

pytestmark = [pytest.mark.ray, pytest.mark.own_cluster, pytest.mark.slow]
OURS = "raise SystemExit('somebody else\\'s module was imported')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("pipeline", "jobs"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, copy],
        check=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment of its own with the wheel, beside a package that has a `jobs` and a `pipeline`.

    The dependencies are found where the tests' are, which does not find the checkout's package: a path in a `.pth` file
    brings that folder's modules, not what its own `.pth` files do.
    """
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel], check=True
    )
    (site,) = folder.glob("lib/python*/site-packages")
    for name in ("jobs", "pipeline"):
        assert not (site / name).exists()
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(OURS)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return folder / "bin"


def environment_without_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}


def test_the_wheel_holds_one_package_and_its_types(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"visionbake"}
    assert "visionbake/py.typed" in names
    modules = {name.removeprefix("visionbake/") for name in names if name.endswith(".py")}
    assert modules == {
        path.relative_to(REPOSITORY / "pipeline").as_posix() for path in REPOSITORY.glob("pipeline/**/*.py")
    }


def test_installed_it_runs_inline_and_on_a_cluster_of_its_own(installed: Path, tmp_path: Path) -> None:
    """From a folder with the user's own modules, in an environment that says nothing of Ray."""
    for name in ("pipeline", "jobs", "config", "storage"):
        (tmp_path / f"{name}.py").write_text(OURS)
    environment = environment_without_ray()

    def call(*words: str) -> str:
        done = subprocess.run(
            [installed / "visionbake", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    config = {
        "source": {"uri": str(PHOTOS)},
        "preprocess": {"max_pixels": 100352},
        "model": {"path": "random:tiny", "dtype": "float32"},
        "output": {"uri": "out/ray", "shard_tokens": 600},
    }
    (tmp_path / "c.json").write_text(json.dumps(config))  # JSON is YAML
    on_ray = call("run", "c.json", "--json")
    inline = call("run", "c.json", "--json", "--set", "cluster.engine=inline", "--set", "output.uri=out/inline")
    for text in (on_ray, inline):
        assert json.loads(text)["totals"]["rows"] == 10
    # A driver that loads torch, for instance with the first answer of an encoder, takes twice as much.
    assert json.loads(on_ray)["driver_peak_memory_bytes"] < 400e6
    assert files_of(tmp_path / "out" / "ray" / "data") == files_of(tmp_path / "out" / "inline" / "data")
    assert "10" in call("stats", "out/ray", "--sql", "SELECT count(*) AS images FROM samples")
    code = (
        "import visionbake; from visionbake import EmbeddingDataset, VisionEncoder;"
        "print(len(EmbeddingDataset('out/ray')), visionbake.__file__)"
    )
    python = [installed / "python", "-P", "-c", code]
    said = subprocess.run(python, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["10", str(next(installed.parent.glob("lib/*/site-packages/visionbake/__init__.py")))]
    bench = subprocess.run([installed / "visionbake", "bench"], cwd=tmp_path, env=environment, capture_output=True)
    assert (bench.returncode, bench.stdout) == (2, b"")
    assert b"in a checkout" in bench.stderr


def test_the_lines_of_the_readme_are_typed_as_they_stand(installed: Path, tmp_path: Path) -> None:
    """With the wheel alone, and Ray: from photos to an output, and the output's rows in Python."""
    shutil.copytree(PHOTOS, tmp_path / "photos")
    said = []
    for step in steps_of((REPOSITORY / "README.md").read_text("utf-8")):
        words = ["bash", "-ec", step.text] if step.language == "sh" else ["python", "-P", "-c", step.text]
        if step.language == "python" or step.text.startswith("visionbake "):
            done = subprocess.run(
                words,
                cwd=tmp_path,
                env=environment_without_ray() | {"PATH": f"{installed}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            said.append(done.stdout)
    assert len(said) == 4
    assert "10 in = 10 rows + 0 rejects" in said[1]
    assert len(said[3].splitlines()) == 10
    assert (tmp_path / "out" / "_SUCCESS").exists()
