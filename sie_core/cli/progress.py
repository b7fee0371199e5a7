"""What people see while they wait: on stderr, and only if that is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sie_core.cli.terminal import printable

MIN_DOCUMENTS = 300
"""Fewer documents of a single query are scored before a bar would be read."""


class Waiting:
    """A line while the model loads, then a bar while pairs are scored.

    Args:
        num_queries: How many queries there are.
        num_documents: How many documents each of them is scored with.
    """

    def __init__(self, *, num_queries: int, num_documents: int) -> None:
        self._console = Console(stderr=True)
        is_long = num_queries > 1 or num_documents >= MIN_DOCUMENTS
        # Results go to stdout while the bar is on stderr: neither stream may be redirected.
        self._progress = Progress(
            TextColumn("reranking"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("pairs"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not (is_long and self._console.is_terminal),
        )
        self._task = self._progress.add_task("reranking", total=num_queries * num_documents)

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Say which model is being loaded, and how long that took."""
        start = time.perf_counter()
        self._say(f"loading {model} …")
        yield
        self._say(f"loaded in {time.perf_counter() - start:.1f} s")

    def asking(self, address: str) -> None:
        """Say which server is asked; it may be loading the model."""
        self._say(f"asking {address} …")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, num_pairs: int) -> None:
        """Count pairs as scored."""
        self._progress.advance(self._task, num_pairs)

    @contextmanager
    def making_room(self, *, for_terminal: bool) -> Iterator[None]:
        """Take the bar off the terminal while results are printed there."""
        if for_terminal:
            self._progress.stop()
        yield
        if for_terminal:
            self._progress.start()

    def _say(self, message: str) -> None:
        if self._console.is_terminal:
            self._console.print(message, style="dim", markup=False, highlight=False)


class Steps:
    """A bar for each piece of longer work, which stays to say how long it took."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def watch(self, label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """Show a bar until the block ends; the block is told how to advance it."""
        progress = self._bar()
        task = progress.add_task(label, total=total)
        with progress:
            yield lambda number: progress.advance(task, number)

    @contextmanager
    def counting(
        self, label: str
    ) -> Iterator[tuple[Callable[[int, int], None], Callable[[int], None]]]:
        """Show a bar once it is known how long it is.

        The block is given two functions: one begins, by what there is and how much of it is done,
        and one advances.
        """
        progress = self._bar()
        task = progress.add_task(label, total=None)
        with progress:
            yield (
                lambda total, done: progress.update(task, total=total, completed=done),
                lambda number: progress.advance(task, number),
            )

    def note(self, message: str) -> None:
        """Say something that the results alone do not tell."""
        sys.stderr.write(f"note: {printable(message, max_chars=1000)}\n")

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Say which model is being loaded."""
        if self._console.is_terminal:
            self._console.print(f"loading {model} …", style="dim", markup=False, highlight=False)
        yield

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self._console.is_terminal,
        )
