"""Tiny checkpoints with random weights, and what every test may need."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

# Forked children of tests would print the tokenizers library's warning otherwise.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test may reach for the hub; the ones about the hub set their own endpoint.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "for",
    "on",
    "as",
    "with",
    "by",
    "that",
    "from",
    "at",
    "it",
    "an",
    "be",
    "are",
    "this",
    "which",
    "or",
    "has",
    "have",
    "had",
    "not",
    "but",
    "they",
    "he",
    "she",
    "his",
    "her",
    "its",
    "one",
    "two",
    "first",
    "new",
    "city",
    "population",
    "people",
    "berlin",
    "museum",
    "river",
    "capital",
    "many",
    "live",
    "how",
    "where",
    "who",
    "what",
    "when",
    "why",
    "born",
    "film",
    "director",
    "american",
    "british",
    "band",
    "album",
    "song",
    "year",
    "python",
    "language",
    "weather",
    "sunny",
    "banana",
    "yellow",
    "fruit",
    "programming",
    "tower",
    "tall",
    "eiffel",
    "paris",
    "france",
]
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + "äöüßéñ中文日本語😀🚀"


@pytest.fixture(autouse=True)
def _no_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's own SIE_BASE_URL out of the tests."""
    monkeypatch.delenv("SIE_BASE_URL", raising=False)
    monkeypatch.delenv("SIE_API_KEY", raising=False)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT cross-encoder with random weights whose configuration asks for raw logits."""
    return make_bert(
        tmp_path_factory.mktemp("checkpoints") / "tiny-bert",
        activation="torch.nn.modules.linear.Identity",
    )


@pytest.fixture(scope="session")
def tiny_bert_two_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT cross-encoder with two labels, as older rerankers have."""
    return make_bert(tmp_path_factory.mktemp("checkpoints") / "tiny-bert-two", num_labels=2)


@pytest.fixture(scope="session")
def tiny_xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XLM-RoBERTa cross-encoder with random weights and no activation in its configuration."""
    return make_xlmr(tmp_path_factory.mktemp("checkpoints") / "tiny-xlmr")


@pytest.fixture
def released() -> Iterator[None]:
    """Begin and end with no model loaded in this process."""
    from sie_core.local import release

    release()
    yield
    release()


def make_bert(
    folder: Path,
    *,
    num_labels: int = 1,
    activation: str | None = None,
    num_hidden_layers: int = 2,
) -> Path:
    """Write a tiny BERT classifier and its WordPiece tokenizer to `folder`."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_WORDS, *_CHARACTERS]
    vocab += [f"##{character}" for character in _CHARACTERS]
    tokens = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=num_labels,
        initializer_range=0.5,  # large, so that random scores differ clearly
    )
    if activation is not None:
        config.sentence_transformers = {"activation_fn": activation}
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(vocab=tokens, model_max_length=128).save_pretrained(folder)
    return folder


def make_xlmr(folder: Path, *, num_labels: int = 1) -> Path:
    """Write a tiny XLM-RoBERTa classifier and its Unigram tokenizer to `folder`."""
    import torch
    from transformers import (
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
        XLMRobertaTokenizer,
    )

    pieces = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces += [f"▁{word}" for word in _WORDS] + ["▁", *_CHARACTERS]
    vocab = [(piece, 0.0 if i < 4 else -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))]
    vocab.append(("<mask>", 0.0))
    torch.manual_seed(11)
    config = XLMRobertaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
        type_vocab_size=1,
        num_labels=num_labels,
        initializer_range=0.5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    XLMRobertaTokenizer(vocab=vocab, model_max_length=128).save_pretrained(folder)
    return folder
