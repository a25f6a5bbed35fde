"""A source that changed since it was planned. Catches: an output that a `touch` ends for good, other bytes unseen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import assert_whole, config_for, encoded, files_of, make_folder, make_tar, noise, rows_of, run_here, stamp

from pipeline.errors import RequestError
from pipeline.run.indexing import make_plan
from pipeline.run.request import check_request
from pipeline.run.runner import run
from pipeline.source import manifest
from pipeline.source.formats import FORMATS
from pipeline.source.formats.parquet import Parquet

pytestmark = pytest.mark.slow

IMAGES = [encoded(noise(60, 60 + 30 * number, number)) for number in range(6)]
VICTIMS = {"folder": "3.png", "tar": "1.tar", "parquet": "1.parquet", "jsonl": "1.jsonl"}


def make_source(kind: str, root: Path) -> str:
    """Two files of three images each, or six images; `carry` of the rows is a caption."""
    root.mkdir()
    for number, data in enumerate(IMAGES):
        (root / f"{number}.png").write_bytes(data)
        (root / f"{number}.txt").write_text(f"of {number}")
    if kind == "folder":
        return str(root)
    for file in range(2):
        chosen = range(3 * file, 3 * file + 3)
        members = [(f"{number}.{suffix}", data) for number in chosen for suffix, data in both(number)]
        make_tar(root / f"{file}.tar", members)
        table = pa.table({"image": [IMAGES[number] for number in chosen], "txt": [f"of {number}" for number in chosen]})
        pq.write_table(table, root / f"{file}.parquet", row_group_size=1)
        lines = [json.dumps({"image": f"{number}.png", "txt": f"of {number}"}) + "\n" for number in chosen]
        (root / f"{file}.jsonl").write_text("".join(lines))
    return str(root / f"*.{kind}")


def both(number: int) -> list[tuple[str, bytes]]:
    return [("png", IMAGES[number]), ("txt", f"of {number}".encode())]


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def rewrite(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(2, 2))


def overwrite(path: Path) -> None:
    """Other bytes, as many of them, which no image has."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"of 3", b"of X") if b"of 3" in data else data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(3, 3))


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture(params=VICTIMS)
def partly(
    request: pytest.FixtureRequest, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., object], Path, Path]:
    """How to run again, the file that changes, and an output of which its last units are not committed."""
    monkeypatch.setattr(manifest, "RECORDS_PER_PART", 2)
    monkeypatch.setitem(FORMATS, "parquet", Parquet(rows_per_part=2))
    uri = make_source(request.param, tmp_path / "in")

    def again(**fields: str) -> list[str]:
        lines: list[str] = []
        carry = {"carry": ["txt"], **fields}
        config = config_for(uri, tmp_path / "out", model_path, source=carry, output={"shard_tokens": 16})
        assert run(config, say=lines.append, report=lambda *_: None).complete
        return lines

    again()
    assert len(rows_of(tmp_path / "out")) == 6
    for folder in ("samples", "data"):
        for path in sorted((tmp_path / "out" / folder).iterdir())[1:]:
            path.unlink()
    (tmp_path / "out" / "_SUCCESS").unlink()
    return again, tmp_path / "in" / VICTIMS[request.param], tmp_path / "out"


def keys_there(output: Path) -> list[str]:
    return [row["key"] for row in rows_of(output)]


def test_a_file_with_the_same_bytes_is_read_on(partly: tuple[Callable[..., list[str]], Path, Path]) -> None:
    again, victim, output = partly
    rewrite(victim)
    assert any("same bytes: noted" in line for line in again())
    assert_whole(output, keys_there(output))
    assert [row["txt"] for row in rows_of(output)] == [f"of {number}" for number in range(6)]
    before = files_of(output / "samples")
    assert not any("noted" in line for line in again())
    assert files_of(output / "samples") == before


def test_other_bytes_or_none_are_refused_by_name_with_both_ways_on(
    partly: tuple[Callable[..., list[str]], Path, Path],
) -> None:
    again, victim, output = partly
    before, kept = files_of(output / "samples"), victim.read_bytes()
    says = rf"{victim.name} .*(changed|vanished).*; put it back .* source\.on_changed: reject .* another output\.uri"
    for change in (overwrite, grow, remove):
        change(victim)
        with pytest.raises(RequestError, match=says):
            again()
        assert files_of(output / "samples") == before
        victim.write_bytes(kept)
    again()
    assert_whole(output, keys_there(output))


@pytest.mark.parametrize(
    ("partly", "change", "reason"),
    [
        ("folder", overwrite, "checksum"),
        ("folder", remove, "missing_image"),
        ("tar", grow, "checksum"),
        ("parquet", remove, "missing_image"),
        ("jsonl", overwrite, "checksum"),
    ],
    indirect=["partly"],
)
def test_a_lost_file_is_rejects_of_what_is_not_committed(
    partly: tuple[Callable[..., list[str]], Path, Path], change: Callable[[Path], None], reason: str
) -> None:
    again, victim, output = partly
    committed, kept = files_of(output / "samples"), victim.read_bytes()
    change(victim)
    again(on_changed="reject")
    assert committed.items() <= files_of(output / "samples").items()
    rows = rows_of(output)
    lost = [row for row in rows if row["status"] != "ok"]
    assert {row["status"] for row in lost} == {reason}
    assert len(lost) == (1 if victim.suffix == ".png" else 3)
    assert all(victim.name in row["error"] and row["sha256"] and row["txt"] is None for row in lost)
    assert_whole(output, keys_there(output))
    before = files_of(output / "samples")
    again(on_changed="reject")
    again()  # what was once accepted is not asked for again
    victim.write_bytes(kept)
    again()
    assert files_of(output / "samples") == before


def move_behind_a_link(path: Path) -> None:
    path.rename(path.parent.parent / "moved")
    path.symlink_to(path.parent.parent / "moved")


def rename(path: Path) -> None:
    path.rename(path.with_name("9" + path.name))


def make_a_folder_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_file_that_moved_behind_a_link_is_the_same(partly: tuple[Callable[..., list[str]], Path, Path]) -> None:
    again, victim, output = partly
    move_behind_a_link(victim)
    again()
    assert_whole(output, keys_there(output))


@pytest.mark.parametrize(
    ("partly", "change", "samples", "rows"),
    [
        ("folder", rename, 7, 6),
        ("folder", make_a_folder_of, 6, 5),
        ("tar", rename, 9, 6),
        ("parquet", rename, 9, 6),
        ("jsonl", rename, 9, 6),
    ],
    indirect=["partly"],
)
def test_a_file_of_another_name_or_kind_is_gone_and_new(
    partly: tuple[Callable[..., list[str]], Path, Path], change: Callable[[Path], None], samples: int, rows: int
) -> None:
    again, victim, output = partly
    change(victim)
    with pytest.raises(RequestError, match=rf"{victim.name} was planned and has vanished; put it back .*on_changed"):
        again()
    again(on_changed="reject")
    found = rows_of(output)
    assert (len(found), sum(row["status"] == "ok" for row in found)) == (samples, rows)
    assert {row["status"] for row in found} == {"ok", "missing_image"}
    before = files_of(output / "samples")
    again(on_changed="reject")
    assert files_of(output / "samples") == before


@pytest.mark.parametrize(("kind", "change"), [("folder", overwrite), ("folder", remove), ("tar", remove)])
def test_a_plan_of_which_nothing_is_committed_is_made_anew(
    kind: str, change: Callable[[Path], None], model_path: Path, tmp_path: Path
) -> None:
    config = config_for(make_source(kind, tmp_path / "in"), tmp_path / "out", model_path)
    make_plan(check_request(config), say=lambda line: None)
    change(tmp_path / "in" / ("5.png" if kind == "folder" else "1.tar"))
    lines: list[str] = []
    assert run(config, say=lines.append, report=lambda *_: None).complete
    assert any("nothing is committed yet: the source is planned anew" in line for line in lines)
    assert_whole(tmp_path / "out", keys_there(tmp_path / "out"))


def test_a_touched_plan_of_which_nothing_is_committed_is_kept(model_path: Path, tmp_path: Path) -> None:
    config = config_for(make_source("folder", tmp_path / "in"), tmp_path / "out", model_path)
    make_plan(check_request(config), say=lambda line: None)
    index = stamp(tmp_path / "out" / "plan" / "index" / "part-000000.parquet")
    touch(tmp_path / "in" / "0.png")
    assert run_here(config).complete
    assert stamp(tmp_path / "out" / "plan" / "index" / "part-000000.parquet") == index


def test_files_that_vanish_before_they_are_indexed_are_rejects_or_listed(model_path: Path, tmp_path: Path) -> None:
    """An image is still known by its name; of a tar nothing is."""
    for kind in ("folder", "tar"):
        root, output = tmp_path / kind / "in", tmp_path / kind / "out"
        (tmp_path / kind).mkdir()
        uri = make_source(kind, root)
        config = config_for(uri, output, model_path, source={"on_changed": "reject"}, output={"shard_tokens": 16})
        assert run_here(config).complete
        victim = root / ("9.png" if kind == "folder" else "9.tar")
        victim.write_bytes((root / ("0.png" if kind == "folder" else "0.tar")).read_bytes())
        from pipeline.source.plan import Plan
        from pipeline.storage.scratch import Scratch

        with Scratch(output) as scratch:  # planned, and not indexed
            Plan(output).update(config.source, check_request(config).listed(), scratch)
        victim.unlink()
        summary = run_here(config)
        assert summary.complete
        lost = [row["status"] for row in rows_of(output) if row["source"] == victim.name]
        assert lost == (["missing_image"] if kind == "folder" else [])
        assert [victim.name in line for line in summary.skipped_parts] == ([] if kind == "folder" else [True])


def test_a_named_image_that_vanishes_is_a_reject_where_that_is_asked(model_path: Path, tmp_path: Path) -> None:
    config = config_for(
        make_source("jsonl", tmp_path / "in"), tmp_path / "out", model_path, source={"on_changed": "reject"}
    )
    make_plan(check_request(config), say=lambda line: None)
    (tmp_path / "in" / "4.png").unlink()
    assert run_here(config).complete
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok"] * 4 + ["missing_image", "ok"]
    assert_whole(tmp_path / "out", keys_there(tmp_path / "out"))


def test_a_folder_of_many_files_copied_anew_is_read_on(model_path: Path, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", 12)
    config = config_for(source, tmp_path / "out", model_path)
    assert run_here(config).complete
    for path in source.rglob("*.*g"):
        rewrite(path)
    lines: list[str] = []
    assert run(config, say=lines.append, report=lambda *_: None).complete
    assert lines == ["12 files of the source have another mtime or ETag and the same bytes: noted"]
