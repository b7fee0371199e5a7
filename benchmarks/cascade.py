"""What a cheap model in front saves, and what it costs: `python benchmarks/cascade.py`.

HotpotQA questions, each with its ten or so paragraphs and others of other questions, 50 in all.
MiniLM-L12 with its trained weights scores all, or what a stage before it lets on. The stages:

- the same trained MiniLM-L12 that reads 64 tokens only: both are real, and so is the quality;
- a model of TinyBERT-L2's shape with random weights: its time is real, its choice is chance.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from report import Report, add_arguments
from workload import SMALL_MODEL, checkpoint

from sie_core import DEFAULT_MODEL, Reranker, Stage
from sie_core.evaluation.datasets import Question, load_hotpotqa
from sie_core.evaluation.metrics import evaluate
from sie_core.ranking import Ranking

NUM_CANDIDATES = 50
TOP = 5


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    add_arguments(parser)
    arguments = parser.parse_args()
    num_questions = 12 if arguments.quick else arguments.questions
    questions = load_hotpotqa(num_questions, seed=arguments.seed)
    pools = make_pools(questions, random.Random(arguments.seed))
    report = Report("cascade", seed=arguments.seed, questions=num_questions)
    short = {"max_length": 64}
    ways = {
        "MiniLM-L12 alone": [],
        "64 tokens, keep 0.2 (real)": [Stage(DEFAULT_MODEL, keep=0.2, options=short)],
        "64 tokens, keep 0.3 (real)": [Stage(DEFAULT_MODEL, keep=0.3, options=short)],
        "64 tokens, keep 0.5 (real)": [Stage(DEFAULT_MODEL, keep=0.5, options=short)],
        "64 tokens, keep 0.6 (real)": [Stage(DEFAULT_MODEL, keep=0.6, options=short)],
        "TinyBERT-L2, keep 0.3 (random)": [Stage(str(checkpoint(SMALL_MODEL)), keep=0.3)],
    }
    rerankers = {name: Reranker(cascade=stages) for name, stages in ways.items()}
    for reranker in rerankers.values():
        reranker.warm_up()
    rankings: dict[str, list[Ranking]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = random.Random(arguments.seed)
    for question, pool in zip(questions, pools, strict=True):
        for name in order.sample(list(ways), len(ways)):  # what disturbs one disturbs all
            began = time.perf_counter()
            rankings[name].append(rerankers[name].rerank(question.text, pool))
            seconds[name].append(time.perf_counter() - began)
    for reranker in rerankers.values():
        reranker.close()
    alone = next(iter(ways))
    rows = [
        row(name, rankings, seconds, alone=alone, questions=questions, pools=pools) for name in ways
    ]
    report.add(f"{len(questions)} questions of {NUM_CANDIDATES} candidates", rows)
    report.save(arguments.json)


def make_pools(questions: Sequence[Question], chosen: random.Random) -> list[list[str]]:
    """Return each question's own passages, and others', in random order."""
    pools = []
    for question in questions:
        own = list(question.passages)
        others = [it for other in questions if other is not question for it in other.passages]
        pool = own + chosen.sample(others, NUM_CANDIDATES - len(own))
        chosen.shuffle(pool)
        pools.append(pool)
    return pools


def row(
    name: str,
    rankings: dict[str, list[Ranking]],
    seconds: dict[str, list[float]],
    *,
    alone: str,
    questions: Sequence[Question],
    pools: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Compare one way with the model alone."""
    tops = [[entry.index for entry in ranking][:TOP] for ranking in rankings[name]]
    expected = [[entry.index for entry in ranking][:TOP] for ranking in rankings[alone]]
    relevant = {
        question.id: frozenset(pool.index(question.passages[index]) for index in question.relevant)
        for question, pool in zip(questions, pools, strict=True)
    }
    orders = {
        question.id: [entry.index for entry in ranking]
        for question, ranking in zip(questions, rankings[name], strict=True)
    }
    ratios = [mine / its for mine, its in zip(seconds[name], seconds[alone], strict=True)]
    same = [top == it for top, it in zip(tops, expected, strict=True)]
    shared = [len(set(top) & set(it)) / TOP for top, it in zip(tops, expected, strict=True)]
    return {
        "way": name,
        "time, median ratio": statistics.median(ratios),
        f"same top {TOP}, %": 100 * statistics.mean(same),
        f"shared of top {TOP}, %": 100 * statistics.mean(shared),
        "nDCG@10": evaluate(orders, relevant).mean.ndcg_at_10,
    }


if __name__ == "__main__":
    main()
