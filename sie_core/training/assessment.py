"""Before and after, on queries that were never trained on, by our own engine's scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sie_core.evaluation import machine, outcome
from sie_core.evaluation.first_stage import Candidates
from sie_core.evaluation.outcome import MAIN_MEASURE, Measured
from sie_core.evaluation.scoring import Scoring
from sie_core.evaluation.texts import TextStore
from sie_core.evaluation.watching import Watch, unwatched
from sie_core.reranker import Reranker
from sie_core.training.preparation import Retrieving, TestSet

BEFORE, AFTER = "before", "after"

OpenReranker = Callable[[], Reranker]


class Assessment:
    """The test split, with its candidates, ready to be scored.

    Args:
        test: What is measured on.
        folder: Holds texts and scores; the scores there are not asked for again.
        retrieving: How candidates are found.
        with_titles: Put titles before texts.
        watch: Shows the progress.
    """

    def __init__(
        self,
        test: TestSet,
        folder: Path,
        *,
        retrieving: Retrieving,
        with_titles: bool = True,
        watch: Watch = unwatched,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._test = test
        self._folder = folder
        self._watch = watch
        self._depth = retrieving.depth
        corpus = retrieving.folder / "corpus.sqlite"
        if test.own is not None or not corpus.exists():
            corpus = folder / "corpus.sqlite"
            documents = test.collection.read_documents()
            TextStore.build(corpus, documents, with_title=with_titles).close()
        self._store = TextStore(corpus)
        self._candidates: Candidates = (
            retrieving.find(test.collection, self._store) if test.own is None else test.own
        )
        if test.own is not None:
            self._depth = max(map(len, test.own.values()))

    def measure(self, label: str, reranker: Reranker, *, settings: Mapping[str, Any]) -> Measured:
        """Score all candidates; what was scored in this folder before is not scored again."""
        folder = self._folder / label
        folder.mkdir(exist_ok=True)
        queries = self._test.collection.queries
        scoring = Scoring(reranker, queries, self._candidates, self._store, folder)
        reranker.warm_up()
        execution = reranker.execution
        scoring.score(self._watch)
        return Measured(
            label=label,
            scored=scoring.scored,
            seconds_by_depth={},
            settings=settings,
            execution=execution,
        )

    def compare(self, before: Measured, after: Measured, *, seed: int) -> dict[str, Any]:
        """Return the figures of both and their difference, as `sie compare` has them."""
        collection, depths = self._test.collection, [self._depth]
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine.describe_machine(),
            "versions": machine.installed_versions(),
            "data": outcome.describe_data(collection, self._store),
            "first_stage": outcome.describe_first_stage(
                collection, self._candidates, self._test.first_stage, depths
            ),
            "statistics": outcome.describe_statistics(seed),
            "models": [
                outcome.describe_model(
                    one, collection, self._candidates, self._store, depths=depths, seed=seed
                )
                for one in (before, after)
            ],
            "pairs": outcome.compare_models([before, after], collection, seed=seed),
        }

    def close(self) -> None:
        """Close the texts."""
        self._store.close()


def main_pair(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the difference that decides."""
    return next(dict(pair) for pair in figures["pairs"] if pair["name"] == MAIN_MEASURE)


def verdict(figures: Mapping[str, Any]) -> str:
    """Say in a sentence whether it helped."""
    pair = main_pair(figures)
    before, after = (
        next(metric["after"] for metric in model["metrics"] if metric["name"] == MAIN_MEASURE)
        for model in figures["models"]
    )
    change = (
        f"{MAIN_MEASURE} {before:.4f} → {after:.4f} on {figures['data']['num_queries']:,} test "
        f"queries: {pair['difference']:+.4f}, 95 % interval {pair['low']:+.4f} … "
        f"{pair['high']:+.4f}"
    )
    if pair["verdict"] == "better":
        return f"It helped. {change}."
    if pair["verdict"] == "worse":
        return f"It did not help: the model is worse than before. {change}."
    return (
        f"It did not help, as far as these queries can tell: the interval holds zero. {change}. "
        "More test queries narrow the interval; more or other training data may change the mean."
    )
