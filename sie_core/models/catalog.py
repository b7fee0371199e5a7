"""The models that are known by name, with the facts needed to choose one.

Others work too, by what their files say they are (see `recognition`); the catalogue only saves
looking things up, and knows the older spellings. Figures are those of the model cards and
configurations on the hub.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from sie_core.models.recognition import Kind
from sie_core.types import ScoreSpace

_MAX_CLOSE_NAMES = 3
"""How many similar names an error suggests."""

_MIN_SIMILARITY = 0.5
"""Names less alike than this, between 0 and 1, are not suggested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What is known about one model.

    Attributes:
        name: The model's name on the hub.
        kind: What it gives: see `recognition.Kind`.
        also: What else it gives.
        family: Whose model it is, and which line of theirs.
        num_parameters: Weights and biases in all, input embeddings included; with zeros behind the
            first three digits where only the model card's figure is at hand.
        languages: ISO 639-1 codes, or `multilingual`.
        max_length: Tokens of one sequence, special tokens included: query and document together,
            or one text where texts are encoded by themselves.
        max_query_length: Tokens of a query that is encoded by itself, where its model bounds it.
        license: SPDX identifier, as the model card says.
        license_note: What else its use is bound by.
        is_non_commercial: Whether the licence forbids commercial use.
        score_space: What the authors' own code gives: `raw` or `probability`.
        embedding_size: Numbers per vector: of a text, or of a token for late interaction.
        architecture: The class in its config.json.
        when_to_choose: One sentence.
        prompt: The instruction or the text before the query, for models trained with one.
        aliases: Other names under which it is known.
    """

    name: str
    kind: Kind
    also: tuple[Kind, ...] = ()
    family: str
    num_parameters: int
    languages: tuple[str, ...]
    max_length: int
    max_query_length: int | None = None
    license: str
    license_note: str | None = None
    is_non_commercial: bool = False
    score_space: ScoreSpace
    embedding_size: int | None = None
    architecture: str
    when_to_choose: str
    prompt: str | None = None
    aliases: tuple[str, ...] = ()


CATALOG: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="cross-encoder/ms-marco-TinyBERT-L2-v2",
        kind="cross-encoder",
        family="MS MARCO cross-encoders",
        num_parameters=4_386_049,
        languages=("en",),
        max_length=512,
        license="Apache-2.0",
        score_space="raw",
        architecture="BertForSequenceClassification",
        when_to_choose="English, where milliseconds count more than the best order.",
        aliases=("cross-encoder/ms-marco-TinyBERT-L-2-v2",),
    ),
    ModelSpec(
        name="cross-encoder/ms-marco-MiniLM-L6-v2",
        kind="cross-encoder",
        family="MS MARCO cross-encoders",
        num_parameters=22_713_601,
        languages=("en",),
        max_length=512,
        license="Apache-2.0",
        score_space="raw",
        architecture="BertForSequenceClassification",
        when_to_choose="English on a CPU: nearly the order of L12 in half its time.",
        aliases=("cross-encoder/ms-marco-MiniLM-L-6-v2",),
    ),
    ModelSpec(
        name="cross-encoder/ms-marco-MiniLM-L12-v2",
        kind="cross-encoder",
        family="MS MARCO cross-encoders",
        num_parameters=33_360_385,
        languages=("en",),
        max_length=512,
        license="Apache-2.0",
        score_space="raw",
        architecture="BertForSequenceClassification",
        when_to_choose="The default: English, also available where the model hub is not.",
        aliases=("cross-encoder/ms-marco-MiniLM-L-12-v2",),
    ),
    ModelSpec(
        name="BAAI/bge-reranker-base",
        kind="cross-encoder",
        family="BGE rerankers",
        num_parameters=278_044_417,
        languages=("en", "zh"),
        max_length=512,
        license="MIT",
        score_space="probability",
        architecture="XLMRobertaForSequenceClassification",
        when_to_choose="Chinese or English on a GPU, or on a CPU with few candidates.",
    ),
    ModelSpec(
        name="BAAI/bge-reranker-large",
        kind="cross-encoder",
        family="BGE rerankers",
        num_parameters=559_891_457,
        languages=("en", "zh"),
        max_length=512,
        license="MIT",
        score_space="probability",
        architecture="XLMRobertaForSequenceClassification",
        when_to_choose="Chinese or English on a GPU, where the order matters more than time.",
    ),
    ModelSpec(
        name="BAAI/bge-reranker-v2-m3",
        kind="cross-encoder",
        family="BGE rerankers",
        num_parameters=567_755_777,
        languages=("multilingual",),
        max_length=8192,
        license="Apache-2.0",
        score_space="probability",
        architecture="XLMRobertaForSequenceClassification",
        when_to_choose="Other languages, mixed languages, or long documents, on a GPU.",
    ),
    ModelSpec(
        name="Alibaba-NLP/gte-reranker-modernbert-base",
        kind="cross-encoder",
        family="GTE rerankers",
        num_parameters=149_605_633,
        languages=("en",),
        max_length=8192,
        license="Apache-2.0",
        score_space="probability",
        architecture="ModernBertForSequenceClassification",
        when_to_choose="English or code, above all long documents, on a GPU or with patience.",
    ),
    ModelSpec(
        name="jinaai/jina-reranker-v2-base-multilingual",
        kind="cross-encoder",
        family="Jina rerankers",
        num_parameters=278_437_633,
        languages=("multilingual",),
        max_length=1024,
        license="CC-BY-NC-4.0",
        is_non_commercial=True,
        score_space="probability",
        architecture="XLMRobertaForSequenceClassification",
        when_to_choose="Research in many languages; commercial use needs Jina's consent.",
    ),
    ModelSpec(
        name="BAAI/bge-reranker-v2-gemma",
        kind="causal-reranker",
        family="BGE rerankers",
        num_parameters=2_506_172_416,
        languages=("multilingual",),
        max_length=8192,
        license="Apache-2.0",
        license_note="made from google/gemma-2b, which the Gemma Terms of Use bind",
        score_space="raw",
        architecture="GemmaForCausalLM",
        when_to_choose="Many languages on a large GPU, where the BGE line's order counts most.",
        prompt=(
            "Given a query A and a passage B, determine whether the passage contains an answer to "
            "the query by providing a prediction of either 'Yes' or 'No'."
        ),
    ),
    ModelSpec(
        name="mixedbread-ai/mxbai-rerank-base-v2",
        kind="causal-reranker",
        family="mxbai rerankers",
        num_parameters=494_032_768,
        languages=("multilingual",),
        max_length=8192,
        license="Apache-2.0",
        score_space="raw",
        architecture="Qwen2ForCausalLM",
        when_to_choose="Many languages, code or long documents on a small GPU.",
    ),
    ModelSpec(
        name="mixedbread-ai/mxbai-rerank-large-v2",
        kind="causal-reranker",
        family="mxbai rerankers",
        num_parameters=1_543_714_304,
        languages=("multilingual",),
        max_length=8192,
        license="Apache-2.0",
        score_space="raw",
        architecture="Qwen2ForCausalLM",
        when_to_choose="The same on a GPU with room, where the order counts more than time.",
    ),
    ModelSpec(
        name="Qwen/Qwen3-Reranker-0.6B",
        kind="causal-reranker",
        family="Qwen3 rerankers",
        num_parameters=595_776_512,
        languages=("multilingual",),
        max_length=8192,
        license="Apache-2.0",
        score_space="probability",
        architecture="Qwen3ForCausalLM",
        when_to_choose="A GPU, and a task of your own that an instruction can describe.",
        prompt="Given a web search query, retrieve relevant passages that answer the query",
    ),
    ModelSpec(
        name="Qwen/Qwen3-Reranker-4B",
        kind="causal-reranker",
        family="Qwen3 rerankers",
        num_parameters=4_020_000_000,
        languages=("multilingual",),
        max_length=8192,
        license="Apache-2.0",
        score_space="probability",
        architecture="Qwen3ForCausalLM",
        when_to_choose="The same on a large GPU, where the order counts more than time.",
        prompt="Given a web search query, retrieve relevant passages that answer the query",
    ),
    ModelSpec(
        name="answerdotai/answerai-colbert-small-v1",
        kind="late-interaction",
        family="ColBERT",
        num_parameters=33_400_000,
        languages=("en",),
        max_length=512,
        max_query_length=32,
        license="Apache-2.0",
        score_space="raw",
        embedding_size=96,
        architecture="HF_ColBERT",
        when_to_choose="English on a CPU, with document vectors computed once and kept.",
    ),
    ModelSpec(
        name="colbert-ir/colbertv2.0",
        kind="late-interaction",
        family="ColBERT",
        num_parameters=110_000_000,
        languages=("en",),
        max_length=180,
        max_query_length=32,
        license="MIT",
        score_space="raw",
        embedding_size=128,
        architecture="HF_ColBERT",
        when_to_choose="English passages, where an index of colbertv2.0 is there already.",
    ),
    ModelSpec(
        name="lightonai/GTE-ModernColBERT-v1",
        kind="late-interaction",
        family="ColBERT",
        num_parameters=149_112_576,
        languages=("en",),
        max_length=300,
        max_query_length=32,
        license="Apache-2.0",
        score_space="raw",
        embedding_size=128,
        architecture="ModernBertModel",
        when_to_choose="English, long documents among them, on a GPU with kept document vectors.",
    ),
    ModelSpec(
        name="jinaai/jina-colbert-v2",
        kind="late-interaction",
        family="ColBERT",
        num_parameters=559_000_000,
        languages=("multilingual",),
        max_length=8192,
        max_query_length=32,
        license="CC-BY-NC-4.0",
        is_non_commercial=True,
        score_space="raw",
        embedding_size=128,
        architecture="HF_ColBERT",
        when_to_choose="Research in many languages with kept document vectors, on a GPU.",
    ),
    ModelSpec(
        name="sentence-transformers/all-MiniLM-L6-v2",
        kind="dense",
        family="Sentence encoders",
        num_parameters=22_713_216,
        languages=("en",),
        max_length=256,
        license="Apache-2.0",
        score_space="raw",
        embedding_size=384,
        architecture="BertModel",
        when_to_choose="English similarity on a CPU, where an index of it is there already.",
        aliases=("all-MiniLM-L6-v2",),
    ),
    ModelSpec(
        name="BAAI/bge-small-en-v1.5",
        kind="dense",
        family="BGE encoders",
        num_parameters=33_360_000,
        languages=("en",),
        max_length=512,
        license="MIT",
        score_space="raw",
        embedding_size=384,
        architecture="BertModel",
        when_to_choose="English retrieval on a CPU, also available where the model hub is not.",
        prompt="Represent this sentence for searching relevant passages: ",
    ),
    ModelSpec(
        name="BAAI/bge-m3",
        kind="dense",
        also=("late-interaction",),
        family="BGE encoders",
        num_parameters=567_754_752,
        languages=("multilingual",),
        max_length=8192,
        license="MIT",
        score_space="raw",
        embedding_size=1024,
        architecture="XLMRobertaModel",
        when_to_choose="Other languages or long documents, by one vector or by one per token.",
    ),
)
"""Every model in the catalogue, by kind, and smallest first within a family."""

_BY_NAME = {name.lower(): spec for spec in CATALOG for name in (spec.name, *spec.aliases)}


def find(name: str) -> ModelSpec | None:
    """Return the model called `name`, in whatever case and spelling, or None."""
    return _BY_NAME.get(name.strip().lower())


def close_names(name: str) -> list[str]:
    """Return the names in the catalogue that `name` may have been meant for, closest first."""
    # Compared without the owner as well: `bge-reranker-base` is what people remember.
    candidates = {known.rpartition("/")[2]: spec.name for known, spec in _BY_NAME.items()}
    candidates |= {known: spec.name for known, spec in _BY_NAME.items()}
    matches = difflib.get_close_matches(
        name.strip().lower(), candidates, n=len(candidates), cutoff=_MIN_SIMILARITY
    )
    return list(dict.fromkeys(candidates[match] for match in matches))[:_MAX_CLOSE_NAMES]
