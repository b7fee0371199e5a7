"""Texts that others wrote, made fit to be shown: one line, not endless, nothing that steers."""

from __future__ import annotations

MAX_CHARS = 240
"""How much of a text is shown where it stands beside others."""


def printable(text: str, *, max_chars: int = MAX_CHARS) -> str:
    """Put a text on one line, cut it, and take out what would steer the terminal."""
    shown = " ".join(text[: 2 * max_chars].split())
    shown = "".join(char if char.isprintable() else "\ufffd" for char in shown)
    is_cut = len(shown) > max_chars or len(text) > 2 * max_chars
    return shown[:max_chars] + "…" if is_cut else shown
