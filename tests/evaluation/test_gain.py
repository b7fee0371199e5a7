"""What reranking is for: a better order than the first stage's, on real questions."""

from __future__ import annotations

import pytest

from sie_core.evaluation.datasets import load_hotpotqa
from sie_core.evaluation.metrics import evaluate
from sie_core.evaluation.retrieval import bm25_order
from sie_core.reranker import Reranker

NUM_QUESTIONS = 100
MIN_GAIN = 0.05


@pytest.mark.weights
@pytest.mark.slow
def test_the_default_model_improves_on_bm25() -> None:
    """The first 100 HotpotQA questions gain at least 0.05 in nDCG@10 (0.833 to 0.886).

    A hundred questions are few: the 200 after them gained 0.033, so the bound is about these.
    """
    questions = load_hotpotqa(NUM_QUESTIONS)
    bm25 = {question.id: bm25_order(question.text, question.passages) for question in questions}
    reranked = {}
    with Reranker() as reranker:
        for question in questions:
            order = bm25[question.id]
            ranking = reranker.rerank(question.text, [question.passages[i] for i in order])
            reranked[question.id] = [order[entry.index] for entry in ranking]
    relevant = {question.id: question.relevant for question in questions}
    gain = evaluate(reranked, relevant).mean.ndcg_at_10 - evaluate(bm25, relevant).mean.ndcg_at_10
    assert gain >= MIN_GAIN
