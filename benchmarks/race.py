"""Contenders in turn on the same fresh texts, round by round: never two at once.

Ours runs in this process, the other libraries in children (`peers.py`) that wait while it does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from workload import Workload

from sie_core.errors import InvalidRequestError
from sie_core.local import LocalClient
from sie_core.types import Item

ROOT = Path(__file__).resolve().parents[1]
PEERS_PYTHON = ROOT / ".build" / "peers" / "bin" / "python"
SETTLE_SECONDS = 0.05
"""Between two laps: thread pools go on spinning for a while after their work is done."""


class ContenderError(Exception):
    """A contender cannot do what it was asked to; the message is its own."""


@dataclass(frozen=True, slots=True)
class Lap:
    """One call: its time in the library, and the scores in the documents' order."""

    ms: float
    scores: list[float]


class Contender(Protocol):
    """Something that scores."""

    name: str

    def run(self, workload: Workload) -> Lap:
        """Score a workload once."""


class Ours:
    """A `LocalClient` of this process.

    Args:
        mode: `exact`, `fast` or `auto`.
        folder: The model's.

    Attributes:
        mode: As asked for.
        client: The client.
        model: What it is asked to score with.
    """

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode = mode
        self.name = f"sie {mode}"
        logging.getLogger("sie_core").setLevel(logging.ERROR)  # long texts are meant to be cut
        self.client = LocalClient(mode=mode)
        self.model = str(folder)
        self.client.warm_up(self.model)

    def run(self, workload: Workload) -> Lap:
        """Score a workload once."""
        started = time.perf_counter()
        items = [Item(text=document) for document in workload.documents]
        result = self.client.score(self.model, Item(text=workload.query), items)
        ms = 1000 * (time.perf_counter() - started)
        by_id = {entry["item_id"]: entry["score"] for entry in result["scores"]}
        return Lap(ms, [by_id[f"item-{i}"] for i in range(len(items))])

    def close(self) -> None:
        """Unload the model."""
        self.client.close()


def open_modes(modes: Sequence[str], folder: Path) -> list[Ours]:
    """Open a contender for each mode; one that this machine has not is left out, and named."""
    opened = []
    for mode in modes:
        try:
            opened.append(Ours(mode, folder))
        except InvalidRequestError as exc:
            print(exc)
    return opened


class Child:
    """A process of `peers.py`.

    Args:
        python: The interpreter of the environment that has the libraries.
        environment: Variables that it has beside this process's own.
    """

    def __init__(
        self, python: Path | str = PEERS_PYTHON, environment: Mapping[str, str] | None = None
    ) -> None:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("peers.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=variables | dict(environment or {}),
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            ContenderError: The child could not do it, or is gone.
        """
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            msg = f"the child process is gone, with exit status {self._process.wait()}"
            raise ContenderError(msg) from exc
        line = self._process.stdout.readline()
        if not line:
            msg = f"the child process ended with exit status {self._process.wait()}"
            raise ContenderError(msg)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise ContenderError(reply["error"])
        return reply

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Peer:
    """One configuration of another library, in a child.

    Args:
        name: What the tables call it.
        configuration: What `peers.py` opens.
        folder: The model's.
        child: Where it runs.
    """

    def __init__(
        self, name: str, configuration: Mapping[str, Any], folder: Path, child: Child
    ) -> None:
        self.name = name
        self.configuration = dict(configuration)
        self._child = child
        child.ask(do="open", name=name, contender=self.configuration, folder=str(folder))

    def run(self, workload: Workload) -> Lap:
        """Score a workload once."""
        reply = self._child.ask(
            do="score", name=self.name, query=workload.query, documents=workload.documents
        )
        return Lap(reply["ms"], reply["scores"])

    def close(self) -> None:
        """Unload the model."""
        self._child.ask(do="close", name=self.name)


@dataclass(slots=True)
class Laps:
    """One contender's times over the rounds, in milliseconds, and its scores of the first."""

    times: list[float] = field(default_factory=list)
    first_scores: list[float] = field(default_factory=list)

    def add(self, lap: Lap) -> None:
        """Note a lap."""
        if not self.times:
            self.first_scores = lap.scores
        self.times.append(lap.ms)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.times)

    @property
    def min(self) -> float:
        """The quickest."""
        return min(self.times)


def race(
    contenders: Sequence[Contender],
    workloads: Sequence[Workload],
    *,
    num_rounds: Mapping[str, int] | None = None,
) -> dict[str, Laps]:
    """Let each contender score each workload, a workload at a time.

    Args:
        contenders: In the order of the first round; each round begins with the next one.
        workloads: One for each round.
        num_rounds: Contenders, by name, that leave after so many rounds.
    """
    laps = {contender.name: Laps() for contender in contenders}
    for number, workload in enumerate(workloads):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            if number < (num_rounds or {}).get(contender.name, len(workloads)):
                time.sleep(SETTLE_SECONDS)
                laps[contender.name].add(contender.run(workload))
    return laps


@contextlib.contextmanager
def reference(folder: Path, python: Path | str = sys.executable) -> Iterator[Callable[..., Lap]]:
    """Give the float32 forward of transformers, from a child of its own with one thread."""
    with Child(python, {"OMP_NUM_THREADS": "1"}) as child:
        yield Peer("reference", {"library": "transformers"}, folder, child).run
