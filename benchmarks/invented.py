"""Models and texts made from nothing, for machines that reach neither weights nor data.

Words are made of syllables and drawn as often as words are (Zipf's law); three in four are one
token, the others several. Each family gets the kind of tokenizer that it is published with:
WordPiece for BERT, Unigram for XLM-RoBERTa, byte-level BPE for ModernBERT.
"""

from __future__ import annotations

import itertools
import random
import shutil
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from workload import NUM_QUERY_WORDS, Corpus

NUM_WORDS = 20_000
"""Different words in the texts that are one token."""

MAX_SUFFIXES = 3
NUM_QUESTIONS, PASSAGES_EACH, WORDS_PER_PASSAGE = 100, 10, 60
MULTI_TOKEN_SHARE = 0.25

_ONSETS = ("", *"bcdfghjklmnprstvwz", "br", "ch", "cl", "cr", "dr", "fl", "gr", "pl", "sh", "st")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io", "ou")
_CODAS = ("", "l", "m", "n", "r", "s", "t", "nd", "st")
_SUFFIXES = ("ab", "eb", "ib", "ob", "ub", "ac", "ec", "ic", "oc", "uc")


@dataclass(frozen=True, slots=True)
class InventedQuestion:
    """What `Corpus` reads of a question."""

    text: str
    passages: tuple[str, ...]


def words() -> Iterator[str]:
    """Yield different words, endlessly; the same ones each time."""
    syllables = ["".join(parts) for parts in itertools.product(_ONSETS, _VOWELS, _CODAS)]
    random.Random(7).shuffle(syllables)
    for length in itertools.count(1):
        for parts in itertools.product(syllables, repeat=length):
            # None ends as a suffix does, so that words and suffixes are never mistaken.
            if not (word := "".join(parts)).endswith(("b", "c")):
                yield word


def questions(*, seed: int = 3, num_words: int = NUM_WORDS) -> list[InventedQuestion]:
    """Make questions with passages."""
    rng = random.Random(seed)
    vocabulary = list(itertools.islice(words(), num_words))
    rng.shuffle(vocabulary)
    shares = [1 / (rank + 3) for rank in range(len(vocabulary))]

    def draw(count: int) -> str:
        chosen = rng.choices(vocabulary, shares, k=count)
        for i, word in enumerate(chosen):
            if rng.random() < MULTI_TOKEN_SHARE:
                chosen[i] = word + "".join(rng.choices(_SUFFIXES, k=rng.randint(1, MAX_SUFFIXES)))
        return " ".join(chosen)

    return [
        InventedQuestion(
            draw(NUM_QUERY_WORDS), tuple(draw(WORDS_PER_PASSAGE) for _ in range(PASSAGES_EACH))
        )
        for _ in range(NUM_QUESTIONS)
    ]


def corpus_of(folder: Path, **settings: int) -> Corpus:
    """Return texts whose tokens are counted with a checkpoint's tokenizer."""
    return Corpus(Tokenizer.from_file(str(folder / "tokenizer.json")), questions(**settings))


def make_checkpoint(configuration: Mapping[str, Any], folder: Path, *, seed: int = 5) -> Path:
    """Write a classifier with random weights and its tokenizer to `folder`.

    Args:
        configuration: As in config.json, `model_type` among it.
        folder: Where to; nothing is done where it is complete.
        seed: Of the weights, which are drawn wider than for training, so that the scores of
            different documents differ by more than rounding does.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if (folder / "model.safetensors").exists():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    settings = dict(configuration)
    model_type = settings.pop("model_type")
    config = AutoConfig.for_model(model_type, **settings, num_labels=1, initializer_range=0.05)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
    torch.manual_seed(seed)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(partial)
    write_tokenizer(partial, model_type, config.vocab_size, max_length=_max_length(settings))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _max_length(settings: Mapping[str, Any]) -> int:
    """Return what a model reads: its positions, less those before XLM-RoBERTa's first."""
    positions: int = settings["max_position_embeddings"]
    return positions - positions % 256


def write_tokenizer(folder: Path, model_type: str, vocab_size: int, *, max_length: int) -> None:
    """Write a tokenizer of the family's kind."""
    from transformers import PreTrainedTokenizerFast

    tokenizer, names = _MAKERS[model_type](vocab_size)
    has_types = model_type == "bert"
    inputs = ["input_ids", *["token_type_ids"] * has_types, "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, model_input_names=inputs, **names
    ).save_pretrained(folder)


_Made = tuple[Tokenizer, dict[str, str]]
_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation
_BERT_NAMES = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
_ROBERTA_NAMES = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}


def _filled(pieces: list[str], vocab_size: int, *, before: str = "") -> list[str]:
    """Add words to the pieces until there are `vocab_size`."""
    distinct = dict.fromkeys(pieces)
    for word in words():
        if len(distinct) >= vocab_size:
            break
        distinct[before + word] = None
    return list(distinct)[:vocab_size]


def _make_wordpiece(vocab_size: int) -> _Made:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_CHARACTERS]
    pieces += [f"##{piece}" for piece in (*_CHARACTERS, *_SUFFIXES)]
    ids = {piece: i for i, piece in enumerate(_filled(pieces, vocab_size))}
    tokenizer = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer, _BERT_NAMES


def _make_unigram(vocab_size: int) -> _Made:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *_SUFFIXES, "▁", *_CHARACTERS]
    pieces = [*_filled(pieces, vocab_size - 1, before="▁"), "<mask>"]
    scores = [(piece, -10.0 if len(piece) > 1 else -20.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return tokenizer, _ROBERTA_NAMES


def _make_bpe(vocab_size: int) -> _Made:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = list(_BERT_NAMES.values())
    ids = {piece: i for i, piece in enumerate([*special, *alphabet])}
    merges: list[tuple[str, str]] = []
    spelled = [f"Ġ{word}" for word in itertools.islice(words(), NUM_WORDS)]
    for word in (*_SUFFIXES, *spelled):
        # A word grows by one letter at a time, each step one piece and one merge.
        for end in range(2, len(word) + 1):
            piece = word[:end]
            if piece not in ids and len(ids) < vocab_size:
                ids[piece] = len(ids)
                merges.append((piece[:-1], piece[-1]))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer, _BERT_NAMES


_MAKERS = {"bert": _make_wordpiece, "xlm-roberta": _make_unigram, "modernbert": _make_bpe}
