"""Models that load at their first use, fail, leave, and are none of a stranger's business."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from sie_core.errors import InvalidRequestError, ModelNotFoundError, UnsupportedModelError
from sie_core.local import LocalClient
from sie_core.server.settings import ModelSettings, ServerSettings
from sie_core.server.shelf import Shelf, is_hub_name

BODY = {"query": {"text": "river"}, "items": [{"text": "the river"}, {"text": "a banana"}]}
TIMEOUT_SECONDS = 30


class SlowLoading(LocalClient):
    """A client whose loads wait for leave."""

    def __init__(self) -> None:
        super().__init__(mode="exact")
        self.may_load = threading.Event()
        self.num_loads = 0

    def warm_up(self, model: str, *, timeout_seconds: float | None = None) -> None:
        self.num_loads += 1
        assert self.may_load.wait(TIMEOUT_SECONDS)
        super().warm_up(model, timeout_seconds=timeout_seconds)


def score(url: str, model: str, **body: Any) -> httpx.Response:
    """Ask for scores as JSON."""
    headers = {"Accept": "application/json"}
    return httpx.post(f"{url}/v1/score/{model}", json=BODY | body, headers=headers, timeout=30)


def lazily(name: str, folder: Path) -> tuple[ModelSettings, ...]:
    """Settings of one model that is loaded at its first use."""
    return (ModelSettings(name=name, source=str(folder), preload=False),)


def unsupported(folder: Path, base: Path) -> Path:
    """Copy a checkpoint, and let it say that it is of a kind that does not run here."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_cold_model_is_loading_and_then_there(serve: Callable[..., Any], cold_bert: Path) -> None:
    """The first call is told to come back, when, and finds it then; one load serves all."""
    client = SlowLoading()
    url = serve(models=lazily("m", cold_bert), client=client).url
    assert httpx.get(f"{url}/v1/models/m").json()["state"] == "unloaded"
    first, second = score(url, "m"), score(url, "m")
    for reply in (first, second):
        assert reply.status_code == 503
        assert reply.json()["detail"]["code"] == "MODEL_LOADING"
        assert reply.headers["content-type"] == "application/json"
        assert 1 <= int(reply.headers["retry-after"]) <= 10
    assert httpx.get(f"{url}/v1/models/m").json()["state"] == "loading"
    client.may_load.set()
    for _ in range(10 * TIMEOUT_SECONDS):
        if (reply := score(url, "m")).status_code == 200:
            break
        threading.Event().wait(0.1)
    assert reply.status_code == 200
    assert client.num_loads == 1
    assert httpx.get(f"{url}/v1/models/m").json()["state"] == "loaded"


async def test_a_call_waits_for_the_load_at_the_start(cold_bert: Path) -> None:
    """It is under way, and is not begun a second time."""
    client = SlowLoading()
    models = (ModelSettings(name="m", source=str(cold_bert)),)
    settings = ServerSettings(models=models, wait_for_load_seconds=TIMEOUT_SECONDS)
    shelf = Shelf(settings, client)
    model = shelf.find("m")
    preloading = asyncio.create_task(shelf.preload())
    await asyncio.sleep(0)
    assert shelf.state(model) == "loading"
    call = asyncio.create_task(shelf.ready(model))
    await asyncio.sleep(0)
    client.may_load.set()
    await asyncio.gather(preloading, call)
    assert (shelf.state(model), client.num_loads, model.num_loads) == ("loaded", 1, 1)


def test_a_call_may_wait_for_its_model(serve: Callable[..., Any], cold_bert: Path) -> None:
    """With time to wait, the first call is answered."""
    url = serve(models=lazily("m", cold_bert), wait_for_load_seconds=TIMEOUT_SECONDS).url
    assert score(url, "m").status_code == 200


def test_the_second_wait_is_told_by_the_first_load(
    serve: Callable[..., Any], cold_bert: Path, cold_xlmr: Path
) -> None:
    """Retry-After follows what loading took here, not a constant."""
    client = SlowLoading()
    client.may_load.set()
    models = (
        *lazily("first", cold_bert),
        *lazily("second", cold_xlmr),
    )
    url = serve(models=models, client=client, wait_for_load_seconds=0.0).url
    for _ in range(10 * TIMEOUT_SECONDS):
        if score(url, "first").status_code == 200:
            break
        threading.Event().wait(0.1)
    client.may_load.clear()
    reply = score(url, "second")
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) == 1  # a tiny model loads within a second
    client.may_load.set()


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again(
    serve: Callable[..., Any], tiny_bert: Path, tmp_path: Path
) -> None:
    """502 with the reason and the number of tries; mended files are found after the rest."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny_bert, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"nonsense")
    url = serve(
        models=lazily("m", folder), wait_for_load_seconds=30.0, retry_failed_load_seconds=0.0
    ).url
    for attempts in (1, 2):
        reply = score(url, "m")
        assert reply.status_code == 502
        detail = reply.json()["detail"]
        assert detail["code"] == "MODEL_LOAD_FAILED"
        assert detail["attempts"] == attempts
        assert detail["permanent"] is False
        assert str(tmp_path) not in reply.text
    described = httpx.get(f"{url}/v1/models/m").json()
    assert described["state"] == "failed"
    assert str(tmp_path) not in described["last_error"]
    (folder / "model.safetensors").write_bytes(weights)
    assert score(url, "m").status_code == 200


def test_a_failed_load_is_left_alone_for_a_while(
    serve: Callable[..., Any], tiny_bert: Path, tmp_path: Path
) -> None:
    """Callers do not make the server try a broken model over and over."""
    client = SlowLoading()
    client.may_load.set()
    folder = unsupported(tmp_path / "llama", tiny_bert)
    url = serve(models=lazily("m", folder), client=client, wait_for_load_seconds=30.0).url
    replies = [score(url, "m") for _ in range(3)]
    assert [reply.json()["detail"]["code"] for reply in replies] == ["MODEL_LOAD_FAILED"] * 3
    assert client.num_loads == 1
    assert replies[0].json()["detail"]["permanent"] is True


def test_a_server_whose_models_cannot_be_loaded_does_not_start(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """What was named at the start is there, or the server ends with the reason."""
    from sie_core.server.run import Server

    folder = unsupported(tmp_path / "llama", tiny_bert)
    settings = ServerSettings(models=(ModelSettings(name="m", source=str(folder)),))
    with pytest.raises(UnsupportedModelError):
        Server(settings, port=0, client=LocalClient()).run()


def test_strangers_cannot_make_it_load_what_it_does_not_serve(
    serve: Callable[..., Any], tiny_bert: Path
) -> None:
    """Other models, folders of this machine, and other adapters are not found."""
    url = serve(models=(ModelSettings(name="m", source=str(tiny_bert)),)).url
    for name in ("other/model", str(tiny_bert), "%2e%2e%2fm", "~"):
        reply = score(url, name)
        assert reply.status_code == 404, name
        assert reply.json()["detail"]["code"] == "MODEL_NOT_FOUND"
    reply = score(url, "m", options={"lora": str(tiny_bert)})
    assert reply.status_code == 400
    assert reply.json()["detail"]["code"] == "INVALID_INPUT"


def test_any_model_means_any_of_the_hub_and_no_folder(tiny_bert: Path) -> None:
    """A name that leads to files of this machine is refused, whatever is allowed."""
    shelf = Shelf(ServerSettings(allow_any_model=True), LocalClient())
    assert shelf.find("some/model").settings.origin == "some/model"
    for name in (str(tiny_bert), "../etc", "/etc", "a/b/c", "~", ".", "", "tests"):
        with pytest.raises(ModelNotFoundError):
            shelf.find(name)
    assert not is_hub_name("a b")


def test_any_model_means_any_adapter_of_the_hub_and_no_folder(tiny_bert: Path) -> None:
    """As for models: an adapter that lies on this machine must be listed."""
    shelf = Shelf(ServerSettings(allow_any_model=True), LocalClient())
    model = shelf.find("some/model")
    assert shelf.adapter(model, "some/adapter") == "some/adapter"
    for name in (str(tiny_bert), "../etc", "tests", "", None):
        with pytest.raises(InvalidRequestError, match="has no adapter"):
            shelf.adapter(model, name)


def test_a_model_leaves_for_another(
    serve: Callable[..., Any], cold_bert: Path, cold_xlmr: Path
) -> None:
    """Within a limit, the one that was not used for longest is unloaded, and comes back."""
    client = LocalClient(mode="exact", max_loaded_models=1)
    models = (*lazily("a", cold_bert), *lazily("b", cold_xlmr))
    url = serve(models=models, client=client, wait_for_load_seconds=30.0).url
    for name, other in (("a", "b"), ("b", "a"), ("a", "b")):
        assert score(url, name).status_code == 200
        states = {m["name"]: m["state"] for m in httpx.get(f"{url}/v1/models").json()["models"]}
        assert states == {name: "loaded", other: "unloaded"}


def test_a_near_name_is_suggested(serve: Callable[..., Any], tiny_bert: Path) -> None:
    """A typo is told what it may have meant."""
    url = serve(models=(ModelSettings(name="test/tiny-bert", source=str(tiny_bert)),)).url
    message = score(url, "test/tiny-bort").json()["detail"]["message"]
    assert "Did you mean 'test/tiny-bert'?" in message
