"""Links and sparse files in tars. Catches: an image whose bytes stand in its tar and that is a reject all the same."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import config_for, encoded, make_tar, noise, rows_of, run_here

from pipeline import rejects
from pipeline.config import Source
from pipeline.errors import DamagedPart
from pipeline.index.write import index_samples
from pipeline.output.verify import Verifier
from pipeline.read.reader import EmbeddingDataset
from pipeline.source.format import Columns
from pipeline.source.formats import format_named
from pipeline.source.formats.webdataset import TarReader
from pipeline.source.lister import list_source
from pipeline.source.part import Part
from pipeline.source.resolve import resolve_source
from pipeline.source.sample import IndexedSample

FIRST, SECOND = encoded(noise(30, 40, 1)), encoded(noise(50, 20, 2))
HARD, SYMBOLIC = tarfile.LNKTYPE, tarfile.SYMTYPE
Entry = tuple[str, bytes | str] | tuple[str, str, bytes]


def make_linked_tar(path: Path, entries: list[Entry], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of files, `(name, data)`, and of links, `(name, where it leads, its type)`, in this order."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=kind) as tar:
        for name, value, *of in entries:
            info = tarfile.TarInfo(name)
            if isinstance(value, str):
                info.type, info.linkname = of[0] if of else HARD, value
                tar.addfile(info)
            else:
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    return path


def part_of(path: Path, members: str) -> Part:
    place = resolve_source(Source(uri=str(path)))
    return Part(number=0, format=place.format, root=place.root, files=tuple(list_source(place)), members=members)


def bytes_of(part: Part, samples: list[IndexedSample], suffixes: tuple[str, ...] = ()) -> dict[str, object]:
    read = format_named("webdataset").reader(Columns()).read(part, samples, suffixes)
    return {str(sample.member): data for sample, data in zip(samples, read.encoded, strict=True)}


@pytest.mark.parametrize("members", ["grouped", "each"])
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    "links",
    [
        [("b.png", "a.png")],  # as GNU tar writes the second of two names of a file
        [("b.png", "z.png")],
        [("b.png", "c.png"), ("c.png", "d.png"), ("d.png", "a.png")],
        [("deep/b.png", "../a.png", SYMBOLIC)],
        [("b.png", "./a.png", SYMBOLIC), ("deep/c.png", "../b.png", SYMBOLIC)],
        [("b.png", ".store/x.png")],
        [("b.png", "./objects/0f3a", SYMBOLIC)],
        [("b.png", "of.bin")],
    ],
    ids=lambda links: str(links[0][1]),
)
def test_a_link_is_the_image_that_it_leads_to(links: list[Entry], suffix: str, members: str, tmp_path: Path) -> None:
    middle: list[Entry] = [(".store/x.png", FIRST), ("objects/0f3a", FIRST), ("of.bin", FIRST)]
    entries: list[Entry] = [("a.png", FIRST), *middle, *links, ("y.png", SECOND), ("z.png", FIRST)]
    part = part_of(make_linked_tar(tmp_path / f"0.{suffix}", entries), members)
    samples = list(index_samples(part, Columns()))
    images = [sample for sample in samples if sample.member]
    names = {name for name, *_ in links}
    assert {str(one.member): one.status for one in images} == dict.fromkeys({"a.png", "y.png", "z.png", *names}, "ok")
    assert [one.offset for one in images] == sorted(one.offset for one in images)
    assert bytes_of(part, samples) == dict.fromkeys(["a.png", "z.png", *names], FIRST) | {"y.png": SECOND} | (
        {} if members == "each" else {"None": None}  # of.bin alone is a sample without an image
    )
    assert {one.key for one in images} == {str(one.member)[: None if members == "each" else -4] for one in images}


@pytest.mark.parametrize("members", ["grouped", "each"])
@pytest.mark.parametrize(
    ("links", "says"),
    [
        ([("b.png", "gone.png")], "b.png is a link to gone.png, which is no file of the tar"),
        ([("b.png", "/data/a.png", SYMBOLIC)], "link to /data/a.png"),
        ([("deep/b.png", "a.png", SYMBOLIC)], "link to deep/a.png"),
        ([("b.png", "c.png"), ("c.png", "b.png")], "link to c.png"),
        ([("b.png", "b.png", SYMBOLIC)], "link to b.png"),
        ([("b.png", ".hidden")], "link to .hidden"),
        ([("b.png", "folder", SYMBOLIC)], "link to folder"),
    ],
)
def test_a_link_that_leads_nowhere_is_a_reject_that_names_where(
    links: list[Entry], says: str, members: str, tmp_path: Path
) -> None:
    part = part_of(make_linked_tar(tmp_path / "0.tar", [("a.png", FIRST), *links, ("z.png", SECOND)]), members)
    samples = {str(sample.member): sample for sample in index_samples(part, Columns())}
    assert {name: sample.status for name, sample in samples.items()} == {
        **dict.fromkeys(("a.png", "z.png"), rejects.OK),
        **dict.fromkeys((name for name, *_ in links), rejects.MISSING_IMAGE),
    }
    assert says in str(samples[links[0][0]].error)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_between_long_names(kind: int, tmp_path: Path) -> None:
    folder = "a folder of a long name/" * 9
    entries: list[Entry] = [(folder + "a.png", FIRST), (folder + "b.png", folder + "a.png")]
    part = part_of(make_linked_tar(tmp_path / "0.tar", entries, kind), "each")
    samples = list(index_samples(part, Columns()))
    assert [(sample.key, sample.status) for sample in samples] == [(name, "ok") for name, _ in entries]  # type: ignore[misc]


@pytest.mark.parametrize("members", ["grouped", "each"])
def test_what_stands_beside_an_image_may_be_a_link(members: str, tmp_path: Path) -> None:
    entries: list[Entry] = [
        ("a.png", FIRST),
        ("a.txt", b"both"),
        ("b.png", SECOND),
        ("b.TXT", "a.txt"),
        ("c.png", FIRST),
    ]
    part = part_of(make_linked_tar(tmp_path / "0.tar", [*entries, ("c.txt", "gone.txt")]), members)
    samples = list(index_samples(part, Columns()))
    read = format_named("webdataset").reader(Columns()).read(part, samples, ["txt"])
    assert read.members == [{"txt": b"both"}, {"txt": b"both"}, {}]


def test_of_a_key_the_image_that_is_no_link_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    entries: list[Entry] = [("0.jpg", FIRST), ("0.png", "0.jpg"), ("1.png", "1.jpg"), ("1.jpg", SECOND)]
    part = part_of(make_linked_tar(tmp_path / "0.tar", entries), "grouped")
    taken = {sample.key: sample.status for sample in index_samples(part, Columns())}
    assert taken == {"0": "ok", "1": "ok", "0.png": "missing_image", "1.png": "missing_image"}
    named = [(sample.key, sample.member) for sample in index_samples(part, Columns(image="png"))]
    assert named == [("0", "0.png"), ("1", "1.png")]


def test_a_second_member_of_a_links_name_is_a_duplicate(tmp_path: Path) -> None:
    entries: list[Entry] = [("a.png", FIRST), ("b.png", "a.png"), ("b.png", SECOND), ("a.png", "b.png")]
    part = part_of(make_linked_tar(tmp_path / "0.tar", entries), "each")
    found = sorted((sample.key, sample.status) for sample in index_samples(part, Columns()))
    assert found == [(key, status) for key in ("a.png", "b.png") for status in ("duplicate_key", "ok")]


def test_a_link_far_behind_its_image_costs_no_range_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the index where its bytes do; what is beside it is read from where it lies."""
    entries: list[Entry] = [("a.png", FIRST), ("x.bin", bytes(90_000)), ("b.png", "a.png"), ("b.txt", b"of b")]
    part = part_of(make_linked_tar(tmp_path / "0.tar", [*entries, ("c.png", SECOND)]), "grouped")
    samples = [sample for sample in index_samples(part, Columns()) if sample.member]
    assert [sample.key for sample in samples] == ["a", "b", "c"]
    ranges: list[tuple[int, int]] = []
    reader, real = TarReader(beside_bytes=4000), TarReader._read_range

    def counted(self: TarReader, root: str, file: object, start: int, end: int) -> bytes:
        ranges.append((start, end))
        return real(self, root, file, start, end)  # type: ignore[arg-type]

    monkeypatch.setattr(TarReader, "_read_range", counted)
    read = reader.read(part, samples[:2], ["txt"])
    assert read.encoded == [FIRST, FIRST]
    assert read.members == [{}, {"txt": b"of b"}]
    assert [end - start for start, end in ranges] == [len(FIRST), 4]


def test_a_tar_that_is_damaged_behind_a_link_keeps_it(tmp_path: Path) -> None:
    whole = make_linked_tar(
        tmp_path / "whole.tar", [("a.png", FIRST), ("b.png", "a.png"), ("c.png", "d.png"), ("d.png", SECOND)]
    )
    with tarfile.open(whole) as tar:
        last = tar.getmember("d.png").offset_data
    cut = tmp_path / "0.tar"
    cut.write_bytes(whole.read_bytes()[: last + 100])
    found = index_samples(part_of(cut, "each"), Columns())
    assert [(sample.key, sample.status) for sample in (next(found), next(found), next(found))] == [
        ("a.png", "ok"),
        ("b.png", "ok"),
        ("c.png", "missing_image"),
    ]
    with pytest.raises(DamagedPart, match=r"ends inside member 'd\.png'"):
        next(found)


def test_a_run_over_links_is_whole(model_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encoded(noise(60, 70 + number, number)))
        (folder / f"{number}.txt").write_text(f"of {number}")
    for number in range(2):
        os.link(folder / f"{number}.png", folder / f"{number + 4}.png")
        os.link(folder / f"{number}.txt", folder / f"{number + 4}.txt")
    (folder / "6.png").symlink_to("nowhere.png")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        tar.add(folder, ".")
        assert sum(member.islnk() for member in tar.getmembers()) == 4  # as tars have them
    config = config_for(tmp_path / "0.tar", tmp_path / "out", model_path, source={"carry": ["txt"]})
    summary = run_here(config)
    assert (summary.totals.samples, summary.totals.rows, dict(summary.totals.rejects)) == (7, 6, {"missing_image": 1})
    rows = {row["key"]: row for row in rows_of(tmp_path / "out") if row["status"] == "ok"}
    dataset = EmbeddingDataset(tmp_path / "out")
    for number in range(2):
        assert torch.equal(dataset[str(number)]["image_embeds"], dataset[str(number + 4)]["image_embeds"])
        assert rows[str(number + 4)]["txt"] == f"of {number}"
    assert Verifier(tmp_path / "out").verify().proven
    assert run_here(config).this_run.units == 0


def with_holes(path: Path, data: bytes, holes: int) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        for number in range(1, holes + 1):
            stream.seek(number << 16)
            stream.write(b"x" * 4096)


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar writes them")
@pytest.mark.parametrize("members", ["grouped", "each"])
@pytest.mark.parametrize("how", [["gnu"], ["pax", "0.0"], ["pax", "0.1"], ["pax", "1.0"]], ids=" ".join)
def test_a_sparse_member_is_one_reject_and_its_neighbours_are_kept(
    how: list[str], members: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(FIRST)
    with_holes(tmp_path / "b.png", FIRST, 30)
    with_holes(tmp_path / "a.bin", b"", 3)
    (tmp_path / "c.png").write_bytes(SECOND)
    version = [f"--sparse-version={how[1]}"] if len(how) > 1 else []
    command = ["tar", "--sparse", f"--format={how[0]}", *version, "-cf", "0.tar", "a.png", "a.bin", "b.png", "c.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    part = part_of(tmp_path / "0.tar", members)
    samples = {str(sample.member): sample for sample in index_samples(part, Columns())}
    assert {name: sample.status for name, sample in samples.items()} == {
        "a.png": "ok",
        "b.png": "missing_image",
        "c.png": "ok",
    }
    assert "b.png is a sparse file" in str(samples["b.png"].error)
    assert bytes_of(part, [samples["a.png"], samples["c.png"]]) == {"a.png": FIRST, "c.png": SECOND}
    assert samples["a.png"].members is None  # a sparse file beside an image is not carried


def test_a_long_map_of_a_sparse_member_is_skipped(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482], header[148:156] = 1, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    maps = bytes([0] * 504 + [1] + [0] * 7) + bytes(512)
    after = make_tar(tmp_path / "z.tar", [("z.png", SECOND)]).read_bytes()
    (tmp_path / "0.tar").write_bytes(bytes(header) + maps + b"x" * 512 + after)
    samples = list(index_samples(part_of(tmp_path / "0.tar", "each"), Columns()))
    assert [(sample.key, sample.status) for sample in samples] == [("a.png", "missing_image"), ("z.png", "ok")]
