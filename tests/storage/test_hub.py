"""The Hub: read afresh, by its own client, and never written to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import config_for
from hub_server import REPOSITORY, HubServer

from pipeline.config import Source
from pipeline.errors import RequestError, StorageBusy
from pipeline.run.request import check_request
from pipeline.source.lister import list_source
from pipeline.source.resolve import resolve_source
from pipeline.storage import remote
from pipeline.storage.files import open_input

URI = f"hf://datasets/{REPOSITORY}"


@pytest.fixture
def server(tmp_path: Path, hub: Callable[[Path], HubServer], monkeypatch: pytest.MonkeyPatch) -> HubServer:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one.png").write_bytes(b"0123456789")
    (tmp_path / "a" / "b" / "two.png").write_bytes(b"two")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return hub(tmp_path)


def test_what_is_there_is_known_as_it_is_now(server: HubServer, tmp_path: Path) -> None:
    before = remote.state_of(f"{URI}/a/one.png")
    assert before[:2] == (10, 0)
    assert before[2]
    assert remote.exists(f"{URI}/a/one.png")
    assert remote.is_folder(f"{URI}/a")
    assert not remote.exists(f"{URI}/a")
    assert not remote.exists(f"{URI}/a/three.png")
    assert [path for path, _ in remote.walk(f"{URI}/a", (".png",))] == ["b/two.png", "one.png"]
    (tmp_path / "a" / "one.png").write_bytes(b"9876543210")  # as long, and of other bytes
    (tmp_path / "a" / "three.png").write_bytes(b"3")
    assert remote.state_of(f"{URI}/a/one.png")[2] != before[2]
    assert remote.exists(f"{URI}/a/three.png")
    assert [path for path, _ in remote.walk(f"{URI}/a", (".png",))] == ["b/two.png", "one.png", "three.png"]
    assert list(remote.glob(f"{URI}/a/*.png")) == [f"{URI}/a/one.png", f"{URI}/a/three.png"]
    assert dict(remote.walk(f"{URI}/a", (".png",)))["one.png"] == remote.state_of(f"{URI}/a/one.png")


def test_a_range_is_one_request(server: HubServer) -> None:
    remote.state_of(f"{URI}/a/one.png")
    server.asked.clear()
    assert remote.read(f"{URI}/a/one.png", 2, 5) == b"234"
    assert remote.read(f"{URI}/a/one.png", 8, 50) == b"89"
    assert remote.read(f"{URI}/a/one.png") == b"0123456789"
    assert server.asked == [f"GET /datasets/{REPOSITORY}/resolve/main/a/one.png"] * 3
    with open_input(f"{URI}/a/one.png", forwards=False) as stream:
        stream.seek(7)
        assert stream.read() == b"789"


@pytest.mark.parametrize("name", ["nothing", "nothing/*.png", "a/*.tar"])
def test_what_is_not_there_is_refused(name: str, server: HubServer) -> None:
    with pytest.raises(RequestError, match=r"does not exist|names no file"):
        list_source(resolve_source(Source(uri=f"{URI}/{name}", format="parquet")))


def test_a_data_set_that_is_not_there_is_refused(server: HubServer) -> None:
    with pytest.raises(RequestError, match="does not exist"):
        resolve_source(Source(uri="hf://datasets/people/none"))


@pytest.mark.parametrize(("status", "kind"), [(503, StorageBusy), (429, StorageBusy), (403, OSError)])
def test_an_answer_that_waiting_may_help_is_busy(status: int, kind: type[OSError], server: HubServer) -> None:
    remote.state_of(f"{URI}/a/one.png")
    server.refuses["/resolve/"] = status
    with pytest.raises(OSError, match=f"{status}") as caught:
        remote.read(f"{URI}/a/one.png", 0, 3)
    assert isinstance(caught.value, StorageBusy) == (kind is StorageBusy)


def test_an_output_is_not_written_there(tmp_path: Path, model_path: Path) -> None:
    config = config_for(tmp_path, tmp_path / "unused", model_path, output={"uri": f"{URI}/out"})
    with pytest.raises(RequestError, match="the Hub is read from, not written to"):
        check_request(config)
