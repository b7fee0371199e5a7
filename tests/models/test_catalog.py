from __future__ import annotations

import pytest

from sie_core.models.catalog import CATALOG, ModelSpec, close_names, find
from sie_core.models.embedded import EMBEDDED_MODELS
from sie_core.settings import DEFAULT_MODEL


def test_no_two_models_share_a_name() -> None:
    """A name or an older spelling means one model."""
    names = [name.lower() for spec in CATALOG for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "name",
    [
        "cross-encoder/ms-marco-MiniLM-L12-v2",
        "cross-encoder/ms-marco-MiniLM-L-12-v2",
        "CROSS-ENCODER/MS-MARCO-MINILM-L-12-V2",
        " cross-encoder/ms-marco-minilm-l12-v2 ",
    ],
)
def test_a_model_is_found_in_any_spelling(name: str) -> None:
    """Case, blanks around it and the spelling of older releases make no difference."""
    spec = find(name)
    assert spec is not None
    assert spec.name == DEFAULT_MODEL


def test_the_default_is_in_the_catalogue_and_in_the_wheel() -> None:
    """What is used where nothing is said must be there where the hub is not."""
    assert find(DEFAULT_MODEL) is not None
    assert DEFAULT_MODEL in EMBEDDED_MODELS


def test_an_unknown_model_is_not_found() -> None:
    """The catalogue does not guess."""
    assert find("owner/other") is None
    assert find("") is None


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("BAAI/bge-reranker-bse", "BAAI/bge-reranker-base"),
        ("bge-reranker-large", "BAAI/bge-reranker-large"),
        ("ms-marco-minilm-l6-v2", "cross-encoder/ms-marco-MiniLM-L6-v2"),
        ("cross-encoder/ms-marco-MiniLM-L-12", "cross-encoder/ms-marco-MiniLM-L12-v2"),
    ],
)
def test_a_slip_is_recognised(name: str, closest: str) -> None:
    """With or without the owner, the model meant comes first, and each only once."""
    suggested = close_names(name)
    assert suggested[0] == closest
    assert len(suggested) == len(set(suggested)) <= 3


def test_nothing_is_suggested_for_something_else() -> None:
    """A name that is like none of them gets no hint."""
    assert close_names("zzz") == []


@pytest.mark.parametrize("spec", CATALOG, ids=lambda spec: spec.name)
def test_every_model_is_found_and_meant(spec: ModelSpec) -> None:
    """By its name, in small letters; and by a slip in it, with its owner and without."""
    assert find(spec.name.lower()) is spec
    owner, _, bare = spec.name.rpartition("/")
    for slip in (f"{owner}/{bare[:-2]}{bare[-1]}", bare.lower(), bare.replace("-", "_", 1)):
        assert spec.name in close_names(slip)


def test_models_that_are_not_for_business_are_marked() -> None:
    """Those whose licence says so, and no others."""
    for spec in CATALOG:
        assert spec.is_non_commercial == ("-NC-" in spec.license)
    assert sum(spec.is_non_commercial for spec in CATALOG) == 2


def test_vectors_have_a_size_and_scores_have_none() -> None:
    """Models that encode say how many numbers they give."""
    for spec in CATALOG:
        encodes = spec.kind in {"dense", "late-interaction"}
        assert (spec.embedding_size is not None) == encodes
        assert (spec.max_query_length is not None) == (spec.kind == "late-interaction")


# --- numbers of parameters, counted from the shapes in each model's config.json ------------------


def encoder(
    vocabulary: int, hidden: int, layers: int, *, feed_forward: int, positions: int, types: int
) -> int:
    """Count a BERT's or XLM-RoBERTa's body without a pooler."""
    attention = 4 * (hidden * hidden + hidden)
    mlp = 2 * hidden * feed_forward + feed_forward + hidden
    norms = 4 * hidden
    embeddings = (vocabulary + positions + types) * hidden + 2 * hidden
    return embeddings + layers * (attention + mlp + norms)


def dense(size_in: int, size_out: int) -> int:
    """Count a linear layer with a bias."""
    return size_in * size_out + size_out


def modernbert(vocabulary: int, hidden: int, layers: int, feed_forward: int) -> int:
    """Count a ModernBERT's body: no biases, and one LayerNorm less in the first layer."""
    layer = 4 * hidden * hidden + 3 * hidden * feed_forward + 2 * hidden
    return vocabulary * hidden + layers * layer + hidden


def decoder(
    vocabulary: int, hidden: int, layers: int, feed_forward: int, heads: tuple[int, int, int]
) -> int:
    """Count a language model with tied embeddings and neither biases nor norms of heads.

    `heads`: of queries, of keys and values, and the size of each.
    """
    queries, keys, size = heads
    attention = 2 * hidden * queries * size + 2 * hidden * keys * size
    layer = attention + 3 * hidden * feed_forward + 2 * hidden
    return vocabulary * hidden + layers * layer + hidden


MINILM = {"vocabulary": 30522, "hidden": 384, "feed_forward": 1536, "positions": 512, "types": 2}
XLMR_BASE = {
    "vocabulary": 250002, "hidden": 768, "layers": 12, "feed_forward": 3072, "types": 1
}  # fmt: skip
XLMR_LARGE = {
    "vocabulary": 250002, "hidden": 1024, "layers": 24, "feed_forward": 4096, "types": 1
}  # fmt: skip
QWEN3_4B = decoder(151669, 2560, 36, 9728, (32, 8, 128)) + 36 * 2 * 128

EXACT = {
    "cross-encoder/ms-marco-TinyBERT-L2-v2": (
        encoder(30522, 128, 2, feed_forward=512, positions=512, types=2)
        + dense(128, 128)
        + dense(128, 1)
    ),
    "cross-encoder/ms-marco-MiniLM-L6-v2": (
        encoder(**MINILM, layers=6) + dense(384, 384) + dense(384, 1)
    ),
    "cross-encoder/ms-marco-MiniLM-L12-v2": (
        encoder(**MINILM, layers=12) + dense(384, 384) + dense(384, 1)
    ),
    "BAAI/bge-reranker-base": (
        encoder(**XLMR_BASE, positions=514) + dense(768, 768) + dense(768, 1)
    ),
    "BAAI/bge-reranker-large": (
        encoder(**XLMR_LARGE, positions=514) + dense(1024, 1024) + dense(1024, 1)
    ),
    "BAAI/bge-reranker-v2-m3": (
        encoder(**XLMR_LARGE, positions=8194) + dense(1024, 1024) + dense(1024, 1)
    ),
    "Alibaba-NLP/gte-reranker-modernbert-base": (
        modernbert(50368, 768, 22, 1152) + 768 * 768 + 768 + dense(768, 1)
    ),
    "jinaai/jina-reranker-v2-base-multilingual": (
        encoder(**XLMR_BASE, positions=1026) + dense(768, 768) + dense(768, 1)
    ),
    "BAAI/bge-reranker-v2-gemma": decoder(256000, 2048, 18, 16384, (8, 1, 256)),
    "mixedbread-ai/mxbai-rerank-base-v2": (
        decoder(151936, 896, 24, 4864, (14, 2, 64)) + 24 * (14 + 2 + 2) * 64
    ),
    "mixedbread-ai/mxbai-rerank-large-v2": (
        decoder(151936, 1536, 28, 8960, (12, 2, 128)) + 28 * (12 + 2 + 2) * 128
    ),
    "Qwen/Qwen3-Reranker-0.6B": (decoder(151669, 1024, 28, 3072, (16, 8, 128)) + 28 * 2 * 128),
    "lightonai/GTE-ModernColBERT-v1": modernbert(50368, 768, 22, 1152) + 768 * 128,
    "sentence-transformers/all-MiniLM-L6-v2": encoder(**MINILM, layers=6) + dense(384, 384),
    "BAAI/bge-small-en-v1.5": encoder(**MINILM, layers=12) + dense(384, 384),
    "BAAI/bge-m3": encoder(**XLMR_LARGE, positions=8194) + dense(1024, 1024),
}
ROUNDED = {
    "Qwen/Qwen3-Reranker-4B": QWEN3_4B,
    "answerdotai/answerai-colbert-small-v1": encoder(**MINILM, layers=12) + 384 * 96,
    "colbert-ir/colbertv2.0": encoder(30522, 768, 12, feed_forward=3072, positions=512, types=2)
    + dense(768, 768)
    + 768 * 128,
    "jinaai/jina-colbert-v2": encoder(**XLMR_LARGE, positions=0) + 1024 * 128,
}


@pytest.mark.parametrize("spec", CATALOG, ids=lambda spec: spec.name)
def test_parameters_are_what_the_shapes_add_up_to(spec: ModelSpec) -> None:
    """Exactly, or within half a percent where the figure has zeros behind three digits."""
    if spec.name in EXACT:
        assert spec.num_parameters == EXACT[spec.name]
    else:
        assert spec.num_parameters == pytest.approx(ROUNDED[spec.name], rel=0.005)
        assert str(spec.num_parameters)[3:].strip("0") == ""
