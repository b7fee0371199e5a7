"""`LocalClient` and `LocalAsyncClient`: the protocol's shapes, transformers' scores."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import pickle
import random
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sie_core.deadline import Deadline
from sie_core.errors import (
    ClientClosedError,
    DeadlineExceededError,
    InferenceError,
    InvalidRequestError,
    ModelLoadError,
    UnsupportedModelError,
)
from sie_core.local import LocalAsyncClient, LocalClient, release
from sie_core.local.registry import REGISTRY
from sie_core.steps import Step
from sie_core.types import Item, Timing

QUERY = Item(text="what is python")
TEXTS = [
    "the weather is sunny today",
    "python is a programming language 😀",
    "bananas are yellow fruit",
    "",
    "berlin museum population " * 90,
]


def items(texts: list[str]) -> list[Item]:
    """Make items with ids `d0`, `d1`, …."""
    return [Item(id=f"d{i}", text=text) for i, text in enumerate(texts)]


def by_id(result: Any) -> dict[str, float]:
    """Map item ids to scores."""
    return {entry["item_id"]: entry["score"] for entry in result["scores"]}


def reference_logits(folder: Path, query: str, texts: list[str]) -> torch.Tensor:
    """Score pairs with transformers' own tokenizer and forward, in one padded batch."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = tokenizer(
        [[query, text] for text in texts], padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits: torch.Tensor = model(**encoded).logits
    return logits


@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_xlmr", "tiny_modernbert"])
def test_scores_equal_transformers_own_forward(
    request: pytest.FixtureRequest, checkpoint: str
) -> None:
    """Raw scores of mixed lengths, truncated and empty texts among them, agree within 1e-5."""
    folder = request.getfixturevalue(checkpoint)
    client = LocalClient(mode="exact")
    result = client.score(str(folder), QUERY, items(TEXTS), options={"score_space": "raw"})
    expected = reference_logits(folder, QUERY["text"], TEXTS)[:, 0]
    got = torch.tensor([by_id(result)[f"d{i}"] for i in range(len(TEXTS))])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_two_labels_score_the_probability_of_the_second(tiny_bert_two_labels: Path) -> None:
    """A two-label head gives softmax's probability of label 1, and its logit as raw score."""
    folder = str(tiny_bert_two_labels)
    expected = reference_logits(tiny_bert_two_labels, QUERY["text"], TEXTS).softmax(-1)[:, 1]
    client = LocalClient(mode="exact")
    result = client.score(folder, QUERY, items(TEXTS))
    got = torch.tensor([by_id(result)[f"d{i}"] for i in range(len(TEXTS))])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    raw = client.score(folder, QUERY, items(TEXTS), options={"score_space": "raw"})
    logits = torch.tensor([by_id(raw)[f"d{i}"] for i in range(len(TEXTS))])
    torch.testing.assert_close(logits.sigmoid(), expected, atol=1e-5, rtol=0)


def test_the_reply_has_the_protocols_shape(tiny_bert: Path) -> None:
    """Model, query id, scores best first with ids and ranks, usage: as a server replies."""
    query = Item(id="q-7", text="what is python")
    result = LocalClient().score(str(tiny_bert), query, items(TEXTS))
    assert result["model"] == str(tiny_bert)
    assert result["query_id"] == "q-7"
    assert [entry["rank"] for entry in result["scores"]] == [0, 1, 2, 3, 4]
    scores = [entry["score"] for entry in result["scores"]]
    assert scores == sorted(scores, reverse=True)
    assert set(result["scores"][0]) == {"item_id", "score", "rank"}
    assert result["usage"]["truncated_items"] == 1
    assert result["usage"]["input_tokens"] > 128


def check_timing(timing: Timing, within_seconds: float) -> None:
    """Hold the parts of a call against its whole, and that against a clock."""
    assert set(timing) == {"total_ms", "queue_ms", "tokenization_ms", "inference_ms"}
    parts = timing["queue_ms"] + timing["tokenization_ms"] + timing["inference_ms"]
    assert timing["tokenization_ms"] > 0
    assert timing["inference_ms"] > 0
    assert timing["queue_ms"] >= 0
    assert parts <= timing["total_ms"] <= within_seconds * 1e3


async def test_a_result_says_where_its_time_went(tiny_bert: Path, tiny_embedder: Path) -> None:
    """Queue, tokens and inference are parts of the whole; score and encode, sync and async."""
    client = LocalClient()
    async_client = LocalAsyncClient(client)
    begin = time.perf_counter()
    timings = [
        client.score(str(tiny_bert), QUERY, items(TEXTS))["timing"],
        (await async_client.score(str(tiny_bert), QUERY, items(TEXTS)))["timing"],
        client.encode(str(tiny_embedder), QUERY)["timing"],
        (await async_client.encode(str(tiny_embedder), QUERY))["timing"],
    ]
    elapsed = time.perf_counter() - begin
    for timing in timings:
        check_timing(timing, elapsed)
    assert sum(timing["total_ms"] for timing in timings) <= elapsed * 1e3


def test_embeddings_of_one_call_have_the_same_timing_and_none_shares_it(
    tiny_embedder: Path,
) -> None:
    """Each result says it for the call, and may be changed by its owner."""
    first, second = LocalClient().encode(str(tiny_embedder), items(TEXTS[:2]))
    assert first["timing"] == second["timing"]
    first["timing"]["total_ms"] = -1.0
    assert second["timing"]["total_ms"] > 0


def test_items_without_ids_come_back_numbered(tiny_bert: Path) -> None:
    """Ids that were not given are `item-N`, N being the position."""
    result = LocalClient().score(str(tiny_bert), QUERY, [Item(text="a"), Item(text="b")])
    assert result["query_id"] is None
    assert {entry["item_id"] for entry in result["scores"]} == {"item-0", "item-1"}


def test_the_configurations_activation_decides_the_score_space(
    tiny_bert: Path, tiny_xlmr: Path
) -> None:
    """Identity in the configuration means raw logits; nothing there means probabilities."""
    raw = LocalClient().score(str(tiny_bert), QUERY, items(TEXTS))
    probability = LocalClient().score(str(tiny_xlmr), QUERY, items(TEXTS))
    assert raw["score_space"] == "raw"
    assert any(entry["score"] < 0 for entry in raw["scores"])
    assert probability["score_space"] == "probability"
    assert all(0 < entry["score"] < 1 for entry in probability["scores"])


@pytest.mark.parametrize(
    ("files", "space"),
    [
        (
            {"config_sentence_transformers.json": '{"activation_fn": "torch.nn.Sigmoid"}'},
            "probability",
        ),
        ({"config_sentence_transformers.json": "{}"}, "raw"),
    ],
)
def test_sentence_transformers_own_file_comes_first(
    tiny_bert: Path, tmp_path: Path, files: dict[str, str], space: str
) -> None:
    """`config_sentence_transformers.json` overrides `config.json`, as in sentence-transformers."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    for name, content in files.items():
        (folder / name).write_text(content)
    assert LocalClient().score(str(folder), QUERY, items(["a"]))["score_space"] == space


def test_an_instruction_stands_before_the_query(tiny_bert: Path) -> None:
    """`instruction` scores as if the query were "instruction query"."""
    client, model = LocalClient(), str(tiny_bert)
    with_instruction = client.score(model, QUERY, items(TEXTS), instruction="find the city")
    joined = client.score(model, Item(text="find the city what is python"), items(TEXTS))
    assert by_id(with_instruction) == by_id(joined)
    assert by_id(with_instruction) != by_id(client.score(model, QUERY, items(TEXTS)))


def test_equal_texts_are_scored_once_and_all_answered(tiny_bert: Path) -> None:
    """Duplicates share a forward pass; each has its id and the same score; order is retrieval's."""
    texts = ["berlin", "paris", "berlin", "paris", "berlin"]
    result = LocalClient().score(str(tiny_bert), QUERY, items(texts))
    scores = by_id(result)
    assert scores["d0"] == scores["d2"] == scores["d4"]
    assert scores["d1"] == scores["d3"]
    order = [entry["item_id"] for entry in result["scores"]]
    assert order in (["d0", "d2", "d4", "d1", "d3"], ["d1", "d3", "d0", "d2", "d4"])


def test_no_items_give_no_scores(tiny_bert: Path) -> None:
    """An empty list is answered with an empty list."""
    assert LocalClient().score(str(tiny_bert), QUERY, [])["scores"] == []


def test_max_length_shortens_and_is_counted(tiny_bert: Path) -> None:
    """A shorter maximum truncates more texts, and the reply says how many and which."""
    result = LocalClient().score(str(tiny_bert), QUERY, items(TEXTS), options={"max_length": 8})
    assert result["usage"]["truncated_items"] == 4
    assert len(result["truncated"]) == 4
    assert result["usage"]["input_tokens"] <= 8 * len(TEXTS)


@pytest.mark.parametrize("checkpoint", ["tiny_bert", "tiny_colbert", "tiny_qwen3"])
def test_a_documents_own_maximum_shortens_it_alone(
    checkpoint: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """In every family the first tokens of each document are scored; cutting was asked for."""
    model, client = str(request.getfixturevalue(checkpoint)), LocalClient(mode="exact")
    short = by_id(client.score(model, QUERY, items(["a b c", "a b"])))
    with caplog.at_level(logging.WARNING, logger="sie_core"):
        cut = client.score(
            model, QUERY, items(["a b c d e f", "a b"]), options={"max_document_length": 3}
        )
    assert by_id(cut) == pytest.approx(short, abs=1e-6)
    assert cut["usage"]["truncated_items"] == 1
    assert cut["truncated"] == ["d0"]
    assert not caplog.records


def test_truncation_is_warned_about_once_per_model(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first truncated text of a model is logged with counts; later ones are only counted."""
    folder = tmp_path / "fresh"
    shutil.copytree(tiny_bert, folder)
    with caplog.at_level(logging.WARNING, logger="sie_core"):
        LocalClient().score(str(folder), QUERY, items(TEXTS))
        LocalClient().score(str(folder), QUERY, items(TEXTS))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("1 of 5 texts were longer than the 128 tokens")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"query": "what is python"}, "query must be an Item"),
        ({"query": Item(id="q")}, "query must have a text that is a string, but got None"),
        ({"query": Item(text="a \ud83d")}, "query has half a surrogate pair in it"),
        ({"items": ["bare string"]}, r"items\[0\] must be an Item\(text=…\), but got str"),
        ({"items": "bare string"}, "items must be a list of Item"),
        ({"items": [{"id": 7, "text": "a"}]}, r"the id of items\[0\] must be a string, but got 7"),
        ({"items": [Item(text="a"), {"text": 5}]}, r"items\[1\] must have a text .* got 5"),
        ({"model": ""}, "model must be a name or a folder, but got ''"),
        ({"instruction": 5}, "instruction must be a string or None, but got 5"),
        ({"options": {"max_lenght": 9}}, "unknown option 'max_lenght'.*max_length"),
        ({"options": {"max_length": 3}}, "max_length must be an integer from 5 to 128"),
        ({"options": {"max_length": 500}}, "max_length must be an integer from 5 to 128"),
        ({"options": {"score_space": "logit"}}, "score_space must be 'raw' or 'probability'"),
        ({"options": {"batch_size": 0}}, "batch_size must be at least 1, but got 0"),
        ({"options": {"max_document_length": 0}}, "max_document_length must be at least 1"),
        ({"timeout_seconds": -1}, "timeout_seconds must be a positive number .* got -1"),
    ],
)
def test_bad_arguments_are_named(
    tiny_bert: Path, arguments: dict[str, Any], complaint: str
) -> None:
    """Each bad argument is an error that names it, the value and what would be right."""
    call = {"model": str(tiny_bert), "query": QUERY, "items": items(["a"])} | arguments
    with pytest.raises(InvalidRequestError, match=complaint):
        LocalClient().score(**call)


@pytest.mark.usefixtures("released")
def test_a_short_deadline_ends_the_wait_for_loading(tiny_bert: Path) -> None:
    """A model that is not there in time is a DeadlineExceededError; later calls find it loaded."""
    client = LocalClient(timeout_seconds=1e-4)
    with pytest.raises(DeadlineExceededError, match=r"timeout of 0.0001 s passed while loading"):
        client.score(str(tiny_bert), QUERY, items(["a"]))
    assert client.score(str(tiny_bert), QUERY, items(["a"]), timeout_seconds=60)["scores"]


def test_an_encoder_without_a_trained_head_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    """Weights that lack the classifier would score at random: an error names the tensor."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "headless"
    shutil.copytree(tiny_bert, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"], tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lack 2 tensors.*classifier\.bias.*not a reranker"):
        LocalClient().score(str(folder), QUERY, items(["a"]))


def test_broken_weights_are_a_clear_error(tiny_bert: Path, tmp_path: Path) -> None:
    """A file that is no safetensors file is named, not crashed on."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        LocalClient().score(str(folder), QUERY, items(["a"]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"model_type": "gpt2"},
            "BertForSequenceClassification of the model_type 'gpt2'.*BERT, RoBERTa, XLM-RoBERTa",
        ),
        (
            {"model_type": "made-up", "auto_map": {"AutoConfig": "modeling.Config"}},
            "the model_type 'made-up', whose repository wants code .*auto_map.* never done",
        ),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, r"3 labels \(a, b, c\)"),
        ({"sentence_transformers": {"activation_fn": "os.system"}}, "activation 'os.system'"),
    ],
)
def test_models_that_cannot_be_scored_are_refused_with_the_reason(
    tiny_bert: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    """Other architectures, label counts and activations are named."""
    import json

    folder = tmp_path / "other"
    shutil.copytree(tiny_bert, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=complaint):
        LocalClient().score(str(folder), QUERY, items(["a"]))


def test_scores_that_overflow_are_an_error_not_an_order(tiny_bert: Path, tmp_path: Path) -> None:
    """NaN from the model is an InferenceError that names the remedy."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "overflow"
    shutil.copytree(tiny_bert, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.bias"][:] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InferenceError, match=r"no finite score for 2 of 2 texts.*float32"):
        LocalClient().score(str(folder), QUERY, items(["a", "b"]))


def test_half_precision_keeps_close_and_makes_no_ties(tiny_bert: Path) -> None:
    """bfloat16 bodies with float32 heads stay near float32 and give distinct scores."""
    texts = [f"berlin {word} museum" for word in ("the", "of", "and", "to", "in", "is", "was")]
    exact = by_id(LocalClient(mode="exact").score(str(tiny_bert), QUERY, items(texts)))
    half = by_id(LocalClient(dtype="bfloat16").score(str(tiny_bert), QUERY, items(texts)))
    assert len(set(half.values())) == len(texts)
    assert max(abs(exact[i] - half[i]) for i in exact) < 0.25


@pytest.mark.usefixtures("released")
def test_clients_share_one_loaded_model(tiny_bert: Path) -> None:
    """Two clients, sync and async, and two spellings of a folder make one loaded model."""
    first, second = LocalClient(), LocalClient()
    first.score(str(tiny_bert), QUERY, items(["a"]))
    second.score(f"{tiny_bert}/../{tiny_bert.name}", QUERY, items(["a"]))
    asyncio.run(LocalAsyncClient(second).score(str(tiny_bert), QUERY, items(["a"])))
    assert len(REGISTRY.loaded()) == 1
    first.close()
    assert len(REGISTRY.loaded()) == 1
    second.close()
    assert REGISTRY.loaded() == {}


@pytest.mark.usefixtures("released")
def test_release_unloads_and_the_next_call_loads_again(tiny_bert: Path) -> None:
    """`release` by name frees the model and its thread for everyone; nobody is broken by it."""
    client = LocalClient()
    before = by_id(client.score(str(tiny_bert), QUERY, items(TEXTS)))
    assert client.release(str(tiny_bert)) == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("sie-worker")]
    assert by_id(client.score(str(tiny_bert), QUERY, items(TEXTS))) == before


def test_a_closed_client_says_so(tiny_bert: Path) -> None:
    """Use after close is an error, closing twice is not."""
    client = LocalClient()
    client.close()
    client.close()
    with pytest.raises(ClientClosedError, match="closed"):
        client.score(str(tiny_bert), QUERY, items(["a"]))


def test_copies_work_and_carry_no_weights(tiny_bert: Path) -> None:
    """Deepcopy and pickle keep settings; each copy loads or shares its model on use."""
    client = LocalClient(dtype="float32", timeout_seconds=60, token="hf_secret")  # noqa: S106
    expected = by_id(client.score(str(tiny_bert), QUERY, items(TEXTS)))
    frozen = pickle.dumps(client)
    assert len(frozen) < 2000
    for twin in (copy.deepcopy(client), pickle.loads(frozen)):
        assert twin.timeout_seconds == 60
        assert by_id(twin.score(str(tiny_bert), QUERY, items(TEXTS))) == expected
    assert "hf_secret" not in repr(client)
    assert b"hf_secret" not in frozen
    assert copy.deepcopy(client)._sources.token == "hf_secret"  # noqa: S105


@pytest.mark.usefixtures("released")
async def test_a_cancelled_task_does_not_disturb_others(tiny_bert: Path) -> None:
    """Cancelling one waiter while the model loads leaves the others their answer."""
    client = LocalAsyncClient()
    tasks = [
        asyncio.create_task(client.score(str(tiny_bert), QUERY, items(TEXTS))) for _ in range(4)
    ]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(isinstance(result, dict) for result in results[1:])


@pytest.mark.usefixtures("released")
async def test_async_deadline(tiny_bert: Path) -> None:
    """The deadline bounds a coroutine's wait as it does a thread's."""
    client = LocalAsyncClient(LocalClient(timeout_seconds=1e-4))
    with pytest.raises(DeadlineExceededError, match="passed while"):
        await client.score(str(tiny_bert), QUERY, items(["a"]))


def test_one_async_client_works_in_several_event_loops(tiny_bert: Path) -> None:
    """Loops in turn and at once share a client and agree."""
    client = LocalAsyncClient()
    results: list[dict[str, float]] = []

    def run() -> None:
        result = asyncio.run(client.score(str(tiny_bert), QUERY, items(TEXTS)))
        results.append(by_id(result))

    run()
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == pytest.approx(results[0], abs=1e-5) for result in results)
    assert len(results) == 5


def test_32_threads_get_their_own_scores(tiny_bert: Path, tiny_xlmr: Path) -> None:
    """2,000 calls to two models with several maximum lengths at once equal their solo scores."""
    generator = random.Random(5)
    words = [
        "berlin",
        "museum",
        "population",
        "the",
        "python",
        "😀",
        "naïve",
        "city",
        "tower",
        "language",
        "of",
    ]

    def text(longest: int) -> str:
        return " ".join(generator.choices(words, k=generator.randrange(longest)))

    client = LocalClient(mode="exact", num_threads=3)
    calls = [
        (
            str(generator.choice([tiny_bert, tiny_bert, tiny_xlmr])),
            Item(text=text(20)),
            items([text(90) for _ in range(generator.randrange(1, 8))]),
            {"max_length": generator.choice([16, 40, 128]), "score_space": "raw"},
        )
        for _ in range(100)
    ]
    solo = [client.score(m, q, docs, options=o) for m, q, docs, o in calls]
    wrong: list[str] = []

    def work(seed: int) -> None:
        shuffled = list(range(len(calls)))
        random.Random(seed).shuffle(shuffled)
        for i in (shuffled * 2)[: 2000 // 32 + 1]:
            model, query, documents, options = calls[i]
            result = client.score(model, query, documents, options=options)
            if by_id(result) != pytest.approx(by_id(solo[i]), abs=1e-4):
                wrong.append(f"call {i}: scores differ")
            if result["usage"] != solo[i]["usage"]:
                wrong.append(f"call {i}: truncated differently")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    release()


def test_what_was_ready_in_time_counts_however_late_it_is_asked_for(tiny_bert: Path) -> None:
    """The first of several steps may take all of the time; the others' scores are there."""
    client = LocalClient()
    step = Step(
        model=str(tiny_bert),
        query=QUERY,
        items=[Item(id="0", text="a")],
        deadline=Deadline.after(60),
    )
    with contextlib.ExitStack() as calls:
        begun = client._begin(step, calls, [])
        assert not isinstance(begun, Exception)
        begun.running.result()
        late = replace(begun, deadline=Deadline(60.0, time.monotonic() - 1))
        result = late.finish()
    assert not isinstance(result, Exception)
    assert [entry["item_id"] for entry in result["scores"]] == ["0"]
