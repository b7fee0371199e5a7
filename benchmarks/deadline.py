"""Whether calls end when they were told to: `python benchmarks/deadline.py`.

500 calls of the default model with random numbers of HotpotQA paragraphs and random deadlines: how
many end within the deadline and 25 ms, how much they get scored of what a call without a deadline
scores in the time, and whether their scores are those of a whole run. Between calls it waits for
20 ms doing nothing: how late the machine itself is, which other programs make so.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from report import Report, add_arguments

from sie_core import Reranker
from sie_core.evaluation.datasets import load_hotpotqa

MAX_DOCUMENTS = 200
LATENCIES_MS = (20, 500)
TOLERANCE_MS = 25
WAIT_MS = 20


def main() -> None:
    """Print the figures of all calls, and those by deadline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--seed", type=int, default=11)
    add_arguments(parser)
    arguments = parser.parse_args()
    num_calls = 60 if arguments.quick else arguments.calls
    report = Report("deadline", seed=arguments.seed)
    chosen = random.Random(arguments.seed)
    questions = load_hotpotqa(40, seed=arguments.seed)
    passages = [passage for question in questions for passage in question.passages]
    documents = chosen.sample(passages, MAX_DOCUMENTS)
    queries = [question.text for question in questions[:3]]
    with Reranker() as reranker:
        reranker.warm_up()
        began = time.perf_counter()
        whole = {query: scores_of(reranker.rerank(query, documents)) for query in queries}
        per_second = MAX_DOCUMENTS * len(queries) / (time.perf_counter() - began)
        calls = [
            call(reranker, chosen.choice(queries), documents, whole, chosen)
            for _ in range(num_calls)
        ]
    report.add("calls with a deadline", [summary("all", calls, per_second)])
    bounds = [LATENCIES_MS[0], 50, 100, 200, LATENCIES_MS[1]]
    parts = [
        (f"{low} to {high} ms", [one for one in calls if low <= one["latency"] < high])
        for low, high in itertools.pairwise(bounds)
    ]
    report.add("by deadline", [summary(name, part, per_second) for name, part in parts if part])
    report.save(arguments.json)


def call(
    reranker: Reranker,
    query: str,
    documents: Sequence[str],
    whole: dict[str, dict[int, float]],
    chosen: random.Random,
) -> dict[str, Any]:
    """Make one call of a random size with a random deadline."""
    num_documents = chosen.randint(1, MAX_DOCUMENTS)
    latency = chosen.uniform(*LATENCIES_MS)
    began = time.perf_counter()
    ranking = reranker.rerank(query, documents[:num_documents], max_latency_ms=latency)
    took = 1000 * (time.perf_counter() - began)
    scores = scores_of(ranking)
    began = time.perf_counter()
    threading.Event().wait(WAIT_MS / 1000)  # what the machine itself is late by, with nothing to do
    waited = 1000 * (time.perf_counter() - began)
    return {
        "wait over": waited - WAIT_MS,
        "latency": latency,
        "over": took - latency,
        "documents": num_documents,
        "scored": len(scores),
        "seconds": took / 1000,
        "partial": ranking.status == "partial",
        "difference": max((abs(it - whole[query][i]) for i, it in scores.items()), default=0.0),
    }


def scores_of(ranking: Any) -> dict[int, float]:
    """Return the scores by the documents' places."""
    return {entry.index: entry.score for entry in ranking if entry.score is not None}


def summary(name: str, calls: Sequence[dict[str, Any]], per_second: float) -> dict[str, Any]:
    """Describe some calls in a row of a table."""
    over = [one["over"] for one in calls]
    cut = [one for one in calls if one["partial"]]
    possible = sum(one["latency"] / 1000 * per_second for one in cut)
    return {
        "deadline": name,
        "calls": len(calls),
        "partial": len(cut),
        f"within + {TOLERANCE_MS} ms, %": 100 * sum(it <= TOLERANCE_MS for it in over) / len(over),
        "p99 over, ms": float(np.percentile(over, 99)),
        "worst over, ms": max(over),
        "p99 of a bare wait, ms": float(np.percentile([one["wait over"] for one in calls], 99)),
        "scored, % of possible": 100 * sum(one["scored"] for one in cut) / possible
        if cut
        else math.nan,
        "largest difference": max(one["difference"] for one in calls),
    }


if __name__ == "__main__":
    main()
