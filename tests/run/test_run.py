"""The whole job, inline and by its command. Catches: lost or doubled rows, a resume that changes bytes, a silent stop.

Kills are real: another process, SIGKILL at a named point, and a marker file that shows that the fault fired.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import (
    REPOSITORY,
    assert_whole,
    command,
    config_for,
    encoded,
    end_of,
    files_of,
    fork,
    keys_of,
    lines_of,
    make_folder,
    make_tar,
    noise,
    rows_of,
    run_here,
    run_in_a_fork,
    stamp,
    write_config,
)
from PIL import Image

from pipeline.cli import run_command
from pipeline.errors import RequestError, RunFailed

Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
def test_everything_is_encoded_whole(undisturbed: Path, source: Path) -> None:
    """And the source of the tests with faults has all that it should have."""
    assert_whole(undisturbed, keys_of(source))
    rows, lines = {row["key"]: row for row in rows_of(undisturbed)}, lines_of(source)
    assert list(rows) == list(lines)
    statuses = {key: row["status"] for key, row in rows.items() if row["status"] != "ok"}
    assert statuses == {"1/0009.png": "truncated", "1/0015.png": "missing_image"}
    for key, row in rows.items():
        assert (row["caption"], row["score"]) == (lines[key]["caption"], lines[key].get("score")), key
    data = {row["key"]: row for row in pq.read_table(undisturbed / "data").to_pylist()}
    assert {key: (row["caption"], row["score"]) for key, row in data.items()} == {
        key: (row["caption"], row["score"]) for key, row in rows.items() if row["status"] == "ok"
    }
    with Image.open(source.parent / "1" / "0007.jpg") as image:
        assert (rows["1/0007.jpg"]["height"], rows["1/0007.jpg"]["width"]) == image.size
    together, apart = ("1/0005.jpg", "0/0004.jpg"), ("0/0020.jpg", "1/0001.jpg")
    for twins in (together, apart, ("1/0017.jpg/1", "0/0000.png")):
        ours, other = (np.frombuffer(data[twin]["embedding"], np.float32) for twin in twins)
        assert np.array_equal(ours, other) if twins == together else np.allclose(ours, other, atol=1e-4)
        assert (rows[twins[0]]["shard"] == rows[twins[1]]["shard"]) is (twins == together)
    assert len({row["sha256"] for row in data.values()}) == len(data) - 3
    assert rows["1/0011.jpg"]["num_patches"] == 100
    assert "samples | 25" in (undisturbed / "README.md").read_text()


def test_a_second_run_does_nothing(undisturbed: Path, source: Path, model_path: Path) -> None:
    before = {path: stamp(path) for path in undisturbed.rglob("*") if path.parent.name in ("data", "samples", "index")}
    summary = run_here(config_for(source, undisturbed, model_path))
    assert summary.already_committed == summary.totals.units
    assert summary.this_run.units == 0
    assert {path: stamp(path) for path in before} == before
    assert (undisturbed / "_SUCCESS").exists()


@pytest.mark.slow
def test_identical_images_are_encoded_once_and_written_for_each(source: Path, model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for number in range(6):
        (folder / f"{number}.png").parent.mkdir(exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(noise(60, 60, number % 2)))
    bytes_by_setting = []
    for deduplicate in (True, False):
        output = tmp_path / f"out-{deduplicate}"
        run_here(config_for(folder, output, model_path, pack={"deduplicate": deduplicate}))
        assert_whole(output, keys_of(folder))
        rows = [row for path in (output / "data").iterdir() for row in pq.read_table(path).to_pylist()]
        bytes_by_setting.append([row["embedding"] for row in sorted(rows, key=lambda row: str(row["key"]))])
        from pipeline.output.metadata import read_metadata

        records = [read_metadata(path) for path in (output / "samples").iterdir()]
        encoded_tokens = sum(record["encoded_tokens"] for record in records)
        total = sum(record["tokens"] for record in records)
        assert encoded_tokens < total if deduplicate else encoded_tokens == total
    assert len(set(bytes_by_setting[0])) == 2


POINTS = [
    "index",
    "prepare",
    "before_encode",
    "after_encode",
    "before_data_write",
    "after_data_write",
    "after_data_publish",
    "after_samples_write",
    "after_samples_publish",
]


@pytest.mark.slow
def test_killed_at_any_point_the_next_run_goes_on(
    undisturbed: Path, source: Path, model_path: Path, tmp_path: Path
) -> None:
    """One output, killed at each point in turn; then run to its end: the bytes are those of an undisturbed run."""
    output = tmp_path / "out"
    config = config_for(source, output, model_path)
    committed: dict[Path, tuple[int, int, int]] = {}
    for point in POINTS:
        marker = tmp_path / point
        assert run_in_a_fork(config, VISIONBAKE_FAULT=f"{point}:kill@{marker}") == -signal.SIGKILL
        assert marker.exists()
        assert not (output / "_SUCCESS").exists()
        assert {path: stamp(path) for path in committed} == committed
        for name in ("data", "samples"):
            for path in (output / name).iterdir() if (output / name).is_dir() else ():
                pq.read_table(path)  # whatever a glob finds is complete
        samples = list((output / "samples").iterdir()) if (output / "samples").is_dir() else []
        committed = {path: stamp(path) for sample in samples for path in (sample, output / "data" / sample.name)}
    assert run_here(config).complete
    assert {path: stamp(path) for path in committed} == committed
    shutil.rmtree(output / "_tmp")  # what the killed processes left: a day old it would have gone by itself
    assert_whole(output, keys_of(source))
    assert files_of(output / "data") == files_of(undisturbed / "data")


def test_killed_before_its_plan_has_a_name_the_next_run_goes_on(source: Path, model_path: Path, tmp_path: Path) -> None:
    """It leaves an empty `plan/`, which looks like anybody's folder."""
    config, marker = config_for(source, tmp_path / "out", model_path), tmp_path / "fired"
    assert run_in_a_fork(config, VISIONBAKE_FAULT=f"publish=plan.json:kill@{marker}") == -signal.SIGKILL
    assert marker.exists()
    assert list((tmp_path / "out" / "plan").iterdir()) == []
    assert run_here(config).complete


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_cleanly(
    number: signal.Signals,
    source: Path,
    model_path: Path,
    tmp_path: Path,
    undisturbed: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    config = write_config(tmp_path / "c.yaml", config_for(source, output, model_path))
    marker = tmp_path / "fired"
    child = fork(lambda: run_command("run", [str(config)]), VISIONBAKE_FAULT=f"after_data_publish:sleep=60@{marker}")
    while not marker.exists():
        assert child.is_alive()
        time.sleep(0.02)
    os.kill(child.pid or 0, number)
    assert end_of(child) == 1
    stderr = capfd.readouterr().err
    assert "interrupted" in stderr
    assert "again to go on" in stderr
    assert not (output / "_tmp").exists()
    assert run_here(config_for(source, output, model_path)).complete
    assert files_of(output / "data") == files_of(undisturbed / "data")


def tars_from(folder: Path, target: Path, count: int, suffix: str = "tar") -> list[str]:
    """The folder's images as tars; returns the keys."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))
    for number in range(count):
        members = [(f"{path.stem}{path.suffix}", path.read_bytes()) for path in paths[number::count]]
        mode = "w:gz" if suffix.endswith("gz") else "w"
        make_tar(
            target / f"s-{number:03d}.{suffix}",
            [m for pair in members for m in (pair, (pair[0][:-4] + ".json", b"{}"))],
            mode,
        )
    return [path.stem for path in paths]


def embeddings_by_sha256(output: Path) -> dict[object, object]:
    rows = [row for path in (output / "data").iterdir() for row in pq.read_table(path).to_pylist()]
    return {row["sha256"]: row["embedding"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_tars_give_the_same_tokens_as_the_folder(suffix: str, model_path: Path, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "photos", 24)
    keys = tars_from(source, tmp_path / "in", 3, suffix)
    output, alone = tmp_path / "out", {"max_patches": 4}  # every image alone: then packs are the same everywhere
    summary = run_here(config_for(tmp_path / "in" / f"s-*.{suffix}", output, model_path, pack=alone))
    assert summary.complete
    assert_whole(output, keys)
    run_here(config_for(source, tmp_path / "folder", model_path, pack=alone))
    assert embeddings_by_sha256(output) == embeddings_by_sha256(tmp_path / "folder")


@pytest.mark.slow
def test_what_is_added_later_becomes_new_units_and_nothing_else_changes(model_path: Path, tmp_path: Path) -> None:
    folder, tars = make_folder(tmp_path / "in", 9), tmp_path / "tars"
    tars_from(folder, tars, 2)
    for place, uri in ((folder, folder), (tars, tars / "*.tar")):
        output = tmp_path / f"out-{place.name}"
        run_here(config_for(uri, output, model_path))
        before = {path: stamp(path) for name in ("data", "samples") for path in (output / name).iterdir()}
        if place == folder:
            make_folder(folder, 4, first=500)
        else:
            make_tar(tars / "a-new.tar", [("new.jpg", encoded(noise(80, 80, 9), "JPEG"))])
        config = config_for(uri, output, model_path)
        summary = run_here(config)
        assert summary.this_run.samples == (4 if place == folder else 1)
        assert {path: stamp(path) for path in before} == before
        assert json.loads((output / "_SUCCESS").read_text())["samples"] == len(rows_of(output))
        assert len({(row["source"], row["key"]) for row in rows_of(output)}) == len(rows_of(output))


@pytest.mark.slow
def test_odd_images_are_rows_or_rejects(model_path: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in", 6)
    whole = encoded(noise(90, 90), "JPEG")
    odd = {
        "empty.jpg": b"",
        "text.jpg": b"hello" * 50,
        "cut.jpg": whole[: len(whole) // 2],
        "wrong_extension.png": whole,
        "long.png": encoded(noise(2, 500)),
        "dot.png": encoded(noise(1, 1)),
        "large.png": encoded(noise(1100, 1000)),
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }
    for name, data in odd.items():
        (folder / name).write_bytes(data)
    output = tmp_path / "out"
    summary = run_here(config_for(folder, output, model_path, limits={"max_image_pixels": 1_000_000}))
    assert_whole(output, keys_of(folder))
    status = {row["key"]: row["status"] for row in rows_of(output)}
    assert {name: status[name] for name in odd} == {
        "empty.jpg": "truncated",
        "text.jpg": "unidentified",
        "cut.jpg": "truncated",
        "wrong_extension.png": "ok",
        "long.png": "aspect_ratio",
        "dot.png": "ok",
        "large.png": "too_many_pixels",
        "eps.jpg": "unidentified",
    }
    assert summary.totals.rejects["truncated"] == 2
    assert all(row["error"] for row in rows_of(output) if row["status"] != "ok")


def test_too_many_rejects_stop_the_run_with_their_reasons(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so before it could say that all is well: a reader may look at any moment."""
    from pipeline.run import runner

    said: list[object] = []
    monkeypatch.setattr(runner, "write_success", lambda *words: said.append(words))
    folder = make_folder(tmp_path / "in", 4)
    (folder / "bad.jpg").write_bytes(b"bad")
    with pytest.raises(RunFailed, match=r"1 of 5 samples are rejects.*unidentified 1 \(such as bad\.jpg\)"):
        run_here(config_for(folder, tmp_path / "out", model_path, limits={"max_rejected_fraction": 0.1}))
    assert not said
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_damaged_tar_fails_its_part_and_the_others_finish(model_path: Path, tmp_path: Path) -> None:
    for number in range(3):
        members = [(f"{number}-{i}.jpg", encoded(noise(60, 60, i), "JPEG")) for i in range(3)]
        make_tar(tmp_path / "in" / f"{number}.tar", members)
    bad = tmp_path / "in" / "1.tar"
    bad.write_bytes(bad.read_bytes()[:1500])
    config = config_for(tmp_path / "in" / "*.tar", tmp_path / "out", model_path)
    summary = run_here(config)
    assert not summary.complete
    assert "1.tar" in summary.problems[0]
    assert summary.totals.samples == 6
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    skipping = config_for(tmp_path / "in" / "*.tar", tmp_path / "out", model_path, source={"on_damaged": "skip"})
    summary = run_here(skipping)
    assert summary.complete
    assert "1.tar" in summary.skipped_parts[0]
    assert "1.tar" in json.loads((tmp_path / "out" / "_SUCCESS").read_text())["skipped_parts"][0]


@pytest.mark.slow
def test_bytes_that_change_between_index_and_run(model_path: Path, tmp_path: Path) -> None:
    """The same size and mtime but another sha256 is a reject."""
    folder = make_folder(tmp_path / "in", 6)
    config = config_for(folder, tmp_path / "out", model_path)
    from pipeline.run.indexing import make_plan
    from pipeline.run.request import check_request

    make_plan(check_request(config), say=lambda line: None)
    victim = folder / "1" / "0003.png"
    facts = victim.stat()
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    os.utime(victim, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert run_here(config).totals.rejects == {"checksum": 1}


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"preprocess": {"max_pixels": 30_000}}, "preprocess.max_pixels is 20000 there and 30000 here"),
        ({"output": {"dtype": "bfloat16"}}, "output.dtype is 'float32' there"),
        ({"pack": {"max_patches": 300}}, "pack.max_patches"),
        ({"cluster": {"engine": "inline", "threads_per_encoder": 2}}, "cluster.threads_per_encoder"),
        ({"limits": {"max_image_pixels": 5}}, "limits.max_image_pixels"),
        ({"model": {"compile": "on"}}, "compiled is False there and True here"),
    ],
)
def test_another_fingerprint_is_refused_by_its_field(
    sections: dict[str, dict[str, object]], says: str, undisturbed: Path, source: Path, model_path: Path
) -> None:
    before = files_of(undisturbed / "data")
    with pytest.raises(RequestError) as error:
        run_here(config_for(source, undisturbed, model_path, **sections))
    assert says in str(error.value)
    assert files_of(undisturbed / "data") == before
    assert (undisturbed / "_SUCCESS").exists()


def test_other_weights_are_refused(undisturbed: Path, source: Path, tmp_path: Path) -> None:
    from conftest import TINY, run_here

    from pipeline.tower.random_tower import write_random_checkpoint

    write_random_checkpoint(tmp_path, TINY, seed=11)
    with pytest.raises(RequestError, match="tower_sha256"):
        run_here(config_for(source, undisturbed, tmp_path))


@pytest.mark.slow
def test_success_goes_when_a_later_part_fails(model_path: Path, tmp_path: Path) -> None:
    make_tar(tmp_path / "in" / "a.tar", [("a.jpg", encoded(noise(60, 60), "JPEG"))])
    config = config_for(tmp_path / "in" / "*.tar", tmp_path / "out", model_path)
    assert run_here(config).complete
    bad = make_tar(tmp_path / "in" / "b.tar", [("b.jpg", encoded(noise(60, 60), "JPEG"))])
    bad.write_bytes(bad.read_bytes()[:900])
    assert not run_here(config).complete
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    skipping = {"source": {"on_damaged": "skip"}}
    assert run_here(config_for(tmp_path / "in" / "*.tar", tmp_path / "out", model_path, **skipping)).complete
    failing = run_here(config)  # what was skipped is not forgotten when the setting is taken back
    assert "b.tar" in failing.problems[0]


def test_a_link_in_a_tar_is_a_row(model_path: Path, tmp_path: Path) -> None:
    import tarfile

    path = make_tar(tmp_path / "a.tar", [("a.jpg", encoded(noise(60, 60), "JPEG"))])
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(link)
    run_here(config_for(path, tmp_path / "out", model_path))
    assert {row["key"]: row["status"] for row in rows_of(tmp_path / "out")} == {"a": "ok", "b": "ok"}


def test_an_index_of_another_output_is_shared(
    source: Path, model_path: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "plan").symlink_to(undisturbed / "plan")
    before = {path: stamp(path) for path in (undisturbed / "plan").rglob("*")}
    summary = run_here(config_for(source, output, model_path, preprocess={"max_pixels": 10_000}))
    assert summary.complete
    assert {path: stamp(path) for path in before} == before


@pytest.mark.parametrize("kind", ["no source", "empty", "no image", "mixture", "file", "foreign", "empty tar"])
def test_bad_requests_write_nothing(kind: str, source: Path, model_path: Path, tmp_path: Path) -> None:
    output, uri, says = tmp_path / "out", source, ""
    place = tmp_path / "place"
    place.mkdir()
    if kind == "no source":
        uri, says = tmp_path / "nowhere", "nowhere does not exist"
    elif kind == "empty":
        uri, says = place, "it is empty"
    elif kind == "no image":
        (place / "a.txt").write_text("x")
        uri, says = place, "it holds 1 .txt"
    elif kind == "mixture":
        make_tar(place / "a.tar", [("a.jpg", b"x")])
        (place / "a.jpg").write_bytes(b"x")
        uri, says = place, "say which are meant"
    elif kind == "empty tar":
        uri, says = make_tar(place / "a.tar", [("a.txt", b"x")]), "holds no image"
    elif kind == "file":
        output.write_text("mine")
        says = "is a file"
    else:
        output.mkdir()
        (output / "mine.txt").write_text("mine")
        says = "not an output of visionbake"
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(RequestError) as error:
        run_here(config_for(uri, output, model_path))
    assert says in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_relative_output_is_refused_inside_a_ray_job(
    source: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(RequestError, match="is relative: in a Ray job"):
        run_here(config_for(source, Path("out/x"), model_path))


@pytest.mark.slow
def test_writing_fails_loudly(
    source: Path, model_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A limit on file sizes: the first data shard over it stops the run; without the limit it goes on."""
    output = tmp_path / "out"
    config = write_config(tmp_path / "c.yaml", config_for(source, output, model_path, output={"shard_tokens": 400}))

    def limited() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        return run_command("run", [str(config)])

    assert end_of(fork(limited)) == 1
    assert "cannot write" in capfd.readouterr().err
    assert not (output / "_SUCCESS").exists()
    assert run_here(config_for(source, output, model_path, output={"shard_tokens": 400})).complete


@pytest.mark.slow
def test_inline_needs_no_ray(source: Path, model_path: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", config_for(source, tmp_path / "out", model_path))
    code = (
        "import sys; sys.modules['ray'] = None; from pipeline.cli import run_command;"
        "code = run_command('run', [sys.argv[1]]); sys.exit(code)"
    )
    done = subprocess.run([*command("x")[:1], "-c", code, str(config)], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "25 in = 23 rows + 2 rejects" in done.stdout


def test_weights_that_change_between_driver_and_encoder_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node's folder of the same name may hold another checkpoint."""
    from pipeline.run import runner
    from pipeline.tower.random_tower import SIZES, write_random_checkpoint

    model = tmp_path / "model"
    model.mkdir()
    write_random_checkpoint(model, SIZES["tiny"])
    real = runner.start_engine

    def swapped(*arguments: Any, **options: Any) -> Any:
        write_random_checkpoint(model, SIZES["tiny"], seed=2)
        return real(*arguments, **options)

    monkeypatch.setattr(runner, "start_engine", swapped)
    with pytest.raises(RequestError, match="other weights"):
        run_here(config_for(source, tmp_path / "out", model))
    assert not (tmp_path / "out" / "data").exists()


def test_no_memory_to_decode_is_no_property_of_the_image(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.errors import ReaderLost
    from pipeline.prepare import decode

    def none_left(image: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(decode, "to_rgb", none_left)
    with pytest.raises(ReaderLost, match="no memory to decode 30×20 pixels"):
        decode.decode(encoded(noise(20, 30, 1)))


def three_tars(folder: Path) -> str:
    """Three parts of four images each; returns their pattern."""
    for number in range(3):
        members = [(f"{number}-{i}.jpg", encoded(noise(60 + 9 * i, 70, 10 * number + i), "JPEG")) for i in range(4)]
        make_tar(folder / f"{number}.tar", members)
    return str(folder / "*.tar")


@pytest.mark.parametrize("point", ["index", "prepare"])
def test_success_is_gone_before_the_first_unit_of_a_further_run(point: str, model_path: Path, tmp_path: Path) -> None:
    config = config_for(three_tars(tmp_path / "in"), tmp_path / "out", model_path)
    assert run_here(config).complete
    make_tar(tmp_path / "in" / "3.tar", [("3.jpg", encoded(noise(60, 60, 99), "JPEG"))])
    assert run_in_a_fork(config, VISIONBAKE_FAULT=f"{point}:kill@{tmp_path / 'fired'}") == -signal.SIGKILL
    assert (tmp_path / "fired").exists()
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert run_here(config).totals.samples == 13
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_success_is_gone_before_a_missing_unit_is_made_again(model_path: Path, tmp_path: Path) -> None:
    config = config_for(three_tars(tmp_path / "in"), tmp_path / "out", model_path)
    assert run_here(config).complete
    min((tmp_path / "out" / "samples").iterdir()).unlink()
    assert run_in_a_fork(config, VISIONBAKE_FAULT=f"prepare:kill@{tmp_path / 'fired'}") == -signal.SIGKILL
    assert (tmp_path / "fired").exists() and not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize("fact", ["pillow", "device"])
def test_a_run_that_is_refused_at_its_admission_leaves_a_complete_output_as_it_is(
    fact: str, model_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    config = config_for(three_tars(tmp_path / "in"), output, model_path)
    assert run_here(config).complete
    tree = json.loads((output / "dataset.json").read_text())
    assert fact in tree["fingerprint_facts"]
    tree["fingerprint_facts"][fact] = "of long ago"
    (output / "dataset.json").write_text(json.dumps(tree))
    make_tar(tmp_path / "in" / "3.tar", [("3.jpg", encoded(noise(60, 60, 99), "JPEG"))])
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match=f"{fact} is 'of long ago' there"):
        run_here(config)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert (output / "_SUCCESS").exists() and (output / "plan" / "parts").is_dir()


def test_a_samples_shard_that_went_from_a_complete_output_is_made_again(model_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    config = config_for(three_tars(tmp_path / "in"), output, model_path)
    before = run_here(config)
    assert len(list((output / "ledger").glob("part-*.parquet"))) == 3
    data, rows = files_of(output / "data"), rows_of(output)
    lost = sorted((output / "samples").iterdir())[1]
    lost.unlink()
    again = run_here(config)
    assert (again.this_run.units, again.already_committed) == (1, before.totals.units - 1)
    assert files_of(output / "data") == data
    assert rows_of(output) == rows
    assert again.totals.as_dict()["samples"] == before.totals.as_dict()["samples"] == 12
    assert_whole(output, [f"{number}-{i}" for number in range(3) for i in range(4)])
    assert run_here(config).this_run.units == 0


def damage(path: Path, how: str, other: Path) -> None:
    if how == "deleted":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        shutil.copyfile(other / "ledger" / path.name, path)


@pytest.fixture(scope="module")
def two_outputs(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Of one source by two configurations: another fingerprint, and other units."""
    folder = tmp_path_factory.mktemp("two")
    uri = three_tars(folder / "in")
    for name, tokens in (("one", 48), ("other", 10_000)):
        assert run_here(config_for(uri, folder / name, model_path, output={"shard_tokens": tokens})).complete
    return uri, folder / "one", folder / "other"


@pytest.mark.parametrize("how", ["deleted", "damaged", "another run's"])
@pytest.mark.parametrize("name", ["part-000001.parquet", "_units.json", "both"])
def test_without_its_ledger_a_complete_output_is_still_complete(
    name: str, how: str, two_outputs: tuple[str, Path, Path], model_path: Path, tmp_path: Path
) -> None:
    uri, complete, other = two_outputs
    output = tmp_path / "out"
    shutil.copytree(complete, output)
    success = json.loads((output / "_SUCCESS").read_text())
    for path in (output / "ledger").iterdir():
        if name in (path.name, "both"):
            damage(path, how, other)
    shards = {path: stamp(path) for folder in ("data", "samples", "plan") for path in (output / folder).rglob("*")}
    summary = run_here(config_for(uri, output, model_path))
    assert summary.complete and summary.this_run.units == 0
    assert summary.already_committed == summary.totals.units == success["units"]
    assert json.loads((output / "_SUCCESS").read_text()) == success
    assert {path: stamp(path) for path in shards} == shards


def test_parts_that_are_done_are_not_cut_again(
    two_outputs: tuple[str, Path, Path], model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.run import runner

    uri, complete, _ = two_outputs
    output = tmp_path / "out"
    shutil.copytree(complete, output)
    next(path for path in (output / "samples").iterdir() if path.name.startswith("part-000001-")).unlink()
    read: list[str] = []
    real = runner.read_index_arrays

    def counting(path: Path) -> Any:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(runner, "read_index_arrays", counting)
    config = config_for(uri, output, model_path)
    assert run_here(config).this_run.units == 1
    assert set(read) == {"part-000001.parquet"}
    read.clear()
    assert run_here(config).this_run.units == 0
    assert not read
    (output / "ledger" / "_units.json").unlink()  # then each part's ledger tells
    assert run_here(config).this_run.units == 0
    assert not read
    shutil.rmtree(output / "ledger")  # then the index does
    assert run_here(config).this_run.units == 0
    assert sorted(read) == [f"part-{part:06d}.parquet" for part in range(3)]
