"""How long work tells whoever waits for it: a label, how much there is, and what more is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Told how many more are done."""


class Watch(Protocol):
    """Opens the view of one piece of work."""

    def __call__(self, label: str, total: int | None) -> AbstractContextManager[Advance]:
        """Show `label`, such as `embedding documents`, until the block ends; None: no one knows."""
        ...


@contextmanager
def unwatched(label: str, total: int | None) -> Iterator[Advance]:
    """Show nothing."""
    del label, total
    yield lambda _: None
