"""A run from data to a folder that serves, with the figures it is judged by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sie_core import LocalClient, Reranker
from sie_core.errors import DatasetError, InvalidRequestError
from sie_core.training.assessment import verdict
from sie_core.training.card import write_card
from sie_core.training.finetuning import Finetuning, Outcome, check_out
from sie_core.training.preparation import OWN, Prepared, Retrieving, Sizes, prepare_file
from sie_core.training.settings import TrainingSettings
from tests.training.conftest import toy_examples, write_lists

MakeSettings = Callable[..., TrainingSettings]
Run = Callable[..., Outcome]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """48 toy queries, split."""
    path = write_lists(tmp_path / "toy.jsonl", toy_examples(56))
    return prepare_file(path, sizes=Sizes(dev=8, test=24))


@pytest.fixture
def engine() -> Iterator[LocalClient]:
    """What scores before and after."""
    with LocalClient(mode="exact", device="cpu") as client:
        yield client


@pytest.fixture
def run(tmp_path: Path, prepared: Prepared, tiny_bert: Path, engine: LocalClient) -> Run:
    """Run with some settings, into `tmp_path / "out"`."""

    def start(settings: TrainingSettings, **options: Any) -> Outcome:
        return Finetuning(
            **{
                "data": prepared,
                "out": tmp_path / "out",
                "model": str(tiny_bert),
                "settings": settings,
                "retrieving": Retrieving(folder=tmp_path / "retrieving"),
                "open_reranker": lambda model, **given: Reranker(model, client=engine, **given),
                **options,
            }
        ).run()

    return start


def test_a_run_ends_in_an_adapter_and_the_truth_about_it(
    run: Run, make_settings: MakeSettings, tmp_path: Path, tiny_bert: Path, engine: LocalClient
) -> None:
    """Figures are of the engine with the adapter, on the test split alone."""
    outcome = run(make_settings(num_epochs=6, evaluations=6))
    out = tmp_path / "out"
    assert outcome.helped
    assert outcome.verdict.startswith("It helped. nDCG@10 0.")
    names = {path.name for path in out.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "figures.json",
    }
    figures = json.loads((out / "figures.json").read_text())
    assert figures["verdict"] == outcome.verdict
    assert figures["first_stage"]["name"] == OWN
    assert [model["label"] for model in figures["models"]] == ["before", "after"]
    before, after = (model["metrics"][0]["after"] for model in figures["models"])
    assert figures["pairs"][0]["difference"] == pytest.approx(after - before)
    with Reranker(str(tiny_bert), client=engine, lora=str(out)) as reranker:
        ranking = reranker.rerank("river museum film 7", ["river banana", "museum berlin"])
    assert next(iter(ranking)).index == 1


def test_the_card_has_data_figures_date_and_settings(
    run: Run, make_settings: MakeSettings, tmp_path: Path, tiny_bert: Path
) -> None:
    """In the form that hubs read."""
    outcome = run(make_settings())
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(f"---\nbase_model: {tiny_bert}\nlibrary_name: peft\n")
    assert outcome.verdict in card
    for fact in (
        "toy.jsonl.",
        "24 queries to train on, 8 to decide when to stop, 24 to test on",
        "| learning_rate | 0.02 |",
        "| seed | 0 |",
        f"| date | {outcome.figures['date'][:10]} |",
        "nDCG@10 of the dev split by step: 0.",
        "| nDCG@10 | 0.",
        'Reranker("' + str(tiny_bert) + '", lora="out")',
    ):
        assert fact in card


def test_a_full_model_is_a_folder_of_its_own(
    run: Run, make_settings: MakeSettings, tmp_path: Path, engine: LocalClient
) -> None:
    """It is loaded by its folder, and its card says so."""
    outcome = run(make_settings(full=True, learning_rate=0.01, num_epochs=6, evaluations=6))
    assert outcome.helped
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert 'Reranker("out")' in card
    with Reranker(str(tmp_path / "out"), client=engine) as reranker:
        ranking = reranker.rerank(
            "river film 3", ["band song year banana", "band song year berlin"]
        )
    assert next(iter(ranking)).index == 1


def test_merged_weights_have_their_own_card(
    run: Run, make_settings: MakeSettings, tmp_path: Path, engine: LocalClient
) -> None:
    """And score as the adapter does."""
    run(make_settings(), merge=True)
    merged = tmp_path / "out" / "merged"
    assert "library_name: transformers" in (merged / "README.md").read_text()
    with Reranker(str(merged), client=engine) as reranker:
        assert len(reranker.rerank("river", ["berlin", "banana"])) == 2


def test_it_says_when_it_did_not_help(run: Run, make_settings: MakeSettings) -> None:
    """A learning rate of nearly nothing changes nothing, and the interval holds zero."""
    outcome = run(make_settings(learning_rate=1e-9))
    assert not outcome.helped
    assert outcome.verdict.startswith("It did not help, as far as these queries can tell")
    assert "More test queries narrow the interval" in outcome.verdict


def test_a_model_that_got_worse_is_called_so() -> None:
    """The verdict is the interval's."""
    figures = {
        "data": {"num_queries": 1200},
        "pairs": [
            {
                "name": "nDCG@10",
                "difference": -0.1,
                "low": -0.2,
                "high": -0.05,
                "verdict": "worse",
            }
        ],
        "models": [{"metrics": [{"name": "nDCG@10", "after": value}]} for value in (0.7, 0.6)],
    }
    assert verdict(figures) == (
        "It did not help: the model is worse than before. nDCG@10 0.7000 → 0.6000 on 1,200 test "
        "queries: -0.1000, 95 % interval -0.2000 … -0.0500."
    )


class _StopError(Exception):
    """Ends a run as a crash would."""


def test_an_interrupted_run_continues_in_its_folder(
    run: Run, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """What was scored before is not scored again, and training goes on from its checkpoint."""

    def stop(told: str) -> None:
        if told.startswith("step 4:"):
            raise _StopError

    settings = make_settings()
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        stop(message)

    with pytest.raises(_StopError):
        run(settings, tell=tell)
    assert told[-1].endswith("run; the same command continues there")
    assert (tmp_path / "out" / "run" / "test" / "before" / "scores.jsonl").exists()
    outcome = run(settings)
    assert "continued from step 2 after an interruption" in outcome.training
    assert not (tmp_path / "out" / "run").exists()


def test_a_folder_of_another_run_is_not_written_over(
    run: Run, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Neither a finished one, nor an interrupted one with other settings."""

    def stop(told: str) -> None:
        raise _StopError(told)

    with pytest.raises(_StopError):
        run(make_settings(), tell=stop)
    with pytest.raises(InvalidRequestError, match="settings rank was 8 and is now 4"):
        run(make_settings(rank=4))
    run(make_settings())
    with pytest.raises(InvalidRequestError, match="holds the result of another run"):
        run(make_settings())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(InvalidRequestError, match=r"is not empty \(it holds mine.txt\)"):
        check_out(tmp_path / "notes")


def test_distillation_needs_a_teacher(run: Run, make_settings: MakeSettings) -> None:
    """Before a step is made it is said who could be one."""
    settings = make_settings(loss="margin-mse")
    with pytest.raises(InvalidRequestError, match="24 of 24 queries have no scores of one"):
        run(settings)
    outcome = run(settings, teacher=lambda _, texts: [8.0 * ("berlin" in it) for it in texts])
    assert "margin-mse loss" in outcome.training[0]


def test_leaking_splits_are_never_trained_on(
    run: Run, make_settings: MakeSettings, prepared: Prepared
) -> None:
    """Whoever prepared them."""
    from dataclasses import replace

    splits = replace(prepared.splits, train=[*prepared.splits.train, prepared.splits.test[0]])
    with pytest.raises(DatasetError, match="the splits leak"):
        run(make_settings(), data=replace(prepared, splits=splits))


def test_a_card_without_figures_can_be_written(tmp_path: Path) -> None:
    """The table is left out."""
    path = write_card(
        tmp_path,
        base="owner/base",
        is_adapter=True,
        data="hand-made",
        notes=[],
        settings={"seed": 1, "device": None},
        training=["one step"],
        figures=None,
        verdict="Not measured.",
    )
    card = path.read_text()
    assert "| | before |" not in card
    assert "| device | default |" in card
