"""What starting costs: fresh interpreters, side by side with a baseline each.

    python benchmarks/startup.py

Imports: predicted was that `import sie_core` and its Reranker cost tens of milliseconds beyond
python itself, a component little beyond its framework, the engine what torch costs.

First scores: from the start of the process until 20 candidates are scored, and the resident memory
at that moment, against sentence-transformers (`make peers`). With a warm file cache, and with one
from which the files of the environment and the model were dropped as far as other processes do not
hold them (`posix_fadvise`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agreement import Agreement
from race import PEERS_PYTHON, ROOT, reference
from report import Report, add_arguments
from workload import Corpus, Workload, checkpoint

IMPORTS = [
    ("pass", "import sie_core"),
    ("pass", "from sie_core import Reranker; Reranker()"),
    ("import langchain_core.documents.compressor", "import sie_langchain"),
    ("import llama_index.core.postprocessor.types", "import sie_llamaindex"),
    ("import haystack", "from sie_haystack import SIERanker"),
    ("import torch", "from sie_core import LocalClient"),
]
"""Statements, each after its baseline."""

NUM_CANDIDATES = 20

READ = """
import json, sys
folder, query, documents = json.load(open(sys.argv[1]))
"""
TELL = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps([scores, int(status["VmRSS"].split()[0]) / 1024]), flush=True)
"""
OURS = f"""{READ}
from sie_core import LocalClient
from sie_core.types import Item
client = LocalClient(mode=sys.argv[2])
result = client.score(folder, Item(text=query), [Item(text=text) for text in documents])
by_id = {{entry["item_id"]: entry["score"] for entry in result["scores"]}}
scores = [by_id[f"item-{{i}}"] for i in range(len(documents))]
{TELL}"""
THEIRS = f"""{READ}
from sentence_transformers import CrossEncoder
scores = CrossEncoder(folder).predict([(query, text) for text in documents]).tolist()
{TELL}"""


@dataclass(frozen=True, slots=True)
class Starter:
    """A script that scores, and the interpreter that runs it."""

    name: str
    python: Path
    script: str
    arguments: tuple[str, ...] = ()

    def start(self, task: Path) -> tuple[float, float, list[float]]:
        """Return seconds until the scores were there, resident MiB then, and the scores."""
        command = [str(self.python), "-c", self.script, str(task), *self.arguments]
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            assert child.stdout is not None  # noqa: S101
            line = child.stdout.readline()
            elapsed = time.perf_counter() - started
        if not line:
            msg = f"{self.name} gave no scores: it ended with exit status {child.returncode}"
            raise RuntimeError(msg)
        scores, resident_mib = json.loads(line)
        return elapsed, resident_mib, scores

    def files(self) -> list[Path]:
        """Return the folders that it reads code from."""
        code = "import sysconfig; p = sysconfig.get_paths(); print(p['purelib'], p['stdlib'])"
        printed = subprocess.run(
            [str(self.python), "-c", code], check=True, capture_output=True, text=True
        ).stdout
        return [Path(path) for path in printed.split()]


def seconds(statement: str) -> float:
    """Time one fresh interpreter from start to end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begin


def import_rows(num_rounds: int) -> list[dict[str, Any]]:
    """Interleave the rounds, so that a busy machine disturbs both sides alike."""
    statements = list(dict.fromkeys(statement for pair in IMPORTS for statement in pair))
    times: dict[str, list[float]] = {statement: [] for statement in statements}
    for statement in statements:
        seconds(statement)  # fills the file cache
    for _ in range(num_rounds):
        for statement in statements:
            times[statement].append(seconds(statement))
    medians = {statement: 1000 * statistics.median(values) for statement, values in times.items()}
    return [
        {
            "statement": statement,
            "ms": medians[statement],
            "baseline": baseline,
            "baseline ms": medians[baseline],
            "difference": medians[statement] - medians[baseline],
        }
        for baseline, statement in IMPORTS
    ]


def score_rows(
    starters: Sequence[Starter],
    workload: Workload,
    folder: Path,
    expected: Sequence[float],
    *,
    num_rounds: int,
    is_cold: bool,
) -> list[dict[str, Any]]:
    """Start each in turn; the last one is what the others are compared with."""
    laps: dict[str, list[tuple[float, float, list[float]]]] = {one.name: [] for one in starters}
    with tempfile.TemporaryDirectory() as temporary:
        task = Path(temporary) / "task.json"
        task.write_text(json.dumps([str(folder), workload.query, workload.documents]))
        if not is_cold:
            for starter in starters:
                starter.start(task)
        for _ in range(num_rounds):
            for starter in starters:
                if is_cold:
                    drop_from_file_cache([*starter.files(), folder, ROOT / "sie_core"])
                laps[starter.name].append(starter.start(task))
    medians = {
        name: [statistics.median(values) for values in list(zip(*own, strict=True))[:2]]
        for name, own in laps.items()
    }
    base_seconds, base_mib = medians[starters[-1].name]
    rows = []
    for name, (elapsed, resident_mib) in medians.items():
        agreement = Agreement.of(laps[name][0][2], expected)
        rows.append(
            {
                "process": name,
                "max difference": agreement.max_difference,
                "Kendall tau": agreement.kendall_tau,
                "seconds": elapsed,
                "least seconds": min(lap[0] for lap in laps[name]),
                "of theirs": elapsed / base_seconds,
                "resident MiB": resident_mib,
                "of their MiB": resident_mib / base_mib,
            }
        )
    return rows


def drop_from_file_cache(folders: Sequence[Path]) -> None:
    """Ask the kernel to forget the contents of all files below some folders."""
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root) / name
                if path.is_file():
                    descriptor = os.open(path, os.O_RDONLY)
                    try:
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    finally:
                        os.close(descriptor)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--model", default="MiniLM-L12")
    parser.add_argument("--rounds", type=int, help="default 7, or 2 with --quick")
    parser.add_argument("--peers", type=Path, default=PEERS_PYTHON, metavar="PYTHON")
    arguments = parser.parse_args()
    num_rounds = arguments.rounds or (2 if arguments.quick else 7)
    report = Report("startup", model=arguments.model, purelib=sysconfig.get_path("purelib"))
    report.add(f"imports, medians of {num_rounds} fresh interpreters", import_rows(num_rounds))
    ours = Path(sys.executable)
    starters = [Starter(f"sie {mode}", ours, OURS, (mode,)) for mode in ("auto", "exact")]
    if arguments.peers.exists():
        starters.append(Starter("sentence-transformers", arguments.peers, THEIRS))
    else:
        print(f"\nthere is no {arguments.peers}: run `make peers` to compare with others")
    folder = checkpoint(arguments.model)
    workload = Corpus.load().mixed(0, NUM_CANDIDATES)
    with reference(folder) as truth:
        expected = truth(workload).scores
    for title, rounds, is_cold in (
        ("warm file cache", num_rounds, False),
        ("dropped file cache", max(1, num_rounds // 3), True),
    ):
        rows = score_rows(starters, workload, folder, expected, num_rounds=rounds, is_cold=is_cold)
        report.add(f"process start to {NUM_CANDIDATES} scores, {title}", rows)
    report.save(arguments.json)


if __name__ == "__main__":
    main()
