"""What a run has done so far, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.evaluation.journal import Journal, StateFolder, changes, fingerprint


def test_records_come_back(tmp_path: Path) -> None:
    """Also after a line that was written in part, which is taken off."""
    path = tmp_path / "journal.jsonl"
    with Journal(path).appending() as journal:
        journal.append({"query": "a"})
        journal.append({"query": "b"})
    with path.open("ab") as stream:
        stream.write(b'{"query": "c')
    journal_again = Journal(path)
    assert [record["query"] for record in journal_again.read()] == ["a", "b"]
    with journal_again.appending() as journal:
        journal.append({"query": "d"})
    assert [record["query"] for record in Journal(path).read()] == ["a", "b", "d"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    """Where it is whole but no JSON."""
    path = tmp_path / "journal.jsonl"
    path.write_text('{"query": "a"}\nwhat\n', encoding="utf-8")
    with pytest.raises(DatasetError, match="line 2 is damaged"):
        list(Journal(path).read())


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    """Then and now; the same settings are let in."""
    settings = {"data": {"path": "a", "bytes": 1}, "candidates": 50, "model": None}
    StateFolder(tmp_path / "state", settings).close()
    StateFolder(tmp_path / "state", settings).close()
    with pytest.raises(
        InvalidRequestError,
        match=r"candidates was 50 and is now 100; data bytes was 1 and is now 2; "
        r'model was not set and is now "m"',
    ):
        StateFolder(
            tmp_path / "state",
            {"data": {"path": "a", "bytes": 2}, "candidates": 100, "model": "m"},
        )


def test_two_runs_cannot_use_one_folder(tmp_path: Path) -> None:
    """The second is told, and let in after the first."""
    first = StateFolder(tmp_path / "state", {})
    with pytest.raises(InvalidRequestError, match="another process is using"):
        StateFolder(tmp_path / "state", {})
    first.close()
    StateFolder(tmp_path / "state", {}).delete()
    assert not (tmp_path / "state").exists()


def test_a_part_of_other_settings_is_another_folder(tmp_path: Path) -> None:
    """And what has changed is said, once."""
    state = StateFolder(tmp_path / "state", {})
    first, changed = state.part("owner/model", {"max_length": 512})
    assert changed == []
    again, changed = state.part("owner/model", {"max_length": 512})
    assert (again, changed) == (first, [])
    second, changed = state.part("owner/model", {"max_length": 256})
    assert second != first
    assert changed == ["max_length was 512 and is now 256"]
    assert state.part("owner/model", {"max_length": 256}) == (second, [])
    state.close()


def test_settings_are_compared_as_json_has_them() -> None:
    """A tuple is no change from a list, nor is another order of names."""
    assert changes({"a": [1, 2]}, {"a": (1, 2)}) == []
    assert fingerprint({"a": 1, "b": (2,)}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
