"""What Ray costs a call: `python benchmarks/serve_on_ray.py`.

`sie serve` in one process, and `sie serve --engine ray` with one replica, each with the same model
on one core, are asked the same calls in turn, never both, by 1 caller and by 8: calls of 20
documents, and calls of one. Both servers are there all the time, so what Ray does when nobody asks
burdens both alike. The callers, and what stands before the replica, share the other cores.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from callers import Round, run_callers, score_request
from report import Report, add_arguments
from served import serve_ours
from workload import Corpus, mixed_lengths, real_model_folder

MODEL = "bench/model"
NUM_CALLS = 32
"""Different calls, made round and round."""

SIDES = {
    "one process": ("--num-threads", "1"),
    "ray": ("--engine", "ray", "--num-threads", "1", "--cores-per-replica", "1"),
}


def measure(
    urls: dict[str, str],
    calls: dict[str, list[bytes]],
    *,
    callers: int,
    rounds: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """Ask both servers in turn, a round each; the first round warms up."""
    rows = []
    for number in range(rounds + 1):
        seen: dict[str, Round] = {}
        for side in (*SIDES,)[:: -1 if number % 2 else 1]:
            seen[side] = run_callers(
                urls[side],
                calls[side],
                num_callers=callers,
                seconds=seconds if number else min(2.0, seconds),
            )
        if number:
            single, ray = seen["one process"], seen["ray"]
            rows.append(
                {
                    "round": number,
                    "callers": callers,
                    "one process calls/s": single.calls_per_second,
                    "ray calls/s": ray.calls_per_second,
                    "ray / one process": ray.calls_per_second / single.calls_per_second,
                    "one process p50 ms": single.p50,
                    "ray p50 ms": ray.p50,
                    "p50 ratio": ray.p50 / single.p50,
                }
            )
    return rows


def main() -> None:
    """Print a row per round, and what they amount to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round, for each of them")
    parser.add_argument("--mode", default="auto")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="instead of MiniLM-L12: a tiny one shows Ray alone",
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 4, 1.5
    try:
        import ray  # noqa: F401
    except ImportError as exc:
        sys.exit(f'Ray is not installed ({exc}): pip install "sie-core[distributed]"')
    folder = arguments.model or real_model_folder()
    corpus, rng = Corpus.load(), random.Random(9)
    report = Report("serve_on_ray", mode=arguments.mode)
    model, mode = f"{MODEL}={folder}", ("--mode", arguments.mode, "--log-level", "warning")
    with (
        serve_ours(model, *mode, *SIDES["one process"]) as single,
        serve_ours(model, *mode, *SIDES["ray"]) as on_ray,
    ):
        urls = {"one process": single.url, "ray": on_ray.url}
        medians = []
        for documents in (20, 1):
            workloads = [
                corpus.of_lengths(mixed_lengths(rng, documents), f"call {number}")
                for number in range(NUM_CALLS)
            ]
            calls = {
                side: [
                    score_request(url, MODEL, it.query, it.documents, content_format="msgpack")
                    for it in workloads
                ]
                for side, url in urls.items()
            }
            for callers in (1, 8):
                rows = measure(
                    urls,
                    calls,
                    callers=callers,
                    rounds=arguments.rounds,
                    seconds=arguments.seconds,
                )
                report.add(f"calls of {documents} documents, {callers} callers", rows)
                medians.append(
                    {
                        "documents": documents,
                        "callers": callers,
                        **{
                            name: statistics.median(row[name] for row in rows)
                            for name in ("ray / one process", "p50 ratio")
                        },
                        "ms more": statistics.median(
                            row["ray p50 ms"] - row["one process p50 ms"] for row in rows
                        ),
                    }
                )
    report.add("medians", medians)
    report.save(arguments.json)


if __name__ == "__main__":
    main()
