"""Cross-encoders against sentence-transformers' CrossEncoder and FlagEmbedding's FlagReranker."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from FlagEmbedding import FlagReranker
from sentence_transformers import CrossEncoder

from sie_core import Item, LocalClient

QUERY = "how many people live in berlin"
TEXTS = [
    "berlin museum of the river",
    "the population of the city is one of many",
    "",
    "a band and a film director " * 30,  # longer than the model reads
    "中文 😀 naïve",
    "paris is the capital of france",
]
PLAIN_TEXTS = [text for text in TEXTS if text and text.isascii()]


def scores(folder: Path, score_space: str | None = None) -> list[float]:
    """Score every text in float32, in the order sent."""
    options = {} if score_space is None else {"score_space": score_space}
    client = LocalClient(mode="exact", device="cpu")
    items = [Item(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    result = client.score(str(folder), Item(text=QUERY), items, options=options)
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [found[str(i)] for i in range(len(TEXTS))]


def expected(folder: Path) -> list[float]:
    """Score with the authors' class as their model cards do, by its own defaults."""
    model = CrossEncoder(str(folder), device="cpu")
    found = model.predict([(QUERY, text) for text in TEXTS], batch_size=4)
    return [float(score) for score in found]


def set_in_config(folder: Path, **values: object) -> None:
    """Put values into a checkpoint's config.json; None takes the key out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    kept = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(kept))


@pytest.mark.parametrize(
    "activation",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
        {},
    ],
)
def test_ms_marco(make_tiny_bert: Callable[..., Path], activation: dict[str, object]) -> None:
    """BERT, as the ms-marco models spell their activation now and did before, and without."""
    folder = make_tiny_bert()
    set_in_config(folder, **activation)
    assert scores(folder) == pytest.approx(expected(folder), abs=1e-4)


def test_tiny_bert(make_tiny_bert: Callable[..., Path]) -> None:
    """TinyBERT differs from MiniLM in its sizes alone: here, one layer."""
    folder = make_tiny_bert(num_hidden_layers=1, activation="torch.nn.modules.linear.Identity")
    assert scores(folder) == pytest.approx(expected(folder), abs=1e-4)


def test_bge(tiny_xlmr: Path) -> None:
    """XLM-RoBERTa with nothing said about an activation: a sigmoid."""
    assert scores(tiny_xlmr) == pytest.approx(expected(tiny_xlmr), abs=1e-4)


@pytest.mark.parametrize(("normalize", "score_space"), [(False, "raw"), (True, "probability")])
def test_bge_by_its_authors(tiny_xlmr: Path, normalize: bool, score_space: str) -> None:
    """FlagReranker's raw scores and its normalised ones.

    Under transformers 5 it decodes ids and tokenises again, which changes unknown characters, and
    sends an empty document as no document: texts with neither.
    """
    model = FlagReranker(str(tiny_xlmr), use_fp16=False, devices="cpu", max_length=128)
    theirs = model.compute_score([(QUERY, text) for text in PLAIN_TEXTS], normalize=normalize)
    ours = dict(zip(TEXTS, scores(tiny_xlmr, score_space), strict=True))
    assert [ours[text] for text in PLAIN_TEXTS] == pytest.approx(list(theirs), abs=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_gte(make_tiny_modernbert: Callable[..., Path], pooling: str) -> None:
    """ModernBERT, with either of its poolings."""
    folder = make_tiny_modernbert(classifier_pooling=pooling)
    assert scores(folder) == pytest.approx(expected(folder), abs=1e-4)


def test_the_checkpoints_tell_scores_apart(tiny_bert: Path, tiny_xlmr: Path) -> None:
    """Agreement means something: random weights give scores that lie far apart."""
    for folder in (tiny_bert, tiny_xlmr):
        assert np.ptp(scores(folder, "raw")) > 0.1
