"""Ours against the real sie-server on the same cores: `python benchmarks/server_vs_sie.py`.

Both run at once, each in a process of its own, and are asked in turn, never both: the same
requests, from the same callers, of the same weights. The callers' process shares the cores; the
part of the time that it computes is shown. sie-server must be installed (`make test-real-server`).
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import msgpack
from callers import Round, run_callers, score_request
from report import Report, add_arguments
from served import Served, serve_ours, serve_real
from workload import checkpoint

ROOT = Path(__file__).resolve().parents[1]
MODEL = "test/model"
NUM_REQUESTS = 200
WORDS = ["river", "museum", "people", "berlin", "film", "banana", "the", "of", "in", "a", "year"]


def make_requests(
    url: str, content_format: str, *, num_documents: int, num_words: int
) -> list[bytes]:
    """Make requests of random words; for one seed they are the same for every server."""
    rng = random.Random(11)

    def text(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count)) + f" {rng.randrange(10**6)}"

    return [
        score_request(
            url,
            MODEL,
            text(5),
            [text(num_words) for _ in range(num_documents)],
            content_format=content_format,
        )
        for _ in range(NUM_REQUESTS)
    ]


def compare_scores(servers: dict[str, Served], *, num_documents: int, num_words: int) -> float:
    """Return by how much the servers' scores of the first requests differ at most."""
    seen: dict[str, list[dict[str, float]]] = {}
    for name, server in servers.items():
        requests = make_requests(
            server.url, "msgpack", num_documents=num_documents, num_words=num_words
        )
        replies: dict[int, dict[str, float]] = {}

        def keep(number: int, body: bytes, replies: Any = replies) -> None:
            entries = msgpack.unpackb(body)["scores"]
            replies[number] = {entry["item_id"]: entry["score"] for entry in entries}

        run_callers(server.url, requests[:20], num_callers=1, seconds=1, check=keep)
        seen[name] = [replies[i] for i in sorted(replies)]
    ours, theirs = seen.values()
    return max(
        abs(a[item_id] - b[item_id]) for a, b in zip(ours, theirs, strict=False) for item_id in a
    )


def measure(
    servers: dict[str, Served], arguments: argparse.Namespace, content_format: str, callers: int
) -> dict[str, Any]:
    """Ask the servers in turn, some rounds long; return a row of medians."""
    rounds: dict[str, list[Round]] = {name: [] for name in servers}
    cpu = dict.fromkeys(servers, 0.0)
    for number in range(arguments.rounds + 1):
        names = list(servers)[:: -1 if number % 2 else 1]
        for name in names:
            server = servers[name]
            requests = make_requests(
                server.url,
                content_format,
                num_documents=arguments.documents,
                num_words=arguments.words,
            )
            before = server.cpu_seconds
            seen = run_callers(server.url, requests, num_callers=callers, seconds=arguments.seconds)
            if number:  # the first round warms up
                rounds[name].append(seen)
                cpu[name] += server.cpu_seconds - before
    row: dict[str, Any] = {"format": content_format, "callers": callers}
    for name, seen_rounds in rounds.items():
        num_calls = sum(len(seen.milliseconds) for seen in seen_rounds)
        row |= {
            f"{name} p50 ms": statistics.median(seen.p50 for seen in seen_rounds),
            f"{name} calls/s": statistics.median(seen.calls_per_second for seen in seen_rounds),
            f"{name} cpu ms/call": 1e3 * cpu[name] / num_calls,
            f"{name} callers' cpu": statistics.median(
                seen.generator_seconds / seen.seconds for seen in seen_rounds
            ),
        }
    pairs = list(zip(*rounds.values(), strict=True))
    row["x throughput"] = statistics.median(
        ours.calls_per_second / theirs.calls_per_second for ours, theirs in pairs
    )
    row["x p50"] = statistics.median(theirs.p50 / ours.p50 for ours, theirs in pairs)
    return row


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--model", default="tiny", help="tiny, of sie-server's tests, or a checkpoint of ours"
    )
    parser.add_argument("--mode", default="auto", help="ours: exact, fast or auto")
    parser.add_argument("--precision", default="null", help="theirs: float32, bfloat16 or null")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--formats", nargs="+", default=["json", "msgpack"])
    parser.add_argument("--documents", type=int, default=10)
    parser.add_argument("--words", type=int, default=6, help="of a document")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 2, 1.0
    environment = Path(os.environ.get("SIE_TEST_REAL_SERVER", ROOT / ".build" / "real-server"))
    if not (environment / "installed").exists():
        sys.exit(f"sie-server is not in {environment}: run make test-real-server")
    weights = environment / "weights" if arguments.model == "tiny" else checkpoint(arguments.model)
    report = Report("server_vs_sie", **{k: str(v) for k, v in vars(arguments).items()})
    with (
        serve_ours(f"{MODEL}={weights}", "--mode", arguments.mode) as ours,
        serve_real(environment, MODEL, weights, precision=arguments.precision) as theirs,
    ):
        servers = {"ours": ours, "sie-server": theirs}
        difference = compare_scores(
            servers, num_documents=arguments.documents, num_words=arguments.words
        )
        print(f"largest difference between a score of ours and theirs: {difference:.1e}")
        report.note(largest_difference=difference)
        rows = [
            measure(servers, arguments, content_format, callers)
            for content_format in arguments.formats
            for callers in arguments.callers
        ]
    report.add(f"{arguments.model}: {arguments.documents} documents per call", rows)
    report.save(arguments.json)


if __name__ == "__main__":
    main()
