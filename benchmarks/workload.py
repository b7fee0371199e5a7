"""What every benchmark scores: checkpoints of exact architectures, and fresh texts of set lengths.

Speed depends on the shapes and on nothing else in a checkpoint, so those that cannot be had without
a hub have random weights; MiniLM-L12 is the real one. The texts are running text of HotpotQA, cut
so that each has exactly its number of tokens. Each round draws other lengths and other texts: an
engine may keep a compiled kernel for a shape, or a document's tokens, that it has seen before.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from sie_core.models.sources import resolve
from sie_core.settings import DEFAULT_MODEL, SourceSettings

if TYPE_CHECKING:
    from sie_core.evaluation.datasets import Question

CHECKPOINTS = Path(__file__).resolve().parents[1] / ".build" / "checkpoints"
"""Where the random checkpoints are kept."""

REAL_MODEL = "MiniLM-L12"
"""The one whose trained weights are at hand; the others take its tokenizer."""

SMALL_MODEL = "TinyBERT-L2"
"""One that takes a hundredth of the time, where what counts is the number of calls."""

NUM_QUERY_WORDS = 10
MEDIAN_TOKENS, SPREAD = 80, 0.95
"""The log-normal distribution of the documents' lengths."""

SHORTEST, LONGEST = 8, 400
"""Bounds of that distribution."""

LONG_PER_HUNDRED, LONG_TOKENS = 2, (520, 700)
"""Documents that the model cannot read to their end."""

NUM_SPECIAL_TOKENS, MAX_LENGTH = 3, 512
"""Of a pair: [CLS] query [SEP] document [SEP], cut to what the models read."""

EQUAL_TOKENS = (110, 130)
"""The one length of a round of equal documents is drawn from here."""

MODELS: dict[str, dict[str, Any]] = {
    SMALL_MODEL: {
        "model_type": "bert",
        "vocab_size": 30_522,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
    "MiniLM-L6": {
        "model_type": "bert",
        "vocab_size": 30_522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    },
    "MiniLM-L12": {
        "model_type": "bert",
        "vocab_size": 30_522,
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    },
    "bge-reranker-base": {
        "model_type": "xlm-roberta",
        "vocab_size": 250_002,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
}
"""The published configurations of cross-encoder/ms-marco-MiniLM-L6-v2, …-L12-v2 and
BAAI/bge-reranker-base."""

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """One query with its candidates.

    Attributes:
        query: The query.
        documents: The candidates.
        lengths: Tokens of each, before truncation and without special ones.
        query_length: Tokens of the query.
    """

    query: str
    documents: list[str]
    lengths: list[int]
    query_length: int

    @property
    def pair_lengths(self) -> list[int]:
        """Count the tokens of each pair as a BERT of 512 positions reads it."""
        others = self.query_length + NUM_SPECIAL_TOKENS
        return [min(length + others, MAX_LENGTH) for length in self.lengths]

    @property
    def num_tokens(self) -> int:
        """Count the tokens of all pairs."""
        return sum(self.pair_lengths)


class Corpus:
    """Running text, from which documents of any number of tokens are cut.

    Args:
        tokenizer: Counts the tokens.
        questions: Queries with their passages.

    Raises:
        ValueError: No question has ten words, or no word is one token.
    """

    def __init__(self, tokenizer: Tokenizer, questions: Sequence[Question]) -> None:
        self._queries = [
            (words[:NUM_QUERY_WORDS], number)
            for number, question in enumerate(questions)
            if len(words := question.text.split()) >= NUM_QUERY_WORDS
        ]
        self._words: list[str] = []
        self._passages_at: list[list[int]] = []
        for question in questions:
            self._passages_at.append([])
            for passage in question.passages:
                self._passages_at[-1].append(len(self._words))
                self._words += passage.split()
        distinct = sorted({*self._words, *(word for words, _ in self._queries for word in words)})
        encodings = tokenizer.encode_batch(distinct, add_special_tokens=False)
        self._tokens_of = {
            word: len(encoding.ids) for word, encoding in zip(distinct, encodings, strict=True)
        }
        if not self._queries or 1 not in (self._tokens_of[word] for word in self._words):
            msg = f"these {len(questions)} questions hold too little text to draw from"
            raise ValueError(msg)

    @classmethod
    def load(cls, *, num_questions: int = 400, seed: int = 1) -> Corpus:
        """Read HotpotQA, and the default model's tokenizer to count with."""
        # Here, so that machines without the data set's dependencies can draw from other texts.
        from sie_core.evaluation.datasets import load_hotpotqa

        tokenizer = Tokenizer.from_file(str(real_model_folder() / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, load_hotpotqa(num_questions, seed=seed))

    def mixed(self, round_number: int, num_documents: int = 100) -> Workload:
        """Draw documents of log-normal length, two in a hundred longer than the model reads."""
        rng = random.Random(f"mixed {num_documents} {round_number}")
        return self._draw(mixed_lengths(rng, num_documents), rng)

    def equal(self, round_number: int, num_documents: int = 100) -> Workload:
        """Draw documents that are all of one length."""
        rng = random.Random(f"equal {num_documents} {round_number}")
        return self._draw([rng.randint(*EQUAL_TOKENS)] * num_documents, rng)

    def shaped(self, name: str) -> Callable[..., Workload]:
        """Return the method `mixed` or `equal` by its name."""
        return {"mixed": self.mixed, "equal": self.equal}[name]

    def of_lengths(self, lengths: Sequence[int], seed: object) -> Workload:
        """Draw documents of the lengths given."""
        return self._draw(lengths, random.Random(f"lengths {seed}"))

    def _draw(self, lengths: Sequence[int], rng: random.Random) -> Workload:
        query, number = rng.choice(self._queries)
        query_length = sum(self._tokens_of[word] for word in query)
        starts = self._passages_at[number][: len(lengths)]
        starts += [rng.randrange(len(self._words)) for _ in range(len(lengths) - len(starts))]
        documents = [
            self._cut(start, length) for start, length in zip(starts, lengths, strict=True)
        ]
        return Workload(" ".join(query), documents, list(lengths), query_length)

    def _cut(self, start: int, num_tokens: int) -> str:
        """Take words from `start` on; a word that would be too many tokens is left out."""
        words: list[str] = []
        position = start
        while num_tokens:
            word = self._words[position % len(self._words)]
            if self._tokens_of[word] <= num_tokens:
                words.append(word)
                num_tokens -= self._tokens_of[word]
            position += 1
        return " ".join(words)


def mixed_lengths(rng: random.Random, num_documents: int) -> list[int]:
    """Draw lengths in tokens; every draw has nearly the same sum, so that rounds compare.

    The distribution is cut into as many parts of equal probability as there are documents, and one
    length is drawn from each.
    """
    num_long = num_documents * LONG_PER_HUNDRED // 100
    num_short = num_documents - num_long
    normal = statistics.NormalDist()
    lengths = [rng.randint(*LONG_TOKENS) for _ in range(num_long)]
    for i in range(num_short):
        quantile = (i + rng.uniform(0.01, 0.99)) / num_short
        length = round(MEDIAN_TOKENS * math.exp(SPREAD * normal.inv_cdf(quantile)))
        lengths.append(min(max(length, SHORTEST), LONGEST))
    rng.shuffle(lengths)
    return lengths


def real_model_folder() -> Path:
    """Return the folder of MiniLM-L12 with its trained weights, fetched if need be."""
    return resolve(DEFAULT_MODEL, SourceSettings()).folder


def checkpoint(name: str) -> Path:
    """Return the folder of a model of `MODELS`, made the first time."""
    if name == REAL_MODEL:
        return real_model_folder()
    folder = CHECKPOINTS / name
    if not (folder / "model.safetensors").exists():
        make_checkpoint(MODELS[name], folder)
    return folder


def make_checkpoint(configuration: dict[str, Any], folder: Path, *, seed: int = 5) -> Path:
    """Write a classifier with random weights to `folder`, with the default model's tokenizer.

    The scores are raw logits. The weights are drawn wider than for training, so that the scores
    of different documents differ by more than rounding does.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    source = real_model_folder()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in _TOKENIZER_FILES:
        shutil.copyfile(source / file, partial / file)
    settings = dict(configuration)
    if settings["model_type"] == "xlm-roberta":
        write_roberta_tokenizer(partial)
    config = AutoConfig.for_model(
        settings.pop("model_type"), **settings, num_labels=1, initializer_range=0.05
    )
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def write_roberta_tokenizer(folder: Path) -> None:
    """Rewrite a BERT tokenizer to join pairs as RoBERTa does: one more separator, no types."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    cls, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
    first, second = ({"Sequence": {"id": sequence, "type_id": 0}} for sequence in ("A", "B"))
    tokenizer["post_processor"]["single"] = [cls, first, sep]
    tokenizer["post_processor"]["pair"] = [cls, first, sep, sep, second, sep]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_input_names"] = ["input_ids", "attention_mask"]
    path.write_text(json.dumps(config), encoding="utf-8")
