"""What importing costs, and what it must not pull in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_HEAVY = ("torch", "transformers", "tokenizers", "huggingface_hub", "httpx")


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import sie_core",
        "from sie_core import Reranker; Reranker()",
        "from sie_core import Embedder; Embedder()",
        "import sie_core.training.finetuning",
        "import sie_langchain; sie_langchain.SIEReranker()",
        "import sie_langchain; sie_langchain.SIEEmbeddings()",
        "import sie_llamaindex; sie_llamaindex.SIENodePostprocessor()",
        "import sie_llamaindex; sie_llamaindex.SIEEmbedding()",
        "import sie_haystack",
    ],
)
def test_importing_and_constructing_needs_no_torch(statement: str) -> None:
    """Torch and transformers are imported at the first use of a model, not before."""
    assert not {"torch", "transformers"} & modules_after(statement)


def test_the_haystack_components_leave_torch_to_haystack() -> None:
    """`import haystack` itself imports torch where it is installed; ours add no engine to that."""
    code = """
import sys
from sie_haystack import SIEDocumentEmbedder, SIERanker, SIETextEmbedder
SIERanker(), SIEDocumentEmbedder(), SIETextEmbedder()
print("sie_core.local" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_importing_the_core_pulls_in_nothing_heavy() -> None:
    """`import sie_core` and its Reranker stay with the standard library."""
    assert not set(_HEAVY) & modules_after("from sie_core import Reranker, Item, SIEError")


def test_files_of_lists_need_no_cluster() -> None:
    """JSONL in one process works without Ray and pyarrow, whose import takes seconds."""
    statement = "import sie_core.distributed.rerank_files"
    assert not {"ray", "pyarrow", "torch"} & modules_after(statement)


@pytest.mark.parametrize(
    ("missing", "module"),
    [("ray", "ray_engine"), ("ray", "rerank_dataset"), ("pyarrow", "parquet")],
)
def test_what_a_cluster_needs_is_named_where_it_is_missing(missing: str, module: str) -> None:
    """By the line that installs it."""
    code = f"import sys\nsys.modules[{missing!r}] = None\nimport sie_core.distributed.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr
    assert 'pip install "sie-core[distributed' in done.stderr


def test_the_engine_needs_neither_httpx_nor_msgpack() -> None:
    """A box with torch, transformers, tokenizers, safetensors and numpy can run the engine."""
    statement = (
        "sys.modules['httpx'] = sys.modules['msgpack'] = None\n"
        "from sie_core.local.encoder import PairEncoder\n"
        "from sie_core.local import LocalClient\n"
        "del sys.modules['httpx'], sys.modules['msgpack']"
    )
    assert "torch" in modules_after(statement)


def test_scoring_imports_no_transformers(tiny_bert: Path) -> None:
    """The forward passes are our own; transformers' modules would cost seconds of start-up."""
    statement = (
        "from sie_core.local import LocalClient\n"
        f"LocalClient().score({str(tiny_bert)!r}, {{'text': 'q'}}, [{{'text': 'd'}}])"
    )
    modules = modules_after(statement)
    assert "torch" in modules
    assert not {"transformers", "huggingface_hub", "sentence_transformers"} & modules


def test_a_missing_engine_names_the_install_command() -> None:
    """Without torch, the first in-process call says what to install, as one of our errors."""
    code = """
import sys
sys.modules["torch"] = None
from sie_core import Reranker, SIEError
try:
    Reranker().rerank("q", ["d"])
except SIEError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "MissingDependencyError" in done.stdout
    assert "pip install 'sie-core[local]'" in done.stdout


def test_exports_are_listed_and_unknown_names_are_attribute_errors() -> None:
    """Every name of `__all__` resolves, `dir` lists them, and a typo is an AttributeError."""
    import sie_core

    for name in sie_core.__all__:
        assert getattr(sie_core, name) is not None
    assert "Reranker" in dir(sie_core)
    with pytest.raises(AttributeError, match="no attribute 'Rerankr'"):
        _ = sie_core.Rerankr
