"""Further streams in shards, and what is said of them. Catches: a row that is split elsewhere than it was joined."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from conftest import STREAMED, STREAMED_PIXELS, config_for, files_of, run_here

from pipeline import CachedProcessor, EmbeddingDataset
from pipeline.cli.stats import statistics_of
from pipeline.config import Config, parse_config
from pipeline.errors import RequestError
from pipeline.estimate.estimate import Case, Rates, Writing
from pipeline.estimate.estimate_plan import estimate_plan
from pipeline.output.commit import commit_unit
from pipeline.output.layout import SUFFIXES, data_path, samples_path
from pipeline.output.metadata import read_metadata
from pipeline.output.output_size import VALUE_BYTES, token_bytes
from pipeline.output.shard_tar import read_tar_shard
from pipeline.output.verify import Verifier
from pipeline.read.items import collate, rows_of
from pipeline.run import encode_stage
from pipeline.run.request import check_request
from pipeline.source.plan import Plan
from pipeline.storage.scratch import Scratch

pytestmark = pytest.mark.slow

WIDTH, STREAMS = STREAMED.out_width, STREAMED.streams
FORMS = [("parquet", "float32"), ("parquet", "int8"), ("webdataset", "bfloat16"), ("webdataset", "fp8")]


def configured(folder: Path, output: Path, model: Path, **fields: object) -> Config:
    return config_for(folder, output, model, preprocess=dict(STREAMED_PIXELS), output={"shard_tokens": 60, **fields})


@pytest.fixture(scope="module")
def exact(folder: Path, streamed_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exact") / "out"
    assert run_here(configured(folder, output, streamed_path)).complete
    return output


@pytest.fixture(scope="module", params=FORMS, ids=["-".join(form) for form in FORMS])
def output(
    request: pytest.FixtureRequest, folder: Path, streamed_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    kind, dtype = request.param
    output = tmp_path_factory.mktemp("output") / "out"
    assert run_here(configured(folder, output, streamed_path, format=kind, dtype=dtype)).complete
    return output


def first_metadata(output: Path) -> dict[str, Any]:
    path = sorted((output / "data").iterdir())[0]
    return read_metadata(path) if path.suffix == ".parquet" else read_tar_shard(path)[0]


def test_streams_come_back_as_the_tower_gave_them(output: Path, exact: Path) -> None:
    assert Verifier(output).verify().proven
    made_of = {"hidden_size": WIDTH * (1 + STREAMS), "streams": STREAMS, "stream_width": WIDTH}
    tree = json.loads((output / "dataset.json").read_text())
    assert {name: tree[name] for name in made_of} == made_of
    assert {name: first_metadata(output)[name] for name in made_of} == made_of
    dataset, wanted = EmbeddingDataset(output), EmbeddingDataset(exact)
    assert (dataset.streams, len(dataset)) == (STREAMS, len(wanted)) and len(dataset) > 10
    for ours, theirs in zip(dataset.stream(), wanted.stream(), strict=True):
        pairs = [(ours["image_embeds"], theirs["image_embeds"])]
        pairs += zip(ours["deepstack_embeds"], theirs["deepstack_embeds"], strict=True)
        assert len(pairs) == 1 + STREAMS
        for one, other in pairs:
            assert one.shape == other.shape == (len(other), WIDTH) and one.is_contiguous()
            assert float((one.float() - other).norm() / other.norm()) < 0.04


def test_a_row_is_main_then_the_further_streams_in_both_forms(output: Path, exact: Path) -> None:
    """Read by hand from the stored bytes, and put together again from the reader's streams."""
    rows = {row["key"]: row for row in pq.read_table(exact / "data").to_pylist()}
    for item in EmbeddingDataset(exact):
        stored = np.frombuffer(rows[item["key"]]["embedding"], np.float32).reshape(len(item["image_embeds"]), -1)
        assert np.array_equal(rows_of(item).numpy(), stored)
        for stream, tokens in enumerate([item["image_embeds"], *item["deepstack_embeds"]]):
            assert np.array_equal(tokens.numpy(), stored[:, stream * WIDTH : (stream + 1) * WIDTH])
    for path in sorted((output / "data").glob("*.tar"))[:1]:
        with tarfile.open(path) as tar:
            found = {member.name.split(".", 1)[1]: tar.extractfile(member).read() for member in tar.getmembers()[:2]}
        told, tensors = json.loads(found["json"]), safetensors.torch.load(found["safetensors"])
        assert told["streams"] == STREAMS and told["hidden_size"] == tensors["image_embeds"].shape[1]
        values = tensors["image_embeds"].float().view(len(tensors["image_embeds"]), 1 + STREAMS, WIDTH)
        if "scale" in tensors:
            assert tensors["scale"].shape == (len(values), 1 + STREAMS)
            values = values * tensors["scale"][:, :, None]
        item = EmbeddingDataset(output)[told["key"]]
        assert torch.equal(values[:, 0].to(torch.bfloat16), item["image_embeds"])
        assert all(
            torch.equal(values[:, 1 + n].to(torch.bfloat16), item["deepstack_embeds"][n]) for n in range(STREAMS)
        )


def test_a_lost_record_is_made_again_of_the_shard_that_stands(output: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(output, tmp_path / "out"))
    samples, data = (sorted((output / name).iterdir())[0] for name in ("samples", "data"))
    columns, before = pq.read_table(samples), data.read_bytes()
    samples.unlink()
    tree = json.loads((output / "dataset.json").read_text())["config"]
    tree["output"]["uri"] = str(output)
    assert run_here(parse_config(tree)).this_run.units == 1
    assert pq.read_table(samples).equals(columns) and data.read_bytes() == before
    assert read_metadata(samples)["adopted"]


@pytest.mark.parametrize("fields", [{}, {"format": "webdataset", "dtype": "int8"}], ids=["parquet", "webdataset"])
def test_a_standing_shard_of_other_last_bits_is_adopted(
    fields: dict[str, Any], folder: Path, streamed_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of other packs, say: it is judged by its own values, and those by the norms of their main stream."""
    caught: list[Any] = []
    monkeypatch.setattr(encode_stage, "commit_unit", lambda *a: caught.append(a) or commit_unit(*a))
    assert run_here(configured(folder, tmp_path / "out", streamed_path, **fields)).complete
    prepared, encoded, output, _, settings, encoding = caught[0]
    kind, unit = settings.format, prepared.unit.id
    nudge = 1 + 1e-6
    more: dict[str, Any] = {"norm_mean_N": encoded.norm_mean_N * nudge, "norm_max_N": encoded.norm_max_N * nudge}
    more |= {"tokens_MO": encoded.tokens_MO * nudge} if not fields else {"scale_MS": encoded.scale_MS * nudge}
    data_path(output, unit, kind).unlink()
    with Scratch(output) as scratch:
        for made, adopts in ((replace(encoded, **more), False), (encoded, True)):
            samples_path(output, unit).unlink()
            committed = commit_unit(prepared, made, output, scratch, settings, encoding)
            assert committed.record.adopted == adopts
    shutil.rmtree(output / "ledger")  # of the records that were
    assert Verifier(tmp_path / "out").verify().proven


def test_a_standing_shard_with_a_value_that_is_not_finite_in_any_stream_is_replaced(
    folder: Path, streamed_path: Path, exact: Path, tmp_path: Path
) -> None:
    shutil.copytree(exact, tmp_path / "out")
    config = configured(folder, tmp_path / "out", streamed_path)
    samples, data = (sorted((tmp_path / "out" / name).iterdir())[0] for name in ("samples", "data"))
    row, good = pq.read_table(samples).to_pylist()[1], data.read_bytes()
    bad = bytearray(good)
    at = row["offset"] + 4 * (STREAMS * WIDTH + 3)
    bad[at : at + 4] = np.float32("nan").tobytes()
    data.write_bytes(bytes(bad))
    report = Verifier(tmp_path / "out").verify()
    assert any("its tokens are not finite" in problem for problem in report.problems), report.problems
    samples.unlink()
    assert run_here(config).complete
    assert data.read_bytes() == good


def test_the_card_says_how_a_row_is_split(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (output / "README.md").read_text(encoding="utf-8")
    assert f"`[main | stream 0 | … | stream {STREAMS - 1}]`, {WIDTH} values a stream" in text
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(output)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["deepstack_embeds"]) == STREAMS
    assert names["image_embeds"].shape == names["deepstack_embeds"][-1].shape
    assert names["image_embeds"].shape[1] == WIDTH


def scales_in(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path, columns=["scale"]).to_pylist()
    return rows


def test_a_plan_counts_the_bytes_of_all_streams(output: Path) -> None:
    """To the byte of what is stored; around it a tar's last record may be a part of what is counted."""
    config = parse_config(json.loads((output / "dataset.json").read_text())["config"])
    request = check_request(config, weights=False)
    tower = request.checkpoint.config
    writing = Writing.of(request.config, tower.width_of("merged"), tower.streams)
    (one,), _ = estimate_plan(Plan(output), [Case(geometry=request.geometry, writing=writing)])
    said, wrote = one.as_dict(writing, Rates()), statistics_of(output)
    assert said["embedding_bytes"] == wrote["embedding_bytes"] > 0
    assert said["deepstack_bytes"] == wrote["deepstack_bytes"] == said["embedding_bytes"] * STREAMS // (1 + STREAMS)
    written = sum(path.stat().st_size for path in (output / "data").iterdir())
    rounded = said["units"] * 10_240 if config.output.format == "webdataset" else 0
    assert said["data_bytes"] == pytest.approx(written, rel=0.05, abs=rounded)
    kind, dtype = config.output.format, config.output.dtype
    scales = [len(row["scale"] or b"") for path in (output / "data").glob("*.parquet") for row in scales_in(path)]
    tokens = said["tokens"] if scales else 0
    assert sum(scales) + tokens * writing.width * VALUE_BYTES[dtype] == tokens * token_bytes(writing.row, dtype)
    assert said[f"{kind}_bytes_by_dtype"][dtype] == said["data_bytes"]


def test_without_them_an_output_is_another_one(folder: Path, streamed_path: Path, exact: Path, tmp_path: Path) -> None:
    alone = configured(folder, tmp_path / "out", streamed_path, deepstack=False)
    assert run_here(alone).complete
    dataset = EmbeddingDataset(tmp_path / "out")
    assert (dataset.streams, dataset.hidden_size) == (0, WIDTH) and "streams" not in first_metadata(tmp_path / "out")
    for ours, theirs in zip(dataset, EmbeddingDataset(exact), strict=True):
        assert "deepstack_embeds" not in ours and torch.equal(ours["image_embeds"], theirs["image_embeds"])
    with pytest.raises(RequestError, match=r"output\.deepstack is True there and False here"):
        run_here(configured(folder, exact, streamed_path, deepstack=False))
    with pytest.raises(RequestError, match=r"was made with output\.deepstack: false"):
        CachedProcessor(None, dataset)


def test_an_output_without_them_is_not_continued_with_them(folder: Path, streamed_path: Path, tmp_path: Path) -> None:
    """Its fingerprint names the field; that of the other run does not."""
    assert run_here(configured(folder, tmp_path / "out", streamed_path, deepstack=False)).complete
    with pytest.raises(RequestError, match=r"output\.deepstack is False there and True here"):
        run_here(configured(folder, tmp_path / "out", streamed_path))


def test_where_there_are_none_nothing_is_left_out(source: Path, model_path: Path, undisturbed: Path) -> None:
    summary = run_here(config_for(source, undisturbed, model_path, output={"deepstack": False}))
    assert summary.complete and not summary.this_run.units


def test_a_carried_name_that_the_shards_have_is_refused(streamed_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "x.png", "streams": "rivers"}) + "\n")
    config = config_for(
        *(tmp_path / "a.jsonl", tmp_path / "out", streamed_path),
        source={"carry": ["streams"]},
        preprocess=dict(STREAMED_PIXELS),
        output={"format": "webdataset"},
    )
    with pytest.raises(RequestError, match=r"source\.carry: streams stands in each KEY\.json already"):
        check_request(config)


def test_a_batch_has_the_streams_of_all_images(exact: Path) -> None:
    dataset = EmbeddingDataset(exact)
    batch = collate([dataset[0], dataset[1]])
    assert len(batch["deepstack_embeds"]) == STREAMS
    for level, tokens in enumerate(batch["deepstack_embeds"]):
        assert torch.equal(tokens, torch.cat([dataset[number]["deepstack_embeds"][level] for number in (0, 1)]))
    assert batch["image_embeds"].shape == batch["deepstack_embeds"][0].shape
    assert batch["key"] == [dataset[0]["key"], dataset[1]["key"]]


def test_the_same_bytes_again(output: Path, folder: Path, streamed_path: Path, tmp_path: Path) -> None:
    config = json.loads((output / "dataset.json").read_text())["config"]["output"]
    fields = {"format": config["format"], "dtype": config["dtype"]}
    assert run_here(configured(folder, tmp_path / "again", streamed_path, **fields)).complete
    assert files_of(output / "data") == files_of(tmp_path / "again" / "data")
    assert all(path.suffix == f".{SUFFIXES[config['format']]}" for path in (output / "data").iterdir())
