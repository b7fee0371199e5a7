"""What is scored has the lengths that it is said to have, and is fresh in every round."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from workload import Corpus


def test_mixed_lengths_are_log_normal_with_two_long_ones() -> None:
    """Median 80 and a tail to 400, beside two documents that no model here reads to the end."""
    from workload import mixed_lengths

    for seed in range(20):
        lengths = mixed_lengths(random.Random(seed), 100)
        long = [length for length in lengths if length > 400]
        assert len(lengths) == 100
        assert len(long) == 2
        assert min(long) > 512
        assert statistics.median(lengths) == pytest.approx(80, rel=0.06)
        assert 8 <= min(lengths) < 14
        assert max(length for length in lengths if length <= 400) > 350


def test_rounds_differ_in_lengths_but_not_in_work() -> None:
    """Times of rounds can be compared, and no round meets only shapes of an earlier one."""
    from workload import mixed_lengths

    draws = [mixed_lengths(random.Random(seed), 100) for seed in range(20)]
    sums = [sum(min(length, 500) for length in lengths) for lengths in draws]
    assert max(sums) < 1.02 * min(sums)
    assert len({tuple(sorted(lengths)) for lengths in draws}) == 20


@pytest.mark.parametrize("shape", ["mixed", "equal"])
def test_documents_have_exactly_their_tokens(
    tiny_corpus: Corpus, tiny_tokenizer: Tokenizer, shape: str
) -> None:
    """Words of too many tokens are left out; pairs are counted as models read them."""
    workload = tiny_corpus.shaped(shape)(3)
    encodings = tiny_tokenizer.encode_batch(workload.documents, add_special_tokens=False)
    assert [len(encoding.ids) for encoding in encodings] == workload.lengths
    pairs = tiny_tokenizer.encode_batch(
        [(workload.query, document) for document in workload.documents]
    )
    assert workload.pair_lengths == [min(len(pair.ids), 512) for pair in pairs]
    assert workload.num_tokens == sum(workload.pair_lengths)
    assert len(workload.query.split()) == 10


def test_equal_documents_have_one_length(tiny_corpus: Corpus) -> None:
    """It is another one in other rounds."""
    draws = [tiny_corpus.equal(number) for number in range(10)]
    assert all(len(set(workload.lengths)) == 1 for workload in draws)
    assert len({workload.lengths[0] for workload in draws}) > 3
    assert all(110 <= workload.lengths[0] <= 130 for workload in draws)


def test_rounds_are_fresh_and_repeatable(tiny_corpus: Corpus) -> None:
    """The same number draws the same texts, any other number none of them."""
    first, again, other = (tiny_corpus.mixed(number).documents for number in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_a_corpus_needs_words_to_fill_up_with(tiny_tokenizer: Tokenizer) -> None:
    """Otherwise no document could be given its exact length."""
    from workload import Corpus

    with pytest.raises(ValueError, match="these 0 questions hold too little text"):
        Corpus(tiny_tokenizer, [])


@pytest.mark.weights
def test_a_checkpoint_has_the_architecture_and_the_tokenizer_of_its_family(tmp_path: Path) -> None:
    """A RoBERTa joins pairs by two separators and has one token type."""
    import numpy as np
    from safetensors.numpy import load_file
    from workload import MODELS, make_checkpoint

    small = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    folder = make_checkpoint(MODELS["bge-reranker-base"] | small, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "xlm-roberta"
    assert config["vocab_size"] == 250_002
    pair = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a river", "a museum")
    assert pair.tokens == ["[CLS]", "a", "river", "[SEP]", "[SEP]", "a", "museum", "[SEP]"]
    assert set(pair.type_ids) == {0}
    weights = load_file(folder / "model.safetensors")
    spread = np.std(weights["classifier.out_proj.weight"])
    assert spread == pytest.approx(0.05, rel=0.5)


@pytest.mark.weights
def test_the_real_corpus_has_the_published_amount_of_work() -> None:
    """A hundred candidates are about 13,850 tokens, whatever the round."""
    from workload import Corpus

    corpus = Corpus.load(num_questions=30)
    for number in range(3):
        assert corpus.mixed(number).num_tokens == pytest.approx(13_850, rel=0.03)
