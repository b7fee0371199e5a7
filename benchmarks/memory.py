"""Whether memory grows with use: `python benchmarks/memory.py`.

One client answers 10,000 calls of random sizes, each with texts that it has not seen; the resident
memory after all of them is compared with that after the first thousand.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from race import Ours
from report import Report, add_arguments
from workload import Corpus, Workload, checkpoint, mixed_lengths

MOST_DOCUMENTS = 24
"""A call's number of documents is drawn so that each doubling is as likely as the next."""

_MIB = 1024 * 1024


def resident_mib() -> float:
    """Return this process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def calls(corpus: Corpus, num_calls: int) -> Iterator[Workload]:
    """Draw calls of random sizes, one at a time."""
    rng = random.Random(3)
    for number in range(num_calls):
        num_documents = round(MOST_DOCUMENTS ** rng.random())
        yield corpus.of_lengths(mixed_lengths(rng, num_documents), f"memory {number}")


def main() -> None:
    """Print the memory over the calls."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--model", default="MiniLM-L6")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--calls", type=int, help="default 10000, or 1000 with --quick")
    arguments = parser.parse_args()
    if not Path("/proc/self/statm").exists():
        sys.exit("resident memory is read from /proc, which this system does not have")
    num_calls = arguments.calls or (1_000 if arguments.quick else 10_000)
    corpus = Corpus.load()
    report = Report("memory", model=arguments.model, mode=arguments.mode)
    before = resident_mib()
    ours = Ours(arguments.mode, checkpoint(arguments.model))
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    step = num_calls // 10
    num_documents = 0
    for number, workload in enumerate(calls(corpus, num_calls), 1):
        ours.run(workload)
        num_documents += len(workload.documents)
        if number % step == 0:
            rows.append(
                {
                    "calls": number,
                    "documents": num_documents,
                    "resident MiB": resident_mib(),
                    "against the first tenth": resident_mib() / rows[0]["resident MiB"]
                    if rows
                    else 1.0,
                    "seconds": time.perf_counter() - started,
                }
            )
    report.add(f"resident memory; {before:.0f} MiB before the model was loaded", rows)
    report.save(arguments.json)
    ours.close()


if __name__ == "__main__":
    main()
