"""Catches: damage that is taken for the end of the archive, and names that reach outside it."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from conftest import encoded, make_tar, noise

from pipeline.errors import DamagedPart, SourceError
from pipeline.index.write import index_samples
from pipeline.source.format import Columns
from pipeline.source.formats import format_named, webdataset
from pipeline.source.part import Part, SourceFile
from pipeline.source.planned import check_unchanged, read_planned
from pipeline.source.tar import BLOCK, TarStream, walk

PICTURE = encoded(noise(30, 30))
MEMBERS = [(f"m{number}.jpg", bytes([number]) * (700 + number)) for number in range(6)]


def part_of(path: Path) -> Part:
    facts = path.stat()
    file = SourceFile(path=path.name, size=facts.st_size, mtime_ns=facts.st_mtime_ns)
    return Part(number=0, format="webdataset", root=str(path.parent), files=(file,))


def names_of(path: Path) -> list[str]:
    with TarStream(path) as stream:
        return [member.name for member, _ in walk(stream)]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_members_and_places(kind: int, suffix: str, tmp_path: Path) -> None:
    long = "folder/" * 20 + "ünicode name.jpg"
    path = tmp_path / f"a{suffix}"
    with tarfile.open(path, "w:gz" if "gz" in suffix else "w", format=kind) as tar:
        for name, data in [*MEMBERS, *([(long, b"long")] if kind != tarfile.USTAR_FORMAT else [])]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        folder = tarfile.TarInfo("a folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    raw = gzip.decompress(path.read_bytes()) if "gz" in suffix else path.read_bytes()
    with TarStream(path) as stream, tarfile.open(path) as reference:
        walked = list(walk(stream))
        expected = [info for info in reference if info.isreg()]
    found = [(member, data) for member, data in walked if member.link is None]
    assert [(member.name, member.link, data) for member, data in walked if member.link is not None] == [
        ("link.jpg", "/etc/passwd", None)
    ]
    assert [member.name for member, _ in found] == [info.name for info in expected]
    for (member, data), info in zip(found, expected, strict=True):
        assert (member.offset, member.length) == (info.offset_data, info.size)
        assert raw[member.offset : member.offset + member.length] == data


def test_a_leading_dot_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert names_of(make_tar(tmp_path / "a.tar", [("./a.jpg", b"1"), ("././b/./c.jpg", b"2")])) == [
        "a.jpg",
        "b/./c.jpg",
    ]


def test_only_wanted_members_are_read(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.JPG", b"1"), ("a.txt", b"2")])
    with TarStream(path) as stream:
        assert [data for _, data in walk(stream, (".jpg",))] == [b"1", None]


def cuts(data: bytes) -> dict[str, bytes]:
    second = 512 + 1024  # where the second member's header starts
    zeroed = bytearray(data)
    zeroed[second : second + 512] = bytes(512)
    flipped = bytearray(data)
    flipped[second + 10] ^= 1
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    return {
        "at a member boundary": data[:second],
        "in a header": data[: second + 100],
        "in data": data[: second + 512 + 300],
        "in padding": data[: second + 512 + 701 + 5],
        "a header zeroed": bytes(zeroed),
        "a header damaged": bytes(flipped),
        "before the end marker": data[:end],
        "inside the end marker": data[: end + 512],
    }


@pytest.mark.parametrize("name", list(cuts(bytes(20 * 512))))
@pytest.mark.parametrize("compressed", [False, True])
def test_every_damage_is_found(name: str, compressed: bool, tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "whole.tar", MEMBERS).read_bytes()
    damaged = cuts(whole)[name]
    path = tmp_path / ("a.tar.gz" if compressed else "a.tar")
    path.write_bytes(gzip.compress(damaged) if compressed else damaged)
    with pytest.raises(DamagedPart, match=r"a\.tar"):
        names_of(path)


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9, 0.999])
def test_a_cut_gzip_stream_is_found(at: float, tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "whole.tar.gz", MEMBERS, "w:gz").read_bytes()
    path = tmp_path / "a.tar.gz"
    path.write_bytes(whole[: int(len(whole) * at)])
    with pytest.raises(DamagedPart):
        names_of(path)
    flipped = bytearray(whole)
    flipped[int(len(whole) * at)] ^= 0x10
    path.write_bytes(bytes(flipped))
    with pytest.raises(DamagedPart):
        names_of(path)


def test_a_declared_size_of_terabytes_costs_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge.jpg")
    info.size = 1 << 45
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(DamagedPart, match="ends inside member"):
        names_of(path)


def test_a_compressed_stream_is_read_on_and_from_its_start(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar.gz", MEMBERS, "w:gz")
    with TarStream(path) as stream:
        places = [(member, data) for member, data in walk(stream)]
        for member, data in [places[1], places[4], places[0]]:
            stream.seek(member.offset)
            assert stream.read_exactly(member.length, "test") == data


def test_a_missing_file_is_a_failure_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.tar"):
        TarStream(tmp_path / "nothing.tar")


def test_a_pax_size_is_the_members_size(tmp_path: Path) -> None:
    """What does not fit into the header's own field, which then may say anything, stands before it."""
    record = b"12 size=700\n"
    before = tarfile.TarInfo("pax")
    before.type, before.size = tarfile.XHDTYPE, len(record)
    member, after = tarfile.TarInfo("a.jpg"), tarfile.TarInfo("b.jpg")
    member.size, after.size = 0, 3
    blocks = [before.tobuf(), record.ljust(512, b"\0"), member.tobuf(), (b"x" * 700).ljust(1024, b"\0")]
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join([*blocks, after.tobuf(), b"yes".ljust(512, b"\0"), bytes(1024)]))
    with TarStream(path) as stream:
        assert [(one.name, one.length, data) for one, data in walk(stream)] == [
            ("a.jpg", 700, b"x" * 700),
            ("b.jpg", 3, b"yes"),
        ]


def test_a_short_read_is_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage may give less than it is asked for."""
    path = make_tar(tmp_path / "a.tar", MEMBERS)
    real = TarStream.read
    monkeypatch.setattr(
        TarStream, "read", lambda self, length: real(self, length if length == BLOCK else min(length, 99))
    )
    with TarStream(path) as stream:
        assert [(member.name, data) for member, data in walk(stream)] == MEMBERS


def test_a_range_that_comes_back_short_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tar(tmp_path / "a.tar", [("a.png", encoded(noise(30, 30)))])
    part = part_of(path)
    (sample,) = index_samples(part, Columns())
    reader = format_named("webdataset").reader(Columns())
    assert reader.read(part, [sample]).encoded == [encoded(noise(30, 30))]
    monkeypatch.setattr(webdataset, "read_planned", lambda *place: read_planned(*place)[:-1])
    with pytest.raises(SourceError, match="inside a unit's range"):
        reader.read(part, [sample])


def test_a_unit_is_one_range_of_its_tar_with_what_stands_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first byte that is needed to the last; what lies far off has a range of its own."""
    members = [("far.txt", b"far"), ("x.bin", bytes(9000)), ("b.txt", b"of b"), ("a.png", PICTURE), ("b.png", PICTURE)]
    part = part_of(make_tar(tmp_path / "a.tar", [*members, ("a.txt", b"of a"), ("far.png", PICTURE)]))
    samples = {sample.key: sample for sample in index_samples(part, Columns())}
    a, b, far = samples["a"], samples["b"], samples["far"]
    ranges: list[tuple[int, int]] = []

    def read(root: str, file: SourceFile, start: int, end: int) -> bytes:
        ranges.append((start, end))
        return read_planned(root, file, start, end)

    monkeypatch.setattr(webdataset, "read_planned", read)
    reader = webdataset.TarReader(beside_bytes=4000)
    found = reader.read(part, [a, b, far], ["txt"])
    assert found.encoded == [PICTURE] * 3
    assert found.members == [{"txt": b"of a"}, {"txt": b"of b"}, {"txt": b"far"}]
    place = {member["suffix"]: member["offset"] for member in b.members or ()}["txt"]
    assert ranges == [(place, far.offset + far.length), (512, 515)]
    ranges.clear()
    assert reader.read(part, [a, b], []).encoded == [PICTURE] * 2
    assert ranges == [(a.offset, b.offset + b.length)]


def test_another_size_is_a_change_whatever_the_time_says(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", MEMBERS)
    (file,) = part_of(path).files
    check_unchanged(str(tmp_path), file)
    with open(path, "ab") as stream:
        stream.write(b"x")
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
    with pytest.raises(SourceError, match="bytes then"):
        check_unchanged(str(tmp_path), file)
