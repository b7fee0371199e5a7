"""What docs/server_clients.md shows is what runs here."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "server_clients.md"


def test_the_programs_of_the_page_are_the_ones_that_are_tested() -> None:
    """Each is a file in `snippets` or `node`, letter by letter."""
    tested = {
        file.read_text()
        for folder in ("snippets", "node")
        for file in (HERE / folder).iterdir()
        if file.suffix in {".py", ".sh", ".mjs"}
    }
    shown = re.findall(r"```(?:python|sh|js)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    programs = [program for program in shown if "localhost:8080" in program]
    assert len(programs) >= 6
    assert [program for program in programs if program not in tested] == []
