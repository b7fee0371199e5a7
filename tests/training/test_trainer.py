"""Training a tiny cross-encoder: it learns, stops, continues, repeats, and serves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sie_core import Item, LocalClient
from sie_core.errors import InvalidRequestError, UnsupportedModelError
from sie_core.models.sources import ModelFiles
from sie_core.training import trainer
from sie_core.training.example import Example
from sie_core.training.network import Network, score, to_scores
from sie_core.training.settings import TrainingSettings
from sie_core.training.trainer import Trained, train
from tests.training.conftest import toy_examples

MakeSettings = Callable[..., TrainingSettings]
ADAPTER = "adapter_model.safetensors"
TEXTS = ["berlin river", "banana river museum", "the tower of berlin is tall", "weather"]


def fit(
    files: ModelFiles,
    folder: Path,
    settings: TrainingSettings,
    *,
    examples: Sequence[Example] | None = None,
    **options: Any,
) -> tuple[Network, Trained]:
    """Train on toy data, and save to `folder`/result."""
    network = Network.load(files, settings)
    trained = train(
        network,
        toy_examples(24) if examples is None else examples,
        toy_examples(8, seed=1),
        folder / "run",
        settings=settings,
        **options,
    )
    network.save(folder / "result")
    return network, trained


def engine_scores(model: str, lora: Path | None = None) -> list[float]:
    """Score by our engine, in float32."""
    options = {"score_space": "raw"} | ({} if lora is None else {"lora": str(lora)})
    with LocalClient(mode="exact", device="cpu") as client:
        items = [Item(id=str(place), text=text) for place, text in enumerate(TEXTS)]
        result = client.score(model, Item(text="where is berlin"), items, options=options)
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [found[str(place)] for place in range(len(TEXTS))]


def transformers_scores(model: Any, folder: Path) -> list[float]:
    """Score by transformers, with its own tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    queries = ["where is berlin"] * len(TEXTS)
    inputs = tokenizer(queries, TEXTS, padding=True, return_tensors="pt")
    wanted = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        logits = model.eval()(**{key: inputs[key] for key in wanted if key in inputs}).logits
    return [float(one) for one in to_scores(logits)]


@pytest.mark.parametrize("loss", ["listwise", "binary"])
def test_it_learns(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings, loss: str
) -> None:
    """nDCG@10 of queries that it never saw rises to the top, and the best weights are kept."""
    told: list[str] = []
    settings = make_settings(loss=loss, num_epochs=6, evaluations=6)
    _, trained = fit(files, tmp_path, settings, tell=told.append)
    assert trained.dev[0] < 0.8
    assert trained.dev[trained.best_step] == max(trained.dev.values()) > 0.95
    assert trained.num_planned == 36
    assert told[0].startswith("step 0: nDCG@10 of the dev split is 0.")


def test_distillation_learns_the_teachers_differences(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """Margins come near the teacher's 4."""
    from dataclasses import replace

    examples = [
        replace(
            one,
            documents=tuple(replace(it, teacher=4 * it.label - 1) for it in one.documents),
        )
        for one in toy_examples(24)
    ]
    settings = make_settings(loss="margin-mse", num_epochs=20)
    network, _ = fit(files, tmp_path, settings, examples=examples)
    inputs = network.batcher(toy_examples(8, seed=1))
    with torch.no_grad():
        scores = score(network.model, inputs["chunks"], inputs["places"], inputs["mask"].shape)
    # Relevant documents come first in a batch.
    margins = scores[:, :2].mean(dim=1) - scores[:, 2:].mean(dim=1)
    assert float(margins.mean()) == pytest.approx(4, abs=1)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    "base", ["tiny_bert", "tiny_bert_two_labels", "tiny_xlmr", "tiny_modernbert"]
)
def test_the_engine_scores_with_the_adapter_as_peft_does(
    base: str, tmp_path: Path, make_settings: MakeSettings, request: pytest.FixtureRequest
) -> None:
    """Within 1e-4 of PEFT's own merged model, for every family, and unlike the base."""
    folder = request.getfixturevalue(base)
    files = ModelFiles(name=str(folder), folder=folder, source="folder")
    fit(files, tmp_path, make_settings())
    adapter = tmp_path / "result"
    whole = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32), adapter
    ).merge_and_unload()
    expected = transformers_scores(whole, folder)
    assert engine_scores(str(folder), adapter) == pytest.approx(expected, abs=1e-4)
    assert engine_scores(str(folder)) != pytest.approx(expected, abs=1e-2)


def test_what_is_merged_is_a_model_by_itself(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """Its folder scores as the adapter on its base does."""
    network, _ = fit(files, tmp_path, make_settings())
    network.save(tmp_path / "again", merged=tmp_path / "merged")
    expected = engine_scores(files.name, tmp_path / "again")
    assert engine_scores(str(tmp_path / "merged")) == pytest.approx(expected, abs=1e-4)
    known, made = (
        json.loads((it / "config.json").read_text()) for it in (files.folder, tmp_path / "merged")
    )
    name = "sbert_ce_default_activation_function"
    assert made.get(name) == known.get(name)


def test_all_weights_can_be_trained(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """The folder is a model, which scores as the network did."""
    settings = make_settings(full=True, learning_rate=0.01, num_epochs=6)
    network, trained = fit(files, tmp_path, settings)
    assert max(trained.dev.values()) > 0.99
    expected = transformers_scores(network.model, files.folder)
    assert engine_scores(str(tmp_path / "result")) == pytest.approx(expected, abs=1e-4)


def test_batches_score_as_the_engine_does(files: ModelFiles, make_settings: MakeSettings) -> None:
    """Before training, whatever their order and padding."""
    network = Network.load(files, make_settings())
    examples = toy_examples(3)
    inputs = network.batcher(examples)
    with torch.no_grad():
        network.model.eval()
        scores = score(network.model, inputs["chunks"], inputs["places"], inputs["mask"].shape)
    with LocalClient(mode="exact", device="cpu") as client:
        for row, example in enumerate(examples):
            items = [Item(id=one.text, text=one.text) for one in network.batcher.chosen(example)]
            result = client.score(
                files.name, Item(text=example.query), items, options={"score_space": "raw"}
            )
            found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
            expected = [found[item["id"]] for item in items]
            assert scores[row].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_same_seed_gives_the_same_bytes(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """And another seed does not."""
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        fit(files, tmp_path / name, make_settings(seed=seed))
    first, again, other = ((tmp_path / name / "result" / ADAPTER).read_bytes() for name in "abc")
    assert first == again
    assert first != other


class _StopError(Exception):
    """Ends a run as a crash would."""


def test_an_interrupted_run_continues_as_if_nothing_had_happened(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """The weights are those of a run that was not interrupted, within float32's rounding."""
    settings = make_settings(num_epochs=2, evaluations=6)
    _, whole = fit(files, tmp_path / "whole", settings)

    def stop(told: str) -> None:
        if told.startswith("step 6:"):
            raise _StopError

    with pytest.raises(_StopError):
        fit(files, tmp_path / "parts", settings, tell=stop)
    _, trained = fit(files, tmp_path / "parts", settings)
    assert trained.resumed_at == 4
    assert trained.dev == pytest.approx(whole.dev)
    assert trained.best_step == whole.best_step
    expected, found = (
        load_file(tmp_path / name / "result" / ADAPTER) for name in ("whole", "parts")
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_it_stops_when_nothing_gets_better(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """At the top after the first evaluations, the rest of the steps would be in vain."""
    settings = make_settings(num_epochs=12, evaluations=24, patience=2)
    _, trained = fit(files, tmp_path, settings)
    assert trained.num_steps < trained.num_planned
    last = sorted(trained.dev)[-2:]
    assert trained.best_step not in last
    assert max(trained.dev[step] for step in last) <= trained.dev[trained.best_step]


def test_tensorboard_can_show_it(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """The loss and the dev split's nDCG@10 are in its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(files, tmp_path, make_settings())
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "eval/ndcg_at_10"} <= set(events.Tags()["scalars"])
    assert [one.step for one in events.Scalars("eval/ndcg_at_10")] == [0, 2, 4, 6]


def test_the_bar_counts_every_step(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """It is told how many there will be."""
    from collections.abc import Iterator
    from contextlib import contextmanager

    seen: list[tuple[str, int | None]] = []
    done: list[int] = []

    @contextmanager
    def watch(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
        seen.append((label, total))
        yield done.append

    fit(files, tmp_path, make_settings(), watch=watch)
    assert seen == [("training, in steps", 6)]
    assert sum(done) == 6


def test_bfloat16_trains_too(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """Weights stay float32."""
    network, trained = fit(files, tmp_path, make_settings(bfloat16=True, num_epochs=6))
    assert network.uses_bfloat16
    assert max(trained.dev.values()) > trained.dev[0] + 0.1
    assert {tensor.dtype for tensor in load_file(tmp_path / "result" / ADAPTER).values()} == {
        torch.float32
    }


def test_no_memory_is_one_of_our_errors(
    files: ModelFiles,
    tmp_path: Path,
    make_settings: MakeSettings,
) -> None:
    """It says what to make smaller."""
    from sie_core.errors import ResourceExhaustedError

    def fail(told: str) -> None:
        raise torch.OutOfMemoryError(told)

    with pytest.raises(ResourceExhaustedError, match="4 queries of 10 documents in a step"):
        fit(files, tmp_path, make_settings(), tell=fail)


def test_what_cannot_be_trained_is_refused(
    make_settings: MakeSettings, tiny_embedder: Path, tiny_jina: Path
) -> None:
    """Models that are no cross-encoders, and those that need their repository's code."""
    for folder, message in ((tiny_embedder, "is a dense model"), (tiny_jina, "its repository's")):
        files = ModelFiles(name="it", folder=folder, source="folder")
        with pytest.raises(UnsupportedModelError, match=message):
            Network.load(files, make_settings())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"loss": "hinge"}, "loss must be listwise, binary, margin-mse, but got 'hinge'"),
        ({"rank": 0}, "rank must be at least 1, but got 0"),
        ({"documents_per_query": 1}, "documents_per_query must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_settings_are_checked(setting: dict[str, Any], message: str) -> None:
    """By name and value, before anything is loaded."""
    with pytest.raises(InvalidRequestError, match=message):
        TrainingSettings(**setting)


def test_nothing_is_asked_of_the_hub(
    files: ModelFiles,
    tmp_path: Path,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Saving neither looks the base up nor sends anything, whatever the base is called."""
    import socket

    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        msg = "no network in this test"
        raise OSError(msg)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    named = ModelFiles(name="cross-encoder/ms-marco", folder=files.folder, source="hub")
    fit(named, tmp_path, make_settings())
    assert not asked
    config = json.loads((tmp_path / "result" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "cross-encoder/ms-marco"


def test_checkpoints_are_few(
    files: ModelFiles, tmp_path: Path, make_settings: MakeSettings
) -> None:
    """The best and the last: a model of all weights is gigabytes."""
    fit(files, tmp_path, make_settings())
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) <= 2
    shutil.rmtree(tmp_path / "run")
    assert trainer.METRIC == "ndcg_at_10"
