"""Hard negatives: documents that retrieval finds for a query and that do not answer it.

What retrieval finds first and nobody judged is often an answer after all. A teacher's score tells:
a candidate is taken as a negative if its probability is well below that of the answers
(Moreira et al., 2024, "NV-Retriever"). Where nobody judged anything, the teacher names the answer
as well, if it is sure (as Wang et al., 2022, "GPL", let it label what retrieval found).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sie_core.errors import InvalidRequestError
from sie_core.evaluation.first_stage import Candidates
from sie_core.evaluation.texts import TextStore
from sie_core.evaluation.watching import Watch, unwatched
from sie_core.training.example import Example, Judged
from sie_core.training.teacher import Teacher, probability


@dataclass(frozen=True, slots=True, kw_only=True)
class Mining:
    """How negatives are chosen among what retrieval found.

    Attributes:
        num_negatives: Of each query at most, those that were judged included.
        max_ratio: A negative's probability is at most this part of the least of the answers'.
        min_probability: Where nothing is judged, the teacher's first is the answer if it is as
            sure as this.
    """

    num_negatives: int = 9
    max_ratio: float = 0.8
    min_probability: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if self.num_negatives < 1:
            msg = f"the number of negatives must be at least 1, but got {self.num_negatives}"
            raise InvalidRequestError(msg)
        for name in ("max_ratio", "min_probability"):
            if not 0 < getattr(self, name) <= 1:
                msg = f"{name} must be above 0 and at most 1, but got {getattr(self, name)}"
                raise InvalidRequestError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mined:
    """What mining found.

    Attributes:
        examples: One for each query that has an answer and a negative.
        num_refused: Candidates that the teacher took for answers, and that are no negatives.
        num_left_out: Queries without an answer that is sure, or without a negative.
    """

    examples: Sequence[Example]
    num_refused: int
    num_left_out: int


def mine(
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
    candidates: Candidates,
    store: TextStore,
    *,
    mining: Mining,
    teacher: Teacher | None = None,
    watch: Watch = unwatched,
) -> Mined:
    """Make examples of queries and what retrieval found for them.

    Args:
        queries: Texts by query id.
        qrels: What was judged; a query that is not there has its answer named by the teacher.
        candidates: What retrieval found, best first.
        store: The documents' texts.
        mining: How negatives are chosen.
        teacher: Scores candidates; None takes every unjudged one as a negative.
        watch: Shows the progress.

    Raises:
        InvalidRequestError: A query is not judged, and there is no teacher.
    """
    unjudged = [query_id for query_id in queries if not any(qrels.get(query_id, {}).values())]
    if unjudged and teacher is None:
        msg = (
            f"{len(unjudged)} queries have no judgements, such as {queries[unjudged[0]]!r}; name a "
            "teacher (--teacher), whose scores say which documents answer them"
        )
        raise InvalidRequestError(msg)
    examples: list[Example] = []
    num_refused = 0
    with watch("choosing negatives", len(queries)) as advance:
        for query_id, query in queries.items():
            found = [document_id for document_id, _ in candidates.get(query_id, ())]
            judged = _judged(qrels.get(query_id, {}), store)
            new_ids = [one for one in found if one not in qrels.get(query_id, {})]
            new = dict.fromkeys(store.passages(new_ids))  # the same text twice is one document
            made, refused = _choose(query, judged, [text for text in new if text.strip()],
                                    mining, teacher)  # fmt: skip
            examples += [made] if made is not None else []
            num_refused += refused
            advance(1)
    return Mined(
        examples=examples, num_refused=num_refused, num_left_out=len(queries) - len(examples)
    )


def _judged(grades: Mapping[str, int], store: TextStore) -> list[Judged]:
    ids = list(grades)
    highest = max([1, *grades.values()])
    return [
        Judged(text=text, label=max(0, grades[one]) / highest)
        for one, text in zip(ids, store.passages(ids), strict=True)
        if text.strip()
    ]


def _choose(
    query: str,
    judged: Sequence[Judged],
    found: Sequence[str],
    mining: Mining,
    teacher: Teacher | None,
) -> tuple[Example | None, int]:
    """Make one example; also count the candidates that the teacher refused as negatives."""
    known = {document.text for document in judged}
    new = [text for text in found if text not in known]
    if teacher is None:
        documents = [*judged, *(Judged(text=text, label=0.0) for text in new)]
        return _limited(query, documents, mining), 0
    texts = [*(document.text for document in judged), *new]
    scores = teacher(query, texts) if texts else []
    documents = [
        Judged(text=document.text, label=document.label, teacher=score)
        for document, score in zip(judged, scores[: len(judged)], strict=True)
    ]
    unknown = list(zip(new, scores[len(judged) :], strict=True))
    if not any(document.is_relevant for document in documents):
        answer = max(unknown, key=lambda one: one[1], default=None)
        if answer is None or probability(answer[1]) < mining.min_probability:
            return None, 0
        unknown.remove(answer)
        documents.append(Judged(text=answer[0], label=1.0, teacher=answer[1]))
    least = min(
        probability(document.teacher or 0.0) for document in documents if document.is_relevant
    )
    believed = [one for one in unknown if probability(one[1]) <= mining.max_ratio * least]
    documents += [Judged(text=text, label=0.0, teacher=score) for text, score in believed]
    return _limited(query, documents, mining), len(unknown) - len(believed)


def _limited(query: str, documents: Sequence[Judged], mining: Mining) -> Example | None:
    """Keep the answers and the first negatives: retrieval's first are the hardest."""
    example = Example(query=query, documents=tuple(documents))
    kept = example.irrelevant[: mining.num_negatives]
    made = Example(query=query, documents=(*example.relevant, *kept))
    return made if made.is_complete else None
