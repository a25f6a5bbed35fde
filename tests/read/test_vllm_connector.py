"""vLLM's encoder cache from an output, as its scheduler and workers ask it. Catches: tokens of another image, streams
in another order, a prompt of another grid that gets them all the same, a miss that is claimed.

Against vLLM's own base classes where it is installed (`make vllm`), which then loads the connector by its factory, too.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from conftest import STREAMED_PIXELS, config_for, encoded, make_tar, noise, run_here
from vllm_interface import BASE as BASE_NAME
from vllm_interface import REAL, importable

from pipeline import EmbeddingDataset
from pipeline.errors import RequestError
from pipeline.read.items import rows_of

with importable():
    BASE = importlib.import_module(BASE_NAME)
    from pipeline.read import vllm_connector

Role = BASE.ECConnectorRole
PICTURE, TWIN = encoded(noise(90, 130, 3)), encoded(noise(64, 64, 5))
WIDTH, STREAMS = 40, 2


@pytest.fixture(autouse=True, scope="module")
def vllm() -> Iterator[None]:
    with importable():
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, streamed_path: Path) -> Path:
    """Rows [main | stream 0 | stream 1]; `b` stands in two tars, and two files have the same bytes."""
    folder = tmp_path_factory.mktemp("served")
    make_tar(folder / "in" / "x.tar", [("a.png", PICTURE), ("b.png", TWIN), ("sub/c.png", encoded(noise(70, 99, 1)))])
    make_tar(folder / "in" / "y.tar", [("b.png", TWIN)])
    config = config_for(folder / "in" / "{x,y}.tar", folder / "out", streamed_path, preprocess=STREAMED_PIXELS)
    assert run_here(config).complete
    return folder / "out"


@pytest.fixture(scope="module")
def dataset(output: Path) -> EmbeddingDataset:
    return EmbeddingDataset(output)


def config_of(output: object, streams: int = STREAMS, role: str = "ec_consumer", **extra: Any) -> Any:
    """As much of vLLM's configuration as a connector reads."""
    vision = SimpleNamespace(deepstack_visual_indexes=list(range(streams)))
    transfer = SimpleNamespace(
        ec_connector="VisionbakeConnector",
        ec_connector_module_path="visionbake.read.vllm_connector" if REAL else "",
        ec_connector_extra_config={"output": str(output)} | extra,
        engine_id="engine",
        is_ec_producer=role != "ec_consumer",
        is_ec_consumer=role != "ec_producer",
    )
    model = SimpleNamespace(
        hf_config=SimpleNamespace(vision_config=vision), dtype=torch.bfloat16, get_inputs_embeds_size=lambda: WIDTH
    )
    return SimpleNamespace(ec_transfer_config=transfer, model_config=model)


def connector(output: object, role: Any, **options: Any) -> Any:
    return vllm_connector.VisionbakeConnector(config_of(output, **options), role)


@pytest.fixture
def scheduler(output: Path) -> Any:
    return connector(output, Role.SCHEDULER)


@pytest.fixture
def worker(output: Path) -> Iterator[Any]:
    made = connector(output, Role.WORKER)
    yield made
    made.shutdown()


def request_of(*items: tuple[str, int, dict[str, Any] | None], modality: str = "image") -> Any:
    """A request: of each item its identifier, how many tokens its prompt has, and what was prepared for the tower."""
    features = [
        SimpleNamespace(
            identifier=name, modality=modality, data=None if data is None else SimpleNamespace(get_data=data.copy)
        )
        for name, _, data in items
    ]
    return SimpleNamespace(request_id="r", mm_features=features, get_num_encoder_embeds=lambda n: items[n][1])


def asked(dataset: EmbeddingDataset, name: str, row: Any, **data: Any) -> tuple[str, int, dict[str, Any]]:
    item = dataset[row]
    return name, len(item["image_embeds"]), {"image_grid_thw": item["grid_thw"][None]} | data


def step(scheduler: Any, worker: Any, request: Any, cache: dict[str, Any]) -> list[bool]:
    """A step of vLLM: which items the connector has, and their tokens in the workers' cache."""
    assert scheduler.ensure_cache_available(request, 0)
    has = [scheduler.has_cache_item(feature.identifier) for feature in request.mm_features]
    for number, found in enumerate(has):
        if found:
            scheduler.update_state_after_alloc(request, number)
    worker.bind_connector_metadata(scheduler.build_connector_meta(None))
    worker.start_load_caches(cache)
    worker.clear_connector_metadata()
    return has


def test_media_are_served_by_key_source_and_sha256(dataset: EmbeddingDataset, scheduler: Any, worker: Any) -> None:
    names = {"a": "a", "y.tar/b": ("y.tar", "b"), "x.tar/sub/c": ("x.tar", "sub/c"), "sub/c": "sub/c"}
    names |= {hashlib.sha256(PICTURE).hexdigest(): "a", hashlib.sha256(TWIN).hexdigest(): ("x.tar", "b")}
    cache: dict[str, torch.Tensor] = {}
    request = request_of(*(asked(dataset, name, row, pixel_values=1) for name, row in names.items()))
    assert step(scheduler, worker, request, cache) == [True] * len(names)
    assert cache.keys() == names.keys()
    for name, row in names.items():
        assert cache[name].dtype == torch.bfloat16
        assert cache[name].shape[1] == WIDTH * (1 + STREAMS)
        assert torch.equal(cache[name], rows_of(dataset[row]).to(torch.bfloat16)), name


@pytest.mark.parametrize("name", ["b", "no", "z.tar/a", "0" * 64, "lora:a", ""])
def test_what_means_no_row_or_several_is_left_to_the_tower(
    name: str, dataset: EmbeddingDataset, scheduler: Any, worker: Any
) -> None:
    cache: dict[str, torch.Tensor] = {}
    request = request_of((name, 4, {"pixel_values": 1}), asked(dataset, "a", "a", pixel_values=1), (name, 4, None))
    assert step(scheduler, worker, request, cache) == [False, True, False]
    assert list(cache) == ["a"]


def test_a_prompt_of_another_grid_gets_no_row(dataset: EmbeddingDataset, scheduler: Any, worker: Any) -> None:
    """By its tokens, its grid where there is one, its medium; the next request of the same image does."""
    name, tokens, data = asked(dataset, "a", "a", pixel_values=1)
    t, h, w = data["image_grid_thw"][0].tolist()
    turned = data | {"image_grid_thw": torch.tensor([t, w, h])}
    cache: dict[str, torch.Tensor] = {}
    assert (h, w) != (w, h)
    for item in ((name, tokens + 1, data), (name, tokens, turned), (name, tokens + 1, None)):
        assert step(scheduler, worker, request_of(item), cache) == [False], item
    assert step(scheduler, worker, request_of((name, tokens, {"pixel_values_videos": 1}), modality="video"), cache) == [
        False
    ]
    assert step(scheduler, worker, request_of((name, tokens, data)), cache) == [True]
    assert list(cache) == ["a"]


def test_a_grid_alone_is_enough_and_without_its_row_ends_the_request(
    dataset: EmbeddingDataset, scheduler: Any, worker: Any
) -> None:
    cache: dict[str, torch.Tensor] = {}
    assert step(scheduler, worker, request_of(asked(dataset, "a", "a")), cache) == [True]
    assert not scheduler.take_unavailable_requests()
    assert not scheduler.ensure_cache_available(request_of(asked(dataset, "no", "a")), 0)
    assert scheduler.take_unavailable_requests() == {"r"}
    assert not scheduler.take_unavailable_requests()


def test_a_row_is_one_range_and_then_in_memory(
    output: Path, dataset: EmbeddingDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(output), "/vllm", recursive=True)
    scheduler, worker = (connector("memory://vllm", role) for role in (Role.SCHEDULER, Role.WORKER))
    ranges: list[tuple[int, int]] = []
    cat_file = memory.cat_file

    def counted(self: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        ranges.append((start or 0, end or 0))
        return cat_file(path, start, end)

    monkeypatch.setattr(type(memory), "cat_file", counted)
    request = request_of(asked(dataset, "a", "a"), asked(dataset, "sub/c", "sub/c"))
    for _ in range(2):
        cache: dict[str, torch.Tensor] = {}
        assert step(scheduler, worker, request, cache) == [True, True]
        assert torch.equal(cache["sub/c"], rows_of(dataset["sub/c"]).to(torch.bfloat16))
    assert sorted(end - start for start, end in ranges) == sorted(
        rows_of(dataset[key]).nbytes for key in ("a", "sub/c")
    )
    small = connector("memory://vllm", Role.WORKER, host_cache_bytes=1)
    ranges.clear()
    for _ in range(2):
        assert step(scheduler, small, request, {}) == [True, True]
    assert len(ranges) > 2  # one row is kept, however little memory there is
    small.shutdown(), worker.shutdown()


def test_what_cannot_be_served_is_refused(output: Path, tmp_path: Path) -> None:
    refused = {
        "made with another model": {"streams": 0},
        "it is ec_consumer": {"role": "ec_both"},
        "did you mean host_cache_bytes": {"host_cache_byte": 1},
        "is no int": {"host_cache_bytes": "8G"},
        "which output": {"output": None},
    }
    for text, options in refused.items():
        for role in (Role.SCHEDULER, Role.WORKER):
            config = config_of(output, **{name: value for name, value in options.items() if name != "output"})
            if "output" in options:
                del config.ec_transfer_config.ec_connector_extra_config["output"]
            with pytest.raises(RequestError, match=text):
                vllm_connector.VisionbakeConnector(config, role)
    with pytest.raises(RequestError, match="is not an output"):
        connector(tmp_path, Role.WORKER)


@pytest.mark.parametrize("version", ["0.31.0", "0.34.0", "1.0.0", "dev"])
def test_other_versions_are_refused_by_name(version: str) -> None:
    with pytest.raises(RequestError, match=f"vLLM {version}"):
        vllm_connector.check_version(version)
    for supported in ("0.32.0", "0.33.1", "0.33.0+cpu"):
        vllm_connector.check_version(supported)


@pytest.mark.skipif(not REAL, reason="vLLM is not installed: make vllm")
def test_vllms_factory_finds_it(output: Path) -> None:
    from vllm.distributed.ec_transfer.ec_connector.factory import ECConnectorFactory

    made = ECConnectorFactory.create_connector(config_of(output), Role.SCHEDULER)
    assert isinstance(made, BASE.ECConnectorBase)
    assert made.has_cache_item("a")
