"""Teach a reranker what a company's own words mean, and measure whether it paid."""

from __future__ import annotations

import json
import tempfile
from itertools import product
from pathlib import Path

from sie_core import Reranker
from sie_core.training.finetuning import Finetuning
from sie_core.training.preparation import Retrieving, Sizes, prepare_file
from sie_core.training.settings import TrainingSettings

# "Granite" is the leave policy, "Osprey" the expense policy: no public model can know that.
CODE_NAMES = {"Granite": "annual leave and days off", "Osprey": "expenses and refunds"}
PEOPLE = ["an engineer", "a nurse", "a driver", "a clerk", "a cook", "a pilot", "a judge", "a chef"]
ASKED = ["What does {} get under {}?", "Tell {} about {}", "How does {1} apply to {0}?"]


def record(person: str, question: str, name: str) -> dict[str, str]:
    """Return one triplet of a query, its answer and the other policy."""
    answer, other = (f"For {person}: rules on {CODE_NAMES[one]}" for one in order(name))
    return {"query": question.format(person, name), "positive": answer, "negative": other}


def order(name: str) -> list[str]:
    """Return the code names, the one asked about first."""
    return sorted(CODE_NAMES, key=lambda one: one != name)


with tempfile.TemporaryDirectory() as made:
    folder = Path(made)
    records = [record(*one) for one in product(PEOPLE, ASKED, CODE_NAMES)]
    (folder / "triplets.jsonl").write_text("\n".join(map(json.dumps, records)))
    outcome = Finetuning(
        data=prepare_file(folder / "triplets.jsonl", sizes=Sizes(dev=6, test=16)),
        out=folder / "adapter",
        settings=TrainingSettings(learning_rate=3e-3, num_epochs=3, evaluations=1, num_threads=1),
        retrieving=Retrieving(folder=folder),
    ).run()
    print(outcome.verdict.partition(".")[0])
    texts = ["For a baker: rules on expenses and refunds", "For a baker: rules on annual leave"]
    with Reranker(lora=str(folder / "adapter")) as reranker:
        print(next(iter(reranker.rerank("Tell a baker about Granite", texts))).index)

# Expected output:
# It helped
# 1
