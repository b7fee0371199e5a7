"""Whether the right long document comes first: `python benchmarks/long_documents.py`.

Needles in haystacks. Each case has a question about something invented, and documents of 4,000
tokens of HotpotQA's running text, each with one made-up sentence at a random place: one answers the
question, the others tell of something else. Scored by the embedded default model, with the
documents cut at what it reads and with the best of their passages.

    python benchmarks/long_documents.py --quick                        # 24 cases
    python benchmarks/long_documents.py --first 0 --cases 40 --record cases.jsonl
    python benchmarks/long_documents.py --first 40 --cases 40 --record cases.jsonl   # and so on

With `--record` the cases already in the file are counted as well, so that a long run has parts.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import Report, add_arguments
from tokenizers import Tokenizer
from workload import real_model_folder

from sie_core import Item, LocalClient
from sie_core.evaluation.datasets import load_hotpotqa

NUM_TOKENS = 4000
"""Of a document, the sentence that is hidden in it included."""

NUM_DOCUMENTS = 5
"""Of a case; one of them is right."""

PASSAGE_LENGTH = 200
"""Tokens of a passage. The model was trained on texts of MS MARCO, which are shorter still: in 512
tokens of running text it often overlooks one sentence."""

HANDLINGS = ("truncate", "max_passage")

_FACTS = (
    (
        "What is the access code of the {name} warehouse?",
        "The access code of the {name} warehouse is {number}.",
    ),
    ("How deep is the harbour of {name}?", "The harbour of {name} is {number} metres deep."),
    ("When was the lighthouse of {name} built?", "The lighthouse of {name} was built in {number}."),
    ("How many people live on {name} island?", "{number} people live on {name} island."),
    ("What does the {name} engine weigh?", "The {name} engine weighs {number} kilograms."),
)
_NAMES = (
    "Ashford", "Brindle", "Calder", "Dunmore", "Elstow", "Farrow", "Glenham", "Hartley",
    "Inverley", "Kingsmead", "Lochside", "Marwick", "Norbury", "Oakhurst", "Pembrey", "Redcliff",
    "Silverdale", "Thornton", "Underhill", "Westmoor",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One question and its documents.

    Attributes:
        question: About the sentence in the right document.
        documents: Texts.
        right: Which of them answers it.
        span: Where in it the answer is, in characters.
    """

    question: str
    documents: list[str]
    right: int
    span: tuple[int, int]


class Haystack:
    """Running text, cut to a number of tokens.

    Args:
        passages: What it is made of.
        tokenizer: Counts the tokens.
    """

    def __init__(self, passages: Sequence[str], tokenizer: Tokenizer) -> None:
        self._passages = passages
        self._tokenizer = tokenizer

    def hide(
        self, sentence: str, rng: random.Random, num_tokens: int
    ) -> tuple[str, tuple[int, int]]:
        """Return a document with `sentence` at a random place, and where that is."""
        left = num_tokens - len(self._tokenizer.encode(sentence, add_special_tokens=False).ids)
        words = self._running_text(rng, left).split(" ")
        place = rng.randrange(len(words) + 1)
        before = "".join(f"{word} " for word in words[:place])
        text = before + sentence + "".join(f" {word}" for word in words[place:])
        return text, (len(before), len(before) + len(sentence))

    def _running_text(self, rng: random.Random, num_tokens: int) -> str:
        text, ends = "", []
        while len(ends) < num_tokens:
            text = f"{text} {' '.join(rng.choice(self._passages).split())}".strip()
            offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
            ends = [end for _, end in offsets]
        return text[: ends[num_tokens - 1]]


def make_case(
    haystack: Haystack,
    number: int,
    *,
    num_documents: int = NUM_DOCUMENTS,
    num_tokens: int = NUM_TOKENS,
) -> Case:
    """Make the case of a number: the same one in every run."""
    rng = random.Random(f"long documents {number}")
    names = rng.sample(_NAMES, num_documents)
    kinds = rng.sample(_FACTS, len(_FACTS))
    facts = [kinds[position % len(kinds)] for position in range(num_documents)]
    right = rng.randrange(num_documents)
    hidden = [
        haystack.hide(
            fact.format(name=name, number=f"{rng.randrange(1000, 10_000)}"), rng, num_tokens
        )
        for name, (_, fact) in zip(names, facts, strict=True)
    ]
    question = facts[right][0].format(name=names[right])
    return Case(question, [text for text, _ in hidden], right, hidden[right][1])


def score_case(
    client: LocalClient, model: str, case: Case, handling: str, **options: Any
) -> dict[str, Any]:
    """Return whether the right document is first, and its best passage holds the answer."""
    items = [Item(id=str(i), text=text) for i, text in enumerate(case.documents)]
    started = time.perf_counter()
    result = client.score(
        model, Item(text=case.question), items, options={"long_documents": handling, **options}
    )
    seconds = time.perf_counter() - started
    first = result["scores"][0]
    span = first.get("span", (0, 0))
    is_right = first["item_id"] == str(case.right)
    return {
        "handling": handling,
        "is_right": is_right,
        "holds_answer": is_right and span[0] <= case.span[0] and case.span[1] <= span[1],
        "seconds": seconds,
        "tokens": result["usage"]["input_tokens"],
    }


def rows_of(outcomes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Sum up each handling."""
    rows = []
    for handling in HANDLINGS:
        own = [outcome for outcome in outcomes if outcome["handling"] == handling]
        num_right = sum(outcome["is_right"] for outcome in own)
        rows.append(
            {
                "long_documents": handling,
                "cases": len(own),
                "right first": num_right,
                "share": num_right / len(own),
                "best passage holds the answer": sum(outcome["holds_answer"] for outcome in own),
                "tokens per case": sum(outcome["tokens"] for outcome in own) / len(own),
                "seconds per case": sum(outcome["seconds"] for outcome in own) / len(own),
            }
        )
    return rows


def main() -> None:
    """Print a row for each handling."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--cases", type=int, help="default 200, or 24 with --quick")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS)
    parser.add_argument("--mode", default="fast")
    parser.add_argument("--passage-length", type=int, default=PASSAGE_LENGTH)
    parser.add_argument("--record", type=Path, metavar="FILE", help="add the outcomes to this file")
    arguments = parser.parse_args()
    logging.getLogger("sie_core").setLevel(logging.ERROR)
    num_cases = arguments.cases or (24 if arguments.quick else 200)
    model = str(real_model_folder())
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    passages = [passage for question in load_hotpotqa(300) for passage in question.passages]
    haystack = Haystack(passages, tokenizer)
    report = Report(
        "long_documents",
        documents=arguments.documents,
        mode=arguments.mode,
        passage_length=arguments.passage_length,
    )
    record: Path | None = arguments.record
    outcomes: list[dict[str, Any]] = []
    if record is not None and record.exists():
        outcomes = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
    done = {outcome["case"] for outcome in outcomes}
    with LocalClient(mode=arguments.mode) as client:
        client.warm_up(model)
        for number in range(arguments.first, arguments.first + num_cases):
            if number in done:
                continue
            case = make_case(haystack, number, num_documents=arguments.documents)
            new = [
                {"case": number} | score_case(client, model, case, handling, **options)
                for handling, options in (
                    ("truncate", {}),
                    ("max_passage", {"passage_length": arguments.passage_length}),
                )
            ]
            outcomes += new
            if record is not None:
                with record.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(outcome) + "\n" for outcome in new)
    report.add(
        f"{arguments.documents} documents of {NUM_TOKENS:,} tokens, one with the answer",
        rows_of(outcomes),
    )
    report.save(arguments.json)


if __name__ == "__main__":
    main()
