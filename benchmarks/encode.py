"""How fast texts become dense vectors, beside sentence-transformers: `python benchmarks/encode.py`.

bge-small-en-v1.5 and fresh texts of mixed length, 100 and 1,000 of them. Each contender encodes one
query and all texts, and multiplies; the products tell how far its vectors are from those of
sentence-transformers in float32, as it comes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from agreement import Agreement
from race import Child, Contender, Lap, Ours, Peer, race
from report import Report, add_arguments
from workload import Corpus, Workload

from sie_core.errors import InvalidRequestError
from sie_core.models.sources import resolve
from sie_core.settings import SourceSettings
from sie_core.types import Item

MODEL = "BAAI/bge-small-en-v1.5"
PEER = "sentence-transformers"
NUM_ROUNDS, NUM_QUICK_ROUNDS = 5, 3


class OursEncoding(Ours):
    """A `LocalClient` that encodes."""

    def run(self, workload: Workload) -> Lap:
        """Encode a query and documents, and multiply."""
        started = time.perf_counter()
        query = self.client.encode(self.model, Item(text=workload.query), is_query=True)["dense"]
        items = [Item(text=document) for document in workload.documents]
        documents = np.stack([result["dense"] for result in self.client.encode(self.model, items)])
        products = (documents @ query).tolist()
        return Lap(1000 * (time.perf_counter() - started), products)


def open_contenders(folder: Path, child: Child) -> list[Contender]:
    """Open both modes, as far as this machine has them, and sentence-transformers as it comes."""
    contenders: list[Contender] = []
    for mode in ("exact", "fast"):
        try:
            contenders.append(OursEncoding(mode, folder))
        except InvalidRequestError as exc:
            print(exc)
    library = {"library": "sentence-transformers-encode"}
    return [*contenders, Peer(PEER, library, folder, child)]


def rows_of(
    contenders: Sequence[Contender], workloads: Sequence[Workload]
) -> list[dict[str, object]]:
    """Race, and compare."""
    laps = race(contenders, workloads)
    wanted = laps[PEER]
    rows: list[dict[str, object]] = []
    for name, own in laps.items():
        agreement = Agreement.of(own.first_scores, wanted.first_scores)
        rows.append(
            {
                "contender": name,
                "ms": own.median,
                "times as fast": wanted.median / own.median,
                "largest difference": agreement.max_difference,
                "tau": agreement.kendall_tau,
            }
        )
    return rows


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--python",
        type=Path,
        default=sys.executable,
        help="interpreter that has sentence-transformers",
    )
    arguments = parser.parse_args()
    num_rounds = NUM_QUICK_ROUNDS if arguments.quick else NUM_ROUNDS
    folder = resolve(MODEL, SourceSettings()).folder
    report = Report("encode", rounds=num_rounds)
    corpus = Corpus.load()
    with Child(arguments.python) as child:
        contenders = open_contenders(folder, child)
        for contender in contenders:  # what is built at a first call is built here
            contender.run(corpus.mixed(-1))
        for count in (100,) if arguments.quick else (100, 1_000):
            workloads = [corpus.mixed(number, count) for number in range(num_rounds)]
            report.add(f"{count} texts of mixed length", rows_of(contenders, workloads))
    report.save(arguments.json)


if __name__ == "__main__":
    main()
