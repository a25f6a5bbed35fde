"""The commands as they are typed. Catches: a wrong exit code, a result that no program can read."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PHOTOS, config_for, encoded, make_folder, make_tar, noise, run_here, write_config
from PIL import Image
from safetensors.torch import load_file

from jobs.bench import __main__ as bench
from pipeline import VisionEncoder
from pipeline.cli import main
from pipeline.cli.status import encoder_line, pace_line
from pipeline.config import Source
from pipeline.errors import RequestError
from pipeline.run.runner import run
from pipeline.source.resolve import files_of_output_in, resolve_source

Runner = Callable[..., subprocess.CompletedProcess[str]]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """A command in this process."""
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_plan_then_run_then_status(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_folder(tmp_path / "in", 12)
    (source / "bad.jpg").write_bytes(b"bad")
    (source / "long.png").write_bytes(encoded(noise(2, 500)))
    output = tmp_path / "out"
    config = write_config(tmp_path / "c.yaml", config_for(source, output, model_path))
    code, out, _ = call(capsys, "plan", config, "--json", "--max-pixels", "20000,5000", "--tokens-per-second", 100)
    assert code == 0
    plan = json.loads(out)
    assert [budget["max_pixels"] for budget in plan["budgets"]] == [20000, 5000]
    large, small = plan["budgets"]
    assert large["samples"] == 14
    assert large["rejects"] == {"aspect_ratio": 1, "unidentified": 1}
    assert small["tokens"] < large["tokens"]
    assert large["device_hours"] == pytest.approx(large["tokens"] / 100 / 3600)
    assert plan["ignored_files"] == 1
    assert {path.name for path in output.iterdir()} == {"plan"}

    code, out, _ = call(capsys, "run", config, "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["totals"]["tokens"] == large["tokens"]
    assert summary["totals"]["embedding_bytes"] == large["embedding_bytes"]
    assert summary["totals"]["units"] == large["units"]
    assert summary["totals"]["samples"] == summary["totals"]["rows"] + summary["totals"]["rejected"] == 14

    code, out, _ = call(capsys, "status", output, "--json")
    assert code == 0
    status = json.loads(out)
    assert (status["complete"], status["tokens"]) == (True, large["tokens"])
    assert status["units_committed"] == status["units_known"] == large["units"]
    last = sorted((output / "samples").iterdir())[-1]
    last.unlink()
    (output / "_SUCCESS").unlink()
    code, out, _ = call(capsys, "status", output)
    assert f"units {large['units'] - 1}/{large['units']} committed" in out
    assert "complete" not in out


def test_plan_shows_percentiles(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.png").write_bytes(encoded(noise(56, 56 if number else 112)))
    config = write_config(tmp_path / "c.yaml", config_for(folder, tmp_path / "out", model_path))
    _, out, _ = call(capsys, "plan", config, "--json")
    (budget,) = json.loads(out)["budgets"]
    assert (budget["tokens"], budget["tokens_p50"], budget["tokens_max"]) == (19 * 4 + 8, 4, 8)
    assert budget["tokens_mean"] == pytest.approx(4.2)
    code, out, _ = call(capsys, "plan", config)
    assert code == 0
    assert "tokens-per-second" in out


@pytest.mark.parametrize("words", [["--sample", "0"], ["--max-pixels", "10"]])
def test_plan_refuses_what_it_cannot_do(
    words: list[str], model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "c.yaml", config_for(tmp_path, tmp_path / "out", model_path))
    code, _, err = call(capsys, "plan", config, *words)
    assert code == 2
    assert words[0] in err


def test_a_pace_is_shown_with_what_is_left() -> None:
    pace = {"images_per_second": 10.0, "tokens_per_second": 1000.0, "busy_encoders": 1.5, "seconds_since": 3.0}
    look = {"pace": pace, "seconds_left": 6.0, "complete": False, "parts": 2, "parts_indexed": 2}
    assert pace_line(look) == "    10.0 images/s, 1,000 tokens/s, 1.5 encoders busy, 0:00:06 left"
    late = look | {"pace": pace | {"seconds_since": 100.0}, "parts": 3}
    assert pace_line(late).endswith("0:00:06 left for what is indexed, the last unit 0:01:40 ago")


def test_a_plan_has_a_status(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(
        tmp_path / "c.yaml", config_for(make_folder(tmp_path / "in", 9), tmp_path / "out", model_path)
    )
    assert call(capsys, "plan", config)[0] == 0
    code, out, _ = call(capsys, "status", tmp_path / "out")
    assert code == 0
    assert out == "planned: 1 of 1 parts are indexed; nothing is encoded yet\n"


def test_encoders_are_shown_by_their_share() -> None:
    two = [{"encoder": number, "busy_share": 0.5 + number / 4, "seconds_since": 100.0 * number} for number in range(2)]
    line = encoder_line(two, complete=False)
    assert line == "    2 encoders, busy in their last minute of work: 0: 50 %, 1: 75 % (its last unit 0:01:40 ago)"
    assert "ago" not in encoder_line(two, complete=True)
    many = [{"encoder": number, "busy_share": number / 100, "seconds_since": 0.0} for number in range(100)]
    line = encoder_line(many, complete=False)
    assert "100 encoders" in line
    assert "50 % on average; the least busy: 0: 0 %, 1: 1 %" in line
    assert "99:" not in line


def test_status_watches_a_run_that_goes_on(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record at a time comes back, as if another process had committed it."""
    output = tmp_path / "out"
    run_here(config_for(make_folder(tmp_path / "in", 9), output, model_path))
    away = tmp_path / "away"
    away.mkdir()
    records = sorted((output / "samples").iterdir())
    for path in [*records[1:], output / "_SUCCESS"]:
        path.rename(away / path.name)

    def come_back(seconds: float) -> None:
        missing = sorted(away.iterdir(), key=lambda path: path.name == "_SUCCESS")
        place = output if missing[0].name == "_SUCCESS" else output / "samples"
        missing[0].rename(place / missing[0].name)

    monkeypatch.setattr("pipeline.cli.status.time.sleep", come_back)
    code, out, _ = call(capsys, "status", output, "--watch")
    assert code == 0
    assert out.count("committed") == len(records) + 1  # all units are there before the run has said so
    assert "tokens/s" in out
    assert "encoders busy" in out
    assert "complete" in out.splitlines()[-3]


@pytest.mark.slow
def test_a_rate_is_measured_on_this_machine(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(
        tmp_path / "c.yaml", config_for(make_folder(tmp_path / "in", 9), tmp_path / "out", model_path)
    )
    for words in (["--calibrate"], ["--calibrate", "--sample", "5"]):
        code, out, _ = call(capsys, "plan", config, "--json", "--price-per-hour", 3, *words)
        assert code == 0
        plan = json.loads(out)
        (budget,) = plan["budgets"]
        hours = budget["device_hours"]["estimate"] if "--sample" in words else budget["device_hours"]
        tokens = budget["tokens"]["estimate"] if "--sample" in words else budget["tokens"]
        assert plan["calibrated_on"].startswith("cpu")
        assert hours == pytest.approx(tokens / budget["tokens_per_second"] / 3600, rel=0.2)
        code, out, _ = call(capsys, "plan", config, "--price-per-hour", 3, *words)
        assert code == 0
        assert "calibrated on                         cpu" in out
        assert "Preparing takes" in out and "cores for each device" in out
    # What is stated is not measured: only what a core prepares.
    code, out, _ = call(capsys, "plan", config, "--json", "--calibrate", "--tokens-per-second", 5)
    assert code == 0
    assert json.loads(out)["budgets"][0]["tokens_per_second"] == 5 and "calibrated_on" not in json.loads(out)


def test_encode_and_save(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))[:3]
    saved = tmp_path / "x.safetensors"
    code, out, _ = call(
        capsys, "encode", *photos, "--model", model_path, "--dtype", "float32", "--max-pixels", 50_000, "--save", saved
    )
    assert code == 0
    assert out.count("grid_thw (1, ") == 3
    tensors = load_file(saved)
    assert tensors["image_grid_thw"].shape == (3, 3)
    assert tensors["image_embeds"].shape == (int(tensors["image_grid_thw"].prod(1).sum()) // 4, 48)
    code, _, err = call(capsys, "encode", tmp_path / "nothing.jpg", "--model", model_path)
    assert (code, "nothing.jpg" in err) == (2, True)
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    code, _, err = call(capsys, "encode", tmp_path / "bad.jpg", "--model", model_path)
    assert (code, "bad.jpg: unidentified" in err) == (2, True)


def test_the_library_gives_what_a_run_writes(model_path: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    source = make_folder(tmp_path / "in", 5)
    config = config_for(source, tmp_path / "out", model_path, pack={"max_patches": 4})
    run(config, say=lambda line: None, report=lambda *_: None)
    encoder = VisionEncoder.from_pretrained(
        str(model_path), "float32", "cpu", min_pixels=3136, max_pixels=20_000, max_patches=4
    )
    rows = [row for path in sorted((tmp_path / "out" / "data").iterdir()) for row in pq.read_table(path).to_pylist()]
    paths = [source / str(row["key"]) for row in rows]
    for images in (paths, [path.read_bytes() for path in paths], [Image.open(path) for path in paths]):
        for row, embedding in zip(rows, encoder.encode(images), strict=True):
            assert list(embedding.grid_thw) == row["grid_thw"]
            assert embedding.image_embeds.numpy().tobytes() == row["embedding"]
    assert encoder.encode([]) == []
    with pytest.raises(RequestError, match="list of images"):
        encoder.encode(str(paths[0]))  # type: ignore[arg-type]
    assert encoder.encode([paths[0]])[0].image_embeds.dtype == torch.float32


def test_wrong_words_exit_2(run_job: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["nonsense"], ["run"], ["run", "a.yaml", "--nonsense"], ["status", str(tmp_path / "nothing")]):
        try:
            code = main(words)
        except SystemExit as error:  # argparse's own
            code = int(str(error.code))
        assert code == 2
        assert capsys.readouterr().err
    done = run_job("jobs.cli", "nonsense")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pack", "driver", "plan"])
def test_bench_measures(part: str, run_job: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    words = [part, "--json", "--photos", str(PHOTOS), "--samples", "20000"]
    if part == "driver":  # it measures its own process
        done = run_job("jobs.bench", *words)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:
        parser = argparse.ArgumentParser()
        bench.add_arguments(parser)
        assert bench.main(parser.parse_args(words)) == 0
        said = capsys.readouterr().out
    result = json.loads(said)[part]
    if part == "pack":
        assert result["photos"]["fill_without_the_last_pack"] >= 0.98  # ten photos have few sizes
        assert result["log_normal"]["fill_without_the_last_pack"] >= 0.99
    elif part == "plan":
        assert (result["samples"], result["budgets"], result["duplicates"]) == (20_000, 4, 1999)
    else:
        assert result["units"] > 100
        assert result["growth_bytes"] >= 0


def test_a_folder_of_the_users_is_no_output(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A data set's usual shape has names that outputs have too."""
    mine = tmp_path / "mine"
    make_folder(mine / "data", 3)
    (mine / "README.md").write_text("mine")
    config = write_config(tmp_path / "c.yaml", config_for(mine / "data", mine, model_path))
    for command in ("plan", "run"):
        code, _, err = call(capsys, command, config)
        assert code == 2
        assert "is not empty and not an output of visionbake" in err
    assert (mine / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("uri", "kind", "below", "refused"),
    [
        ("in", "parquet", "in/out", True),
        ("in/**/*.parquet", "auto", "in/a/out", True),
        ("in/*/*/*.tar", "auto", "in/out", True),
        ("in/*.tar", "auto", "in/out", False),
        ("in", "parquet", "in-2/out", False),
        ("in", "folder", "in/out", False),
    ],
)
def test_an_output_is_no_part_of_its_source(
    uri: str, kind: Any, below: str, refused: bool, model_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    place = resolve_source(Source(uri=str(tmp_path / uri), format=kind))
    assert bool(files_of_output_in(place, str(tmp_path / below))) == refused


def test_members_that_a_shard_has_already_cannot_be_carried(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tar(tmp_path / "a.tar", [("0.png", encoded(noise(30, 30, 1))), ("0.json", b"{}")])
    config = config_for(
        tmp_path / "a.tar", tmp_path / "out", model_path, source={"carry": ["json"]}, output={"format": "webdataset"}
    )
    code, _, err = call(capsys, "run", write_config(tmp_path / "c.yaml", config))
    assert code == 2
    assert "source.carry: json" in err
    assert not (tmp_path / "out").exists()


def test_damaged_metadata_is_named(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out[1]"
    run_here(config_for(make_folder(tmp_path / "in", 9), output, model_path))
    assert call(capsys, "stats", output)[0] == 0  # a name with glob characters
    (index,) = (output / "plan" / "index").iterdir()
    shutil.rmtree(output / "ledger")  # of a part that has one no index and no footer is opened
    for path, text, commands in (
        (index, b"PAR1", ("status", "verify")),
        (output / "plan" / "plan.json", b"[", ("status", "verify")),
        (next((output / "samples").iterdir()), b"PAR1", ("stats",)),
        (output / "dataset.json", b"{}", ("status", "stats", "verify")),
    ):
        whole = path.read_bytes()
        path.write_bytes(text)
        for command in commands:
            code, _, err = call(capsys, command, output)
            assert code in (1, 2), (path, command)
            assert path.name in err, (path, command, err)
            listed = command == "verify" and path == index  # it goes on, and says all that is wrong
            assert err.count("\n") == 1 or (listed and err.startswith(("PROBLEM", "MISSING")))
        path.write_bytes(whole)
    for words, says in (
        (["--sql", " "], "--sql"),
        (["--sql", "SELECT nonsense"], "--sql"),
        (["--sql", "SELECT 1", "--html", tmp_path / "x.html"], "--html"),
    ):
        code, _, err = call(capsys, "stats", output, *words)
        assert (code, says in err, err.count("\n")) == (2, True, 1)
    query = "SELECT [DATE '2020-01-01'] AS days, 'nan'::DOUBLE AS x, 1 AS a, 2 AS a"
    code, out, _ = call(capsys, "stats", output, "--json", "--sql", query)
    assert json.loads(out) == [{"days": ["2020-01-01"], "x": None, "a": 1, "a_4": 2}]
