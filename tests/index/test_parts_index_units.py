"""From a source to units. Catches: a lost or doubled sample, a part that changes its number, a changed file unseen."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import encoded, make_folder, make_tar, noise, stamp

from pipeline import rejects
from pipeline.config import Source
from pipeline.errors import DamagedPart, OutputError, RequestError, SourceError
from pipeline.grid import Geometry
from pipeline.index.changes import digest_of
from pipeline.index.header_reader import PlainReader
from pipeline.index.headers import Header
from pipeline.index.read import read_index_arrays, read_index_rows
from pipeline.index.units import MAX_UNIT_SAMPLES, cut_units
from pipeline.index.write import index_part, index_samples
from pipeline.source.format import Columns
from pipeline.source.formats import FORMATS
from pipeline.source.formats.folder import Folder
from pipeline.source.lister import list_files, list_source
from pipeline.source.part import Part
from pipeline.source.plan import FILES_PER_LIST, Plan
from pipeline.source.resolve import resolve_source
from pipeline.storage.scratch import Scratch

GEOMETRY = Geometry(
    patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=3136, max_pixels=20_000, max_image_pixels=1_000_000
)


def indexed(plan: Plan, scratch: Scratch, **options: bool) -> int:
    return index_part(plan.part(0), Columns(), plan.index_path(0), scratch, PlainReader(), **options)


def planned(uri: Path | str, output: Path, files_per_list: int = FILES_PER_LIST, **fields: object) -> Plan:
    source = Source(uri=str(uri), **fields)
    plan = Plan(output, files_per_list)
    with Scratch(output) as scratch:
        plan.update(source, list_source(resolve_source(source)), scratch)
    return plan


def parts_of(plan: Plan) -> list[Part]:
    return [plan.part(number) for number in range(plan.num_parts)]


def test_a_folder_is_listed_in_the_order_of_its_paths(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.PNG", "a.x/1.jpeg", "a-b/2.webp", "a/b/c.TIF", "A.gif", "é.bmp"]
    for name in [*names, "skip.txt", "a/skip.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    from collections import Counter

    ignored: Counter[str] = Counter()
    listed = [file.path for file in list_files(resolve_source(Source(uri=str(tmp_path))), ignored)]
    assert listed == sorted(names)
    assert ignored == {".txt": 1, ".json": 1}


def test_a_link_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    listed = [file.path for file in list_files(resolve_source(Source(uri=str(tmp_path))))]
    assert listed == ["a/1.jpg"]


def test_parts_are_frozen_and_only_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "folder", Folder(files_per_part=5))
    source = make_folder(tmp_path / "in", 12)
    plan = planned(source, tmp_path / "out")
    before = parts_of(plan)
    assert [len(part.files) for part in before] == [5, 5, 2]
    make_folder(source, 7, first=100)
    (source / "0" / "0000a.png").write_bytes(b"x")  # sorts between known files
    plan = planned(source, tmp_path / "out")
    after = parts_of(plan)
    assert after[:3] == before
    assert [len(part.files) for part in after] == [5, 5, 2, 5, 3]
    paths = [file.path for part in after for file in part.files]
    assert sorted(paths) == sorted({file.path for file in list_files(resolve_source(Source(uri=str(source))))})
    assert planned(source, tmp_path / "out").num_parts == 5


def test_many_lists_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "folder", Folder(files_per_part=2))
    source = make_folder(tmp_path / "in", 11)
    plan = planned(source, tmp_path / "out", files_per_list=4)
    assert len(list(plan.lists_folder.iterdir())) == 3
    assert [file.path for part in parts_of(plan) for file in part.files] == [
        file.path for file in list_files(resolve_source(Source(uri=str(source))))
    ]
    assert Plan(tmp_path / "out").num_parts == plan.num_parts == 6


@pytest.mark.parametrize("change", ["vanished", "grown", "touched"])
def test_a_planned_file_that_changed_is_refused_by_name(change: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", 6)
    plan = planned(source, tmp_path / "out")
    victim = source / "1" / "0003.png"
    make_folder(source, 2, first=50)
    if change == "vanished":
        victim.unlink()
    elif change == "grown":
        victim.write_bytes(victim.read_bytes() + b"x")
    else:
        os.utime(victim, ns=(1, 1))
    with pytest.raises(RequestError, match=r"1/0003\.png"):
        planned(source, tmp_path / "out")
    assert Plan(tmp_path / "out").num_parts == plan.num_parts


def test_another_source_is_refused(tmp_path: Path) -> None:
    planned(make_folder(tmp_path / "a", 3), tmp_path / "out")
    with pytest.raises(RequestError, match=r"source\.root"):
        planned(make_folder(tmp_path / "b", 3), tmp_path / "out")


def test_tars_by_brace_and_glob(tmp_path: Path) -> None:
    for number in range(4):
        make_tar(tmp_path / f"d{number % 2}" / f"s-{number:03d}.tar", [("a.jpg", encoded(noise(60, 60)))])
    for uri in ("{0..1}/s-*.tar", "*/s-{000..003}.tar", "**/*.tar"):
        pattern = str(tmp_path / ("d" + uri if uri[0] == "{" else uri))
        if "{000" in uri:
            with pytest.raises(RequestError) as error:
                list(list_files(resolve_source(Source(uri=str(tmp_path / "d0" / "s-{000..003}.tar")))))
            assert "s-001.tar names no file" in str(error.value)
            continue
        plan = planned(pattern, tmp_path / f"out-{len(uri)}")
        paths = [part.files[0].path for part in parts_of(plan)]
        assert paths == ["d0/s-000.tar", "d0/s-002.tar", "d1/s-001.tar", "d1/s-003.tar"]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("nowhere", "does not exist"),
        ("nowhere.tar", "names no file"),
        ("x.tar.zst", "only .tar.gz"),
        ("{a", "unbalanced"),
    ],
)
def test_a_source_that_is_nothing(uri: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as error:
        list(list_files(resolve_source(Source(uri=str(tmp_path / uri)))))
    assert says in str(error.value)
    assert uri in str(error.value)


def test_facts_of_a_folder(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", 5)
    (source / "broken.png").write_bytes(b"\x89PNG....")
    (source / "empty.jpg").write_bytes(b"")
    (part,) = parts_of(planned(source, tmp_path / "out"))
    samples = list(index_samples(part, Columns()))
    assert [sample.key for sample in samples] == [file.path for file in part.files]
    by_key = {sample.key: sample for sample in samples}
    assert by_key["broken.png"].status == rejects.UNIDENTIFIED
    assert by_key["empty.jpg"].status == rejects.TRUNCATED
    good = by_key["1/0003.png"]
    data = (source / "1" / "0003.png").read_bytes()
    assert (good.sha256, good.length) == (hashlib.sha256(data).hexdigest(), len(data))
    assert (good.height, good.width, good.format, good.orientation) == (111, 153, "PNG", 1)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_samples_of_a_tar(suffix: str, tmp_path: Path) -> None:
    images = [encoded(noise(60, 70, seed), "JPEG") for seed in range(9)]
    path = make_tar(
        tmp_path / f"s.{suffix}",
        [
            ("dir.v1/a.jpg", images[0]),
            ("dir.v1/a.json", b"{}"),
            ("b.json", b"{}"),
            ("c.left.jpg", images[1]),
            ("c.right.jpg", images[2]),
            ("d.jpg", images[3]),
            ("b.jpg", images[4]),  # not adjacent to b.json
            ("d.jpg", images[5]),
            ("e.txt", b"no image"),
            ("README", b"no extension"),
            ("f.PNG", b"broken"),
            ("../../evil.jpg", images[6]),
        ],
        "w:gz" if suffix.endswith("gz") else "w",
    )
    (part,) = parts_of(planned(path, tmp_path / "out", members="grouped"))
    samples = list(index_samples(part, Columns()))
    found = {(sample.key, sample.status) for sample in samples}
    assert found == {
        ("dir.v1/a", rejects.OK),
        ("c.left.jpg", rejects.MISSING_IMAGE),
        ("c.right.jpg", rejects.MISSING_IMAGE),
        ("d", rejects.OK),
        ("b", rejects.OK),
        ("d", rejects.DUPLICATE_KEY),
        ("e", rejects.NO_IMAGE),
        ("f", rejects.UNIDENTIFIED),
        ("../../evil", rejects.OK),
    }
    assert [sample.offset for sample in samples] == sorted(sample.offset for sample in samples)
    (two,) = [sample for sample in samples if sample.key == "c.right.jpg"]
    assert "left.jpg, right.jpg" in str(two.error)
    for column, image in (("left", 1), ("right.jpg", 2)):
        (chosen,) = [sample for sample in index_samples(part, Columns(image=column)) if sample.key == "c"]
        assert chosen.sha256 == hashlib.sha256(images[image]).hexdigest()
    dots = [sample.member for sample in samples if sample.key == "dir.v1/a"]
    assert dots == ["dir.v1/a.jpg"]


def test_an_index_is_written_once_and_read_by_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.index.write.ROWS_PER_GROUP", 4)
    output = tmp_path / "out"
    plan = planned(make_folder(tmp_path / "in", 10), output)
    with Scratch(output) as scratch:
        assert indexed(plan, scratch) == 10
        before = stamp(plan.index_path(0))
        assert indexed(plan, scratch) == 10
    assert stamp(plan.index_path(0)) == before
    assert plan.indexed_parts() == {0}
    expected = list(index_samples(plan.part(0), Columns()))
    assert read_index_rows(plan.index_path(0), 0, 10) == expected
    assert read_index_rows(plan.index_path(0), 3, 6) == expected[3:9]


def test_a_damaged_tar_fails_its_part_or_is_skipped(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "s.tar", [("a.jpg", encoded(noise(60, 60))), ("b.jpg", encoded(noise(70, 60)))])
    whole.write_bytes(whole.read_bytes()[:-9000])
    output = tmp_path / "out"
    plan = planned(whole, output)
    with Scratch(output) as scratch:
        with pytest.raises(DamagedPart, match=r"s\.tar"):
            indexed(plan, scratch)
        assert plan.indexed_parts() == set()
        assert indexed(plan, scratch, on_damaged="skip") == 0
    assert "s.tar" in read_index_arrays(plan.index_path(0)).damaged


def test_a_full_disk_under_the_index_of_a_damaged_part_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the output's failure, not the part's: no other part's index could be written either."""
    whole = make_tar(tmp_path / "s.tar", [("a.jpg", encoded(noise(60, 60))), ("b.jpg", encoded(noise(70, 60)))])
    whole.write_bytes(whole.read_bytes()[:-9000])
    plan = planned(whole, tmp_path / "out")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with Scratch(tmp_path / "out") as scratch, pytest.raises(OutputError, match=r"cannot write .*No space left"):
        indexed(plan, scratch, on_damaged="skip")


def test_a_file_that_changes_under_the_index_is_a_failure(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "in", 4)
    plan = planned(source, tmp_path / "out")
    (source / "1" / "0001.jpg").write_bytes(b"other")
    with pytest.raises(SourceError, match=r"1/0001\.jpg"):
        list(index_samples(plan.part(0), Columns()))


def test_a_file_that_changes_while_it_is_indexed_is_a_failure(tmp_path: Path) -> None:
    """Behind the place that is being read, so that no byte of it tells."""
    path = make_tar(tmp_path / "a.tar", [(f"{number}.png", encoded(noise(60, 60, number))) for number in range(3)])
    plan = planned(path, tmp_path / "out")

    class Changing(PlainReader):
        def header(self, key: str, data: bytes) -> Header:
            os.utime(path, ns=(1, 1))
            return super().header(key, data)

    with (
        Scratch(tmp_path / "out") as scratch,
        pytest.raises(SourceError, match=r"a\.tar has changed since it was planned"),
    ):
        index_part(plan.part(0), Columns(), plan.index_path(0), scratch, Changing())
    assert not plan.index_path(0).exists()


def test_a_parts_digest_is_of_its_own_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    for start, end in ((0, 100), (0, 7), (7, 40), (40, 100)):
        assert digest_of(str(tmp_path / "a"), start, end) == hashlib.sha256(bytes(range(start, end))).hexdigest()


def test_units_hold_every_sample_once_and_close_before_their_limit(tmp_path: Path) -> None:
    output = tmp_path / "out"
    plan = planned(make_folder(tmp_path / "in", 40), output)
    with Scratch(output) as scratch:
        indexed(plan, scratch)
    index = read_index_arrays(plan.index_path(0))
    units = cut_units(0, index, GEOMETRY, shard_tokens=60)
    assert len(units) > 5
    row = 0
    for number, unit in enumerate(units):
        assert (unit.first, unit.number, unit.id) == (row, number, f"000000-{number:04d}")
        row += unit.count
        assert unit.tokens <= 60 or unit.count == 1
        assert unit.patches == 4 * unit.tokens
    assert row == 40
    for unit, following in itertools.pairwise(units):
        one = cut_units(0, index, GEOMETRY, shard_tokens=1)[following.first]
        assert unit.tokens + one.tokens > 60
    assert cut_units(0, index, GEOMETRY, 60) == units
    assert MAX_UNIT_SAMPLES == 16_384


def test_two_planners_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other publishes its list while this one is about to: the plan is then read again, not written twice."""
    import pipeline.source.plan as parts_module

    source = make_folder(tmp_path / "in", 6)
    publish, fired = parts_module.publish_new, []

    def late(scratch: Path, final: Path) -> bool:
        if "parts-" in final.name and not fired:
            fired.append(final)
            planned(source, tmp_path / "out")
        return publish(scratch, final)

    monkeypatch.setattr(parts_module, "publish_new", late)
    plan = planned(source, tmp_path / "out")
    assert fired
    assert plan.num_parts == 1
    assert len(plan.part(0).files) == 6


def test_an_index_says_of_how_many_parts_it_is_one(tmp_path: Path) -> None:
    for number in range(3):
        make_tar(tmp_path / "in" / f"{number}.tar", [("0.png", encoded(noise(32, 32)))])
    plan = planned(tmp_path / "in", tmp_path / "out")
    with Scratch(tmp_path / "out") as scratch:
        indexed(plan, scratch)
    make_tar(tmp_path / "in" / "4.tar", [("0.png", encoded(noise(32, 32)))])
    assert planned(tmp_path / "in", tmp_path / "out").part(0).of == 4
    assert read_index_arrays(plan.index_path(0)).of == 3  # and stays so
