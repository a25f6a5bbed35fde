"""Folders and names as people have them. Catches: one odd file that stops a run, a name that means another file."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY, config_for, encoded, make_tar, noise, run_here, write_config
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import rejects
from pipeline.config import Source
from pipeline.errors import RequestError, SourceBusy, SourceError
from pipeline.index.write import index_samples
from pipeline.output.verify import Verifier
from pipeline.source.format import Columns
from pipeline.source.formats import format_named
from pipeline.source.image_formats import EXTENSIONS
from pipeline.source.lister import list_files, list_source
from pipeline.source.part import Part
from pipeline.source.plan import Plan
from pipeline.source.resolve import resolve_source
from pipeline.source.sample import IndexedSample
from pipeline.storage.files import absolute, path_named_in, read_input
from pipeline.storage.local import state_of
from pipeline.storage.location import check_location
from pipeline.storage.names import escaped, unescaped
from pipeline.storage.scratch import Scratch

IMAGE = encoded(noise(20, 30))


def put(folder: Path, *names: str | bytes, data: bytes = IMAGE) -> Path:
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(data)
    return folder


def listed(uri: Path | str, ignored: Counter[str] | None = None) -> list[str]:
    return [file.path for file in list_files(resolve_source(Source(uri=str(uri))), ignored)]


def part_of(folder: Path) -> Part:
    place = resolve_source(Source(uri=str(folder)))
    return Part(number=0, format=place.format, root=place.root, files=tuple(list_files(place)))


def indexed(uri: Path, output: Path) -> tuple[Part, list[IndexedSample]]:
    source = Source(uri=str(uri))
    plan = Plan(output)
    with Scratch(output) as scratch:
        plan.update(source, list_source(resolve_source(source)), scratch)
    part = plan.part(0)
    return part, list(index_samples(part, Columns()))


def test_what_systems_put_beside_photos_is_left_alone_and_said(tmp_path: Path) -> None:
    folder = put(tmp_path / ".hidden root", "a.jpg", "._a.jpg", "@eaDir/b.jpg", "__MACOSX/c.jpg", "lost+found/f.png")
    put(folder, ".ipynb_checkpoints/d.jpg", "deep/.cache/e.png", "deep/e.PNG", "notes.TXT")
    ignored: Counter[str] = Counter()
    assert listed(folder, ignored) == ["a.jpg", "deep/e.PNG"]
    assert ignored == {
        ".jpg (hidden)": 1,
        "@eaDir/": 1,
        "__MACOSX/": 1,
        ".ipynb_checkpoints/": 1,
        "lost+found/": 1,
        ".cache/": 1,
        ".txt": 1,
    }


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.pjpeg", "a.apng", "a.dib", "a.Mpo", "a.avif"])
def test_the_allowed_formats_other_names_are_images(name: str, tmp_path: Path) -> None:
    kind = {".apng": "PNG", ".dib": "BMP", ".avif": "AVIF"}.get(os.path.splitext(name)[1], "JPEG")
    folder = put(tmp_path / "in", name, data=encoded(noise(20, 30), kind))
    assert os.path.splitext(name)[1].lower() in EXTENSIONS
    _, (sample,) = indexed(folder, tmp_path / "out")
    assert (sample.key, sample.status, sample.format) == (name, rejects.OK, kind)


def test_only_regular_files_are_listed(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.jpg")
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket.png"))
    (folder / "null.gif").symlink_to("/dev/null")
    ignored: Counter[str] = Counter()
    assert listed(folder, ignored) == ["a.jpg"]
    assert ignored == {f"{suffix} (no regular file)": 1 for suffix in (".jpg", ".png", ".gif")} | {".txt": 1}


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_regular_file_is_never_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(IsADirectoryError, match=f"is a .*{kind}, not a file"):
        read_input(str(path))
    with pytest.raises(IsADirectoryError):
        state_of(str(path))
    with pytest.raises(RequestError, match=r"x\.tar.*not a file"):
        listed(tmp_path / "*.tar")


def test_links_that_lead_nowhere_are_rejects_and_their_neighbours_are_not(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.jpg", "z.jpg")
    for name, target in {"gone.jpg": "../objects/x", "self.jpg": "self.jpg", "through.jpg": "a.jpg/x"}.items():
        (folder / name).symlink_to(target)
    (folder / "linked.jpg").symlink_to("a.jpg")
    (folder / "gone.txt").symlink_to("nowhere")
    part, samples = indexed(folder, tmp_path / "out")
    assert {sample.key: sample.status for sample in samples} == {
        **dict.fromkeys(("a.jpg", "z.jpg", "linked.jpg"), rejects.OK),
        **dict.fromkeys(("gone.jpg", "self.jpg", "through.jpg"), rejects.MISSING_IMAGE),
    }
    assert "link to ../objects/x, which leads nowhere" in str(samples[1].error)
    format_named("folder").check_unchanged(part)


def test_a_link_that_leads_somewhere_by_now_is_another_file(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.jpg")
    (folder / "b.jpg").symlink_to("../late.jpg")
    part, _ = indexed(folder, tmp_path / "out")
    put(tmp_path, "late.jpg")
    with pytest.raises(SourceError, match=r"b\.jpg has changed"):
        list(index_samples(part, Columns()))


def test_a_planned_file_that_has_vanished_is_a_failure(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.jpg", "b.jpg")
    part, _ = indexed(folder, tmp_path / "out")
    (folder / "b.jpg").unlink()
    with pytest.raises(SourceError, match=r"b\.jpg"):
        list(index_samples(part, Columns()))


@contextmanager
def as_nobody() -> Iterator[None]:
    """To root everything is open."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="to become nobody")
@pytest.mark.parametrize("kind", ["a file", "a link to a file", "a link into a closed folder"])
def test_a_file_that_may_not_be_read_is_a_reject(kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        folder = put(top / "in", "a.jpg", "c.jpg")
        secret = put(top / "closed", "b.jpg") / "b.jpg"
        secret.chmod(0)
        secret.parent.chmod(0o700 if "folder" in kind else 0o755)
        if kind == "a file":
            secret.rename(folder / "b.jpg")
        else:
            (folder / "b.jpg").symlink_to(secret)
        list(index_samples(part_of(put(top / "other", "x.png")), Columns()))  # what is imported late, before
        with as_nobody():
            samples = list(index_samples(part_of(folder), Columns()))
    assert [(sample.key, sample.status) for sample in samples] == [
        ("a.jpg", rejects.OK),
        ("b.jpg", rejects.MISSING_IMAGE),
        ("c.jpg", rejects.OK),
    ]
    assert "cannot be read: Permission denied" in str(samples[1].error)


@pytest.mark.skipif(os.geteuid() != 0, reason="to become nobody")
@pytest.mark.parametrize("name", ["x.tar", "*.tar", "closed"])
def test_a_tar_or_folder_that_may_not_be_read_is_refused_by_name(name: str) -> None:
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)
        make_tar(Path(top, "x.tar"), [("0.jpg", IMAGE)]).chmod(0)
        put(Path(top, "closed"), "a.jpg").chmod(0)
        with as_nobody(), pytest.raises(RequestError, match=r"(x\.tar|closed).*Permission denied"):
            listed(Path(top, name))


@contextmanager
def with_closed_folder(mode: int) -> Iterator[Path]:
    """A folder of images that nobody may read, but for `b`, and an empty output that nobody may write."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        folder = put(top / "in", "a.png", "b/x.png", "c.png", "d/e/y.png")
        put(folder, "a.txt", "b/x.txt", data=b"caption")
        (top / "out").mkdir()
        for path in (top / "out", folder / "b"):
            os.chown(path, 65534, 65534)
        (folder / "b").chmod(mode)
        yield top


@pytest.mark.skipif(os.geteuid() != 0, reason="to become nobody")
@pytest.mark.parametrize(
    ("mode", "key", "says"),
    [
        (0o000, "b/", "folder cannot be listed: Permission denied"),
        (0o100, "b/", "folder cannot be listed: Permission denied"),
        (0o400, "b/x.png", "it cannot be read: Permission denied"),
    ],
)
def test_a_folder_that_may_not_be_looked_into_is_a_row(mode: int, key: str, says: str) -> None:
    with with_closed_folder(mode) as top, as_nobody():
        part = part_of(top / "in")
        samples = list(index_samples(part, Columns()))
        format_named("folder").check_unchanged(part)
        members = format_named("folder").reader(Columns()).read(part, samples, ["txt"]).members
    assert {one.key: one.status for one in samples} == {
        **dict.fromkeys(("a.png", "c.png", "d/e/y.png"), rejects.OK),
        key: rejects.MISSING_IMAGE,
    }
    assert [one.key for one in samples] == sorted(one.key for one in samples)
    assert samples[1].error == says
    assert (members[0], b"caption" in members[1].values()) == ({"txt": b"caption"}, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="to become nobody")
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_a_folder_of_tables_that_cannot_all_be_listed_is_refused(kind: str) -> None:
    with with_closed_folder(0) as top:
        place = resolve_source(Source(uri=str(top / "in"), format=kind))
        with as_nobody(), pytest.raises(RequestError, match=r"in/b/: folder cannot be listed: Permission denied"):
            list(list_files(place))


def refuse_listing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Lets a folder called `b` answer as one that may not be listed, or whose storage is away."""
    scandir = os.scandir

    def refused(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("/b/"):
            raise OSError(number, os.strerror(number), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_folder_that_does_not_answer_is_waited_for(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = resolve_source(Source(uri=str(put(tmp_path / "in", "a.png", "b/x.png"))))
    refuse_listing(monkeypatch, number)
    with pytest.raises(SourceBusy, match=r"in/b/ cannot be listed"):
        list(list_files(place))


def test_a_run_over_a_closed_folder_is_whole_and_goes_on_when_it_is_open(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(put(tmp_path / "in", "a.png", "b/x.png", "c.png"), tmp_path / "out", model_path)
    with monkeypatch.context() as patch:
        refuse_listing(patch, errno.EPERM)
        summary = run_here(config)
        assert (summary.totals.rows, dict(summary.totals.rejects)) == (2, {"missing_image": 1})
        assert run_here(config).this_run.units == 0
    summary = run_here(config)
    assert (summary.totals.rows, dict(summary.totals.rejects)) == (3, {"missing_image": 1})
    assert Verifier(tmp_path / "out").verify().proven


@pytest.mark.parametrize("how", ["each other", "itself", "above", "outside and back", "an alias"])
def test_no_folder_is_entered_twice(how: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a/1.jpg", "b/2.jpg")
    outside = put(tmp_path / "outside", "3.jpg")
    links = {
        "each other": {"a/b": "../b", "b/a": "../a"},
        "itself": {"a/self": "."},
        "above": {"a/up": "..", "b/up": "../.."},
        "outside and back": {"a/out": str(outside), "b/out": str(outside)},
        "an alias": {"0": "a", "c": "b"},
    }[how]
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (outside / "back").symlink_to(folder)
    (outside / "again").symlink_to(outside)
    extra = ["a/out/3.jpg"] if how == "outside and back" else []
    assert listed(folder) == ["a/1.jpg", *extra, "b/2.jpg"]


def test_a_link_to_a_folder_that_is_left_alone_by_its_name_is_followed(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", "a.jpg", ".store/b.jpg")
    (folder / "photos").symlink_to(".store")
    assert listed(folder) == ["a.jpg", "photos/b.jpg"]


RAW = [b"caf\xe9.jpg", b"d\xe9/\xff.png", b"a\\xe9.jpg", "é.jpg".encode(), b"\xed\xa0\x80.png", b"back\\slash.jpg"]


def test_names_that_are_no_utf8_are_escaped_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder, *RAW)
    put(folder, b"caf\xe9.TXT", data=b"caption")
    part, samples = indexed(folder, tmp_path / "out")
    assert {sample.status for sample in samples} == {rejects.OK}
    keys = [sample.key for sample in samples]
    assert keys == sorted(keys)
    assert {"caf\\xe9.jpg", "d\\xe9/\\xff.png", "a\\x5cxe9.jpg", "é.jpg", "back\\slash.jpg"} <= set(keys)
    read = format_named("folder").reader(Columns()).read(part, samples, ["txt"])
    assert read.encoded == [IMAGE] * len(RAW)
    assert read.members[keys.index("caf\\xe9.jpg")] == {"txt": b"caption"}


STRANGE = [
    "-x.png",
    "--help.png",
    "{a}.png",
    "[1].png",
    "*.png",
    "?.png",
    "$HOME.png",
    "%20.png",
    "#.png",
    "~.png",
    "~",
]
STRANGE += [
    "'.png",
    '".png',
    "a;b|c&d.png",
    "n\n.png",
    "t\t.png",
    " .png",
    "dot..png",
    "\u202ea.png",
    "x" * 251 + ".png",
]
STRANGE += ["\u00e9.png", "e\u0301.png", "\u3042" * 83 + ".png", "a\x7f.png", "a:b.png"]


@pytest.mark.parametrize("door", ["folder", "tar", "jsonl", "csv"])
def test_strange_names_are_keys_as_they_are(door: str, tmp_path: Path) -> None:
    names = [name for name in STRANGE if name != "~"]
    folder = put(tmp_path / "in", *names, "~/a.png")
    names.append("~/a.png")
    if door == "tar":
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(folder, ".")
    (folder / "m.jsonl").write_text("".join(json.dumps({"image": name, "k": name}) + "\n" for name in names))
    with open(folder / "m.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["image", "k"], *([name, name] for name in names)])
    uri = {"folder": folder, "tar": tmp_path / "a.tar"}.get(door, folder / f"m.{door}")
    source = Source(uri=str(uri), members="each", **({"key_column": "k"} if door in ("jsonl", "csv") else {}))
    plan = Plan(tmp_path / "out")
    with Scratch(tmp_path / "out") as scratch:
        plan.update(source, list_source(resolve_source(source)), scratch)
    samples = list(index_samples(plan.part(0), Columns(key=source.key_column)))
    assert sorted((sample.key, sample.status) for sample in samples) == sorted((name, "ok") for name in names)
    read = format_named(plan.part(0).format).reader(Columns()).read(plan.part(0), samples)
    assert read.encoded == [IMAGE] * len(names)


def test_tars_whose_names_are_no_utf8_are_read(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "a.tar", [("0.jpg", IMAGE)])
    folder = put(tmp_path / "in", b"caf\xe9.tar", b"\xe9/b.tar", data=tar.read_bytes())
    _, samples = indexed(folder / "**" / "*.tar", tmp_path / "out")
    assert [(sample.source, sample.status) for sample in samples] == [("\\xe9/b.tar", rejects.OK)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.binary(min_size=1, max_size=6) | st.sampled_from([b"\\x", b"5c", b"\xe9", b"\\"]), max_size=5))
def test_escaping_loses_nothing(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    path = raw.decode("utf-8", "surrogateescape")
    text = escaped(path)
    text.encode()
    assert unescaped(text).encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize(("image", "beside"), [("0.JPG", "0.TXT"), ("0.jpg", "0.Txt"), ("a.b.png", "a.b.tXt")])
def test_files_beside_an_image_are_found_in_any_case(image: str, beside: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "in", f"x/{image}")
    put(folder, f"x/{beside}", data=b"caption")
    part, samples = indexed(folder, tmp_path / "out")
    reader = format_named("folder").reader(Columns())
    for wanted in ("txt", "TXT"):
        assert reader.read(part, samples, [wanted, "npy"]).members == [{wanted: b"caption"}]


@pytest.mark.parametrize(
    ("folder", "uri"),
    [
        ("pics{a", "pics{a"),
        ("pics{a", "pics{a/*.tar"),
        ("{a,b}", "{a,b}/*.tar"),
        ("set[1]", "set[1]/*.tar"),
        ("set[1]", "set[1]/a.tar"),
        ("set[1]", "set[{1,2}]/{a,A}.tar"),
        ("what?", "what?/*.tar"),
        ("100%20", "100%20/*.tar"),
        ("$HOME", "$HOME/*.tar"),
        ("a{b/c[d", "a{b/c[d/{a,A}.tar"),
    ],
)
def test_what_exists_as_it_is_written_comes_first(folder: str, uri: str, tmp_path: Path) -> None:
    for name in ("a.tar", "a.TAR", "A.tar"):
        make_tar(tmp_path / folder / name, [("0.jpg", IMAGE)])
    make_tar(tmp_path / "set[2]" / "a.tar", [("0.jpg", IMAGE)])
    make_tar(tmp_path / "set[2]" / "A.tar", [("0.jpg", IMAGE)])
    make_tar(tmp_path / "set1" / "b.tar", [("0.jpg", IMAGE)])
    found = listed(tmp_path / uri)
    assert found and "b.tar" not in str(found)


def test_a_patterns_suffix_matches_in_any_case(tmp_path: Path) -> None:
    for name in ("a.tar", "b.TAR", "c.Tar.GZ", "d.tgz"):
        put(tmp_path, name)
    assert listed(tmp_path / "*.tar") == ["a.tar", "b.TAR"]
    assert listed(tmp_path / "[cd]*.TAR.gz") == ["c.Tar.GZ"]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (
            "set[1]-*.tar",
            r"names no file: \[ \] stand for one of the characters.*the 2 whose names.*set\[\[\]1\]-\*\.tar",
        ),
        ("nowhere/*.tar", "names no file: there is no folder .*/nowhere"),
        ("x*.tar", "names no file: it is a pattern, and nothing in .* is named so"),
        ("set{a/*.tar", r"unbalanced braces; a brace that is meant as it stands is written \\\{"),
        ("$DATA/*.tar", r"nothing called \$DATA, and variables are not expanded"),
        ("a/${DATA}/b", r"nothing called \$\{DATA\}"),
    ],
)
def test_a_pattern_that_matches_nothing_explains_itself(uri: str, says: str, tmp_path: Path) -> None:
    put(tmp_path, "set[1]-0.tar", "set[1]-1.tar", "a/b.jpg")
    with pytest.raises(RequestError, match=says):
        listed(tmp_path / uri)


def test_the_pattern_that_is_offered_is_right(tmp_path: Path) -> None:
    put(tmp_path, "set[1]-0.tar", "set[1]-1.tar")
    with pytest.raises(RequestError) as error:
        listed(tmp_path / "set[1]-*.tar")
    assert listed(str(error.value).rpartition("write ")[2]) == ["set[1]-0.tar", "set[1]-1.tar"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///a%20b/c", "/a b/c"),
        ("file://localhost/a%2520b", "/a%20b"),
        ("FILE:///a+b", "/a+b"),
        ("file:/a%7Bb", "/a{b"),
        ("file:///caf%C3%A9/~", "/café/~"),
        ("/a%20b", "/a%20b"),
    ],
)
def test_a_file_uri_is_decoded_and_a_path_is_not(text: str, path: str) -> None:
    assert str(absolute(text)) == path
    assert path_named_in("/in/m.jsonl", text) == path


@pytest.mark.parametrize("text", ["file://host/a", "file://~/a", "file://", "file:///a%00b"])
def test_a_file_uri_of_another_machine_or_without_a_path_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"^output\.uri: file:"):
        check_location("output.uri", text)
    with pytest.raises(RequestError):
        absolute(text)
    with pytest.raises(ValueError, match="file:"):
        path_named_in("/in/m.jsonl", text)


def test_a_source_is_found_by_its_file_uri(tmp_path: Path) -> None:
    put(tmp_path / "a b" / "{c", "1.jpg")
    assert listed(f"file://{tmp_path}/a%20b/%7Bc") == ["1.jpg"]
    make_tar(tmp_path / "a b" / "x.tar", [("0.jpg", IMAGE)])
    assert listed(f"file://localhost{tmp_path}/a%20b/*.tar") == ["x.tar"]
    with pytest.raises(RequestError, match="does not exist"):
        listed(f"{tmp_path}/a%20b")


@pytest.mark.parametrize("text", ["$HOME/out", "a/${USER}/out", "~nobody-of-this-name/out", "s3://$BUCKET/out"])
@pytest.mark.parametrize("field", ["output", "model", "source"])
def test_a_variable_or_a_home_that_nobody_knows_is_refused_and_nothing_is_made(
    text: str, field: str, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "in", "a.jpg")
    key = "path" if field == "model" else "uri"
    config = config_for(tmp_path / "in", tmp_path / "out", model_path, **{field: {key: text}})
    with pytest.raises(RequestError, match=rf"^{field}\.{key}: "):
        run_here(config)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_empty_home_is_not_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    with pytest.raises(RequestError, match="no home folder is known for ~"):
        check_location("output.uri", "~/out")


@pytest.mark.slow
def test_a_folder_of_everything_ends_as_rows_and_rejects(model_path: Path, tmp_path: Path) -> None:
    folder = put(tmp_path / "in", *RAW, "a/1.JFIF", "._a.jpg")
    (folder / "gone.jpg").symlink_to("nowhere")
    (folder / "a" / "loop").symlink_to("..")
    os.mkfifo(folder / "x.jpg")
    config = config_for(folder, tmp_path / "out", model_path)
    summary = run_here(config)
    assert summary.complete
    assert (summary.totals.rows, dict(summary.totals.rejects)) == (len(RAW) + 1, {"missing_image": 1})
    assert summary.ignored == {".jpg (hidden)": 1, ".jpg (no regular file)": 1}
    assert Verifier(tmp_path / "out").verify().proven
    assert run_here(config).this_run.units == 0


@pytest.mark.slow
def test_sigterm_ends_a_run_whose_storage_does_not_answer(model_path: Path, tmp_path: Path) -> None:
    """A reader that never comes back: as of a mount that has died."""
    folder = put(tmp_path / "in", "a.jpg", "b.jpg")
    config = write_config(tmp_path / "c.yaml", config_for(folder, tmp_path / "out", model_path))
    code = (
        "import sys, threading, pipeline.source.formats.folder as folder\n"
        "def stuck(*_):\n    print('reading', flush=True); threading.Event().wait()\n"
        "folder.read_planned = stuck\n"
        "from pipeline.cli.commands import main\n"
        f"sys.exit(main(['run', {str(config)!r}]))\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert run.stdout is not None
    while b"reading" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    assert run.wait(20) != 0
