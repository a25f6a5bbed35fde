"""The same job on Ray actors, on two nodes. Catches: bytes that depend on who did the work, and a death that loses any.

A fault test shows by its marker file that the fault fired.
"""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import REPOSITORY, assert_whole, config_for, connected, files_of, keys_of, on_ray, run_here

from pipeline.errors import RequestError
from pipeline.run.runner import run
from pipeline.run.summary import Summary

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_bytes_do_not_depend_on_the_actors(
    ray_nodes: dict[str, str], source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with connected(ray_nodes):
        summary = run_here(on_ray(source, output, model_path, encoders=2, preprocessors=3))
    assert summary.complete
    assert summary.retries == 0
    assert_whole(output, keys_of(source))
    assert files_of(output / "data") == files_of(undisturbed / "data")


KILLS = ["index", "prepare", "before_encode", "after_data_publish", "after_samples_publish"]


@pytest.mark.parametrize("points", [KILLS[:2], KILLS[2:]], ids=["preparers", "encoders"])
def test_killed_actors_are_replaced_and_their_work_done_again(
    points: list[str], ray_nodes: dict[str, str], source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """One death at each point. A unit may meet all of them: it has an attempt more."""
    output, markers = tmp_path / "out", {point: tmp_path / point for point in points}
    lines: list[str] = []
    with connected(ray_nodes, VISIONBAKE_FAULT=",".join(f"{point}:kill@{path}" for point, path in markers.items())):
        config = on_ray(source, output, model_path)
        attempts = config.limits.model_copy(update={"attempts": len(points) + 1})
        summary = run(config.model_copy(update={"limits": attempts}), say=lines.append, report=lambda *_: None)
    assert all(path.exists() for path in markers.values())
    assert summary.complete
    assert summary.retries >= len(points)
    assert sum("died and is replaced" in line for line in lines) >= len(points)
    assert_whole(output, keys_of(source))
    assert files_of(output / "data") == files_of(undisturbed / "data")


def test_in_flight_bytes_are_bounded_and_one_unit_still_passes(
    ray_nodes: dict[str, str], source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Encoders are slow, so that units would wait for them."""
    output, fired = tmp_path / "out", tmp_path / "fired"
    seen: list[int] = []
    with connected(ray_nodes, VISIONBAKE_FAULT=f"before_encode:sleep=0.3@+{fired}"):
        config = on_ray(source, output, model_path, in_flight=1)
        summary = run(config, say=lambda line: None, report=lambda progress, *_: seen.append(progress.prepared))
    assert summary.complete
    assert fired.stat().st_size >= summary.totals.units > 5
    assert len(seen) > 3 and max(seen) <= 1  # without a bound they are all prepared by then
    assert files_of(output / "data") == files_of(undisturbed / "data")


def test_two_drivers_on_one_output_end_well(
    ray_nodes: dict[str, str], source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Another process, inline, starts on the same output while this one sleeps between its two publications."""
    output, marker = tmp_path / "out", tmp_path / "fired"
    twin: list[Summary] = []

    def run_twin() -> None:
        while not marker.exists():
            time.sleep(0.05)
        twin.append(run_here(config_for(source, output, model_path)))

    thread = threading.Thread(target=run_twin, daemon=True)
    thread.start()
    with connected(ray_nodes, VISIONBAKE_FAULT=f"after_data_publish:sleep=4@{marker}"):
        summary = run_here(on_ray(source, output, model_path))
    thread.join(timeout=120)
    assert marker.exists()
    assert summary.complete
    assert twin
    assert twin[0].complete
    assert_whole(output, keys_of(source))
    assert files_of(output / "data") == files_of(undisturbed / "data")


def test_a_cluster_that_is_not_there_is_named(source: Path, model_path: Path, tmp_path: Path) -> None:
    config = on_ray(source, tmp_path / "out", model_path, address="127.0.0.1:1")
    with pytest.raises(RequestError, match=r"cluster\.address: 127\.0\.0\.1:1"):
        run_here(config)
    assert not (tmp_path / "out").exists()


def test_prometheus_sees_a_run(ray_nodes: dict[str, str], source: Path, model_path: Path, tmp_path: Path) -> None:
    """Scraped from the nodes' endpoints while the driver is there; all that the dashboard draws is among it."""
    import ray

    output = tmp_path / "out"
    (broken := tmp_path / "in").mkdir()
    for path in source.parent.rglob("*.jpg"):
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "broken.jpg").write_bytes(b"no image")
    with connected(ray_nodes):
        summary = run_here(on_ray(broken, output, model_path))
        places = {f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes()}
        deadline = time.monotonic() + 60
        found: dict[str, float] = {}
        wanted = {"images", "tokens", "rejects", "stage_seconds", "units", "parts_cut", "encoder_busy_share"}
        while time.monotonic() < deadline and not (wanted <= found.keys() and found["images"] == summary.totals.rows):
            time.sleep(1)
            for place in places:
                with suppress(OSError):
                    text = urllib.request.urlopen(place, timeout=10).read().decode()
                    for line in text.splitlines():
                        if line.startswith("ray_visionbake_") and str(output) in line:
                            name, _, rest = line.partition("{")
                            name = name.removeprefix("ray_visionbake_")
                            found[name] = max(found.get(name, 0), float(rest.rpartition(" ")[2]))
    totals = summary.totals
    assert found["images"] == totals.rows
    assert found["tokens"] == totals.tokens
    assert found["embedding_bytes"] == totals.embedding_bytes
    assert found["units"] == found["units_to_do"] == totals.units
    assert found["parts_cut"] == found["parts"] == 1
    assert found["rejects"] == 1
    assert 0 < found["encoder_busy_share"] <= 1
    board = (REPOSITORY / "configs" / "grafana.json").read_text(encoding="utf-8")
    drawn = set(re.findall(r"ray_visionbake_(\w+)", board))
    assert drawn - found.keys() <= {"retries"}  # nothing had to be made again
