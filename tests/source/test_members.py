"""Tars as people write them. Catches: an image without a row, a caption missed by its case, a rule that changes."""

from __future__ import annotations

import io
import random
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import config_for, encoded, make_tar, noise, run_here

from pipeline import rejects
from pipeline.config import Source
from pipeline.errors import DamagedPart, RequestError
from pipeline.estimate.sampling import Headers
from pipeline.index.header_reader import PlainReader
from pipeline.index.read import read_index_arrays, read_index_rows
from pipeline.index.write import index_part, index_samples
from pipeline.output.verify import Verifier
from pipeline.run.runner import run
from pipeline.source import row_cursor
from pipeline.source.drawing import Drawing
from pipeline.source.format import Columns
from pipeline.source.formats import format_named
from pipeline.source.lister import list_source
from pipeline.source.plan import Plan
from pipeline.source.resolve import resolve_source
from pipeline.source.sample import IndexedSample
from pipeline.source.tar_rule import rule_of
from pipeline.source.tar_windows import samples_in_range
from pipeline.storage.scratch import Scratch

IMAGE = encoded(noise(20, 30))


def planned(uri: Path, output: Path, **fields: object) -> Plan:
    source = Source(uri=str(uri), **fields)
    plan = Plan(output)
    with Scratch(output) as scratch:
        plan.update(source, list_source(resolve_source(source)), scratch)
    return plan


def samples_of(content: list[tuple[str, bytes]], folder: Path, **fields: object) -> list[IndexedSample]:
    plan = planned(make_tar(folder / "a.tar", content), folder / "out", **fields)
    return list(index_samples(plan.part(0), Columns(image=str(fields.get("image_column", "image")))))


def images(*names: str) -> list[tuple[str, bytes]]:
    return [(name, IMAGE) for name in names]


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["0.jpg", "1.png", "2.JPEG"], "grouped"),
        (["dir.v2/a.jpg", "dir.v2/b.jpg"], "grouped"),
        ([f"cam/photo.{number:04d}.jpg" for number in range(3)], "each"),
        ([f"ok/{number}.jpg" for number in range(40)] + ["v1.5 a.jpg", "v1.5 b.jpg"], "each"),
        ([f"cam{cam}/frame.{number}.jpg" for cam in range(2) for number in range(9)], "each"),
        (["2021.05.01 12.30.jpg", "2021.05.01 12.31.jpg"], "each"),
        (["a.jpg", "a.png"], "each"),
        ([f"{key}.{side}.jpg" for key in range(5) for side in ("left", "right")], "grouped"),
        ([f"{key}.{side}" for key in range(9) for side in ("jpg", "mask.png", "depth.png")], "grouped"),
    ],
)
def test_the_first_images_say_whether_keys_are_webdatasets(names: list[str], rule: str) -> None:
    found = rule_of(names, "a.tar", "image")
    assert found.members == rule
    assert "a.tar" in found.said and rule in found.said and "\n" not in found.said


def test_an_image_that_is_chosen_by_name_keeps_webdatasets_rule() -> None:
    names = [f"photo.{number}.{kind}" for number in range(1) for kind in ("left.jpg", "right.jpg")]
    assert rule_of(names, "a.tar", "0.left").members == "grouped"
    assert rule_of(names, "a.tar", "image").members == "each"


@pytest.mark.parametrize("members", ["auto", "grouped", "each"])
@pytest.mark.parametrize(
    "names",
    [
        [f"cam/photo.{number:04d}.jpg" for number in range(5)],
        ["a.jpg", "a.JPG", "b.jpg"],
        ["v1.2.jpg", "v1.3.png", "x.webp", "x.caption.v2.gif"],
        ["a.jpe", "a.jfif", "b.tiff"],
    ],
)
def test_every_image_member_is_one_sample(names: list[str], members: str, tmp_path: Path) -> None:
    samples = samples_of(images(*names), tmp_path, members=members)
    assert Counter(sample.member for sample in samples) == Counter(names)
    assert len({sample.key for sample in samples}) == len(names)
    assert all(sample.status == rejects.OK for sample in samples) or members == "grouped"


def test_each_image_has_its_whole_name_as_its_key_and_carries_what_is_beside_it(tmp_path: Path) -> None:
    members = [*images("p.1.jpg"), ("p.1.txt", b"one"), *images("p.2.JPG"), ("p.2.TXT", b"two"), ("notes.md", b"x")]
    first, second = samples_of(members, tmp_path)
    assert (first.key, second.key) == ("p.1.jpg", "p.2.JPG")
    plan = Plan(tmp_path / "out")
    read = format_named("webdataset").reader(Columns()).read(plan.part(0), [first, second], ["txt"])
    assert read == ([IMAGE, IMAGE], [{"txt": b"one"}, {"txt": b"two"}])


@pytest.mark.parametrize(
    "names", [("0.JPG", "0.TXT"), ("0.Jpeg", "0.txt"), ("0.png", "0.Txt"), ("0.left.PNG", "0.TXT")]
)
def test_suffixes_are_compared_without_case(names: tuple[str, str], tmp_path: Path) -> None:
    (sample,) = samples_of([(names[0], IMAGE), (names[1], b"caption")], tmp_path, members="grouped")
    assert (sample.key, sample.status) == ("0", rejects.OK)
    reader = format_named("webdataset").reader(Columns())
    for wanted in ("txt", "TXT"):
        assert reader.read(Plan(tmp_path / "out").part(0), [sample], [wanted]).members == [{wanted: b"caption"}]


def test_of_two_members_that_differ_by_case_the_one_that_is_written_so_is_carried(tmp_path: Path) -> None:
    members = [("0.TXT", b"large"), *images("0.jpg"), ("0.txt", b"small")]
    (sample,) = samples_of(members, tmp_path, members="grouped")
    read = format_named("webdataset").reader(Columns()).read(Plan(tmp_path / "out").part(0), [sample], ["txt", "TXT"])
    assert read.members == [{"txt": b"small", "TXT": b"large"}]


def test_the_image_column_names_a_member_in_any_case(tmp_path: Path) -> None:
    members = images("0.LEFT.jpg", "0.right.jpg")
    samples = samples_of(members, tmp_path, members="grouped", image_column="left")
    assert [(sample.key, sample.member) for sample in samples] == [("0", "0.LEFT.jpg")]


@pytest.mark.parametrize("members", ["grouped", "each"])
def test_what_systems_put_beside_files_is_left_alone_and_counted(members: str, tmp_path: Path) -> None:
    names = ["._0.jpg", "__MACOSX/._0.jpg", "@eaDir/0.jpg", ".ipynb_checkpoints/0.png", "a/.hidden/0.jpg", "0.jpg"]
    plan = planned(make_tar(tmp_path / "a.tar", images(*names)), tmp_path / "out", members=members)
    with Scratch(tmp_path / "out") as scratch:
        assert index_part(plan.part(0), Columns(), plan.index_path(0), scratch, PlainReader()) == 1
    assert read_index_arrays(plan.index_path(0)).left_alone == {
        ".jpg (hidden)": 1,
        "__MACOSX/": 1,
        "@eaDir/": 1,
        ".ipynb_checkpoints/": 1,
        ".hidden/": 1,
    }


@pytest.mark.parametrize(("members", "second"), [("grouped", "missing_image"), ("each", "ok")])
def test_a_link_that_is_named_as_an_image_is_a_row_or_a_reject(members: str, second: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, link in (("a.jpg", ""), ("a.png", "a.jpg"), ("b.jpg", "/etc/passwd"), ("c.txt", "a.jpg")):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = (
                (0, tarfile.SYMTYPE, link) if link else (len(IMAGE), tarfile.REGTYPE, "")
            )
            tar.addfile(info, io.BytesIO(b"" if link else IMAGE))
    plan = planned(tmp_path / "a.tar", tmp_path / "out", members=members)
    samples = list(index_samples(plan.part(0), Columns()))
    by_member = {sample.member: sample.status for sample in samples if sample.member}
    assert by_member == {"a.jpg": "ok", "a.png": second, "b.jpg": "missing_image"}


def test_a_plan_keeps_its_rule(tmp_path: Path) -> None:
    """The first tar is then another one: what was decided stands."""
    names = [f"photo.{number}.jpg" for number in range(3)]
    make_tar(tmp_path / "in" / "b.tar", images(*names))
    plan = planned(tmp_path / "in" / "*.tar", tmp_path / "out")
    assert "auto took each" in plan.decided
    make_tar(tmp_path / "in" / "a.tar", images("0.jpg", "1.jpg"))
    plan = planned(tmp_path / "in" / "*.tar", tmp_path / "out")
    assert plan.decided == ""
    assert [plan.part(number).members for number in range(plan.num_parts)] == ["each", "each"]
    planned(tmp_path / "in" / "*.tar", tmp_path / "out", members="each")
    with pytest.raises(RequestError, match=r"planned with source\.members 'each', not 'grouped'"):
        planned(tmp_path / "in" / "*.tar", tmp_path / "out", members="grouped")


def salvaged(path: Path, output: Path, **fields: object) -> tuple[list[IndexedSample], str]:
    plan = planned(path, output, **fields)
    final = plan.index_path(0)
    with Scratch(output) as scratch:
        with pytest.raises(DamagedPart):
            index_part(plan.part(0), Columns(), final, scratch, PlainReader())
        count = index_part(plan.part(0), Columns(), final, scratch, PlainReader(), on_damaged="salvage")
    return read_index_rows(final, 0, count), read_index_arrays(final).damaged


PAIRS = [(f"{number}.{kind}", IMAGE if kind == "jpg" else b"caption") for number in range(6) for kind in ("jpg", "txt")]
BLOCKS = 512 + -(-len(IMAGE) // 512) * 512  # of an image with its header


@pytest.mark.parametrize("members", ["grouped", "each"])
@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        (3 * (BLOCKS + 1024) + 700, 3),  # in an image
        (3 * (BLOCKS + 1024) + 100, 3),  # in an image's header
        (3 * (BLOCKS + 1024), 3),  # between two samples
        (3 * (BLOCKS + 1024) + BLOCKS, 3),  # before a caption
        (3 * (BLOCKS + 1024) + BLOCKS + 514, 3),  # in a caption
        (6 * (BLOCKS + 1024), 6),  # before the end's marker
        (600, 0),
    ],
)
def test_salvage_keeps_every_sample_that_stands_whole_before_the_damage(
    cut: int, whole: int, members: str, tmp_path: Path
) -> None:
    path = make_tar(tmp_path / "a.tar", PAIRS)
    path.write_bytes(path.read_bytes()[:cut])
    samples, said = salvaged(path, tmp_path / "out", members=members)
    suffix = ".jpg" if members == "each" else ""
    assert [sample.key for sample in samples] == [f"{number}{suffix}" for number in range(whole)]
    assert all(sample.status == rejects.OK and len(sample.members or ()) == 1 for sample in samples)
    assert "a.tar" in said and (f"salvaged: {whole} samples" if whole else "nothing can be salvaged") in said


@pytest.mark.parametrize("flip", [0, 2, 5])
def test_salvage_stops_at_a_header_that_is_damaged(flip: int, tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", images(*(f"{number}.jpg" for number in range(6))))
    data = bytearray(path.read_bytes())
    data[flip * BLOCKS + 150] ^= 0x55  # in its checksum
    path.write_bytes(data)
    samples, said = salvaged(path, tmp_path / "out")
    assert [sample.key for sample in samples] == [str(number) for number in range(flip)]
    assert "damaged header" in said


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("count", [2, 3])
def test_joined_tars_say_what_they_are_and_the_first_can_be_salvaged(count: int, suffix: str, tmp_path: Path) -> None:
    mode = "w:gz" if suffix == "tar.gz" else "w"
    pieces = [make_tar(tmp_path / f"{one}.{suffix}", images(f"{one}.jpg", f"{one}x.jpg"), mode) for one in range(count)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    samples, said = salvaged(joined, tmp_path / "out")
    assert [sample.key for sample in samples] == ["0", "0x"]
    assert "is several tars joined end to end" in said
    assert "byte 10240;" in said


def test_a_zeroed_header_is_no_joined_tar(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", images("0.jpg", "1.jpg", "2.jpg"))
    data = bytearray(path.read_bytes())
    data[BLOCKS : BLOCKS + 512] = bytes(512)
    path.write_bytes(data)
    samples, said = salvaged(path, tmp_path / "out")
    assert [sample.key for sample in samples] == ["0"]
    assert "zeroed header" in said


@pytest.mark.parametrize("row", [3, 5])
def test_salvage_of_parquet_keeps_whole_row_groups(row: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a damaged group nothing, though its first rows can be read."""
    import pyarrow as pa

    monkeypatch.setattr(row_cursor, "MOST_ROWS", 1)
    path = tmp_path / "a.parquet"
    cells = [encoded(noise(20, 30, seed)) for seed in range(9)]
    options = {"compression": "snappy", "use_dictionary": False, "data_page_size": 1, "write_batch_size": 1}
    pq.write_table(pa.table({"image": cells}), path, row_group_size=3, **options)
    data = bytearray(path.read_bytes())
    start = data.index(cells[row][:100]) - 24  # in the header of its page
    data[start : start + 24] = bytes(b ^ 0xFF for b in data[start : start + 24])
    path.write_bytes(data)
    samples, said = salvaged(path, tmp_path / "out")
    assert [sample.key for sample in samples] == [f"a.parquet:{row}" for row in range(3)]
    assert "row group 1" in said and "salvaged: 3 samples" in said


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_run_that_salvages_lists_the_part_and_is_proven(suffix: str, model_path: Path, tmp_path: Path) -> None:
    noisy = [(f"{seed}.png", encoded(noise(90, 90, seed))) for seed in range(9)]
    path = make_tar(tmp_path / "in" / f"a.{suffix}", noisy, "w:gz" if suffix == "tar.gz" else "w")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    make_tar(tmp_path / "in" / "b.tar", images("x.jpg"))
    config = config_for(tmp_path / "in" / "*.tar*", tmp_path / "out", model_path, source={"on_damaged": "salvage"})
    summary = run_here(config)
    assert summary.complete and 2 < summary.totals.rows < 9
    (skipped,) = summary.skipped_parts
    assert f"a.{suffix}" in skipped and f"salvaged: {summary.totals.rows - 1} samples" in skipped
    report = Verifier(tmp_path / "out").verify()
    assert report.proven and report.skipped == [skipped]
    assert run_here(config).this_run.units == 0


@pytest.mark.slow
def test_a_tar_of_plain_files_gives_a_row_for_each_and_says_why(model_path: Path, tmp_path: Path) -> None:
    names = [f"cam/photo.{number:04d}.JPG" for number in range(4)]
    make_tar(tmp_path / "a.tar", [*images(*names, "._x.jpg"), ("cam/photo.0002.TXT", b"caption")])
    said: list[str] = []
    config = config_for(tmp_path / "a.tar", tmp_path / "out", model_path, source={"carry": ["txt"]})
    summary = run(config, say=said.append, report=lambda *_: None)
    assert [line for line in said if "auto took each" in line and "cam/photo has 4" in line]
    rows = pq.read_table(tmp_path / "out" / "samples").to_pylist()
    assert [(row["key"], row["status"], row["txt"]) for row in rows] == [
        (name, "ok", "caption" if "0002" in name else None) for name in names
    ]
    assert summary.ignored == {".jpg (hidden)": 1}
    said.clear()
    assert run(config, say=said.append, report=lambda *_: None).this_run.units == 0
    assert not [line for line in said if "auto" in line]


@pytest.mark.parametrize("members", ["grouped", "each"])
@pytest.mark.parametrize("column", ["image", "left"])
def test_windows_over_a_tar_draw_every_sample_of_the_index_once(members: str, column: str, tmp_path: Path) -> None:
    """Else an estimate would count other samples than a run."""
    names = [f"{key}.{side}.jpg" for key in range(4) for side in ("left", "right")]
    content = [*images(*names, "._0.jpg", "single.JPG"), ("broken.png", b"x"), ("alone.txt", b"caption")]
    samples = samples_of(content, tmp_path, members=members, image_column=column)
    path = tmp_path / "a.tar"
    drawing = Drawing(count=1, generator=random.Random(1), headers=Headers(), image_column=column, members=members)
    size = path.stat().st_size
    headers = [sample.offset - 512 for sample in samples]
    # Also so that a window ends where a header does: between it and its data.
    close = [(headers[0], headers[1] + 512), (headers[1] + 512, size)]
    for windows in ([(0, size)], [(0, BLOCKS), (BLOCKS, 5 * BLOCKS), (5 * BLOCKS, size)], close):
        drawn = [one.status for first, last in windows for one in samples_in_range(str(path), first, last, drawing)]
        assert Counter(drawn) == Counter(sample.status for sample in samples)
