"""Pace: rates and busy shares from the records of units."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import config_for, make_folder, run_here

from jobs.bench.driver import RECORD
from pipeline.cli import main
from pipeline.output.pace import Recent, Timeline, Work, work_of
from pipeline.output.record import CommitRecord


def work(encoder: int, began: float, seconds: float, images: int = 10) -> Work:
    return Work(encoder=encoder, ended=began + seconds, seconds=seconds, images=images, tokens=100 * images)


def test_a_timeline_of_two_encoders() -> None:
    """One is busy all the time, the other every second second."""
    works = [work(0, 1000.0 + n, 1.0) for n in range(10)] + [work(1, 1000.0 + n, 1.0) for n in range(0, 10, 2)]
    timeline = Timeline(works)
    (stretch,) = timeline.stretches()
    assert (stretch.seconds, stretch.images, stretch.encoders) == (10, 150, 2)
    assert stretch.as_dict()["busy_share"] == 0.75
    assert stretch.as_dict()["images_per_second"] == 15
    over = timeline.over_time(5)
    assert [one["images_per_second"] for one in over] == [15] * 5
    assert [one["busy_share"] for one in over] == [0.75] * 5
    assert (over[0]["from"], over[-1]["to"]) == (0, 10)


def test_images_are_spread_over_the_time_that_they_took() -> None:
    over = Timeline([work(0, 0.0, 8.0, images=8), work(0, 8.0, 2.0, images=8)]).over_time(5)
    assert [one["images_per_second"] for one in over] == [1, 1, 1, 1, 4]


def test_a_pause_is_no_time_of_the_run() -> None:
    works = [work(0, 0.0, 10.0), work(0, 100_000.0, 10.0), work(1, 100_000.0, 5.0)]
    timeline = Timeline(works)
    first, second = timeline.stretches()
    assert (first.encoders, second.encoders) == (1, 2)
    assert second.as_dict()["busy_share"] == 0.75
    over = timeline.over_time(4)
    assert over[-1]["to"] == 20
    assert [one["busy_share"] for one in over] == [1, 1, 1, 0.5]
    # What takes longer than a pause is none.
    assert len(Timeline([work(0, 0.0, 500.0), work(0, 1500.0, 500.0)]).stretches()) == 1


def test_no_work() -> None:
    timeline = Timeline([])
    assert timeline.stretches() == timeline.over_time() == []
    old = RECORD.to_json()  # an earlier version's, which did not know who had encoded it, nor when
    del old["encoder"], old["encoded_at"]
    assert work_of(CommitRecord.from_json(old)) is None


def test_the_last_minute_of_an_encoder() -> None:
    recent = Recent()
    assert recent.pace(now=0.0) is None
    recent.add(work(0, float(begun), 10.0) for begun in range(0, 100, 10))  # all the time until 100
    recent.add(work(1, begun, 6.0) for begun in (50.0, 30.0, 90.0))  # not in order
    busy, lazy = recent.encoders(now=130.0)
    assert busy == {"encoder": 0, "busy_share": 1.0, "seconds_since": 30.0}
    assert lazy["busy_share"] == pytest.approx(12 / 46, abs=1e-3)  # what ended before 40 is forgotten
    assert lazy["seconds_since"] == 34.0
    pace = recent.pace(now=130.0)
    assert pace is not None
    assert (pace.busy_encoders, pace.seconds_since) == (pytest.approx(72 / 60), 30)
    assert pace.images_per_second == pytest.approx(80 / 60)


def test_a_pace_is_taken_over_several_units_however_long_they_take() -> None:
    recent = Recent()
    recent.add([work(0, 0.0, 300.0, images=300), work(0, 300.0, 300.0, images=300)])
    pace = recent.pace(now=600.0)
    assert pace is not None
    assert (pace.images_per_second, pace.busy_encoders) == (1, 1)


def test_encoders_of_an_earlier_run_are_forgotten() -> None:
    recent = Recent()
    recent.add(work(encoder, 0.0, 10.0) for encoder in range(8))
    recent.add([work(0, 1000.0, 10.0)])
    assert [one["encoder"] for one in recent.encoders(now=1010.0)] == [0]


def test_the_records_of_a_run_say_it(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(config_for(make_folder(tmp_path / "in", 20), tmp_path / "out", model_path))
    records = [
        json.loads(pq.read_metadata(path).metadata[b"visionbake"]) for path in (tmp_path / "out" / "samples").iterdir()
    ]
    assert all(record["encoder"] == 0 and record["encoded_at"] > 1.7e9 for record in records)
    assert main(["stats", str(tmp_path / "out"), "--json"]) == 0
    stats = json.loads(capsys.readouterr().out)
    (stretch,) = stats["stretches"]
    assert stretch["images"] == 20
    assert 0 < stats["busy_share"] <= 1
    assert stats["images_per_second"] == pytest.approx(20 / stretch["seconds"], rel=0.2)
    widths = [one["to"] - one["from"] for one in stats["over_time"]]
    images = sum(one["images_per_second"] * width for one, width in zip(stats["over_time"], widths, strict=True))
    assert images == pytest.approx(20, rel=0.2)
    assert main(["status", str(tmp_path / "out"), "--json"]) == 0
    (encoder,) = json.loads(capsys.readouterr().out)["encoders"]
    assert 0 < encoder["busy_share"] <= 1
