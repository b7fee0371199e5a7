"""`sie key`: the key goes to stdout, its line to the file, and neither to both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sie_core.server.keys import Keys


def test_the_key_and_its_line_are_printed_apart(
    run_real: Callable[..., Any], tmp_path: Path
) -> None:
    """`sie key app > secret` keeps the key; the line is for who runs the server."""
    done = run_real("key", "app")
    assert done.exit_code == 0
    key = done.stdout.strip()
    line = done.stderr.strip().rpartition(" ")[2]
    (tmp_path / "keys").write_text(f"{line}\n")
    found = Keys(tmp_path / "keys").find(key)
    assert found is not None
    assert (found.name, found.is_admin) == ("app", False)
    assert key not in done.stderr


def test_lines_are_added_to_a_file(run_real: Callable[..., Any], tmp_path: Path) -> None:
    """It is made for its owner and group, and what stands in it stays."""
    path = tmp_path / "keys"
    first = run_real("key", "app", "--file", str(path)).stdout.strip()
    assert path.stat().st_mode & 0o777 & ~0o640 == 0
    path.write_text(f"# ours\n{path.read_text()}".rstrip("\n"))
    path.chmod(0o600)
    second = run_real("key", "root", "--admin", "--file", str(path)).stdout.strip()
    assert path.read_text().startswith("# ours\napp:")
    assert path.stat().st_mode & 0o777 == 0o600
    keys = Keys(path)
    assert [(it.name, it.is_admin) for it in map(keys.find, (first, second)) if it] == [
        ("app", False),
        ("root", True),
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_stands_once(run_real: Callable[..., Any], tmp_path: Path) -> None:
    """The file stays as it was, and no key is printed."""
    path = tmp_path / "keys"
    run_real("key", "app", "--file", str(path))
    before = path.read_text()
    done = run_real("key", "app", "--file", str(path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "has the name or the key of an earlier line" in done.stderr
    assert path.read_text() == before


@pytest.mark.parametrize("name", ["two words", "a:b"])
def test_a_name_that_is_none_is_refused(run_real: Callable[..., Any], name: str) -> None:
    """In one line."""
    done = run_real("key", name)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "a key's name must be" in done.stderr
