"""Causal-LM rerankers against their published prompts and formulas, with plain transformers."""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sie_core import Item, LocalClient
from sie_core.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from sie_core.local import families
from sie_core.local.decoder import CausalReranker
from sie_core.local.device import choose
from sie_core.local.prefix import DecoderSequence, Prefix
from sie_core.models.recognition import recognise
from sie_core.models.sources import ModelFiles
from sie_core.settings import EngineSettings

if TYPE_CHECKING:
    from sie_core.local.causal_batch import CausalBatch

FAMILIES = ["tiny_gemma", "tiny_qwen2", "tiny_qwen3"]
QUERY = "how many people live in berlin"
TEXTS = [
    "berlin museum of the river",
    "population of the city: 3,520,031 😀",
    "",
    "the band of the year " * 12,
    "\n a line of its own\n\n",
    "Yes, no, 1 or 0? <Document>: that is <|im_end|> the question",
    "中文 naïve e\u0301",
]


# --- the oracle ----------------------------------------------------------------------------------


@dataclass
class Oracle:
    """One pair at a time, by transformers' own forward in float32."""

    folder: Path

    def __post_init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.ids = {"gemma": self.gemma, "qwen2": self.mxbai, "qwen3": self.qwen3}[
            self.model.config.model_type
        ]
        self.answers = {"gemma": ["Yes"], "qwen2": ["1", "0"], "qwen3": ["yes", "no"]}[
            self.model.config.model_type
        ]
        self.known: dict[tuple[int, ...], float] = {}

    def encode(self, text: str) -> list[int]:
        """Tokenise without special tokens around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def gemma(self, query: str, text: str, instruction: str | None, max_length: int) -> list[int]:
        """FlagEmbedding: bos, query, newline and passage cut, newline, prompt."""
        task = instruction or (
            "Given a query A and a passage B, determine whether the passage contains an answer to "
            "the query by providing a prediction of either 'Yes' or 'No'."
        )
        end = self.encode("\n") + self.encode(task)
        limit = max_length - 2 * len(end)
        first = [self.tokenizer.bos_token_id, *self.encode(f"A: {query}")[: limit * 3 // 4]]
        second = self.encode("\n") + self.encode(f"B: {text}")[:limit]
        return first + second[: limit + len(end) - len(first)] + end

    def mxbai(self, query: str, text: str, instruction: str | None, max_length: int) -> list[int]:
        """mxbai-rerank: a chat's beginning, query, newline and document cut, task, its end."""
        begin = self.encode(
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
            "assistant.<|im_end|>\n<|im_start|>user\n"
        )
        end = (
            self.encode("\n")
            + self.encode(
                "You are a search relevance expert who evaluates how well documents match search "
                "queries. For each query-document pair, carefully analyze the semantic "
                "relationship between them, then provide your binary relevance judgment (0 for "
                "not relevant, 1 for relevant).\nRelevance:"
            )
            + self.encode("<|im_end|>\n<|im_start|>assistant\n")
        )
        limit = max_length - len(begin) - len(end)
        asked = f"query: {query}"
        if instruction:
            asked = f"instruction: {instruction}\n{asked}"
        first = self.encode(asked)[: limit * 3 // 4]
        second = self.encode("\n") + self.encode(f"document: {text}")
        return begin + first + second[: limit - len(first)] + end

    def qwen3(self, query: str, text: str, instruction: str | None, max_length: int) -> list[int]:
        """Qwen3-Reranker: a chat's beginning, one text cut at its end, an empty thought."""
        begin = self.encode(
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the "
            'Query and the Instruct provided. Note that the answer can only be "yes" or '
            '"no".<|im_end|>\n<|im_start|>user\n'
        )
        end = self.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
        task = instruction or (
            "Given a web search query, retrieve relevant passages that answer the query"
        )
        body = self.encode(f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {text}")
        return begin + body[: max_length - len(begin) - len(end)] + end

    def score(self, ids: list[int]) -> float:
        """Return the raw score of one prompt, which several tests may ask about."""
        if tuple(ids) not in self.known:
            answers = [self.encode(answer)[0] for answer in self.answers]
            with torch.no_grad():
                logits = self.model(torch.tensor([ids])).logits[0, -1]
            wanted = logits[answers].tolist()
            score = wanted[0] - wanted[1] if len(wanted) > 1 else wanted[0]
            self.known[tuple(ids)] = float(score)
        return self.known[tuple(ids)]

    def scores(
        self, query: str, texts: list[str], instruction: str | None = None, max_length: int = 512
    ) -> list[float]:
        """Return the raw score of every text."""
        return [self.score(self.ids(query, text, instruction, max_length)) for text in texts]


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    """A tiny model of each family in turn."""
    found: Path = request.getfixturevalue(request.param)
    return found


_oracles: dict[Path, Oracle] = {}


@pytest.fixture(scope="session")
def oracle(folder: Path) -> Oracle:
    """Its oracle."""
    if folder not in _oracles:
        _oracles[folder] = Oracle(folder)
    return _oracles[folder]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> CausalReranker:
    """Load a model as the registry does."""
    files = ModelFiles(name=folder.name, folder=folder, source="folder")
    model = families.load(files, device=torch.device("cpu"), dtype=dtype)
    assert isinstance(model, CausalReranker)
    return model


def score(
    client: LocalClient,
    folder: Path,
    query: str,
    texts: list[str],
    *,
    instruction: str | None = None,
    **options: Any,
) -> tuple[list[float], Any]:
    """Score texts as a user does; raw scores in the order sent, and the usage."""
    items = [Item(id=str(i), text=text) for i, text in enumerate(texts)]
    options = {"score_space": "raw"} | options
    result = client.score(
        str(folder), Item(text=query), items, instruction=instruction, options=options
    )
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [found[str(i)] for i in range(len(texts))], result["usage"]


# --- the same ids and the same numbers as the reference ------------------------------------------


@pytest.mark.parametrize("instruction", [None, "Does the passage name a city in {braces}?"])
@pytest.mark.parametrize("max_length", [512, 170])
@pytest.mark.parametrize("query", [QUERY, "the river of the city " * 40, ""])
def test_prompts_are_the_published_ones(
    folder: Path, oracle: Oracle, query: str, max_length: int, instruction: str | None
) -> None:
    """Every token of every prompt, with the prefix shared or not, cut or not."""
    model = load(folder)
    sequences = model.tokenizer.encode(query, TEXTS, instruction=instruction, max_length=max_length)
    for text, sequence in zip(TEXTS, sequences, strict=True):
        expected = oracle.ids(query, text, instruction, max_length)
        assert sequence.whole().token_ids.tolist() == expected
        assert sequence.length == len(expected) <= max_length
        is_cut = len(expected) < len(oracle.ids(query, text, instruction, 10**6))
        assert sequence.is_truncated == is_cut
    assert len({id(sequence.prefix) for sequence in sequences}) == 1
    assert sequences[0].prefix is not None


@pytest.mark.parametrize("instruction", [None, "Does the passage name a city?"])
def test_scores_are_those_of_the_reference(
    folder: Path, oracle: Oracle, instruction: str | None
) -> None:
    """Through the client, in float32, within 1e-4."""
    found, usage = score(LocalClient(mode="exact"), folder, QUERY, TEXTS, instruction=instruction)
    expected = oracle.scores(QUERY, TEXTS, instruction)
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.ptp(expected) > 0.1
    ids = [oracle.ids(QUERY, text, instruction, 512) for text in TEXTS]
    assert usage == {"input_tokens": sum(map(len, ids)), "truncated_items": 0}


def test_truncated_scores_are_those_of_the_reference(folder: Path, oracle: Oracle) -> None:
    """The closing stays whole, and what was cut is counted."""
    max_length = {"gemma": 170, "qwen2": 200, "qwen3": 130}[oracle.model.config.model_type]
    found, usage = score(LocalClient(mode="exact"), folder, QUERY, TEXTS, max_length=max_length)
    assert found == pytest.approx(oracle.scores(QUERY, TEXTS, max_length=max_length), abs=1e-4)
    assert 0 < usage["truncated_items"] < len(TEXTS)


def test_a_query_that_does_not_fit_is_cut_and_said(folder: Path, oracle: Oracle) -> None:
    """Every item then counts as truncated."""
    query = "the river of the city " * 60
    found, usage = score(LocalClient(mode="exact"), folder, query, TEXTS, max_length=200)
    assert found == pytest.approx(oracle.scores(query, TEXTS, max_length=200), abs=1e-4)
    assert usage["truncated_items"] == len(TEXTS)


def test_the_default_score_is_that_of_the_authors_code(folder: Path, oracle: Oracle) -> None:
    """Qwen3-Reranker gives P(yes), the others logits."""
    result = LocalClient(mode="exact").score(str(folder), Item(text=QUERY), [Item(text=TEXTS[0])])
    [raw] = oracle.scores(QUERY, TEXTS[:1])
    is_qwen3 = oracle.model.config.model_type == "qwen3"
    assert result["score_space"] == ("probability" if is_qwen3 else "raw")
    expected = torch.tensor([0.0, raw]).log_softmax(0)[1].exp().item() if is_qwen3 else raw
    assert result["scores"][0]["score"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(folder: Path, oracle: Oracle, dtype: torch.dtype) -> None:
    """Products round, and the head does not."""
    model = load(folder, dtype)
    sequences = model.tokenizer.encode(QUERY, TEXTS, max_length=512)
    found = model.open_worker()(sequences)
    assert found == pytest.approx(oracle.scores(QUERY, TEXTS), abs=0.15)
    assert len(set(found)) == len(TEXTS)


# --- the prefix ----------------------------------------------------------------------------------


def test_sharing_changes_no_score(folder: Path) -> None:
    """Whole prompts, one shared prefix in one batch, and a prefix kept from batch to batch."""
    model = load(folder)
    worker = model.open_worker()
    whole = [s.whole() for s in model.tokenizer.encode(QUERY, TEXTS, max_length=512)]
    expected = worker(whole)
    assert worker(model.tokenizer.encode(QUERY, TEXTS, max_length=512)) == pytest.approx(
        expected, abs=1e-4
    )
    sequences = model.tokenizer.encode(QUERY, TEXTS, max_length=512)
    one_by_one = [worker([sequence])[0] for sequence in sequences]
    assert one_by_one == pytest.approx(expected, abs=1e-4)


def test_the_prefix_runs_once(folder: Path) -> None:
    """Over several batches of one worker, as the model counts the rows it computes."""
    model = load(folder)
    worker = model.open_worker()
    sequences = model.tokenizer.encode(QUERY, TEXTS, max_length=512)
    for sequence in sequences:
        worker([sequence])
    prefix = sequences[0].prefix
    assert prefix is not None
    stats = model.stats()
    assert stats.num_sequences == len(TEXTS)
    assert stats.num_prefix_tokens == len(prefix)
    assert stats.num_tokens == len(prefix) + sum(s.num_tokens for s in sequences)


def test_tokens_computed_for_a_hundred_documents(tiny_qwen3: Path, released: None) -> None:  # noqa: ARG001
    """A head of 80 tokens before documents of 200: at most 0.75 of the tokens, by two workers."""
    client = LocalClient(mode="exact", num_threads=2)
    loaded = client.load(str(tiny_qwen3)).result()
    model = loaded.model
    assert isinstance(model, CausalReranker)
    dice = np.random.default_rng(5)
    prefix = Prefix(dice.integers(500, size=80, dtype=np.int32))
    closing = model.tokenizer.encode("", ["a", "b"], max_length=512)[0].token_ids[-9:]
    shared = [
        DecoderSequence(
            prefix,
            np.concatenate((dice.integers(500, size=200, dtype=np.int32), closing)),
            is_truncated=False,
        )
        for _ in range(100)
    ]
    found = loaded.scheduler.submit(shared, max_tokens=1024).result()
    computed = model.stats()
    assert computed.num_prefix_tokens in {80, 160}  # once for each worker that was first
    assert computed.num_tokens == 100 * 209 + computed.num_prefix_tokens
    whole = [sequence.whole() for sequence in shared]
    assert computed.num_tokens <= 0.75 * sum(sequence.num_tokens for sequence in whole)
    expected = loaded.scheduler.submit(whole, max_tokens=1024).result()
    assert found == pytest.approx(expected, abs=1e-4)


def test_one_document_has_nobody_to_share_with(folder: Path) -> None:
    """Neither do several copies of it: they are one sequence."""
    model = load(folder)
    [sequence] = model.tokenizer.encode(QUERY, ["a"], max_length=512)
    assert sequence.prefix is None
    client = LocalClient(mode="exact")
    found, usage = score(client, folder, QUERY, ["a", "a", "a"])
    assert len(set(found)) == 1
    assert usage["input_tokens"] == 3 * sequence.length


def test_queries_share_batches_and_not_prefixes(folder: Path, oracle: Oracle) -> None:
    """Sequences of several queries, prefixes new and kept, in one batch in any order."""
    model = load(folder)
    worker = model.open_worker()
    queries = [QUERY, "where is the eiffel tower", "who was born first"]
    jobs = [model.tokenizer.encode(query, TEXTS, max_length=512) for query in queries]
    worker(jobs[1][:2])  # its prefix is kept from here on
    order = np.random.default_rng(3).permutation(len(queries) * len(TEXTS))
    mixed = [jobs[i // len(TEXTS)][i % len(TEXTS)] for i in order]
    expected = [oracle.scores(query, TEXTS) for query in queries]
    found = worker(mixed)
    for i, value in zip(order, found, strict=True):
        assert value == pytest.approx(expected[i // len(TEXTS)][i % len(TEXTS)], abs=1e-4)


def test_a_prefix_goes_with_its_call(tiny_qwen3: Path) -> None:
    """Nothing keeps its keys and values when the call is over."""
    client = LocalClient(mode="exact")
    model = client.load(str(tiny_qwen3)).result().model
    assert isinstance(model, CausalReranker)
    prefixes = []
    encode = model.tokenizer.encode_passages

    def watched(*args: Any, **kwargs: Any) -> Any:
        passages = encode(*args, **kwargs)
        prefixes.append(weakref.ref(passages.sequences[0].prefix))
        return passages

    model.tokenizer.encode_passages = watched  # type: ignore[method-assign]
    try:
        score(client, tiny_qwen3, QUERY, TEXTS)
    finally:
        model.tokenizer.encode_passages = encode  # type: ignore[method-assign]
    gc.collect()
    assert len(prefixes) == 1
    assert prefixes[0]() is None


def test_long_sequences_are_attended_to_in_blocks(
    make_tiny_qwen: Callable[..., Path],
) -> None:
    """More queries than one block has, behind a prefix, by themselves and beside short ones."""
    folder = make_tiny_qwen("qwen3", max_position_embeddings=2048)
    texts = ["the river of the city and a band " * 60, "berlin", "a film director " * 90]
    found, _ = score(LocalClient(mode="exact"), folder, QUERY, texts)
    assert found == pytest.approx(Oracle(folder).scores(QUERY, texts, max_length=2048), abs=1e-4)


# --- the same with a kernel that takes cumulative lengths ----------------------------------------


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seqlens: tuple[torch.Tensor, torch.Tensor],
    max_lengths: tuple[int, int],
) -> torch.Tensor:
    """Do what the kernels do, one sequence after the other."""
    assert all(cu.dtype == torch.int32 for cu in cu_seqlens)
    (queries, keys), shared = cu_seqlens, query.shape[1] // key.shape[1]
    assert queries[-1] == len(query)
    assert keys[-1] == len(key) == len(value)
    assert len(queries) == len(keys)
    assert max_lengths == (int(queries.diff().max()), int(keys.diff().max())) or (
        max_lengths[0] == 1
    )
    out = torch.empty_like(query)
    for i in range(len(queries) - 1):
        rows, seen = slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])
        q, k, v = (
            query[rows].transpose(0, 1),
            key[seen].transpose(0, 1),
            value[seen].transpose(0, 1),
        )
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        behind = k.shape[1] - q.shape[1]
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(behind + 1)
        out[rows] = (scores.masked_fill(mask, -torch.inf).softmax(-1) @ v).transpose(0, 1)
    return out


def test_a_varlen_kernel_gives_the_same(folder: Path, oracle: Oracle) -> None:
    """A GPU's way, with a stand-in for its kernel: new prefixes and kept ones."""
    from contextlib import nullcontext

    from sie_core.local.decoder import DecoderWorker

    model = load(folder)
    batches: list[CausalBatch] = []
    worker = DecoderWorker(model._model, torch.device("cpu"), attend, nullcontext, batches.append)
    sequences = model.tokenizer.encode(QUERY, TEXTS, max_length=512)
    expected = oracle.scores(QUERY, TEXTS)
    assert worker(sequences[:4]) == pytest.approx(expected[:4], abs=1e-4)
    assert worker(sequences[4:]) == pytest.approx(expected[4:], abs=1e-4)
    assert [len(batch.new) for batch in batches] == [1, 0]
    assert worker([s.whole() for s in sequences]) == pytest.approx(expected, abs=1e-4)


def test_torchs_kernel_takes_what_it_is_given() -> None:
    """Arguments and shapes, on tensors without data: the kernel itself needs a GPU."""
    from sie_core.local import cuda

    varlen = pytest.importorskip("torch.nn.attention.varlen")
    kernel = cuda._causal(varlen.varlen_attn, {"window_size": cuda._BEHIND, "enable_gqa": True})
    meta = {"device": "meta", "dtype": torch.bfloat16}
    query, key = torch.empty(10, 8, 64, **meta), torch.empty(25, 2, 64, **meta)
    cu_seqlens = torch.empty(3, dtype=torch.int32, device="meta")
    attended = kernel(query, key, key, cu_seqlens=(cu_seqlens, cu_seqlens), max_lengths=(6, 15))
    assert attended.shape == query.shape
    assert cuda.find_causal_kernel(torch.device("cpu"), torch.bfloat16, 64) is None


# --- whose files these are -----------------------------------------------------------------------


def test_files_say_which_family_it_is(folder: Path) -> None:
    """By model type and architecture; gemma's weights lie in several files."""
    assert recognise(folder) == "causal-reranker"
    if "gemma" in folder.name:
        assert len(list(folder.glob("model-*.safetensors"))) > 1


def edited(folder: Path, copy: Path, **settings: Any) -> Path:
    """Copy a model, with other settings in its config.json; None takes one out."""
    shutil.copytree(folder, copy)
    path = copy / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | settings
    kept = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return copy


def test_both_spellings_of_the_rotary_base_are_read(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Version 4 and 5 of transformers write it in different places."""
    newer = edited(
        tiny_qwen3,
        tmp_path / "newer",
        rope_theta=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    )
    for found in (load(tiny_qwen3), load(newer)):
        assert found.architecture.rope_theta == 1e6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'; supported is 'default'"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "made into a classifier"),
    ],
)
def test_what_is_not_computed_is_refused(
    tiny_qwen3: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """With the reason, before any weight is read."""
    with pytest.raises(UnsupportedModelError, match=message):
        load(edited(tiny_qwen3, tmp_path / "copy", **settings))


def test_broken_configurations_are_named(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Heads that do not divide, and weights of another shape."""
    with pytest.raises(ModelLoadError, match="heads do not fit"):
        load(edited(tiny_qwen3, tmp_path / "heads", num_key_value_heads=3))
    with pytest.raises(ModelLoadError, match=r"config\.json wants"):
        load(edited(tiny_qwen3, tmp_path / "sizes", intermediate_size=65))


def test_an_embedding_model_is_no_reranker(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Qwen3-Embedding has the same architecture, and modules that pool."""
    folder = edited(tiny_qwen3, tmp_path / "embedding")
    modules = [{"type": f"sentence_transformers.models.{x}"} for x in ("Transformer", "Pooling")]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="embedding model made of a language model"):
        recognise(folder)
    modules[1]["type"] = "sentence_transformers.cross_encoder.modules.LogitScore"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    assert recognise(folder) == "causal-reranker"


def test_an_untied_head_is_read(make_tiny_qwen: Callable[..., Path]) -> None:
    """The vocabulary's rows are then not the embedding's."""
    folder = make_tiny_qwen("qwen2", tie_word_embeddings=False)
    found, _ = score(LocalClient(mode="exact"), folder, QUERY, TEXTS)
    assert found == pytest.approx(Oracle(folder).scores(QUERY, TEXTS), abs=1e-4)


def test_bfloat16_files_are_read(make_tiny_qwen: Callable[..., Path]) -> None:
    """As the real ones are; computed in float32 all the same."""
    folder = make_tiny_qwen("qwen3", dtype="bfloat16")
    found, _ = score(LocalClient(mode="exact"), folder, QUERY, TEXTS)
    assert found == pytest.approx(Oracle(folder).scores(QUERY, TEXTS), abs=1e-4)


def test_other_tokenizers_are_refused(tiny_gemma: Path, tiny_qwen3: Path, tmp_path: Path) -> None:
    """Without a token for the answer there is no score."""
    folder = edited(tiny_qwen3, tmp_path / "copy")
    shutil.copy(tiny_gemma / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(UnsupportedModelError, match=r"no token '(yes|no)'"):
        load(folder)


# --- what every model does -----------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [0, 20, 513, "many", True])
def test_bad_lengths_are_named(folder: Path, max_length: Any) -> None:
    """Too short for the prompt, too long for the model, or no number."""
    with pytest.raises(InvalidRequestError, match=f"512.*got {max_length!r}"):
        score(LocalClient(mode="exact"), folder, QUERY, TEXTS, max_length=max_length)


def test_encoding_is_refused(folder: Path) -> None:
    """Such a model has no embeddings."""
    with pytest.raises(UnsupportedModelError, match="no embeddings"):
        LocalClient(mode="exact").encode(str(folder), Item(text="a"))


def test_threads_get_their_own_scores(folder: Path, oracle: Oracle) -> None:
    """Eight callers with queries of their own, in batches too small for any one of them."""
    client = LocalClient(mode="exact", num_threads=3, max_batch_tokens=300)
    queries = [QUERY, "where is the eiffel tower", "who was born first", "a"]
    expected = [oracle.scores(query, TEXTS) for query in queries]
    found: dict[int, list[list[float]]] = {}

    def call(thread: int) -> None:
        found[thread] = [score(client, folder, queries[thread % 4], TEXTS)[0] for _ in range(3)]

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))
    for thread_index, results in found.items():
        for result in results:
            assert result == pytest.approx(expected[thread_index % 4], abs=1e-4)


def test_documents_are_tokenised_once(folder: Path) -> None:
    """Their ids are kept, whatever the query and the instruction."""
    client = LocalClient(mode="exact")
    model = client.load(str(folder)).result().model
    assert isinstance(model, CausalReranker)
    texts = [f"{folder.name} city {i}" for i in range(5)]
    before = model.tokenizer.cache.stats()
    score(client, folder, QUERY, texts)
    score(client, folder, "another query", texts, instruction="another task")
    after = model.tokenizer.cache.stats()
    assert after.num_misses - before.num_misses == 5
    assert after.num_hits - before.num_hits == 5


def test_a_client_warms_up_and_describes(folder: Path, released: None) -> None:  # noqa: ARG001
    """Every worker runs two short prompts, and the description names what computes."""
    client = LocalClient(mode="exact", num_threads=2)
    client.warm_up(str(folder))
    [description] = client.loaded().values()
    assert description.endswith("computed by torch")
    model = client.load(str(folder)).result().model
    assert isinstance(model, CausalReranker)
    assert model.stats().num_sequences == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_scores(tiny_qwen3: Path) -> None:
    """With threads and locks of its own, and the weights it inherited."""
    client = LocalClient(mode="exact")
    expected, _ = score(client, tiny_qwen3, QUERY, TEXTS)
    child = os.fork()
    if not child:
        code = 1
        try:
            found, _ = score(client, tiny_qwen3, QUERY, TEXTS)
            code = 0 if found == pytest.approx(expected, abs=1e-4) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_float16_that_nobody_named_becomes_bfloat16(tiny_qwen3: Path, tiny_bert: Path) -> None:
    """On a GPU, whose fast mode is float16, in which language models overflow."""
    from dataclasses import replace

    chosen = replace(choose(EngineSettings(device="cpu")), dtype=torch.float16)
    for folder, dtype in ((tiny_qwen3, torch.bfloat16), (tiny_bert, torch.float16)):
        files = ModelFiles(name=folder.name, folder=folder, source="folder")
        assert families.suit(chosen, files).dtype is dtype
    exact = replace(chosen, dtype=torch.float32)
    files = ModelFiles(name="tiny", folder=tiny_qwen3, source="folder")
    assert families.suit(exact, files) is exact
