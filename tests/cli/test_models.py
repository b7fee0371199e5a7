"""`sie models`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sie_core.models.catalog import CATALOG

Run = Callable[..., Any]


def test_the_table_names_every_model(run: Run) -> None:
    """With its licence, and when to choose it."""
    finished = run("models")
    assert finished.exit_code == 0
    shown = " ".join(finished.stdout.split())
    for spec in CATALOG:
        assert spec.name in shown
        assert spec.license in shown


def test_json_has_every_field(run: Run) -> None:
    """For programs."""
    specs = json.loads(run("models", "--json").stdout)
    assert specs == json.loads(json.dumps([dataclasses.asdict(spec) for spec in CATALOG]))


def test_a_kind_can_be_listed_alone(run: Run) -> None:
    """What gives it beside something else is among them."""
    specs = json.loads(run("models", "--kind", "late-interaction", "--json").stdout)
    names = [spec["name"] for spec in specs]
    assert names == [s.name for s in CATALOG if "late-interaction" in (s.kind, *s.also)]
    assert "BAAI/bge-m3" in names
    shown = run("models", "--kind", "causal-reranker").stdout
    assert "Causal-LM rerankers" in shown
    assert "Cross-encoders" not in shown


def test_the_page_in_docs_is_what_the_catalogue_says(run: Run) -> None:
    """`sie models --markdown > docs/models.md` brings it up to date."""
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert page.read_text(encoding="utf-8") == run("models", "--markdown").stdout


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Neither the hub's cache nor ours holds anything."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SIE_CACHE_DIR", str(tmp_path / "sie"))
    return tmp_path


@pytest.mark.usefixtures("empty_caches")
def test_one_model_of_the_catalogue_is_told_about(run: Run) -> None:
    """In an older spelling too, and without any request: it is not here."""
    facts = json.loads(run("models", "cross-encoder/ms-marco-MiniLM-L-12-v2", "--json").stdout)
    assert facts["name"] == "cross-encoder/ms-marco-MiniLM-L12-v2"
    assert facts["here"].startswith("not on this machine; `sie fetch cross-encoder/ms-marco")
    shown = " ".join(run("models", "jinaai/jina-colbert-v2").stdout.split())
    assert "is non commercial yes" in shown
    assert "max query length 32" in shown


def test_a_model_in_the_hubs_cache_is_found_there(
    run: Run, empty_caches: Path, tiny_bert: Path
) -> None:
    """With what its files hold."""
    cached = empty_caches / "hub" / "models--cross-encoder--ms-marco-MiniLM-L6-v2"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    shutil.copytree(tiny_bert, cached / "snapshots" / "abc")
    facts = json.loads(run("models", "cross-encoder/ms-marco-MiniLM-L6-v2", "--json").stdout)
    assert facts["here"].endswith("abc (hub cache)")
    assert facts["files"]["kind"] == "cross-encoder"


@pytest.mark.usefixtures("empty_caches")
def test_a_name_that_nobody_knows_is_an_error(run: Run) -> None:
    """With the names that may have been meant."""
    finished = run("models", "BAAI/bge-reranker-bse")
    assert finished.exit_code == 1
    assert "Did you mean BAAI/bge-reranker-base" in finished.stderr


def test_a_folder_is_told_about(run: Run, tiny_bert: Path) -> None:
    """What it is recognised as, its shape, and its size as counted from the weights' header."""
    from safetensors.torch import load_file

    facts = json.loads(run("models", str(tiny_bert), "--json").stdout)
    tensors = load_file(tiny_bert / "model.safetensors").values()
    assert facts["files"]["kind"] == "cross-encoder"
    assert facts["files"]["num_parameters"] == sum(tensor.numel() for tensor in tensors)
    assert facts["files"]["dtypes"] == ["F32"]
    assert facts["files"]["shape"]["layers"] == 2
    assert "layers 2" in " ".join(run("models", str(tiny_bert)).stdout.split())


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        (("config.json", b'{"architectures": ["T5ForConditionalGeneration"]}'), "as monoT5 is"),
        (("model.safetensors", b"short"), "no safetensors file that can be read"),
        (("model.safetensors", b"\x08" + b"\0" * 7 + b"not json"), "no safetensors file"),
    ],
)
def test_a_folder_that_does_not_run_here_is_refused_with_the_reason(
    run: Run, tiny_bert: Path, tmp_path: Path, file: tuple[str, bytes], complaint: str
) -> None:
    """Exit code 1, and one line."""
    folder = shutil.copytree(tiny_bert, tmp_path / "other")
    name, content = file
    (folder / name).write_bytes(content)
    finished = run("models", str(folder))
    assert finished.exit_code == 1
    assert complaint in finished.stderr


def test_the_version_is_the_librarys(run: Run) -> None:
    """`sie --version` needs no subcommand."""
    import sie_core

    assert run("--version").stdout == f"sie {sie_core.__version__}\n"
