"""Long documents: by their best passage, as transformers scores every one of them, or refused."""

from __future__ import annotations

import itertools
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sie_core.errors import InputTooLongError, InvalidRequestError
from sie_core.local import LocalAsyncClient, LocalClient
from sie_core.local.passages import Cutter, Passages
from sie_core.long_documents import LongDocuments
from sie_core.types import Item

QUERY = "how many people live in berlin"
WORDS = ["berlin", "museum", "river", "the city", "naïve", "people,", "3,520,031", "日本語", "😀🚀"]
OVERLAP = 10


def long_text(seed: int, num_words: int = 300) -> str:
    """Make a text that no tiny model reads whole."""
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


TEXTS = [long_text(1), "berlin museum", long_text(2, 90), "", long_text(1)]
"""Long ones and short ones, and a long one twice."""


def ask(
    client: LocalClient,
    model: Path,
    texts: Sequence[str] = TEXTS,
    query: str = QUERY,
    **options: Any,
) -> Any:
    """Score texts with raw scores, by passages unless options say otherwise."""
    given = {"long_documents": "max_passage", "passage_overlap": OVERLAP} | options
    chosen = {name: value for name, value in given.items() if value is not None}
    items = [Item(id=f"d{i}", text=text) for i, text in enumerate(texts)]
    return client.score(
        str(model), Item(text=query), items, options={"score_space": "raw"} | chosen
    )


def by_id(result: Any) -> dict[str, tuple[float, tuple[int, int] | None]]:
    """Map ids to scores and spans."""
    return {
        entry["item_id"]: (entry["score"], tuple(entry["span"]) if "span" in entry else None)
        for entry in result["scores"]
    }


@pytest.fixture
def client() -> Iterator[LocalClient]:
    """A client in float32."""
    with LocalClient(mode="exact") as client:
        yield client


def windows_of(num_tokens: int, width: int, overlap: int = OVERLAP) -> list[slice]:
    """Cut by the definition: steps from the start, the last one back from the end."""
    if num_tokens <= width:
        return [slice(0, num_tokens)]
    found, start = [], 0
    while start + width < num_tokens:
        found.append(slice(start, start + width))
        start += width - min(overlap, width // 2)
    return [*found, slice(num_tokens - width, num_tokens)]


class CrossEncoderOracle:
    """One window at a time, by transformers' tokenizer and forward."""

    def __init__(self, folder: Path, max_length: int) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.max_length = max_length
        sample = self.tokenizer("a", "a")
        sequences = sample.sequence_ids()
        first, second = sequences.index(0), sequences.index(1)
        ids = sample["input_ids"]
        end, last = first + sequences.count(0), second + sequences.count(1)
        self.around = (ids[:first], ids[end:second], ids[last:])
        self.has_types = "token_type_ids" in self.tokenizer("a", "b")

    def best(self, query: str, text: str) -> tuple[float, tuple[int, int] | None]:
        """Return the best window's score, and its place in the text."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        query_ids = self.tokenizer(query, add_special_tokens=False)["input_ids"]
        width = self.max_length - len(query_ids) - sum(map(len, self.around))
        windows = windows_of(len(ids), width)
        scores = [self.score(query_ids, ids[window]) for window in windows]
        best = int(np.argmax(scores))
        if len(windows) == 1:
            return scores[0], None
        chosen = offsets[windows[best]]
        return scores[best], (chosen[0][0], chosen[-1][1])

    def score(self, query_ids: list[int], ids: list[int]) -> float:
        """Return the logit of a pair of ids."""
        before, between, after = self.around
        first = [*before, *query_ids, *between]
        pair = [*first, *ids, *after]
        inputs = {"input_ids": torch.tensor([pair])}
        if self.has_types:
            types = [0] * len(first) + [1] * (len(pair) - len(first))
            inputs["token_type_ids"] = torch.tensor([types])
        with torch.no_grad():
            logits = self.model(**inputs).logits[0]
        return float(logits[-1] - logits[0]) if len(logits) > 1 else float(logits[0])


@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_xlmr", "tiny_modernbert"])
def test_a_long_document_has_the_score_of_its_best_passage(
    request: pytest.FixtureRequest, client: LocalClient, checkpoint: str
) -> None:
    """As transformers scores every window; the span is where that window is in the text."""
    folder: Path = request.getfixturevalue(checkpoint)
    found = by_id(ask(client, folder, max_length=90))
    oracle = CrossEncoderOracle(folder, 90)
    for i, text in enumerate(TEXTS):
        score, span = found[f"d{i}"]
        expected, place = oracle.best(QUERY, text)
        assert score == pytest.approx(expected, abs=1e-4)
        assert (span is None) == (place is None)
        if span is not None and place is not None:
            assert text[slice(*span)] == text[slice(*place)].strip()


def test_what_fits_has_the_very_score_of_a_call_without_passages(
    client: LocalClient, tiny_bert: Path
) -> None:
    """To the last bit, and without a span: nothing was chosen."""
    texts = ["berlin museum", "", "the river 😀"]
    with_passages = by_id(ask(client, tiny_bert, texts))
    assert with_passages == by_id(
        ask(client, tiny_bert, texts, long_documents=None, passage_overlap=None)
    )
    assert all(span is None for _, span in with_passages.values())


def test_the_first_passage_is_what_truncation_keeps(client: LocalClient, tiny_bert: Path) -> None:
    """With one passage allowed the score is that of a truncated document."""
    one = by_id(ask(client, tiny_bert, max_passages=1))
    cut = by_id(ask(client, tiny_bert, long_documents="truncate", passage_overlap=None))
    assert {i: score for i, (score, _) in one.items()} == {
        i: score for i, (score, _) in cut.items()
    }
    assert one["d0"][1] is not None
    assert one["d0"][1][0] == 0


def test_passages_may_be_shorter_than_the_model_reads(client: LocalClient, tiny_bert: Path) -> None:
    """What fits is read whole all the same."""
    shorter = ask(client, tiny_bert, passage_length=30)
    whole = ask(client, tiny_bert)
    assert shorter["usage"]["passages"] > 2 * whole["usage"]["passages"]
    assert by_id(shorter)["d1"][0] == pytest.approx(by_id(whole)["d1"][0], abs=1e-4)
    _, span = by_id(shorter)["d0"]
    assert span is not None
    ids = CrossEncoderOracle(tiny_bert, 90).tokenizer(TEXTS[0][slice(*span)])["input_ids"]
    assert 28 <= len(ids) - 2 <= 32  # a word may be cut at either end
    longer = ask(client, tiny_bert, passage_length=10_000)
    assert longer["scores"] == whole["scores"]


def test_passages_and_cut_documents_are_counted(
    client: LocalClient, tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`passages` counts those of all items, `truncated_items` those that had more of them."""
    folder = tmp_path / "fresh"
    shutil.copytree(tiny_bert, folder)
    whole = ask(client, folder, max_length=60)["usage"]
    assert whole["truncated_items"] == 0
    with caplog.at_level(logging.WARNING, logger="sie_core"):
        cut = ask(client, folder, max_length=60, max_passages=2)["usage"]
        ask(client, folder, max_length=60, max_passages=2)
    assert cut["passages"] == 2 + 1 + 2 + 1 + 2
    assert cut["truncated_items"] == 3
    assert whole["passages"] > 20
    assert whole["input_tokens"] > 4 * cut["input_tokens"]
    [record] = caplog.records
    assert record.getMessage().startswith("3 of 5 texts had more than 2 passages of the 60 tokens")


def test_a_result_says_what_was_done_only_where_it_was_asked(
    client: LocalClient, tiny_bert: Path
) -> None:
    """`long_documents` in the result confirms the option."""
    assert ask(client, tiny_bert)["long_documents"] == "max_passage"
    plain = ask(client, tiny_bert, long_documents=None, passage_overlap=None)
    assert "long_documents" not in plain
    assert "passages" not in plain["usage"]
    assert plain["usage"]["truncated_items"] == 3


def test_too_long_documents_are_named_before_anything_is_computed(
    client: LocalClient, tiny_bert: Path
) -> None:
    """`error` lists their ids; short ones alone are scored as ever."""
    ask(client, tiny_bert, ["berlin"])
    scheduler = client.load(str(tiny_bert)).result().scheduler
    num_batches = scheduler.stats().num_batches
    with pytest.raises(InputTooLongError, match=r"3 of 5 items .* 128 tokens .*'d0', 'd2', 'd4'; "):
        ask(client, tiny_bert, long_documents="error", passage_overlap=None)
    assert scheduler.stats().num_batches == num_batches
    texts = ["berlin", "the river"]
    fitting = ask(client, tiny_bert, texts, long_documents="error", passage_overlap=None)
    assert by_id(fitting) == by_id(ask(client, tiny_bert, texts))
    assert fitting["long_documents"] == "error"


def test_many_long_documents_are_named_in_part(client: LocalClient, tiny_bert: Path) -> None:
    """Five ids, then their number."""
    with pytest.raises(InputTooLongError, match=r"'d4' and 3 more; "):
        ask(client, tiny_bert, [long_text(i) for i in range(8)], long_documents="error",
            passage_overlap=None)  # fmt: skip


def test_a_query_that_fills_the_model_leaves_half_to_the_passages(
    client: LocalClient, tiny_bert: Path
) -> None:
    """The query is cut once, to the same words for every passage, and the items count as cut."""
    result = ask(client, tiny_bert, query=long_text(9), max_length=61)
    assert result["usage"]["truncated_items"] == 5
    oracle = CrossEncoderOracle(tiny_bert, 61)
    query_ids, ids = (
        oracle.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (long_text(9), TEXTS[2])
    )
    windows = windows_of(len(ids), 29)
    expected = max(oracle.score(query_ids[:29], ids[window]) for window in windows)
    assert by_id(result)["d2"][0] == pytest.approx(expected, abs=1e-5)


def test_who_cuts_beginnings_keeps_the_last_passages(
    client: LocalClient, tiny_bert: Path, tmp_path: Path
) -> None:
    """A tokenizer that truncates on the left means the end of a document is what counts."""
    folder = tmp_path / "left"
    shutil.copytree(tiny_bert, folder)
    (folder / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    span = by_id(ask(client, folder, max_passages=1))["d0"][1]
    assert span is not None
    assert span[1] == len(TEXTS[0])


def test_known_ids_and_places_give_the_same_answer(client: LocalClient, tiny_bert: Path) -> None:
    """The second call tokenises nothing; what is kept stays within the cache's bound."""
    first = ask(client, tiny_bert)
    cache = client.load(str(tiny_bert)).result().model.tokenizer.cache  # type: ignore[attr-defined]
    assert cache.get_offsets(TEXTS[0]).shape == (len(cache.get_many(TEXTS[:1])[0]), 2)
    assert cache.get_offsets("berlin museum") is None  # not needed
    assert ask(client, tiny_bert)["scores"] == first["scores"]
    bound = cache.stats().max_bytes
    try:
        cache.resize(200_000)
        for seed in range(60):
            ask(client, tiny_bert, [long_text(100 + seed, 100)], max_passages=1)
            assert cache.stats().num_bytes <= 200_000
        assert cache.get_offsets(TEXTS[0]) is None  # gone with its ids
    finally:
        cache.resize(bound)


async def test_the_async_client_gives_the_same(client: LocalClient, tiny_bert: Path) -> None:
    """Scores, spans and counts."""
    items = [Item(id=f"d{i}", text=text) for i, text in enumerate(TEXTS)]
    options = {"score_space": "raw", "long_documents": "max_passage", "passage_overlap": OVERLAP}
    result = await LocalAsyncClient(client).score(
        str(tiny_bert), Item(text=QUERY), items, options=options
    )
    expected = ask(client, tiny_bert)
    assert result["scores"] == expected["scores"]
    assert result["usage"] == expected["usage"]


def test_an_adapter_scores_every_passage(
    client: LocalClient, tiny_bert: Path, served_adapter: Path
) -> None:
    """A long document's best passage by the adapter is not the base's score."""
    adapted = by_id(ask(client, tiny_bert, lora=str(served_adapter)))
    base = by_id(ask(client, tiny_bert))
    assert adapted["d0"] == adapted["d4"]
    assert adapted["d0"][1] is not None
    assert adapted["d0"][0] != base["d0"][0]


@pytest.mark.parametrize("checkpoint", ["tiny_gemma", "tiny_qwen2", "tiny_qwen3"])
def test_a_causal_reranker_reads_passages_behind_the_same_prompt(
    request: pytest.FixtureRequest, client: LocalClient, checkpoint: str
) -> None:
    """Each passage stands where the document would, with what its prompt puts before it."""
    folder: Path = request.getfixturevalue(checkpoint)
    model: Any = client.load(str(folder)).result().model
    [frame] = model.tokenizer.encode(QUERY, [""], max_length=512)
    closing = len(model.tokenizer._frame.closing)
    max_length = frame.length + 50 + (closing if checkpoint == "tiny_gemma" else 0)
    result = ask(client, folder, max_length=max_length)
    assert result["usage"]["truncated_items"] == 0
    found = by_id(result)
    tokenizer = model.tokenizer
    passages = tokenizer.encode_passages(
        QUERY,
        [TEXTS[0]],
        instruction=None,
        max_length=max_length,
        settings=LongDocuments(how="max_passage", passage_overlap=OVERLAP),
    )
    assert len(passages.sequences) > 5
    [first] = tokenizer.encode(QUERY, [TEXTS[0]], max_length=max_length)
    whole = [sequence.whole().token_ids for sequence in passages.sequences]
    assert whole[0].tolist() == first.token_ids.tolist()  # what truncation keeps
    assert {len(ids) for ids in whole} == {len(whole[0])}
    head = len(frame.token_ids) - closing
    lead = whole[0][: head - 1]
    assert all((ids[: head - 1] == lead).all() for ids in whole)
    oracle_scores = [oracle_logit(folder, model, ids) for ids in whole]
    best = int(np.argmax(oracle_scores))
    assert found["d0"][0] == pytest.approx(oracle_scores[best], abs=1e-4)
    assert found["d0"][1] == passages.spans[best]
    covered = sorted(span for span in passages.spans if span is not None)
    assert covered[0][0] == 0
    assert covered[-1][1] == len(TEXTS[0])
    assert all(one[1] >= other[0] for one, other in itertools.pairwise(covered))


def oracle_logit(folder: Path, model: Any, ids: np.ndarray[Any, Any]) -> float:
    """Return the raw score of a prompt by transformers' forward."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = network(torch.tensor(ids[None].astype(np.int64))).logits[0, -1]
    wanted = logits[model.tokenizer.answer_ids].tolist()
    return float(wanted[0] - wanted[1]) if len(wanted) > 1 else float(wanted[0])


def test_late_interaction_takes_the_best_maxsim_of_passages(
    client: LocalClient, tiny_colbert: Path
) -> None:
    """Each passage is encoded as a document by itself; vectors that were kept are one passage."""
    text = long_text(5, 400)
    model: Any = client.load(str(tiny_colbert)).result().model
    form = model._recipe.document
    settings = LongDocuments(how="max_passage", passage_overlap=OVERLAP)
    passages = model.tokenizer.passages(
        [text], form, outputs=frozenset({"multivector"}), settings=settings
    )
    run = model.open_worker()
    [asked] = run(
        model.tokenizer.sequences(
            [QUERY],
            model._recipe.query,
            outputs=frozenset({"multivector"}),
        )
    )
    scores = [
        float((run([sequence])[0]["multivector"] @ asked["multivector"].T).max(0).sum())
        for sequence in passages.sequences
    ]
    assert len(scores) > 3
    best = int(np.argmax(scores))
    kept = client.encode(str(tiny_colbert), Item(text="berlin"), output_types=["multivector"])
    items = [
        Item(id="long", text=text),
        Item(id="kept", multivector=kept["multivector"]),
        Item(id="short", text="berlin"),
    ]
    result = client.score(
        str(tiny_colbert), Item(text=QUERY), items,
        options={"long_documents": "max_passage", "passage_overlap": OVERLAP},
    )  # fmt: skip
    found = by_id(result)
    assert found["long"][0] == pytest.approx(scores[best], abs=1e-4)
    assert found["long"][1] == passages.spans[best]
    assert found["kept"][0] == pytest.approx(found["short"][0], abs=1e-4)
    assert found["kept"][1] is None
    assert result["usage"]["passages"] == len(scores) + 1
    with pytest.raises(InputTooLongError, match=r"1 of 3 items .*'long'"):
        client.score(
            str(tiny_colbert), Item(text=QUERY), items, options={"long_documents": "error"}
        )


@given(
    num_tokens=st.integers(2, 500),
    width=st.integers(1, 100),
    overlap=st.integers(0, 120),
    most=st.integers(1, 400),
)
def test_passages_cover_every_token_in_order(
    num_tokens: int, width: int, overlap: int, most: int
) -> None:
    """All as long as allowed, neighbours sharing what was asked or half, none beyond the bound."""
    if num_tokens <= width:
        return
    ids = np.arange(num_tokens, dtype=np.int32)
    offsets = np.stack([ids, ids + 1], 1)
    text = "x" * num_tokens
    settings = LongDocuments(how="max_passage", passage_overlap=overlap, max_passages=most)
    cut = Cutter(settings=settings).cut(text, ids, offsets, width)
    assert cut is not None
    assert len(cut.parts) <= most
    assert {len(part) for part in cut.parts} == {width}
    seen = set().union(*(part.tolist() for part in cut.parts))
    assert (len(seen) < num_tokens) == cut.is_truncated
    for one, other in itertools.pairwise(cut.parts):
        assert len(set(one.tolist()) & set(other.tolist())) >= min(overlap, width // 2)
        assert one[0] < other[0]
    for part, span in zip(cut.parts, cut.spans, strict=True):
        assert span == (part[0], part[-1] + 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_passage_without_a_finite_score_is_not_passed_over(bad: float) -> None:
    """A document with such a passage has its score, which is then refused as any other."""
    passages = Passages([*"abcd"], starts=[0, 1, 4], spans=[None] * 4, is_truncated=[False] * 2)
    assert passages.best([9.0, 1.0, bad, 2.0], 1) == 2
    assert passages.best([9.0, 1.0, 3.0, 2.0], 1) == 2
    assert passages.best([9.0, 1.0, 3.0, 4.0], 1) == 3


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"long_documents": "split"}, "long_documents must be 'truncate', 'max_passage', 'error'"),
        ({"passage_overlap": -1}, "passage_overlap must be at least 0, but got -1"),
        ({"passage_overlap": 2.5}, "passage_overlap must be an integer or None, but got 2.5"),
        ({"passage_length": 0}, "passage_length must be at least 1, but got 0"),
        ({"max_passages": 0}, "max_passages must be at least 1, but got 0"),
        (
            {"long_documents": "truncate", "max_passages": 3, "passage_overlap": None},
            "max_passages=3 has a meaning with long_documents='max_passage' only",
        ),
        (
            {"long_documents": None},
            "passage_overlap=10 has a meaning with long_documents='max_passage' only",
        ),
    ],
)
def test_wrong_options_are_named(
    client: LocalClient, tiny_bert: Path, options: dict[str, Any], complaint: str
) -> None:
    """Also those that contradict each other."""
    with pytest.raises(InvalidRequestError, match=complaint):
        ask(client, tiny_bert, **options)


def test_embedding_a_text_knows_no_passages(
    client: LocalClient, make_sentence_encoder: Callable[..., Path]
) -> None:
    """One vector for a text is made of one sequence."""
    with pytest.raises(InvalidRequestError, match="unknown option 'long_documents'"):
        client.encode(
            str(make_sentence_encoder()), Item(text="a"), options={"long_documents": "error"}
        )
