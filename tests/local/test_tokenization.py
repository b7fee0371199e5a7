"""Pairs put together on ids are the pairs that transformers encodes."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sie_core.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from sie_core.local.tokenization import PairTokenizer, truncate_longest_first

_WORDS = [
    "berlin",
    "population",
    "the",
    "naïve",
    "日本語",
    "😀🚀",
    "don't",
    "A.B.C.",
    "xyzzy",
    "\n",
]


def random_text(generator: random.Random, longest: int) -> str:
    """Make a text of 0 to `longest` words, blanks and odd characters among them."""
    words = [generator.choice(_WORDS) for _ in range(generator.randrange(longest))]
    return generator.choice(["", " ", "\u200b"]) + generator.choice([" ", "  "]).join(words)


def assert_same_as_transformers(
    tokenizer: PairTokenizer, reference: Any, pairs: list[tuple[str, str]], max_length: int
) -> None:
    """Compare ids and type ids of every pair with transformers' own encoding of it."""
    expected = reference(pairs, truncation=True, max_length=max_length)
    types = expected.get("token_type_ids")
    for i, (query, document) in enumerate(pairs):
        query_ids, document_ids = tokenizer.encode([query, document])
        pair = tokenizer.pair(query_ids, document_ids, max_length)
        assert pair.token_ids.tolist() == expected["input_ids"][i], (query, document)
        if types is not None:
            num_second = len(pair.token_ids) - pair.num_first
            assert [0] * pair.num_first + [1] * num_second == types[i], (query, document)


@pytest.fixture(params=["tiny_bert", "tiny_xlmr"])
def tokenizers(request: pytest.FixtureRequest) -> tuple[PairTokenizer, Any]:
    """Our tokenizer and transformers' own, of one checkpoint."""
    from transformers import AutoTokenizer

    folder: Path = request.getfixturevalue(request.param)
    return PairTokenizer.load(folder), AutoTokenizer.from_pretrained(folder)


def test_thousands_of_random_pairs_have_the_ids_of_transformers(
    tokenizers: tuple[PairTokenizer, Any],
) -> None:
    """5,000 pairs at several maximum lengths, long queries, empty texts and emoji among them.

    Texts grow with the maximum length: the reference keeps every piece that it cuts off, so that a
    long pair cut to a few tokens would take it seconds.
    """
    generator = random.Random(20261121)
    for max_length in (8, 9, 31, 64, 128):
        pairs = [
            (
                random_text(generator, max_length // (1 if i % 5 == 0 else 6)),
                random_text(generator, max_length),
            )
            for i in range(1000)
        ]
        assert_same_as_transformers(*tokenizers, pairs, max_length)


@settings(max_examples=150, deadline=None)
@given(query=st.text(max_size=60), document=st.text(max_size=300), max_length=st.integers(6, 128))
def test_any_unicode_pair_has_the_ids_of_transformers(
    tiny_bert: Path, query: str, document: str, max_length: int
) -> None:
    """Control characters, combining marks and unassigned code points included."""
    from transformers import AutoTokenizer

    key = str(tiny_bert)
    if key not in _REFERENCES:
        _REFERENCES[key] = (PairTokenizer.load(tiny_bert), AutoTokenizer.from_pretrained(key))
    assert_same_as_transformers(*_REFERENCES[key], [(query, document)], max_length)


_REFERENCES: dict[str, tuple[PairTokenizer, Any]] = {}


def test_left_truncation_cuts_the_beginning(tiny_bert: Path) -> None:
    """A tokenizer that truncates on the left gives the ids of transformers doing so."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    raw = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    ours = PairTokenizer(raw, truncation_side="left")
    reference = AutoTokenizer.from_pretrained(tiny_bert, truncation_side="left")
    pairs = [("how many people live in berlin", "the museum of berlin is in the city " * 9)]
    assert_same_as_transformers(ours, reference, pairs, 24)


def test_truncation_baked_into_the_tokenizer_file_is_switched_off(tiny_bert: Path) -> None:
    """Files saved with truncation or padding set still give the whole text."""
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=9)
    assert len(PairTokenizer(raw).encode(["berlin " * 50])[0]) == 50


def test_threads_with_different_maximum_lengths_do_not_cut_each_other(tiny_bert: Path) -> None:
    """One shared tokenizer, 16 threads, each with its own maximum: every pair has its length."""
    tokenizer = PairTokenizer.load(tiny_bert)
    wrong: list[tuple[int, int]] = []

    def work(max_length: int) -> None:
        for _ in range(100):
            query_ids, document_ids = tokenizer.encode(["berlin", "museum " * 200])
            length = len(tokenizer.pair(query_ids, document_ids, max_length).token_ids)
            if length != max_length:
                wrong.append((max_length, length))

    threads = [threading.Thread(target=work, args=(10 + 7 * i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 60))
def test_truncation_fills_the_room_and_no_more(query: int, document: int, room: int) -> None:
    """Lengths never grow, never exceed the room, and leave none of it unused without need."""
    kept_query, kept_document = truncate_longest_first(query, document, room)
    assert 0 <= kept_query <= query
    assert 0 <= kept_document <= document
    assert kept_query + kept_document == min(room, query + document)


def test_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    """The error names the missing file and how to make one."""
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json.*save_pretrained"):
        PairTokenizer.load(tmp_path)


def test_tokenizer_without_pairs_is_refused(tiny_bert: Path) -> None:
    """A tokenizer whose template drops the second text cannot be a cross-encoder's."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    raw = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    raw.post_processor = TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $B $A", special_tokens=[("[CLS]", 2)]
    )
    with pytest.raises(UnsupportedModelError, match="document before the query"):
        PairTokenizer(raw)


@pytest.mark.parametrize("max_length", [4, 129, True, "64"])
def test_impossible_max_length_is_named(tiny_bert: Path, max_length: object) -> None:
    """A maximum below one token each, or above the model's positions, is refused with the range."""
    tokenizer = PairTokenizer.load(tiny_bert)
    with pytest.raises(InvalidRequestError, match=r"from 5 to 128.*got"):
        tokenizer.check_max_length(max_length, 128)  # type: ignore[arg-type]


def test_type_ids_of_another_form_are_refused(tiny_bert: Path) -> None:
    """Types that are not zeros and then ones are shown: the engine would give others."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    raw = Tokenizer.from_file(str(tiny_bert / "tokenizer.json"))
    raw.post_processor = TemplateProcessing(
        single="[CLS] $A",
        pair="[CLS]:2 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    with pytest.raises(UnsupportedModelError, match=r"type ids \[2, 0, 0, 1, 1\]"):
        PairTokenizer(raw)
