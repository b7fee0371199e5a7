"""Whether the modes rank as float32 does on real questions: `python benchmarks/order_kept.py`.

300 HotpotQA questions with their ten or so paragraphs and the default model's trained weights:
nDCG@10 of each mode and of transformers' float32 forward, and how far each mode's order is from
that one's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from agreement import Agreement
from race import open_modes, reference
from report import Report, add_arguments
from workload import Workload, real_model_folder

from sie_core.evaluation.datasets import Question, load_hotpotqa
from sie_core.evaluation.metrics import evaluate
from sie_core.ranking import rank

REFERENCE = "transformers float32"


def score_all(contender: Any, questions: Sequence[Question]) -> dict[str, list[float]]:
    """Return each question's scores, one for each paragraph."""
    return {
        question.id: contender(Workload(question.text, question.passages, [], 0)).scores
        for question in questions
    }


def rows_of(
    scores: Mapping[str, Mapping[str, Sequence[float]]], questions: Sequence[Question]
) -> list[dict[str, Any]]:
    """Compare each mode's scores with the reference's."""
    relevant = {question.id: question.relevant for question in questions}
    quality, orders = {}, {}
    for name, own in scores.items():
        orders[name] = {
            question_id: [entry.index for entry in rank(list(values))]
            for question_id, values in own.items()
        }
        quality[name] = evaluate(orders[name], relevant).mean.ndcg_at_10
    rows = []
    for name, own in scores.items():
        agreements = [
            Agreement.of(values, scores[REFERENCE][question_id])
            for question_id, values in own.items()
        ]
        same_first = [
            order[0] == orders[REFERENCE][question_id][0]
            for question_id, order in orders[name].items()
        ]
        rows.append(
            {
                "mode": name,
                "nDCG@10": quality[name],
                "change": quality[name] - quality[REFERENCE],
                "Kendall tau, mean": statistics.mean(one.kendall_tau for one in agreements),
                "Kendall tau, least": min(one.kendall_tau for one in agreements),
                "max difference": max(one.max_difference for one in agreements),
                "same first": statistics.mean(same_first),
            }
        )
    return rows


def main() -> None:
    """Print a row for each mode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--modes", nargs="+", default=["exact", "fast"])
    parser.add_argument("--questions", type=int, help="default 300, or 40 with --quick")
    arguments = parser.parse_args()
    num_questions = arguments.questions or (40 if arguments.quick else 300)
    questions = load_hotpotqa(num_questions)
    folder = real_model_folder()
    report = Report("order_kept", questions=num_questions)
    with reference(folder) as truth:
        scores = {REFERENCE: score_all(truth, questions)}
    for ours in open_modes(arguments.modes, folder):
        scores[ours.name] = score_all(ours.run, questions)
        ours.close()
    pairs = sum(len(question.paragraphs) for question in questions)
    report.add(f"{num_questions} HotpotQA questions, {pairs} pairs", rows_of(scores, questions))
    report.save(arguments.json)


if __name__ == "__main__":
    main()
