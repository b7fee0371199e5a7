"""What importing costs: each statement in fresh interpreters, side by side with its baseline.

Predicted: `import sie_core` and its Reranker cost tens of milliseconds beyond python itself, a
component little beyond its framework, the engine what torch and transformers cost.

    python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 7
PAIRS = [
    ("pass", "import sie_core"),
    ("pass", "from sie_core import Reranker; Reranker()"),
    ("import langchain_core.documents.compressor", "import sie_langchain"),
    ("import llama_index.core.postprocessor.types", "import sie_llamaindex"),
    ("import haystack", "from sie_haystack import SIERanker"),
    ("import torch, transformers", "from sie_core import LocalClient"),
]


def seconds(statement: str) -> float:
    """Time one fresh interpreter from start to end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)  # noqa: S603
    return time.perf_counter() - begin


def main() -> None:
    """Interleave the rounds, so that a busy machine disturbs both sides alike."""
    statements = list(dict.fromkeys(statement for pair in PAIRS for statement in pair))
    times: dict[str, list[float]] = {statement: [] for statement in statements}
    for statement in statements:
        seconds(statement)  # fills the file cache
    for _ in range(ROUNDS):
        for statement in statements:
            times[statement].append(seconds(statement))
    medians = {statement: statistics.median(values) for statement, values in times.items()}
    print(f"medians of {ROUNDS} fresh interpreters, ms")
    for baseline, statement in PAIRS:
        ours, theirs = medians[statement] * 1000, medians[baseline] * 1000
        print(f"{statement:44} {ours:7.0f}   {baseline:44} {theirs:7.0f}   {ours - theirs:+7.0f}")


if __name__ == "__main__":
    main()
