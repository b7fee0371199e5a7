"""The rerankers that are known to score well in-process, with the facts needed to choose one.

Any other BERT, RoBERTa, XLM-R or ModernBERT sequence classifier works too; the catalogue only saves
looking things up, and knows the older spellings. Figures are those of the model cards and
configurations on the hub.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

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
        family: Whose model it is, and which line of theirs.
        num_parameters: Weights and biases in all.
        languages: ISO 639-1 codes, or `multilingual`.
        max_length: Tokens for query and document together, special tokens included.
        license: SPDX identifier.
        score_space: What the model's own configuration gives: `raw` logits or `probability`.
        architecture: The class in its config.json.
        when_to_choose: One sentence.
        prompt: Put before the query, for models trained with one.
        aliases: Other names under which it is known.
    """

    name: str
    family: str
    num_parameters: int
    languages: tuple[str, ...]
    max_length: int
    license: str
    score_space: ScoreSpace
    architecture: str
    when_to_choose: str
    prompt: str | None = None
    aliases: tuple[str, ...] = ()


CATALOG: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="cross-encoder/ms-marco-TinyBERT-L2-v2",
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
        family="GTE rerankers",
        num_parameters=149_605_633,
        languages=("en",),
        max_length=8192,
        license="Apache-2.0",
        score_space="probability",
        architecture="ModernBertForSequenceClassification",
        when_to_choose="English or code, above all long documents, on a GPU or with patience.",
    ),
)
"""Every model in the catalogue, smallest first within a family."""

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
