"""Against the other libraries, side by side in one run.

    make peers
    python benchmarks/vs_peers.py

Each round draws fresh texts of fresh lengths and gives them to every contender in turn. Ours runs
in this process, the others in one child each per library, in the environment of
`requirements-peers.txt`; a time is that of the library's call, from texts to scores. First the best
configuration of each library and backend is searched for, then those race. Scores are compared with
the float32 forward of transformers, one pair at a time.

sentence-transformers, FlashRank, fastembed and rerankers run their own code over a local folder.
FlashRank and fastembed know models by name only: the folder is laid out as their download is.
`onnxruntime` and `OpenVINO` are driven by hand, over sorted batches of near lengths; for MiniLM-L12
onnxruntime runs the int8 graph of the wheel, else the one that sentence-transformers exports.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agreement import Agreement
from families import Family, families
from peers import EXPORTS
from race import (
    PEERS_PYTHON,
    Child,
    Contender,
    ContenderError,
    Laps,
    Peer,
    open_modes,
    race,
    reference,
)
from report import Report, add_arguments
from workload import Corpus, Workload, checkpoint

HIDE_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "SIE_MAX_CPU_ISA": "avx512"}
"""oneDNN's variable is read by torch and OpenVINO, the other by our kernels. onnxruntime has none;
its int8 kernels keep what the processor has."""

DEFAULT = "sentence-transformers default"
OURS = ("fast", "exact")
SEARCH, QUICK_SEARCH = (50, 3), (10, 2)
"""Documents and rounds with which configurations are tried; the first round warms up."""

SEARCH_FIRST_ROUND = 1000
"""The search draws other texts than the race."""

CALIBRATION_DOCUMENTS = 300
HOPELESS = 2.5
"""A library whose first configuration takes this many times the default's time is left out: so is
bfloat16 where the processor has no instructions for it."""

FAR_BEHIND = 2
"""A configuration whose warm-up takes this many times the best one's time is not timed again."""


def write_calibration(corpus: Corpus) -> None:
    """Write the texts with which OpenVINO's int8 graphs are calibrated, if they are not there."""
    path = EXPORTS / "calibration.json"
    if not path.exists():
        workload = corpus.mixed(SEARCH_FIRST_ROUND - 1, CALIBRATION_DOCUMENTS)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([workload.query, workload.documents]), encoding="utf-8")


# --- the search -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What the search of a family came to.

    Attributes:
        configuration: The quickest.
        ms: Its median.
        num_tried: How many configurations were tried.
        is_hopeless: The first took so long that no more were tried.
    """

    configuration: dict[str, Any]
    ms: float
    num_tried: int
    is_hopeless: bool


def search(
    family: Family,
    limit_ms: float,
    folder: Path,
    child: Child,
    workloads: Sequence[Workload],
    *,
    is_quick: bool = False,
) -> Found:
    """Find the quickest configuration, one axis after the other.

    Args:
        family: Its choice comes first, and decides whether others are tried.
        limit_ms: What the choice may take.
        folder: The model's.
        child: Where the configurations run.
        workloads: The first warms up, the others count.
        is_quick: Try the choice only.
    """

    def measure(configuration: dict[str, Any], least_ms: float) -> float:
        peer = Peer("candidate", configuration, folder, child)
        warm_up, *counted = workloads
        ms = peer.run(warm_up).ms
        if ms < FAR_BEHIND * least_ms:
            ms = statistics.median(peer.run(workload).ms for workload in counted)
        peer.close()
        return ms

    best, num_tried = dict(family.choice), 1
    best_ms = measure(best, math.inf)
    is_hopeless = best_ms > limit_ms
    if not is_hopeless and not is_quick:
        for axis, values in family.axes.items():
            for value in values:
                if value == family.choice[axis]:
                    continue  # measured already, with the best of the axes before
                num_tried += 1
                try:
                    ms = measure(best | {axis: value}, best_ms)
                except ContenderError:
                    continue  # what does not run is not the quickest
                if ms < best_ms:
                    best, best_ms = best | {axis: value}, ms
    return Found(best, best_ms, num_tried, is_hopeless)


class Others:
    """The other libraries' children, and the contenders opened in them.

    Args:
        model: A name of `MODELS`.
        folder: Its folder.
        python: The interpreter of the peers' environment.
        libraries: Those to search, besides the default; all if None.
    """

    def __init__(
        self, model: str, folder: Path, python: Path, libraries: Sequence[str] | None = None
    ) -> None:
        self._folder = folder
        self._python = python
        self._children: dict[str, Child] = {}
        self._families = [
            family
            for family in families(model)
            if libraries is None or family.fixed["library"] in libraries
        ]
        self.default = Peer(
            DEFAULT,
            {"library": "sentence-transformers"},
            folder,
            self._child("sentence-transformers"),
        )
        self.failures: dict[str, str] = {}

    def _child(self, library: str) -> Child:
        if library not in self._children:
            self._children[library] = Child(self._python)
        return self._children[library]

    def best(
        self, workloads: Sequence[Workload], *, is_quick: bool
    ) -> tuple[list[Peer], dict[str, int], list[dict[str, Any]]]:
        """Open the best configuration of each family, unless it is hopeless.

        Args:
            workloads: What to search with; the first warms up.
            is_quick: Take the quick families only, and of each its own choice.

        Returns:
            The contenders, how many rounds some of them take part in, and what was searched.
        """
        default_ms = statistics.median([self.default.run(one).ms for one in workloads][1:])
        peers, rounds, log = [], {}, []
        for family in self._families:
            if is_quick and not family.is_quick:
                continue
            child = self._child(family.fixed["library"])
            configuration = dict(family.choice)
            try:
                if family.axes:
                    found = search(
                        family,
                        HOPELESS * default_ms,
                        self._folder,
                        child,
                        workloads,
                        is_quick=is_quick,
                    )
                    configuration = found.configuration
                    log.append(
                        {
                            "library": family.name,
                            "best": family.describe(configuration),
                            "ms": found.ms,
                            "of the default": found.ms / default_ms,
                            "tried": found.num_tried,
                            "races": "no" if found.is_hopeless else "yes",
                        }
                    )
                    if found.is_hopeless:
                        continue
                name = f"{family.name} {family.describe(configuration)}".strip()
                peers.append(Peer(name, configuration, self._folder, child))
                if family.num_rounds is not None:
                    rounds[name] = family.num_rounds
            except ContenderError as exc:
                self.failures[family.name] = str(exc)
        return peers, rounds, log

    def close(self) -> None:
        """End the children."""
        for child in self._children.values():
            child.close()


# --- the tables -----------------------------------------------------------------------------------


def rows_of(laps: Mapping[str, Laps], expected: Sequence[float]) -> list[dict[str, Any]]:
    """Put times, ratios and correctness side by side, the quickest first.

    Args:
        laps: Of each contender.
        expected: The reference's scores of the first round.
    """
    default = laps[DEFAULT].median
    best_peer = min(own.median for name, own in laps.items() if not name.startswith("sie "))
    rows = []
    for name, own in sorted(laps.items(), key=lambda item: item[1].median):
        agreement = Agreement.of(own.first_scores, expected)
        rows.append(
            {
                "contender": name,
                "max difference": agreement.max_difference,
                "Kendall tau": agreement.kendall_tau,
                "median ms": own.median,
                "min ms": own.min,
                "rounds": len(own.times),
                "x default": default / own.median,
                "x best peer": best_peer / own.median,
            }
        )
    return rows


# --- the busy neighbour ---------------------------------------------------------------------------


@contextlib.contextmanager
def neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that computes for nobody, stopped."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    process.send_signal(signal.SIGSTOP)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def busy_rows(
    contenders: Sequence[Contender], workloads: Sequence[Workload]
) -> list[dict[str, Any]]:
    """Time each contender alone and beside the neighbour, in turn."""
    quiet = {contender.name: Laps() for contender in contenders}
    busy = {contender.name: Laps() for contender in contenders}
    with neighbour() as process:
        for workload, contender in itertools.product(workloads, contenders):
            quiet[contender.name].add(contender.run(workload))
            process.send_signal(signal.SIGCONT)
            time.sleep(0.1)  # until the scheduler has placed it
            try:
                busy[contender.name].add(contender.run(workload))
            finally:
                process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
    return [
        {
            "contender": name,
            "quiet ms": own.median,
            "busy ms": busy[name].median,
            "slowdown": busy[name].median / own.median,
            "busiest ms": max(busy[name].times),
        }
        for name, own in quiet.items()
    ]


# --- the command ----------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--models", nargs="+", default=["MiniLM-L6", "MiniLM-L12"])
    parser.add_argument("--shapes", nargs="+", default=["mixed", "equal"])
    parser.add_argument("--rounds", type=int, help="default 7, or 3 with --quick")
    parser.add_argument("--peers", type=Path, default=PEERS_PYTHON, metavar="PYTHON")
    parser.add_argument(
        "--libraries",
        nargs="*",
        metavar="NAME",
        help="race only these, besides the default; without a name the default alone",
    )
    parser.add_argument("--hide-amx", action="store_true", help="let no side use AMX")
    parser.add_argument(
        "--busy-neighbour", action="store_true", help="what one busy process does to each instead"
    )
    return parser.parse_args()


def search_workloads(draw: Callable[..., Workload], *, is_quick: bool) -> list[Workload]:
    """Draw what configurations are searched with: other texts than those of the race."""
    num_documents, num_rounds = QUICK_SEARCH if is_quick else SEARCH
    return [draw(SEARCH_FIRST_ROUND + number, num_documents) for number in range(num_rounds)]


def compare(model: str, arguments: argparse.Namespace, corpus: Corpus, report: Report) -> None:
    """Run the race for one model and add its tables."""
    folder = checkpoint(model)
    num_rounds = arguments.rounds or (3 if arguments.quick else 7)
    others = Others(model, folder, arguments.peers, arguments.libraries)
    ours = open_modes(OURS, folder)
    try:
        with reference(folder, arguments.peers) as truth:
            for shape in arguments.shapes:
                draw = corpus.shaped(shape)
                peers, rounds, log = others.best(
                    search_workloads(draw, is_quick=arguments.quick), is_quick=arguments.quick
                )
                if log:  # none where the default alone races
                    report.add(f"{model}, {shape}: configurations searched", log)
                workloads = [draw(number) for number in range(num_rounds)]
                contenders: list[Contender] = [*ours, others.default, *peers]
                for contender in contenders:
                    if contender.name not in rounds:
                        contender.run(draw(-1))  # warm, on texts that do not come again
                expected = truth(workloads[0]).scores
                laps = race(contenders, workloads, num_rounds=rounds)
                report.add(
                    f"{model}, {shape}: 100 candidates, {workloads[0].num_tokens} tokens",
                    rows_of(laps, expected),
                )
                for peer in peers:
                    peer.close()
    finally:
        for client in ours:
            client.close()
        others.close()
    for name, message in others.failures.items():
        print(f"{name} could not run: {message}")
    report.note(**{f"{model} failures": others.failures})


def compare_busy(model: str, arguments: argparse.Namespace, corpus: Corpus, report: Report) -> None:
    """Run beside a busy neighbour and add the table."""
    folder = checkpoint(model)
    num_rounds = arguments.rounds or (3 if arguments.quick else 7)
    others = Others(model, folder, arguments.peers, arguments.libraries)
    ours = open_modes(OURS, folder)
    try:
        peers, _, _ = others.best(search_workloads(corpus.mixed, is_quick=True), is_quick=True)
        contenders: list[Contender] = [*ours, others.default, *peers]
        with reference(folder, arguments.peers) as truth:
            warm = corpus.mixed(-1)
            expected = truth(warm).scores
        for contender in contenders:
            agreement = Agreement.of(contender.run(warm).scores, expected)
            print(
                f"{contender.name}: max difference {agreement.max_difference:.4f}, "
                f"Kendall tau {agreement.kendall_tau:.4f}"
            )
        workloads = [corpus.mixed(number) for number in range(num_rounds)]
        report.add(f"{model}, mixed: beside one busy process", busy_rows(contenders, workloads))
    finally:
        for client in ours:
            client.close()
        others.close()


def main() -> None:
    """Print the tables of each model."""
    arguments = parse_arguments()
    if not arguments.peers.exists():
        sys.exit(f"there is no {arguments.peers}: run `make peers` first (some minutes, 3 GB)")
    if arguments.hide_amx and "SIE_MAX_CPU_ISA" not in os.environ:
        # Anew, since the libraries read the variables when they are loaded.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HIDE_AMX)  # noqa: S606
    corpus = Corpus.load()
    write_calibration(corpus)
    report = Report("vs_peers")
    report.note(peers=peer_versions(arguments.peers))
    for model in arguments.models:
        (compare_busy if arguments.busy_neighbour else compare)(model, arguments, corpus, report)
    report.save(arguments.json)


def peer_versions(python: Path) -> dict[str, str]:
    """Return the versions of the libraries compared with."""
    names = ("sentence-transformers", "transformers", "torch", "onnxruntime", "openvino",
             "optimum", "nncf", "flashrank", "fastembed", "rerankers")  # fmt: skip
    code = f"import importlib.metadata as m\nfor n in {names!r}: print(n, m.version(n))"
    printed = subprocess.run(
        [str(python), "-c", code], check=True, capture_output=True, text=True
    ).stdout
    return dict(line.split() for line in printed.splitlines())


if __name__ == "__main__":
    main()
