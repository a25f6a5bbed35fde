"""Faults that take longer to make than CI should wait: `make chaos`. What each run showed is in docs/faults.md."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import (
    REPOSITORY,
    assert_whole,
    command,
    config_for,
    connected,
    encoded,
    files_of,
    keys_of,
    make_folder,
    make_tar,
    noise,
    on_ray,
    run_here,
    stamp,
    write_config,
)

from pipeline import rejects
from pipeline.output.verify import Verifier
from pipeline.run.runner import run
from pipeline.run.summary import Summary

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
SEED = 7
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("large") / "in", 900)


@pytest.fixture(scope="module")
def large_undisturbed(large: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("large_undisturbed") / "out"
    assert run_here(config_for(large, output, model_path)).complete
    return output


def committed(output: Path) -> dict[Path, tuple[int, int, int]]:
    """The stamps of all committed shards; every file that a glob finds is complete."""
    found = {}
    for path in sorted((output / "samples").glob("*.parquet")):
        pq.read_metadata(path)
        data = output / "data" / path.name
        pq.read_metadata(data)
        found |= {path: stamp(path), data: stamp(data)}
    return found


def kill_again_and_again(
    words: list[str], output: Path, times: int, units: tuple[int, int], environment: dict[str, str] | None = None
) -> int:
    """Starts the command and kills it when it has committed some units; what is committed stays. Returns units then.

    How many units is drawn, and then a moment within a unit: seconds from the start would be other moments elsewhere.
    """
    generator = random.Random(SEED)
    kept: dict[Path, tuple[int, int, int]] = {}
    for _ in range(times):
        process = subprocess.Popen(
            words,
            cwd=REPOSITORY,
            env=os.environ | (environment or {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wanted = len(kept) // 2 + generator.randint(*units)
        while len(list((output / "samples").glob("*.parquet"))) < wanted:
            assert process.poll() is None, "the run was over before it could be killed"
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        now = committed(output)
        assert {path: now[path] for path in kept} == kept
        kept = now
    return len(kept) // 2


def test_the_driver_is_killed_twenty_times(
    large: Path, large_undisturbed: Path, model_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = command("jobs.run", write_config(tmp_path / "c.yaml", config_for(large, output, model_path)))
    units = kill_again_and_again(words, output, 20, (0, 15))
    print(f"{units} units committed after 20 kills")
    before = committed(output)
    assert subprocess.run(words, cwd=REPOSITORY, capture_output=True).returncode == 0
    assert {path: stamp(path) for path in before} == before
    shutil.rmtree(output / "_tmp")
    assert_whole(output, keys_of(large))
    assert files_of(output / "data") == files_of(large_undisturbed / "data")


def test_the_driver_on_a_cluster_is_killed(
    large: Path, large_undisturbed: Path, ray_nodes: dict[str, str], model_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = command("jobs.run", write_config(tmp_path / "c.yaml", on_ray(large, output, model_path)))
    units = kill_again_and_again(words, output, 5, (0, 40), ray_nodes)
    print(f"{units} units committed after 5 kills")
    assert units > 0
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, env=os.environ | ray_nodes)
    assert done.returncode == 0, done.stdout
    shutil.rmtree(output / "_tmp")
    assert_whole(output, keys_of(large))
    assert files_of(output / "data") == files_of(large_undisturbed / "data")


@pytest.fixture
def own_cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100 << 20})
    try:
        yield cluster
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()


def in_background(work: Callable[[], Summary]) -> Callable[[], Summary]:
    results: list[Summary] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()

    def result() -> Summary:
        thread.join(timeout=600)
        assert results, "the run did not end well"
        return results[0]

    return result


def wait_for(count: int, folder: Path) -> None:
    deadline = time.monotonic() + 240
    while not folder.is_dir() or len(list(folder.iterdir())) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_node_is_lost_and_one_added(
    own_cluster: Any, large: Path, large_undisturbed: Path, model_path: Path, tmp_path: Path
) -> None:
    """The head has no CPU: all the work is on the node that is lost, and then on the one that is added."""
    output = tmp_path / "out"
    lost = own_cluster.add_node(num_cpus=4, object_store_memory=100 << 20)
    own_cluster.wait_for_nodes()
    lines: list[str] = []
    with connected({"RAY_ADDRESS": own_cluster.address}):
        config = on_ray(large, output, model_path, encoders=1, preprocessors=1)
        summary_of = in_background(lambda: run(config, say=lines.append, report=lambda *_: None))
        wait_for(20, output / "samples")
        own_cluster.remove_node(lost, allow_graceful=False)
        before = committed(output)
        time.sleep(5)
        own_cluster.add_node(num_cpus=4, object_store_memory=100 << 20)
        summary = summary_of()
    assert summary.complete
    assert any("died and is replaced" in line for line in lines)
    assert len(committed(output)) > len(before)
    assert {path: stamp(path) for path in before} == before
    assert not summary.totals.rejects
    assert_whole(output, keys_of(large))
    assert files_of(output / "data") == files_of(large_undisturbed / "data")


def test_a_small_object_store_makes_it_slower_and_no_more(own_cluster: Any, model_path: Path, tmp_path: Path) -> None:
    """What is prepared is three times what the store holds; nothing is spilled."""
    photos = tmp_path / "in"
    photos.mkdir()
    for number in range(150):
        (photos / f"{number:03d}.jpg").write_bytes(encoded(noise(900, 1200, number), "JPEG"))
    own_cluster.add_node(num_cpus=4, object_store_memory=80 << 20)
    own_cluster.wait_for_nodes()
    with connected({"RAY_ADDRESS": own_cluster.address}):
        import ray

        config = config_for(
            photos,
            tmp_path / "out",
            model_path,
            cluster={"engine": "ray", "device": "cpu", "encoders": 1, "preprocessors": 2},
            preprocess={"max_pixels": 1_003_520},
            output={"shard_tokens": 8000},
            pack={"max_patches": 8192},
        )
        summary = run_here(config)
        session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert summary.complete
    assert summary.totals.tokens * 4 * 588 > 2 * (80 << 20)
    spilled = [path for folder in session.glob("ray_spilled_objects*") for path in folder.rglob("*") if path.is_file()]
    assert not spilled
    assert_whole(tmp_path / "out", sorted(path.name for path in photos.iterdir()))


def test_a_straggler_holds_nobody_up(large: Path, ray_nodes: dict[str, str], model_path: Path, tmp_path: Path) -> None:
    output, marker = tmp_path / "out", tmp_path / "fired"
    with connected(ray_nodes, VISIONBAKE_FAULT=f"prepare:sleep=45@{marker}"):
        summary = run_here(on_ray(large, output, model_path, encoders=1, preprocessors=2))
    assert marker.exists()
    assert summary.complete
    times = sorted(path.stat().st_mtime for path in (output / "samples").iterdir())
    woke = marker.stat().st_mtime + 45
    on_time = sum(moment < woke for moment in times)
    print(f"{on_time} of {len(times)} units were committed before the straggler went on")
    assert on_time > 0.2 * len(times)
    assert_whole(output, keys_of(large))


def test_a_slow_twin_writes_over_nothing(source: Path, model_path: Path, undisturbed: Path, tmp_path: Path) -> None:
    """It was taken for dead before it wrote its first shard; another run ends meanwhile."""
    output, marker = tmp_path / "out", tmp_path / "fired"
    words = command("jobs.run", write_config(tmp_path / "c.yaml", config_for(source, output, model_path)))
    slow = subprocess.Popen(
        words,
        cwd=REPOSITORY,
        env=os.environ | {"VISIONBAKE_FAULT": f"after_data_write:sleep=25@{marker}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not marker.exists():
        assert slow.poll() is None
        time.sleep(0.05)
    assert subprocess.run(words, cwd=REPOSITORY, capture_output=True).returncode == 0
    assert slow.poll() is None
    before = committed(output)
    said, _ = slow.communicate(timeout=120)
    assert slow.returncode == 0, said
    assert {path: stamp(path) for path in before} == before
    assert_whole(output, keys_of(source))
    assert files_of(output / "data") == files_of(undisturbed / "data")


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a small tmpfs")
def test_the_disk_is_full(large: Path, model_path: Path, large_undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=True)
    try:
        output = disk / "out"
        words = command("jobs.run", write_config(tmp_path / "c.yaml", config_for(large, output, model_path)))
        full = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
        assert full.returncode == 1
        assert "No space left" in full.stderr
        assert str(output) in full.stderr
        before = committed(output)
        assert before
        assert not (output / "_SUCCESS").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        assert subprocess.run(words, cwd=REPOSITORY, capture_output=True).returncode == 0
        assert {path: stamp(path) for path in before} == before
        assert_whole(output, keys_of(large))
        assert files_of(output / "data") == files_of(large_undisturbed / "data")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def started_and_stalled(words: list[str], marker: Path, **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        words,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"VISIONBAKE_FAULT": f"before_encode:sleep=6@{marker}"},
        **options,
    )
    while not marker.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def test_the_output_vanishes(source: Path, model_path: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = command("jobs.run", write_config(tmp_path / "c.yaml", config_for(source, output, model_path)))
    process = started_and_stalled(words, tmp_path / "fired")
    output.rename(tmp_path / "gone")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert str(output) in stderr
    assert "Traceback" not in stderr
    shutil.rmtree(output, ignore_errors=True)
    (tmp_path / "gone").rename(output)
    assert subprocess.run(words, cwd=REPOSITORY, capture_output=True).returncode == 0
    assert files_of(output / "data") == files_of(undisturbed / "data")


def without_override() -> None:
    """Makes root's children obey permissions. Source: capabilities(7), PR_CAPBSET_DROP of prctl(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        if os.getuid() == 0 and libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


def test_permission_is_lost(source: Path, model_path: Path, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = command("jobs.run", write_config(tmp_path / "c.yaml", config_for(source, output, model_path)))
    process = started_and_stalled(words, tmp_path / "fired", preexec_fn=without_override)
    for path in (output / "data", output / "samples"):
        path.chmod(0o500)
    _, stderr = process.communicate(timeout=120)
    for path in (output / "data", output / "samples"):
        path.chmod(0o700)
    assert process.returncode == 1
    assert "Permission denied" in stderr
    assert "Traceback" not in stderr
    assert subprocess.run(words, cwd=REPOSITORY, capture_output=True).returncode == 0
    assert files_of(output / "data") == files_of(undisturbed / "data")


def test_pillows_own_images(model_path: Path, tmp_path: Path) -> None:
    """Every file of Pillow's test images, whatever it is called, is a row or a reject with a reason."""
    import PIL

    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps"]
    subprocess.run([*fetch, f"pillow=={PIL.__version__}", "-d", str(tmp_path)], check=True)
    (archive,) = tmp_path.glob("pillow-*.tar.gz")
    members = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if "/Tests/images/" in member.name and member.isfile():
                data = tar.extractfile(member)
                assert data is not None
                members.append((f"{len(members):04d}.{Path(member.name).suffix[1:] or 'none'}.png", data.read()))
    assert len(members) > 900
    source = make_tar(tmp_path / "in" / "pillow.tar", members)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    config = config_for(
        source,
        tmp_path / "out",
        model_path,
        preprocess={"max_pixels": 200_000},
        output={"shard_tokens": 4000},
        pack={"max_patches": 4096},
    )
    assert run_here(config).complete
    seconds = time.monotonic() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    rows = pq.read_table(tmp_path / "out" / "samples").to_pylist()
    counts = Counter(row["status"] for row in rows)
    print(f"{len(rows)} files in {seconds:.0f} s, grown by {grown >> 20} MiB, child {child >> 20} MiB: {dict(counts)}")
    assert len(rows) == len(members)
    assert counts[rejects.OK] > 600
    assert all(row["error"] for row in rows if row["status"] != rejects.OK)
    assert not counts[rejects.CRASH]
    assert grown < 1.5e9
    assert child < 1.5e9
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in", "out", archive.name])
    assert Verifier(tmp_path / "out").verify().proven
