"""What a plan, a sample and `stats` say of clips beside images, against plain arithmetic over the files themselves.

The plain side decodes with PyAV, and asks transformers' own processor which frames and sizes it would take.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import clip_of
from conftest import config_for, encoded, make_tar, noise, rows_of, run_here, write_config
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize as reference_resize
from transformers.video_utils import VideoMetadata

from pipeline.cli import main
from pipeline.config import Video
from pipeline.estimate import sampling as sampling_module
from pipeline.estimate.estimate import Case, Rates, Writing
from pipeline.estimate.extrapolate import extrapolated
from pipeline.estimate.film import Film
from pipeline.estimate.preparing import measured
from pipeline.estimate.sampling import NOBODY, Headers, Specimen, has_room
from pipeline.grid import Geometry
from pipeline.index.video_facts import completed, seconds_of
from pipeline.index.video_header import read_video_header
from pipeline.index.video_rules import resolve_sampling
from pipeline.output.clip_statistics import ClipStatistics
from pipeline.output.ledger import folded_parts
from pipeline.source.drawing import Draw, Drawing, Drawn, Draws
from pipeline.source.sample import VideoFacts

pytestmark = pytest.mark.slow

MAX_PIXELS = {"images": 9000, "videos": 20_000}
RATE = 25
SIZES = [(30, 40), (60, 90), (140, 150), (112, 112), (60, 90)]
# File, start and end; one question is asked twice, and one file is asked about in two ways.
QUESTIONS: list[tuple[str, float | None, float | None]] = [
    ("h264.mp4", None, None),
    ("h264.mp4", 0.4, 1.2),
    ("carphone_pristine.mp4", None, None),
    ("h264.mp4", 0.4, 1.2),
    ("three.mp4", None, None),
    ("h264.mp4", 1.0, 9.0),
    ("one.mp4", None, None),
]


@dataclass(frozen=True)
class Plain:
    """A clip as plain code sees it."""

    question: tuple[str, float | None, float | None]
    frames: tuple[int, ...]
    tokens: int
    seconds: float
    clamped: str


def plain(question: tuple[str, float | None, float | None], fps: float, folder: Path) -> Plain:
    name, start, end = question
    with av.open(str(folder / name)) as container:
        frames = list(container.decode(video=0))
    times = [float(frame.pts * frame.time_base) for frame in frames]
    ends = times[-1] + float(frames[-1].duration * frames[-1].time_base)
    rate = len(frames) / (ends - times[0])
    inside = [
        index
        for index, time in enumerate(times)
        if (start is None or time - times[0] >= start - 1e-9) and (end is None or time - times[0] <= end + 1e-9)
    ]
    metadata = VideoMetadata(total_num_frames=len(inside), fps=rate)
    # The reference fails on a single frame, which is doubled here.
    taken = [0] if len(inside) == 1 else Qwen2VLVideoProcessor().sample_frames(metadata, fps=fps).tolist()
    height, width = reference_resize(frames[0].height, frames[0].width, 28, 3136, MAX_PIXELS["videos"])
    rounded = round(frames[0].height / 28) * round(frames[0].width / 28) * 784
    return Plain(
        question=question,
        frames=tuple(inside[index] for index in taken),
        tokens=math.ceil(len(taken) / 2) * height * width // 784,
        seconds=min(end or ends, ends - times[0]) - (start or 0.0),
        clamped="max" if rounded > MAX_PIXELS["videos"] else "min" if rounded < 3136 else "none",
    )


def image_tokens(height: int, width: int) -> int:
    rows, columns = reference_resize(height, width, 28, 3136, MAX_PIXELS["images"])
    return rows * columns // 784


def expected_of(clips: list[Plain]) -> dict[str, Any]:
    tokens, rates = sorted(one.tokens for one in clips), sorted(one.tokens / one.seconds for one in clips)
    return {
        "clips": len(clips),
        "seconds": pytest.approx(sum(one.seconds for one in clips), rel=1e-5),
        "frames": sum(len(one.frames) for one in clips),
        "frames_mean": pytest.approx(sum(len(one.frames) for one in clips) / len(clips)),
        "tokens": sum(tokens),
        "tokens_mean": pytest.approx(sum(tokens) / len(clips)),
        "tokens_p95": tokens[math.ceil(len(tokens) * 0.95) - 1],
        "tokens_max": tokens[-1],
        "tokens_per_film_second": pytest.approx(sum(tokens) / sum(one.seconds for one in clips), rel=1e-5),
        **{
            f"tokens_per_film_second_p{p}": pytest.approx(rates[math.ceil(len(rates) * p / 100) - 1], rel=0.004)
            for p in (5, 50, 95, 99)
        },
        "share_clamped_max": pytest.approx(sum(one.clamped == "max" for one in clips) / len(clips)),
        "share_clamped_min": pytest.approx(sum(one.clamped == "min" for one in clips) / len(clips)),
    }


def expected_images() -> dict[str, Any]:
    tokens = [image_tokens(*size) for size in SIZES]
    return {"images": len(SIZES), "tokens": sum(tokens), "tokens_max": max(tokens)}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about clips, spans of some of them, with images between them."""
    folder = tmp_path_factory.mktemp("media")
    for name in {name for name, _, _ in QUESTIONS}:
        (folder / name).write_bytes(clip_of(name))
    rows: list[dict[str, Any]] = []
    for number, size in enumerate(SIZES):
        (folder / f"{number}.png").write_bytes(encoded(noise(*size, number)))
        rows.append({"id": f"i{number}", "image": f"{number}.png"})
    for number, (name, start, end) in enumerate(QUESTIONS):
        rows.insert(2 * number, {"id": f"q{number}", "video": name, "start": start, "end": end})
    (folder / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "questions.jsonl"


def config_of(source: Path, output: Path, model_path: Path, **video: object) -> Any:
    return config_for(
        source,
        output,
        model_path,
        source={"key_column": "id"} if source.suffix == ".jsonl" else {},
        preprocess={"max_pixels": MAX_PIXELS["images"], "video": {"max_pixels": MAX_PIXELS["videos"]} | video},
        output={"shard_tokens": 65_536},
    )


def planned(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", str(path), "--json", *words]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_each_rate_is_what_the_reference_takes(
    source: Path, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path / "c.yaml", config_of(source, tmp_path / "out", model_path, fps=7))
    tree = planned(path, capsys, "--fps", "1,2.5,8", "--tokens-per-second", "10")
    assert [one["fps"] for one in tree["budgets"]] == [1, 2.5, 8]
    for one in tree["budgets"]:
        clips = [plain(question, one["fps"], source.parent) for question in QUESTIONS]
        wanted = expected_of(clips)
        assert {name: one["media"]["video"][name] for name in wanted} == wanted
        images = expected_images()
        assert {name: one["media"]["image"][name] for name in images} == images
        assert one["tokens"] == images["tokens"] + wanted["tokens"]
        # The question that is asked twice; of a file asked about in two ways nothing is saved.
        (again,) = [clip for index, clip in enumerate(clips) if clip.question in QUESTIONS[:index]]
        assert (one["duplicates_within_units"], one["duplicate_tokens_within_units"]) == (1, again.tokens)
        assert (one["duplicates"], one["duplicate_tokens"]) == (1, again.tokens)
        assert one["device_hours"] == pytest.approx((one["tokens"] - again.tokens) / 10 / 3600)
    first, _, last = (one["media"]["video"]["frames"] for one in tree["budgets"])
    assert first < last


def test_a_rate_is_compared_only_where_there_are_videos(
    source: Path, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--fps", "0"], ["--fps", "1,x"], ["--fps", "1,inf"]):
        path = write_config(tmp_path / "c.yaml", config_of(source, tmp_path / "out", model_path, fps=2))
        assert main(["plan", str(path), *words]) == 2
        assert f"--fps: {words[1]}" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(noise(60, 60)))
    path = write_config(tmp_path / "d.yaml", config_for(tmp_path / "in", tmp_path / "out", model_path))
    assert main(["plan", str(path), "--fps", "1"]) == 2
    assert "--fps: there is no video in the source" in capsys.readouterr().err


@pytest.fixture(scope="module")
def output(source: Path, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("media-out") / "out"
    assert run_here(config_of(source, output, model_path, fps=2.5)).complete
    return output


@pytest.mark.parametrize("folded", [True, False])
def test_stats_are_of_the_rows_from_ledgers_and_from_footers(
    folded: bool, output: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ignored = shutil.ignore_patterns(*([] if folded else ["ledger", "_SUCCESS"]))
    copy = Path(shutil.copytree(output, tmp_path / "out", ignore=ignored))
    assert bool(folded_parts(copy)) is folded
    assert main(["stats", str(copy), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    clips = [plain(question, 2.5, source.parent) for question in QUESTIONS]
    rows = {row["key"]: row for row in rows_of(copy)}
    for number, clip in enumerate(clips):
        assert (rows[f"q{number}"]["frames"], rows[f"q{number}"]["num_tokens"]) == ([*clip.frames], clip.tokens)
    wanted = expected_of(clips)
    assert {name: result["media"]["video"][name] for name in wanted} == wanted
    images = expected_images()
    assert {name: result["media"]["image"][name] for name in images} == images
    assert result["duplicates_within_units"] == result["duplicates"] == 1
    assert main(["stats", str(copy)]) == 0
    assert f"video.clips                     {len(QUESTIONS)}" in capsys.readouterr().out


def test_statistics_of_images_alone_do_not_speak_of_clips(model_path: Path, tmp_path: Path) -> None:
    """Their records and ledgers are what they were."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(noise(60, 60)))
    run_here(config_for(tmp_path / "in", tmp_path / "out", model_path))
    (shard,) = (tmp_path / "out" / "samples").iterdir()
    assert "clips" not in json.loads(pq.read_metadata(shard).metadata[b"visionbake"])["statistics"]
    ledger = tmp_path / "out" / "ledger" / "part-000000.parquet"
    assert not [name for name in pq.read_schema(ledger).names if name.startswith("clip")]


def test_seconds_of_film_are_those_that_are_asked_for() -> None:
    assert seconds_of(None, None, 25.0, 8.0) == 8
    assert seconds_of(2.0, None, 25.0, 8.0) == 6
    assert seconds_of(-2.0, 3.0, 25.0, 8.0) == 3
    assert seconds_of(7.0, 99.0, 25.0, 8.0) == 1
    assert seconds_of(3.0, 3.0, 25.0, 8.0) == 1 / 25  # one frame
    assert seconds_of(None, None, None, None) == 0


def as_folder(source: Path, place: Path) -> Path:
    place.mkdir()
    for path in source.parent.iterdir():
        if path.suffix != ".jsonl":
            shutil.copy(path, place)
    return place


def as_tar(source: Path, place: Path) -> Path:
    names = sorted(path.name for path in source.parent.iterdir() if path.suffix != ".jsonl")
    return make_tar(place / "a.tar", [(name, (source.parent / name).read_bytes()) for name in names])


def as_rows(source: Path, place: Path) -> Path:
    return source


def as_parquet(source: Path, place: Path) -> Path:
    place.mkdir()
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for row in rows:
        for column in ("image", "video"):
            name = row.get(column)
            row[column] = name and {"bytes": (source.parent / name).read_bytes(), "path": name}
    pq.write_table(pa.Table.from_pylist(rows), place / "a.parquet", row_group_size=4)
    return place / "a.parquet"


@pytest.mark.parametrize("door", [as_folder, as_tar, as_rows, as_parquet])
def test_a_sample_draws_clips_and_images_whatever_holds_them(
    door: Any, source: Path, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So many that they are all that there is, or many of each; of row groups it stays a matter of chance."""
    config = config_of(door(source, tmp_path / "in"), tmp_path / "out", model_path, fps=2.5)
    path = write_config(tmp_path / "c.yaml", config)
    tree = planned(path, capsys, "--sample", "600", "--seed", "3")
    (drawn,) = tree["budgets"]
    (exact,) = planned(path, capsys)["budgets"]
    rough = {"rel": 0.2 if door is as_parquet else 1e-6}
    for media, names in (("image", ("images", "tokens")), ("video", ("clips", "seconds", "frames", "tokens"))):
        for name in names:
            said = drawn["media"][media][name]
            assert said["estimate"] == pytest.approx(exact["media"][media][name], **rough), (media, name)
            assert said["low"] <= said["estimate"] <= said["high"]
    assert drawn["media"]["video"]["tokens_p99"] == exact["media"]["video"]["tokens_max"]
    assert drawn["rejects"] == {}


def test_as_many_samples_are_drawn_as_were_asked_for(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = encoded(noise(40, 40))
    (tmp_path / "in").mkdir()
    for number in range(120):
        (tmp_path / "in" / f"{number}.png").write_bytes(small)
    pq.write_table(pa.table({"image": [small] * 400}), tmp_path / "small-groups.parquet", row_group_size=1)
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps({"image": f"in/{number % 120}.png"}) for number in range(900))
    )
    for name in ("in", "small-groups.parquet", "a.jsonl"):
        path = write_config(tmp_path / "c.yaml", config_for(tmp_path / name, tmp_path / "out", model_path))
        for count in (2, 50, 101):
            assert planned(path, capsys, "--sample", str(count))["sampled"] == count, (name, count)
    assert main(["plan", str(path), "--sample", "1"]) == 2
    assert "an interval needs two" in capsys.readouterr().err


def test_samples_are_shared_out_among_the_draws() -> None:
    def drawing(count: int) -> Drawing:
        return Drawing(count=count, generator=None, headers=Headers(), image_column="image")  # type: ignore[arg-type]

    assert drawing(3).sizes == [1, 1, 1]
    assert drawing(70).sizes == [3] * 6 + [2] * 26
    assert drawing(64).sizes_of_groups([1000, 1000]) == [2] * 32
    assert drawing(64).sizes_of_groups([1] * 500) == [1] * 64
    assert drawing(64).sizes_of_groups([]) == []


def video_of(name: str) -> tuple[VideoFacts, int, int]:
    header = read_video_header(clip_of(name))
    sample = completed(replace(NOBODY, video=VideoFacts()), header)
    assert sample.video is not None
    return sample.video, header.width, header.height


def test_drawn_clips_are_extrapolated_by_their_weights() -> None:
    """A clip in a draw of ten times the weight says ten times as much; images are told apart."""
    video, width, height = video_of("h264.mp4")
    clip, image = Drawn(status="ok", width=width, height=height, video=video), Drawn(status="ok", width=112, height=56)
    draws = Draws(
        draws=(Draw(weight=10.0, samples=(clip, image)), Draw(weight=1.0, samples=(image, clip, clip))), files=5
    )
    sampling = resolve_sampling(Video(fps=2, max_pixels=20_000), "qwen2_vl", 14, 2)
    geometry = Geometry(
        patch_size=14,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=3136,
        max_pixels=20_000,
        max_image_pixels=90_000,
        video=sampling,
    )
    writing = Writing(
        width=8, format="parquet", dtype="float32", row_group_bytes=1 << 20, shard_tokens=500, deduplicate=True
    )
    rates = Rates(tokens_per_second=2.0, image_seconds=0.5, film_second_seconds=3.0)
    (said,) = extrapolated(draws, [Case(geometry=geometry, writing=writing)], [rates])["budgets"]
    clips, images, each = (10 + 2) / 2, (10 + 1) / 2, 2 * 4
    film = said["media"]["video"]
    assert film["clips"]["estimate"] == clips and film["seconds"]["estimate"] == pytest.approx(2.0 * clips)
    assert (film["frames"]["estimate"], film["frames_mean"]) == (4 * clips, 4)
    assert (film["tokens"]["estimate"], film["tokens_per_film_second"]) == (each * clips, pytest.approx(each / 2))
    assert film["tokens_per_film_second_p50"] == pytest.approx(each / 2)
    assert said["media"]["image"]["images"]["estimate"] == images and said["media"]["image"]["tokens_mean"] == 8
    assert said["tokens"]["estimate"] == each * clips + 8 * images
    core_seconds = 0.5 * images + 3.0 * 2.0 * clips
    assert said["prepare_core_hours"]["estimate"] == pytest.approx(core_seconds / 3600)
    assert said["cores_per_device"] == pytest.approx(core_seconds / (said["tokens"]["estimate"] / 2.0))
    nothing = extrapolated(draws, [Case(geometry=geometry, writing=writing)], [Rates(image_seconds=1.0)])["budgets"][0]
    assert "prepare_core_hours" not in nothing  # what a second of film takes is not known


def test_cores_follow_from_what_one_core_takes(
    source: Path, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = Rates(tokens_per_second=100, image_seconds=0.01, film_second_seconds=0.5)
    assert rates.core_seconds(1000, 60) == pytest.approx(40)
    assert rates.preparing(40.0, 400) == {"prepare_core_hours": pytest.approx(40 / 3600), "cores_per_device": 10.0}
    assert Rates(image_seconds=0.01).core_seconds(10, 0) == pytest.approx(0.1)
    assert Rates(image_seconds=0.01).core_seconds(10, 1) is None
    assert Rates(image_seconds=0.01).preparing(1.0, 5) == {"prepare_core_hours": pytest.approx(1 / 3600)}
    path = write_config(tmp_path / "c.yaml", config_of(source, tmp_path / "out", model_path, fps=2))
    for words in ([], ["--sample", "20"]):
        tree = planned(path, capsys, "--calibrate", "--tokens-per-second", "50", *words)
        (one,) = tree["budgets"]
        assert "calibrated_on" not in tree and tree["prepared_on"].startswith("one core")
        hours = one["prepare_core_hours"]["estimate"] if words else one["prepare_core_hours"]
        encoded_tokens = one["tokens"]["estimate"] if words else one["tokens"] - one["duplicate_tokens_within_units"]
        assert one["cores_per_device"] == pytest.approx(hours * 3600 / (encoded_tokens / 50))
        assert 0 < hours * 3600 < 60


def test_a_clip_is_measured_as_far_as_the_time_goes() -> None:
    headers = Headers(kept=2)
    try:
        for name in ("carphone_pristine.mp4", "h264.mp4", "uneven.mp4"):
            assert headers.drawn(clip_of(name), VideoFacts()).status == "ok"
    finally:
        headers.close()
    assert len(headers.specimens) == 2
    sampling = resolve_sampling(Video(), "qwen2_vl", 14, 2)
    geometry = Geometry(
        patch_size=14,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=3136,
        max_pixels=20_000,
        max_image_pixels=90_000,
        video=sampling,
    )
    whole, cut = measured(headers.specimens, geometry), measured(headers.specimens, geometry, seconds=0.0)
    assert (whole.clips, cut.clips, whole.images) == (2, 1, 0) and whole.image_seconds is None
    assert whole.film_second_seconds is not None and cut.film_second_seconds is not None
    assert 0.1 < cut.film_second_seconds / whole.film_second_seconds < 1000  # of one frame, by its share of the film


def test_specimens_are_few_and_their_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips may be of gigabytes: one of each kind is held however large it is."""
    clip = Specimen(sample=replace(NOBODY, video=VideoFacts()), data=bytes(100))
    monkeypatch.setattr(sampling_module, "SPECIMEN_BYTES", 150)
    assert has_room([], "video", 1 << 40, 8)
    assert not has_room([clip], "video", 60, 8) and has_room([clip], "video", 50, 8)
    assert has_room([clip], "image", 60, 8)
    assert not has_room([clip, clip], "video", 0, 2)


def test_models_side_by_side_are_each_what_they_are_alone(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another factor and width, another rule for clips; the source is indexed once."""
    models = ["random:tiny", "random:qwen3_vl_tiny"]
    preprocess = {"min_pixels": 3136, "max_pixels": 90_000}
    config = config_for(source, tmp_path / "out", Path(models[0]), source={"key_column": "id"}, preprocess=preprocess)
    path = write_config(tmp_path / "c.yaml", config)
    both = planned(path, capsys, "--model", ",".join(models), "--fps", "1,2")["budgets"]
    assert [(one["model"], one["fps"]) for one in both] == [(model, fps) for model in models for fps in (1, 2)]
    for model in models:
        alone = planned(path, capsys, "--model", model, "--fps", "1,2")["budgets"]
        assert [one | {"model": model} for one in alone] == [one for one in both if one["model"] == model]
    assert both[0]["tokens"] != both[2]["tokens"] and both[0]["embedding_bytes"] != both[2]["embedding_bytes"]
    assert "deepstack_bytes" in both[2] and "deepstack_bytes" not in both[0]


def test_frames_of_no_known_rate_count_as_no_film() -> None:
    """Nothing is divided by their seconds, and those of others are not shared with them."""
    film = Film()
    film.add(ClipStatistics.of_rows([(30, 10, 0.0, 0), (100, 10, 5.0, 0)]))
    assert (film.seconds, film.tokens, film.timed_tokens) == (5.0, 130, 100)
    numbers = film.as_dict()
    assert numbers["tokens_per_film_second"] == 20.0
    assert (
        19 < float(str(numbers["tokens_per_film_second_p50"])) < 21 > float(str(numbers["tokens_per_film_second_p99"]))
    )
