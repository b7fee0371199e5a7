"""What the three two-stage examples share: passages, BM25 over them, and the command line."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bm25s

from sie_core.evaluation.datasets import load_hotpotqa

QUESTION = "What government position was held by the woman who portrayed Corliss Archer?"
NUM_CANDIDATES, NUM_ANSWERS = 50, 5
COLLECTION, DIMENSIONS = "passages", 384  # those of bge-small-en-v1.5

PROMPT = """Answer from these passages, and say which.

{passages}

Question: {question}"""


@dataclass(frozen=True)
class Passage:
    """A paragraph, under an id that a vector database takes."""

    id: str
    text: str


def load_passages(num_questions: int) -> list[Passage]:
    """Pool the paragraphs of HotpotQA questions; it fetches them (18 MB) the first time."""
    paragraphs = (p for question in load_hotpotqa(num_questions) for p in question.paragraphs)
    texts = dict.fromkeys(f"{paragraph.title}. {paragraph.text}" for paragraph in paragraphs)
    return [Passage(str(uuid.uuid5(uuid.NAMESPACE_URL, text)), text) for text in texts]


class KeywordIndex:
    """BM25 over all passages, in memory."""

    def __init__(self, passages: list[Passage]) -> None:
        self._ids = [passage.id for passage in passages]
        self._index = bm25s.BM25()
        texts = [passage.text for passage in passages]
        self._index.index(_tokenize(texts), show_progress=False)

    def search(self, query: str, k: int) -> list[str]:
        """Return the ids of the best passages."""
        k = min(k, len(self._ids))
        found, _ = self._index.retrieve(_tokenize([query]), k=k, show_progress=False)
        return [self._ids[int(place)] for place in found[0]]


def _tokenize(texts: list[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        texts, stopwords="en", return_ids=False, show_progress=False
    )
    return words


def arguments(description: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument(
        "--first-stage",
        choices=("dense", "bm25", "hybrid"),
        default="dense",
        help="dense: Qdrant. bm25: keywords only, no database. hybrid: both, merged by rank.",
    )
    parser.add_argument("--path", type=Path, default=Path("qdrant"), help="Qdrant's files")
    parser.add_argument("--url", help="a Qdrant server instead of files")
    parser.add_argument("--questions", type=int, default=100, help="whose passages are searched")
    return parser.parse_args()


def print_prompt(prompt: str) -> None:
    """Stand in for a chat model, so that no key is needed: put yours in its place."""
    print(prompt)


def first_stage(
    kind: str, dense: Callable[[], list[str]], keywords: Callable[[], list[str]]
) -> list[str]:
    """Return candidates' ids: of one retriever, or of both merged by reciprocal ranks."""
    from sie_core.fusion import reciprocal_rank_fusion

    if kind == "dense":
        return dense()
    if kind == "bm25":
        return keywords()
    merged = reciprocal_rank_fusion([dense(), keywords()])
    return [passage for passage, _ in merged[:NUM_CANDIDATES]]
