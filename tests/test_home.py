"""A user without a home folder, as containers have them. Catches: a traceback, a folder called `~`, a wrong cause."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import REPOSITORY

from pipeline.errors import RequestError
from pipeline.process import cache_folders, expand_home, name_caches
from pipeline.storage.files import absolute, absolute_uri, is_relative
from pipeline.tower.checkpoint import Checkpoint
from pipeline.tower.random_tower import make_random_tower


def _no_entry(*words: object) -> NoReturn:
    raise KeyError("getpwuid(): uid not found: 4242")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No HOME, no passwd entry, and a folder for temporary files."""
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", _no_entry)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_tilde_without_a_home_is_refused_by_name(homeless: Path) -> None:
    for function in (expand_home, absolute, absolute_uri, is_relative, Checkpoint):
        with pytest.raises(RequestError, match=r"~/x: .*no home folder"):
            function("~/x")
    assert expand_home("~x/y") == "~x/y"  # a name like any other


def test_random_weights_are_kept_among_temporary_files(homeless: Path) -> None:
    folder = make_random_tower("tiny")
    assert folder.is_relative_to(homeless)
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert make_random_tower("tiny") == folder


@pytest.mark.parametrize("home", ["/dev/null/x", "/proc/nobody"])
def test_a_home_that_cannot_be_written_is_passed_over(
    home: str, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    assert make_random_tower("tiny").is_relative_to(homeless)


def test_no_folder_at_all_is_said(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/x")
    monkeypatch.setattr("tempfile.tempdir", "/dev/null/x")
    with pytest.raises(RequestError, match=r"random:tiny: there is no folder .*XDG_CACHE_HOME"):
        make_random_tower("tiny")


def test_compilers_find_a_name_and_a_folder(homeless: Path) -> None:
    name_caches()
    assert os.environ["USER"] == f"uid-{os.getuid()}"
    assert os.environ["TRITON_CACHE_DIR"].startswith(str(homeless))
    assert all(folder.is_absolute() for folder in cache_folders("visionbake"))


@pytest.mark.parametrize("home", [None, "/dev/null/x"])
def test_the_hubs_cache_that_cannot_be_used_is_the_cause(
    home: str | None, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    refused = (
        RuntimeError("Could not determine home directory.") if home is None else NotADirectoryError(20, "no", home)
    )

    def download(*words: object, **options: object) -> NoReturn:
        raise refused

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(RequestError, match=r"cache cannot be used: .*HF_HOME"):
        Checkpoint("owner/name")


@pytest.mark.parametrize(("utf8", "exit_code"), [("0", 2), ("1", 0), ("", 0)])
def test_a_locale_in_which_names_are_no_utf8_is_refused_with_the_way_on(utf8: str, exit_code: int) -> None:
    """A plain POSIX locale is none: Python takes it for UTF-8, unless it is told not to."""
    code = (
        "from pipeline.storage.location import check_location\n"
        "from pipeline.errors import RequestError\n"
        "check_location('output.uri', 's3://bucket/out')\n"
        "try:\n    check_location('source.uri', '/in')\n"
        "except RequestError as error:\n    print(error); raise SystemExit(2)\n"
    )
    set_by_user = {"PYTHONUTF8": utf8} if utf8 else {}
    environment = {key: value for key, value in os.environ.items() if key not in ("LANG", "LC_CTYPE", "PYTHONUTF8")}
    environment |= {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", **set_by_user}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (exit_code, "")
    assert ("set PYTHONUTF8=1" in done.stdout) == bool(exit_code)
