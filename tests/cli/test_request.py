"""A command's words, and what they stand for. Catches: a way in that is not there, or that means something else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import PHOTOS, REPOSITORY, config_for, encoded, make_folder, noise

from pipeline.cli import main
from pipeline.cli.config import fields, markdown
from pipeline.cli.reporter import Reporter
from pipeline.cli.verdict import verdict
from pipeline.cli.words import Money
from pipeline.config import load_config
from pipeline.config_fields import Output
from pipeline.errors import RequestError
from pipeline.output.info import read_dataset
from pipeline.run.progress import Progress
from pipeline.run.runner import run


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_source_an_output_and_a_model_are_enough(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = make_folder(tmp_path / "in", 3), tmp_path / "out {1}"
    words = ("run", source, output, "--model", model_path, "--dtype", "fp32", "--max-pixels", 20000)
    code, out, err = call(capsys, *words, "--set", "cluster.engine=inline")
    assert code == 0, err
    assert "3 in = 3 rows" in out
    config = read_dataset(output).config
    assert (config["preprocess"]["max_pixels"], config["model"]["dtype"]) == (20000, "float32")
    code, out, _ = call(capsys, "config", output)
    assert (code, yaml.safe_load(out)) == (0, config)
    (tmp_path / "again.yaml").write_text(out)
    assert load_config(str(tmp_path / "again.yaml")).model_dump() == config


def test_plan_of_a_source_leaves_nothing_behind(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_folder(tmp_path / "in", 3)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(capsys, "plan", source, "--model", model_path, "--max-pixels", "20000,5000")
    assert code == 0, err
    assert re.search(r"^max_pixels +20,000 +5,000$", out, re.MULTILINE)
    assert re.match(
        r"3 images are [\d,]+ tokens, \d+ an image, at max_pixels 20,000\. As bfloat16 they take [\d.]+ \w+\.\n", out
    )
    assert "output.dtype int8 takes" in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("run", "photos"),
            "photos is no configuration (*.yaml); to encode what lies there: visionbake run photos OUTPUT",
        ),
        (("run", "photos", "out"), "--model is missing: visionbake run photos out --model"),
        (("run", "my.yaml", "out"), "out is left over; to change a field: --set output.uri=out"),
        (("run", "in", "out", "--model", "random:tiny", "--dtype", "float8"), "model.dtype"),
        (("plan", "in"), "--model is missing"),
    ],
)
def test_half_a_request_is_told_what_it_lacks(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(capsys, *words)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1


def test_the_commands_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert out.count("\n  ") >= 10
    assert call(capsys)[0] == 2
    assert re.fullmatch(r"visionbake \d+\.\d+.*\n", call(capsys, "--version")[1])
    code, _, err = call(capsys, "verfy")
    assert code == 2
    assert "did you mean verify?" in err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_knows_every_option(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = call(capsys, "completion", shell)
    assert code == 0
    for word in ("run", "plan", "--max-pixels", "--price-per-terabyte", "--watch"):
        assert word in out
    if shell == "bash":
        (tmp_path / "words").write_text(out)
        subprocess.run(["bash", "-n", tmp_path / "words"], check=True)


def test_every_field_is_described_and_the_page_is_made_of_that(capsys: pytest.CaptureFixture[str]) -> None:
    names = {name: text for name, _, _, text in fields()}
    assert len(names) > 35
    assert [name for name, text in names.items() if len(text) < 15] == []
    assert (REPOSITORY / "docs/configuration.md").read_text(encoding="utf-8") == markdown()
    code, out, _ = call(capsys, "config")
    assert code == 0
    assert all(f"  {name.partition('.')[2]} " in out for name in names)


def test_init_prints_a_configuration_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "init", PHOTOS, tmp_path / "o ut: 1", "--model", "random:tiny")
    assert code == 0
    assert "10 images of format folder" in out
    (tmp_path / "my.yaml").write_text(out)
    config = load_config(str(tmp_path / "my.yaml"))
    assert (config.source.uri, config.output.uri, config.model.path) == (
        str(PHOTOS),
        str(tmp_path / "o ut: 1"),
        "random:tiny",
    )
    code, _, err = call(capsys, "init", tmp_path / "none", tmp_path / "o")
    assert code == 2
    assert "does not exist" in err


@pytest.mark.parametrize(
    ("given", "nearest"), [("model.dtpye=float32", "dtype"), ("output.shard_token=5", "shard_tokens")]
)
def test_a_misspelt_field_is_answered_with_the_nearest(given: str, nearest: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("source: {uri: a}\nmodel: {path: b}\noutput: {uri: c}\n")
    with pytest.raises(RequestError, match=f"did you mean {nearest}"):
        load_config(str(tmp_path / "c.yaml"), [given])


@pytest.mark.parametrize("spelt", ["fp16", "FP16", "torch.float16", "half", "float16"])
def test_a_dtype_may_be_spelt_as_people_spell_it(spelt: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("source: {uri: a}\nmodel: {path: b}\noutput: {uri: c}\n")
    assert load_config(str(tmp_path / "c.yaml"), [f"output.dtype={spelt}"]).output.dtype == "float16"


def test_nobody_reads_to_the_end(tmp_path: Path) -> None:
    """`visionbake config | head -1`."""
    command = f"{sys.executable} -m pipeline config | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


WATCHED = """
import sys, time
from pipeline.cli.reporter import Reporter
from pipeline.run.progress import Progress
from pipeline.run.runner import run
reporter = Reporter(quiet=False)
reporter.doing("loading the tower")
time.sleep(1.2)
progress = Progress(parts=1, parts_indexed=1, parts_cut=1, units_known=1, encoders=1, samples_to_do=164)
for done in (41, 82, 123):
    progress.encoding["000000-0000"] = done
    reporter(progress, 10.0, 10.0)
    time.sleep(0.8)
reporter.close()
"""


def test_the_bar_counts_images_while_they_are_encoded() -> None:
    """On a terminal, before any unit is committed."""
    process, terminal = pty.fork()
    if not process:
        os.environ["COLUMNS"] = "120"
        os.chdir(REPOSITORY)
        os.execv(sys.executable, [sys.executable, "-c", WATCHED])
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    seen = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.waitpid(process, 0)
    text = seen.decode()
    assert "loading the tower" in text
    for share in ("25%", "50%", "75%"):
        assert share in text, text


def test_where_there_is_no_terminal_lines_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=False)
    reporter.doing("loading the tower")
    progress = Progress(parts=1, parts_indexed=1, parts_cut=1, units_known=1, encoders=1, samples_to_do=164)
    progress.encoding["000000-0000"] = 82
    reporter(progress, 10.0, 10.0)
    reporter._said -= 60
    time.sleep(0.7)
    reporter.close()
    out = capsys.readouterr().out
    assert "0:00:00 loading the tower" in out
    assert "82/164 images (50%)" in out


@pytest.mark.parametrize("bad", ["none/page", ".", "photos.jpg/page"])
@pytest.mark.parametrize(
    "words", [("plan", "in", "--model", "m", "--html"), ("encode", "a.jpg", "--model", "m", "--save")]
)
def test_a_file_that_cannot_be_written_is_found_before_any_work(
    words: tuple[str, ...],
    bad: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.jpg").write_bytes(b"")
    code, _, err = call(capsys, *words, bad)
    assert code == 2
    assert f"{words[-1]} {bad}" in err


def test_the_verdict_says_whether_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "budgets": [
            {
                "max_pixels": 1000,
                "samples": 1_000_000,
                "no_image": 3,
                "rejects": {"corrupt": 7},
                "tokens": 600e6,
                "tokens_mean": 600,
                "data_bytes": 5e12,
                "device_hours": 100,
                "price": 250,
            }
        ]
    }
    output = Output(uri=str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=6e12 if folder == tmp_path else 0))
    first, second = verdict(tree, output, 28)
    assert "999,990 images (7 more would be rejects) are 600,000,000 tokens, 600 an image" in first
    assert "5.00 TB, and 6.00 TB are free there: it fits" in first
    assert second == "One device would take 4.2 days, 250 at the price that was given."
    assert verdict(tree | {"currency": "EUR"}, output, 28)[1] == "One device would take 4.2 days, 250 EUR."
    assert verdict(tree | {"currency": "$"}, output, 28)[1] == "One device would take 4.2 days, $250."
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4e12))
    assert "IT DOES NOT FIT" in verdict(tree, output, 28)[0]
    assert "free" not in verdict(tree, output, 28, kept=False)[0]
    assert "free" not in verdict(tree, Output(uri="s3://bucket/out"), 28)[0]
    assert len(verdict(tree, output, 28)) == 2
    tree["budgets"][0] |= {"prepare_core_hours": 1200.0, "cores_per_device": 12.0}
    assert verdict(tree, output, 28)[2] == ("Preparing takes 1,200 core hours: 12 cores for each device, or it waits.")
    tree["budgets"][0]["images"] = {"estimate": 12.4, "low": 1, "high": 20}  # of a sample
    assert verdict(tree, output, 28)[0].startswith("12 images (7 more")


def test_the_verdict_names_images_and_videos(tmp_path: Path) -> None:
    film = {"clips": 20, "seconds": 720.0, "tokens": 90_000, "tokens_per_film_second": 125.0}
    budget = {
        "max_pixels": 1000,
        "fps": 2.0,
        "rejects": {},
        "tokens": 96_000,
        "data_bytes": 1e6,
        "media": {"image": {"images": 10, "tokens_mean": 600.0}, "video": film},
        "parquet_bytes_by_dtype": {"int8": 5e5},
    }
    output = Output(uri=str(tmp_path))
    first, less = verdict({"budgets": [budget]}, output, 28, kept=False)
    assert first == (
        "10 images and 20 videos of 12.0 minutes together are 96,000 tokens: 600 an image at max_pixels 1,000, 125 a "
        "second of film at 2 frames a second. As bfloat16 they take 1.00 MB."
    )
    assert less == "Less: output.dtype int8 takes 500.00 kB; --fps 2,1 compares with half as many frames."
    budget["media"]["image"]["images"] = 0
    assert (
        "20 videos of 12.0 minutes together are 96,000 tokens, 125 a second"
        in verdict({"budgets": [budget | {"fps": "every frame"}]}, output, 28, kept=False)[0]
    )


@pytest.mark.parametrize(
    ("text", "amount", "currency"), [("2.5", 2.5, ""), ("2.5 eur", 2.5, "EUR"), ("$3", 3.0, "$"), ("4€", 4.0, "€")]
)
def test_a_price_may_name_its_currency(text: str, amount: float, currency: str) -> None:
    assert Money.parse("--price-per-hour", text) == Money(amount=amount, currency=currency)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--price-per-hour", "-1"], "--price-per-hour: -1"),
        (["--price-per-hour", "$1EUR"], "--price-per-hour: $1EUR"),
        (["--price-per-hour", "0"], "--price-per-hour: 0"),
        (["--price-per-hour", "1EUR", "--price-per-terabyte", "$2"], "in $ and EUR"),
        (["--model", "a,,b"], "--model: a,,b"),
    ],
)
def test_prices_and_models_that_are_none(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "plan", tmp_path, *words)[0] == 2
    assert says in call(capsys, "plan", tmp_path, *words)[2]


def test_what_nobody_asked_for_is_shown_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(noise(60, 90)))
    words = ["plan", tmp_path / "in", "--model", "random:tiny", "--max-pixels", "4000,8000", "--price-per-hour", "2EUR"]
    code, few, _ = call(capsys, *words, "--tokens-per-second", 10)
    assert code == 0
    assert "webdataset bytes by dtype" not in few and "equal within a unit" not in few
    (row,) = [line.split() for line in few.splitlines() if line.startswith("tokens  ")]
    assert row == ["tokens", "2", "6"]  # a column for each budget
    assert re.search(r"^price +[0-9.e-]+ EUR +[0-9.e-]+ EUR$", few, re.MULTILINE)
    more = call(capsys, *words, "--all")[1]
    assert "webdataset bytes by dtype" in more and "equal within a unit" in more


def test_a_run_says_in_a_line_what_it_encodes_with_what(model_path: Path, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", 3)
    lines: list[str] = []
    assert run(config_for(source, tmp_path / "out", model_path), say=lines.append, report=lambda *_: None).complete
    (line,) = [line for line in lines if line.startswith(str(source))]
    assert re.fullmatch(rf"{source}: folder, images, 3 files; {model_path} \(qwen2_5_vl\) in float32 on .+", line)
