"""ColBERT checkpoints of each layout against plain transformers, and MaxSim by its definition."""

from __future__ import annotations

import asyncio
import json
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from sie_core.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from sie_core.local import LocalAsyncClient, LocalClient, native
from sie_core.local import maxsim as maxsim_module
from sie_core.local.maxsim import maxsim
from sie_core.types import Item

Make = Callable[..., Path]
Array = np.ndarray[Any, Any]

QUERY = "how many people live in berlin?"
TEXTS = [
    "berlin museum",
    "population of the city: 3,520,031 (in 2012)!",
    "",
    "river, " * 40,
    "the band of the year 😀",
    "!?",
]
QUERY_LENGTH, DOCUMENT_LENGTH = 16, 60


@pytest.fixture
def client() -> Iterator[LocalClient]:
    """A client in float32, with two workers."""
    with LocalClient(mode="exact", num_threads=2) as client:
        yield client


class Reference:
    """A ColBERT in transformers, one text at a time, by the definitions of both layouts.

    Args:
        folder: The checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        self.is_own = "linear.weight" in tensors
        config = AutoConfig.from_pretrained(folder)
        config.architectures = None
        self.body = AutoModel.from_config(config).eval()
        body = {name.removeprefix("bert."): x for name, x in tensors.items()}
        self.body.load_state_dict(body, strict=False)
        if self.is_own:
            self.weight = tensors["linear.weight"]
            said = json.loads((folder / "artifact.metadata").read_text())
            self.sees_masks = said["attend_to_mask_tokens"]
            self.markers = ("[unused0]", "[unused1]")
        else:
            self.weight = load_file(folder / "1_Dense" / "model.safetensors")["linear.weight"]
            said = json.loads((folder / "config_sentence_transformers.json").read_text())
            self.sees_masks = said["attend_to_expansion_tokens"]
            self.markers = ("[Q] ", "[D] ")

    def ids(self, text: str, marker: str, max_length: int) -> list[int]:
        """Tokenise, cut, and put the marker behind the first token."""
        ids = self.tokenizer(text, truncation=True, max_length=max_length - 1)["input_ids"]
        return [ids[0], self.tokenizer.convert_tokens_to_ids(marker), *ids[1:]]

    def vectors(self, ids: list[int], num_seen: int) -> Array:
        """Run the body and the projection."""
        mask = torch.tensor([[int(i < num_seen) for i in range(len(ids))]])
        with torch.no_grad():
            hidden = self.body(input_ids=torch.tensor([ids]), attention_mask=mask)[0][0]
        return nn.functional.normalize(hidden @ self.weight.T, dim=-1).numpy()

    def query(self, text: str) -> Array:
        """Return the vectors of a query, masks included."""
        ids = self.ids(text, self.markers[0], QUERY_LENGTH)
        num_masks = QUERY_LENGTH - len(ids)
        num_seen = QUERY_LENGTH if self.sees_masks else len(ids)
        return self.vectors(ids + num_masks * [self.tokenizer.mask_token_id], num_seen)

    def document(self, text: str) -> Array:
        """Return the vectors of a document, those of punctuation left out."""
        ids = self.ids(text, self.markers[1], DOCUMENT_LENGTH)
        signs = set(self.tokenizer.convert_tokens_to_ids(list(string.punctuation)))
        is_kept = [token not in signs for token in ids]
        return self.vectors(ids, len(ids))[is_kept]


def score_of(query: Array, document: Array) -> float:
    """MaxSim by its definition."""
    return sum(max(float(q @ d) for d in document) for q in query)


def scores_of(result: Any) -> list[float]:
    """Return scores in the order sent."""
    by_id = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [by_id[f"item-{i}"] for i in range(len(by_id))]


def items(texts: Sequence[str]) -> list[Item]:
    """Make items without ids."""
    return [Item(text=text) for text in texts]


@dataclass(frozen=True)
class Defined:
    """A checkpoint, and what its vectors and scores are by the definition."""

    folder: Path
    has_kernels: bool
    queries: list[Array]
    documents: list[Array]
    scores: list[float]


@pytest.fixture(
    scope="module",
    params=[
        {"layout": layout, "model_type": model_type, "sees_masks": sees_masks}
        for layout, model_type in [
            ("colbert", "bert"),
            ("pylate", "bert"),
            ("pylate", "modernbert"),
        ]
        for sees_masks in (False, True)
    ],
    ids=lambda checkpoint: "-".join(map(str, checkpoint.values())),
)
def defined(request: pytest.FixtureRequest, make_colbert: Make) -> Defined:
    """Each layout in turn, masks seen or not."""
    folder = make_colbert(**request.param)
    reference = Reference(folder)
    queries = [reference.query(text) for text in (QUERY, "berlin")]
    documents = [reference.document(text) for text in TEXTS]
    scores = [score_of(queries[0], document) for document in documents]
    has_kernels = request.param["model_type"] == "bert"
    return Defined(folder, has_kernels, queries, documents, scores)


@pytest.mark.parametrize("isa", ["amx", "avx512", "avx2", "none"])
def test_vectors_and_scores_are_those_of_the_definition(
    defined: Defined, client: LocalClient, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    """In the compiled kernels and in torch: within 1e-4."""
    monkeypatch.setenv("SIE_MAX_CPU_ISA", isa)
    name = str(defined.folder)

    queries = client.encode(name, items([QUERY, "berlin"]), is_query=True)
    documents = client.encode(name, items(TEXTS))
    scored = client.score(name, Item(text=QUERY), items(TEXTS))

    for expected, result in zip(defined.queries, queries, strict=True):
        np.testing.assert_allclose(result["multivector"], expected, atol=1e-4)
    for expected, result in zip(defined.documents, documents, strict=True):
        np.testing.assert_allclose(result["multivector"], expected, atol=1e-4)
    np.testing.assert_allclose(scores_of(scored), defined.scores, atol=1e-4)
    assert scored["score_space"] == "raw"
    assert scored["usage"]["truncated_items"] == 1
    (description,) = client.loaded().values()  # loaded anew for each
    if isa == "none" or not defined.has_kernels:
        assert description.endswith("computed by torch")
    elif isa in native.available_kernels():
        assert f"computed by {isa}" in description


@pytest.mark.skipif(not native.available_kernels(), reason="no kernels here")
def test_masks_that_nobody_sees_change_nobody(make_colbert: Make, client: LocalClient) -> None:
    """The vectors of a query's own tokens are those of a query without masks."""
    folder = make_colbert()
    name = str(folder)
    filled = client.encode(name, Item(text="berlin"), is_query=True)["multivector"]
    short = client.encode(name, Item(text="berlin"), is_query=True, options={"max_length": 4})[
        "multivector"
    ]
    assert (len(filled), len(short)) == (QUERY_LENGTH, 4)
    np.testing.assert_allclose(filled[:4], short, atol=1e-5)
    (description,) = client.loaded().values()
    assert "kernels" in description


def test_half_precision_is_near(make_colbert: Make) -> None:
    """In bfloat16 the vectors stay near, with masks that nobody sees too."""
    folder = make_colbert()
    reference = Reference(folder)
    with LocalClient(dtype="bfloat16") as client:
        query = client.encode(str(folder), Item(text=QUERY), is_query=True)["multivector"]
    assert (query * reference.query(QUERY)).sum(1).min() > 0.98


def test_kept_vectors_mix_with_texts(make_colbert: Make, client: LocalClient) -> None:
    """Encoded once, in either format, they score as their texts do; so do a query's."""
    name = str(make_colbert())
    want = scores_of(client.score(name, Item(text=QUERY), items(TEXTS)))
    kept = [result["multivector"] for result in client.encode(name, items(TEXTS))]
    query = client.encode(name, Item(text=QUERY), is_query=True)["multivector"]
    mixed = [
        Item(text=text) if i % 2 else Item(multivector=vectors)
        for i, (text, vectors) in enumerate(zip(TEXTS, kept, strict=True))
    ]
    for asked in (Item(text=QUERY), Item(multivector=query)):
        np.testing.assert_allclose(scores_of(client.score(name, asked, mixed)), want, atol=1e-5)
    halves = [Item(multivector=vectors.astype(np.float16)) for vectors in kept]
    result = client.score(name, Item(multivector=query), halves)
    np.testing.assert_allclose(scores_of(result), want, atol=0.01)
    assert result["usage"]["input_tokens"] == 0
    given = client.score(name, Item(id="q", text=QUERY), [Item(id="d", multivector=kept[0])])
    assert (given["query_id"], given["scores"][0]["item_id"]) == ("q", "d")

    async def score() -> Any:
        return await LocalAsyncClient(client).score(name, Item(text=QUERY), mixed)

    np.testing.assert_allclose(scores_of(asyncio.run(score())), want, atol=1e-5)


@pytest.mark.parametrize(
    ("vectors", "complaint"),
    [
        (np.zeros((3, 15), np.float32), r"\[tokens, 16\].*but has \[3, 15\]"),
        (np.zeros((0, 16), np.float32), r"at least one token.*\[0, 16\]"),
        (np.zeros(16, np.float32), r"but has \[16\]"),
        (np.zeros((3, 16)), "not float64"),
        ([[0.0] * 16], "not list"),
        (np.full((3, 16), np.nan, np.float32), "not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    make_colbert: Make, client: LocalClient, vectors: Any, complaint: str
) -> None:
    """By the item's name, with what was expected and what was found."""
    name = str(make_colbert())
    with pytest.raises(InvalidRequestError, match=rf"items\[1\].*{complaint}"):
        client.score(name, Item(text="a"), [Item(text="b"), Item(multivector=vectors)])
    with pytest.raises(InvalidRequestError, match=f"query.*{complaint}"):
        client.score(name, Item(multivector=vectors), items(["b"]))


def test_what_maxsim_is_not(make_colbert: Make, client: LocalClient) -> None:
    """No probability, and no single vector for a text."""
    name = str(make_colbert())
    with pytest.raises(InvalidRequestError, match="has no probability"):
        client.score(name, Item(text="a"), items(["b"]), options={"score_space": "probability"})
    with pytest.raises(InvalidRequestError, match="gives multivector, not dense"):
        client.encode(name, Item(text="a"), output_types=["dense"])
    with pytest.raises(InvalidRequestError, match="must have a text"):
        client.score(name, Item(text="a"), [Item(id="empty")])


def test_settings_change_what_they_say(make_colbert: Make, client: LocalClient) -> None:
    """Punctuation kept, queries not filled up, lengths of other sizes, no marker."""
    own = str(make_colbert(settings={"mask_punctuation": False, "doc_maxlen": 8}))
    document = client.encode(own, Item(text="berlin, paris; france! river"))["multivector"]
    assert len(document) == 8
    pylate = str(
        make_colbert(
            layout="pylate",
            settings={"do_query_expansion": False, "query_prefix": "", "skiplist_words": ["the"]},
        )
    )
    query = client.encode(pylate, Item(text="the river!"), is_query=True)["multivector"]
    document = client.encode(pylate, Item(text="the river!"))["multivector"]
    assert (len(query), len(document)) == (5, 5)  # [CLS] the river ! [SEP]; [D] and without `the`


def test_checkpoints_that_lack_something_are_refused(
    make_colbert: Make, client: LocalClient
) -> None:
    """A marker that the tokenizer does not have, no projection, lengths that are no numbers."""
    marker = make_colbert(settings={"query_token_id": "[QUERY]"})
    with pytest.raises(UnsupportedModelError, match=r"no token '\[QUERY\]'"):
        client.encode(str(marker), Item(text="a"))
    length = make_colbert(settings={"doc_maxlen": "many"})
    with pytest.raises(ModelLoadError, match=r"doc_maxlen.*'many'"):
        client.encode(str(length), Item(text="a"))
    bare = make_colbert(layout="pylate")
    modules = json.loads((bare / "modules.json").read_text())
    (bare / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(ModelLoadError, match="names no Dense"):
        client.encode(str(bare), Item(text="a"))


def test_a_long_query_is_cut_and_that_is_said(
    make_colbert: Make, client: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Once; its items are not counted as cut."""
    name = str(make_colbert())
    for _ in range(2):
        result = client.score(name, Item(text="river " * 30), items(["river"]))
    assert result["usage"]["truncated_items"] == 0
    assert "truncated" not in result
    assert sum("a query was longer than the 16 tokens" in r.message for r in caplog.records) == 1


def test_maxsim_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on memory changes no score; formats may be mixed."""
    rng = np.random.default_rng(3)
    query = rng.normal(size=(5, 8)).astype(np.float32)
    documents = [
        rng.normal(size=(length, 8)).astype(np.float16 if length % 2 else np.float32)
        for length in [1, 40, 3, 200, 2, 2, 7]
    ]
    want = [score_of(query, document.astype(np.float32)) for document in documents]
    whole = maxsim(query, documents)
    np.testing.assert_allclose(whole, want, rtol=1e-5)
    monkeypatch.setattr(maxsim_module, "_MAX_PRODUCTS", 50)
    np.testing.assert_allclose(maxsim(query, documents), whole, rtol=1e-5)
    assert maxsim(query, []).shape == (0,)
