"""Mistakes that people make, and the one line that answers each. Catches: a traceback, silence, work done in vain."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import PHOTOS, REPOSITORY, make_folder

from pipeline import VisionEncoder
from pipeline.cli import main, signals
from pipeline.cli.commands import run_module
from pipeline.config import load_config
from pipeline.errors import RequestError
from pipeline.process import install_hint
from pipeline.tower.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

PHOTO = PHOTOS / "cat.jpg"


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line with which a request is refused: one, and exit code 2."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as ended:  # as argparse does it
        code = int(str(ended.code))
    err = capsys.readouterr().err
    assert (code, len(err.splitlines())) == (2, 1), err
    return err


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("run", "in", "out", "--modle", "m"), "--model"),
        (("verify", "out", "--sampel=3"), "--sample"),
        (("stats", "out", "--htlm", "x"), "--html"),
        (("plan", "in", "--max_pixels", "5"), "--max-pixels"),
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest(
    words: tuple[str, ...], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"did you mean {meant}? (visionbake {words[0]} --help)" in refused(capsys, *words)


def test_a_command_without_its_words_is_told_so_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "required: OUTPUT (visionbake stats --help)" in refused(capsys, "stats")


@pytest.mark.parametrize(
    "words",
    [
        ("run", "gone", "out", "--model", "random:tiny"),
        ("run", "photos", "out", "--model", "./gone"),
        ("run", "gone.yaml"),
        ("stats", "gone"),
        ("config", "gone"),
        ("init", "gone", "out"),
        ("encode", "gone", "--model", "random:tiny"),
    ],
)
def test_what_does_not_exist_is_said_with_where_it_was_looked_for(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert str(tmp_path / "gone") in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A network in which no host is known; the requests that were tried."""
    import huggingface_hub.constants as constants
    from huggingface_hub.utils import _http

    httpx = getattr(_http, "httpx2", None) or _http.httpx  # whichever it is built on
    asked: list[str] = []

    def fail(self: object, request: Any) -> NoReturn:
        asked.extend([str(request.url)] if "/resolve/" in str(request.url) else [])
        raise httpx.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return asked


def test_without_a_network_a_hub_id_is_asked_for_once(no_network: list[str], tmp_path: Path) -> None:
    """The Hub's own client would ask six times, for half a minute."""
    with pytest.raises(
        RequestError, match=r"owner/name is no folder here .*not known.* a local folder .*HF_HUB_OFFLINE"
    ):
        Checkpoint("owner/name")
    assert len(no_network) == 1


def test_without_a_network_the_hubs_cache_is_enough(no_network: list[str], model_path: Path, tmp_path: Path) -> None:
    """And what is not in it, as a preprocessor's configuration may not be, is not asked for."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    shutil.copytree(model_path, snapshot)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("a" * 40)
    assert Checkpoint("owner/name").sha256() == Checkpoint(str(model_path)).sha256()
    assert len(no_network) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [("pytorch_model.bin", "those are pickles"), ("model-q4.gguf", "its publisher's copy in safetensors")],
)
def test_weights_of_another_kind_are_told_so(name: str, says: str, model_path: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_path, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    (folder / name).write_bytes(b"\x80\x02")
    with pytest.raises(RequestError, match=rf"has its weights in {name}; only \*\.safetensors is read: {says}"):
        Checkpoint(str(folder))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "cuda"}, "device: cuda: torch .* sees no GPU here; device='cpu' encodes without"),
        ({"device": "gpu"}, "device: gpu: must be cpu, cuda, or a GPU's number"),
        ({"dtype": "fp16"}, "dtype: must be auto, bfloat16 or float32, not 'float16'"),
    ],
)
def test_what_an_encoder_cannot_be_is_one_line(
    options: dict[str, str], says: str, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RequestError, match=says) as caught:
        VisionEncoder.from_pretrained(str(model_path), **options)
    assert "\n" not in str(caught.value)


def test_an_encoder_takes_dtypes_as_people_spell_them(
    model_path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert VisionEncoder.from_pretrained(str(model_path), "torch.float32", device="cpu").tower.dtype == torch.float32
    code, out, err = call(capsys, "encode", PHOTO, "--model", model_path, "--dtype", "fp32", "--max-pixels", "10000")
    assert (code, err) == (0, "")
    assert "tokens of" in out


def test_hints_name_the_way_of_installing(tmp_path: Path) -> None:
    assert install_hint("sql") == "pip install -e '.[sql]'"  # this is a checkout
    installed = shutil.copytree(
        REPOSITORY / "pipeline", tmp_path / "visionbake", ignore=shutil.ignore_patterns("__py*")
    )
    code = "from visionbake.process import install_hint; print(install_hint('sql'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=installed.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "pip install 'visionbake[sql]'\n"


@pytest.mark.parametrize(
    ("words", "missing", "extra"),
    [
        (("stats", "OUT", "--html", "r.html"), "matplotlib", "report"),
        (("stats", "OUT", "--html", "r.html"), "duckdb", "sql"),
        (("stats", "OUT", "--sql", "select 1"), "duckdb", "sql"),
        (("verify", "OUT", "--sample", "1"), "transformers", "bench"),
        (("plan", "OUT", "--model", "m", "--html", "r.html"), "matplotlib", "report"),
    ],
)
def test_what_an_option_takes_is_missed_at_the_start(
    words: tuple[str, ...],
    missing: str,
    extra: str,
    undisturbed: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    err = refused(capsys, *(undisturbed if word == "OUT" else word for word in words))
    assert f"{missing} is not installed: pip install -e '.[{extra}]'" in err


@pytest.mark.parametrize("ending", [SystemError("returned a result with an exception set"), OSError("broken")])
def test_whatever_comes_of_a_signal_is_an_interruption(ending: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    """Compiled code into which the signal's exception was raised makes another one of it."""

    class Compiled:
        __doc__ = "made by the test"

        @staticmethod
        def add_arguments(parser: object) -> None: ...

        @staticmethod
        def main(arguments: object) -> int:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            except signals.Interrupted:
                raise ending from None
            return 0

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert run_module("made-up", Compiled, []) == 1
        with pytest.raises(signals.Interrupted):
            signals.keep_signals()  # of a loop that never saw the exception
    finally:
        signals.catch_signals()
        for number, handler in before.items():
            signal.signal(number, handler)
    err = capsys.readouterr().err
    assert (
        err
        == "visionbake made-up: interrupted (SIGTERM); what is committed stays. Give the same command again to go on.\n"
    )


def test_a_signal_while_modules_load_is_a_line(tmp_path: Path) -> None:
    """A module that is loaded early sends it."""
    code = (
        "import os, signal, sys, types\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pipeline.cli.commands': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from pipeline.cli import main\n"
        "sys.exit(main(['run', 'in', 'out']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"visionbake: interrupted \(SIGINT\).*\n", done.stderr)


@pytest.mark.parametrize("words", ["--help", "run --help", "nocommand", "run gone out --model random:tiny"])
def test_nobody_reads_either_stream(words: str) -> None:
    """`visionbake … 2>&1 | true`: the exit code is the command's own."""
    script = f"exec 3>&1; {{ {sys.executable} -m pipeline {words} 2>&1; echo $? >&3; }} | true"
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("0" if "--help" in words else "2", "")


@pytest.mark.parametrize(("option", "lines"), [("-q", 0), ("--verbose", 1)])
def test_a_run_says_less_or_more(option: str, lines: int, model_path: Path, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", 2)
    words = [sys.executable, "-m", "pipeline", "run", source, tmp_path / "out", "--model", model_path, option]
    words += ["--set", "cluster.engine=inline"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "2 in = 2 rows" in done.stdout
    assert len(re.findall(r"^0:00:\d\d loading the tower", done.stdout, re.MULTILINE)) >= lines
    assert done.stdout.startswith("\noutput ") == (not lines)
    assert ("folder, images, 2 files; " in done.stderr) == (not lines)  # what a run has to say is never lost


def test_verbose_tells_where_an_error_arose(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "stats", "/gone")[2] == "visionbake stats: /gone does not exist\n"
    code, _, err = call(capsys, "stats", "/gone", "-v")
    assert code == 2
    assert 'console.py", line ' in err and err.endswith("\nvisionbake stats: /gone does not exist\n")


def init_of(capsys: pytest.CaptureFixture[str], source: Path, folder: Path) -> str:
    """What `init` prints, which is a configuration."""
    code, out, err = call(capsys, "init", source, "out", "--model", "random:tiny")
    assert code == 0, err
    (folder / "made.yaml").write_text(out)
    assert load_config(str(folder / "made.yaml")).source.uri == str(source)
    return out


def test_init_names_the_columns_of_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = {"bytes": PHOTO.read_bytes(), "path": "cat.jpg"}
    rows = [{"id": 7, "caption": "a cat", "picture": picture, "score": 0.5, "tags": ["a"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    out = init_of(capsys, tmp_path / "a.parquet", tmp_path)
    assert "1 file of format parquet" in out
    assert re.search(r"^  image_column: picture +# struct<", out, re.MULTILINE)
    assert re.search(
        r"^  # key_column: null +# a key is file:row; or one of id \(int64\), caption \(string\)$", out, re.M
    )
    assert "score (double)" in out.partition("# carry: []")[2].splitlines()[0]


def test_init_names_the_fields_of_a_manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = {"uid": "u1", "clip": "a.mp4", "image": "https://e.org/b.JPG?sig=1", "text": "x"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    out = init_of(capsys, tmp_path / "a.jsonl", tmp_path)
    assert re.search(r"^  image_column: image .*\n  video_column: clip ", out, re.MULTILINE)
    assert "or one of uid (str), text (str)" in out
    (tmp_path / "b.csv").write_text("name,n\nx,1\n")
    assert "none of these seems to hold images: name (str), n (str)" in init_of(capsys, tmp_path / "b.csv", tmp_path)


def test_init_names_what_stands_beside_the_images_of_a_tar(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("a cat")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(PHOTO, "0.jpg")
        tar.add(tmp_path / "b.txt", "0.txt")
    assert re.search(
        r"# carry: \[\] +# copied to the output, any of txt$", init_of(capsys, tmp_path / "a.tar", tmp_path), re.M
    )


def test_init_counts_images_and_videos_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "10 images and 3 videos of format folder; 1 left alone: 1 .md" in init_of(capsys, PHOTOS.parent, tmp_path)
