"""Does memory stay the same? Resident size after 1,000 and after 10,000 calls of random sizes.

    python resident_memory.py --model FOLDER [--calls 10000] [--threads 4] [--mode exact]

Every call has a query and documents that no other has, so caches turn over. Exits with 1 where the
size has grown by more than 5% from a tenth of the calls to all of them.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import threading
from pathlib import Path

from sie_core import DEFAULT_MODEL, LocalClient

WORDS = ["berlin", "museum", "river", "city", "people", "capital", "tower", "python", "album"]
TOLERANCE = 1.05


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def make_text(generator: random.Random, longest: int) -> str:
    """Make a text that no other call has."""
    words = generator.choices(WORDS, k=generator.randrange(1, longest))
    return f"{generator.getrandbits(40):x} {' '.join(words)}"


def run_calls(client: LocalClient, model: str, count: int, seed: int) -> None:
    """Score `count` times: mostly few documents, sometimes many."""
    generator = random.Random(seed)
    for _ in range(count):
        num_items = min(60, int(generator.lognormvariate(1.2, 1.0)))
        items = [{"text": make_text(generator, 60)} for _ in range(num_items)]
        client.score(model, {"text": make_text(generator, 12)}, items)  # type: ignore[arg-type]


def main() -> int:
    """Run the calls, print the sizes, and say by the exit status whether they stayed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--mode", choices=("auto", "exact", "fast"), default="auto")
    given = parser.parse_args()
    # A small cache turns over within the first tenth; a large one would still be filling.
    client = LocalClient(mode=given.mode, token_cache_bytes=2**20)
    sizes = []
    for tenth in range(10):
        threads = [
            threading.Thread(
                target=run_calls,
                args=(client, given.model, given.calls // 10 // given.threads, 100 * tenth + i),
            )
            for i in range(given.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.collect()
        sizes.append(resident_bytes())
        done = (tenth + 1) * given.calls // 10
        growth = sizes[-1] / sizes[0]
        sys.stdout.write(f"after {done} calls: {sizes[-1] / 2**20:.1f} MiB ({growth:.3f})\n")
    return int(sizes[-1] > TOLERANCE * sizes[0])


if __name__ == "__main__":
    sys.exit(main())
