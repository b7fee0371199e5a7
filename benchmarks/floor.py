"""How near the engine comes to what the processor can do: `python benchmarks/floor.py`.

The floor is the time that the model's linear layers alone would take for exactly the tokens there
are, no padding, at the rate at which torch (oneDNN, weights packed ahead; or MKL) multiplies
matrices of these very shapes, on all cores at once with one thread on each. Attention, softmax,
normalisation, activation and tokenisation are not in it, so that 1.0 is out of reach. All layers
count in full; `fraction, last layer for [CLS]` sets the floor lower by what the engine need not do
there. Rates and scores are measured in turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from agreement import Agreement
from race import open_modes, race, reference
from report import Report, add_arguments
from workload import MODELS, SMALL_MODEL, Corpus, Workload, checkpoint

ROWS = (256, 512, 1024, 2048)
"""Tokens of the products that rates are measured with; the best counts."""

REPEATS = 4
DTYPES = {"fast": "bfloat16", "exact": "float32"}
_MS_PER_SECOND = 1000


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer's shape, and how many of it each encoder layer has."""

    name: str
    num_inputs: int
    num_outputs: int
    count: int

    def flops(self, num_tokens: int) -> int:
        """Count multiplications and additions over all of the count."""
        return 2 * num_tokens * self.num_inputs * self.num_outputs * self.count


def linears(configuration: Mapping[str, Any]) -> list[Linear]:
    """List the linear layers of one encoder layer, query, key and value as one product."""
    hidden, intermediate = configuration["hidden_size"], configuration["intermediate_size"]
    return [
        Linear("query, key, value", hidden, 3 * hidden, 1),
        Linear("attention output", hidden, hidden, 1),
        Linear("intermediate", hidden, intermediate, 1),
        Linear("output", intermediate, hidden, 1),
    ]


def linear_flops(configuration: Mapping[str, Any], num_tokens: int) -> int:
    """Count the linear layers' operations for packed tokens, the small head left out."""
    per_layer = sum(linear.flops(num_tokens) for linear in linears(configuration))
    num_layers: int = configuration["num_hidden_layers"]
    return num_layers * per_layer


def attention_flops(configuration: Mapping[str, Any], lengths: Sequence[int]) -> int:
    """Count the operations of attention's two products, softmax left out."""
    squares = sum(length * length for length in lengths)
    num_layers: int = configuration["num_hidden_layers"]
    return 2 * 2 * squares * configuration["hidden_size"] * num_layers


# --- rates ----------------------------------------------------------------------------------------


def products(dtype: str, num_rows: int, linear: Linear) -> list[Callable[[], Any]]:
    """Return the ways in which torch multiplies `num_rows` rows by a layer's weights."""
    import torch
    from torch.nn.functional import linear as multiply

    number_format = getattr(torch, dtype)
    x = torch.randn(num_rows, linear.num_inputs).to(number_format)
    weights = torch.randn(linear.num_outputs, linear.num_inputs).to(number_format)
    bias = torch.zeros(linear.num_outputs, dtype=number_format)
    ways: list[Callable[[], Any]] = [lambda: multiply(x, weights, bias)]
    has_packed = dtype == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001
    if torch.backends.mkldnn.is_available() and has_packed:
        packed = torch.ops.mkldnn._reorder_linear_weight(weights, num_rows)  # noqa: SLF001
        pointwise = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        ways.append(lambda: pointwise(x, packed, bias, "none", [], ""))
    return ways


def measure_on_one_core(core: int, pipe: Connection) -> None:
    """Answer requests for the best rate of each shape, in operations per second."""
    import torch

    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    with torch.inference_mode():
        made: dict[Any, list[Callable[[], Any]]] = {}
        while (request := pipe.recv()) is not None:
            rates = []
            for dtype, linear in request:
                fastest = 0.0
                for rows in ROWS:
                    key = (dtype, linear, rows)
                    if key not in made:
                        made[key] = products(dtype, rows, linear)
                    for way in made[key]:
                        seconds = best_seconds(way)
                        fastest = max(fastest, linear.flops(rows) / linear.count / seconds)
                rates.append(fastest)
            pipe.send(rates)


def best_seconds(work: Callable[[], Any]) -> float:
    """Time a product some times, after a first one, and return the shortest."""
    work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


class Cores:
    """A process on each core, which multiply at the same time."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        for core in sorted(os.sched_getaffinity(0)):
            ours, theirs = context.Pipe()
            context.Process(target=measure_on_one_core, args=(core, theirs), daemon=True).start()
            self._pipes.append(ours)

    def rates(self, dtype: str, layers: Sequence[Linear]) -> list[float]:
        """Return the operations per second that all cores reach together on each shape."""
        for pipe in self._pipes:
            pipe.send([(dtype, linear) for linear in layers])
        return [sum(rates) for rates in zip(*(pipe.recv() for pipe in self._pipes), strict=True)]

    def close(self) -> None:
        """Let the processes end."""
        for pipe in self._pipes:
            pipe.send(None)


@dataclass(slots=True)
class Rates:
    """The best rates seen so far, by number format and shape."""

    best: dict[tuple[str, Linear], float] = field(default_factory=dict)

    def add(self, dtype: str, layers: Sequence[Linear], rates: Sequence[float]) -> None:
        """Note a measurement."""
        for linear, rate in zip(layers, rates, strict=True):
            self.best[dtype, linear] = max(rate, self.best.get((dtype, linear), 0.0))

    def floor_seconds(self, dtype: str, configuration: Mapping[str, Any], num_tokens: int) -> float:
        """Return how long the model's linear layers take at these rates."""
        seconds = sum(
            linear.flops(num_tokens) / self.best[dtype, linear] for linear in linears(configuration)
        )
        num_layers: int = configuration["num_hidden_layers"]
        return num_layers * seconds


# --- the command ----------------------------------------------------------------------------------


def rows_of(
    model: str, corpus: Corpus, cores: Cores, rates: Rates, num_rounds: int
) -> list[dict[str, Any]]:
    """Measure one model in both modes."""
    configuration, folder = MODELS[model], checkpoint(model)
    layers = linears(configuration)
    workloads = [corpus.mixed(number) for number in range(num_rounds)]
    ours = open_modes(list(DTYPES), folder)
    times: dict[str, list[tuple[float, Workload]]] = {contender.name: [] for contender in ours}
    scores = {}
    with reference(folder) as truth:
        expected = truth(workloads[0]).scores
    for contender in ours:
        contender.run(corpus.mixed(-1))
    for workload in workloads:
        for dtype in (DTYPES[contender.mode] for contender in ours):
            rates.add(dtype, layers, cores.rates(dtype, layers))
        for name, laps in race(ours, [workload]).items():
            times[name].append((laps.times[0], workload))
            scores.setdefault(name, laps.first_scores)
    rows = []
    for contender in ours:
        dtype = DTYPES[contender.mode]
        own = sorted(times[contender.name], key=lambda item: item[0])
        ms, workload = own[len(own) // 2]
        floor_ms = _MS_PER_SECOND * rates.floor_seconds(dtype, configuration, workload.num_tokens)
        flops = linear_flops(configuration, workload.num_tokens)
        num_layers = configuration["num_hidden_layers"]
        agreement = Agreement.of(scores[contender.name], expected)
        rows.append(
            {
                "model": model,
                "mode": contender.name,
                "max difference": agreement.max_difference,
                "Kendall tau": agreement.kendall_tau,
                "tokens": workload.num_tokens,
                "linear GFLOP": flops / 1e9,
                "attention GFLOP": attention_flops(configuration, workload.pair_lengths) / 1e9,
                "GFLOP/s": flops / (floor_ms / _MS_PER_SECOND) / 1e9,
                "floor ms": floor_ms,
                "median ms": ms,
                "fraction": floor_ms / ms,
                "fraction, last layer for [CLS]": floor_ms * (num_layers - 1) / num_layers / ms,
            }
        )
        contender.close()
    return rows


def main() -> None:
    """Print a row for each model and mode."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--models", nargs="+", default=[it for it in MODELS if it != SMALL_MODEL])
    parser.add_argument("--rounds", type=int, help="default 7, or 2 with --quick")
    arguments = parser.parse_args()
    num_rounds = arguments.rounds or (2 if arguments.quick else 7)
    report = Report("floor", rows=ROWS)
    corpus, cores, rates = Corpus.load(), Cores(), Rates()
    rows = []
    for model in arguments.models:
        rows += rows_of(model, corpus, cores, rates, num_rounds)
    cores.close()
    report.add("100 candidates of mixed length against the floor of the linear layers", rows)
    report.add(
        "measured rates of all cores, GFLOP/s",
        [
            {
                "shape": f"{linear.num_inputs} x {linear.num_outputs} ({linear.name})",
                "dtype": dtype,
                "GFLOP/s": rate / 1e9,
            }
            for (dtype, linear), rate in rates.best.items()
        ],
    )
    report.save(arguments.json)


if __name__ == "__main__":
    main()
