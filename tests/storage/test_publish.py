"""Publishing on file systems that lack something. Catches: a run that ends with `Operation not permitted`, a name that
is replaced, a run that begins where it cannot end."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_whole, config_for, keys_of, make_folder, run_here

from pipeline.errors import OutputError, RequestError
from pipeline.storage.publish import check_publishing, publish_new, sync_directory
from pipeline.storage.replace import replace_same, snapshot
from pipeline.storage.scratch import Scratch

NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL]


class Refused:
    """Answers with one errno, and counts."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def __call__(self, *words: Any, **options: Any) -> None:
        self.count += 1
        raise OSError(self.number, os.strerror(self.number), str(words[0]))


class Libc:
    """A C library whose `renameat2` answers with one errno, as file systems that know no flags do."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def renameat2(self, *words: Any) -> int:
        self.count += 1
        ctypes.set_errno(self.number)
        return -1


def without_renames(monkeypatch: pytest.MonkeyPatch, number: int) -> Libc:
    libc = Libc(number)
    monkeypatch.setattr(ctypes, "CDLL", lambda *words, **options: libc)
    return libc


def written(scratch: Scratch, text: str) -> Path:
    path = scratch.path("file")
    path.write_text(text)
    return path


@pytest.mark.parametrize("number", NO_LINKS)
def test_without_hard_links_a_rename_publishes_and_never_replaces(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Refused(number)
    monkeypatch.setattr(os, "link", link)
    with Scratch(tmp_path) as scratch:
        first, second = written(scratch, "first"), written(scratch, "second")
        final = tmp_path / "data" / "a"
        assert publish_new(first, final)
        assert not first.exists()
        assert not publish_new(second, final)
        assert second.exists()
        assert final.read_text() == "first"
        check_publishing(tmp_path, scratch)
        with snapshot(final, scratch) as old:
            assert replace_same(second, final, old)
        assert final.read_text() == "second"
    assert link.count == 5


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_nothing_can_be_published_a_run_is_refused_before_it_begins(
    number: int, source: Path, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", Refused(errno.EPERM))
    libc = without_renames(monkeypatch, number)
    with pytest.raises(RequestError, match=r"neither hard links nor a rename that never replaces .*copy"):
        run_here(config_for(source, tmp_path / "out", model_path))
    assert libc.count == 1
    assert not (tmp_path / "out").exists()


def test_a_full_or_forbidden_disk_is_no_lack_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (errno.ENOSPC, errno.EACCES):
        monkeypatch.setattr(os, "link", Refused(number))
        with Scratch(tmp_path) as scratch, pytest.raises(OutputError, match=os.strerror(number)):
            check_publishing(tmp_path, scratch)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_folder_that_cannot_be_flushed_is_left_as_it_is(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", Refused(number))
    sync_directory(tmp_path)
    monkeypatch.setattr(os, "fsync", Refused(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_directory(tmp_path)


def test_a_run_on_such_a_file_system_is_whole(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_folder(tmp_path / "in", 4)
    link, fsync, folders = Refused(errno.EPERM), os.fsync, []

    def only_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            folders.append(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "fsync", only_files)
    assert run_here(config_for(source, tmp_path / "out", model_path)).complete
    assert_whole(tmp_path / "out", keys_of(source))
    assert link.count > 5
    assert len(folders) > 5
