"""LoRA adapters: the numbers of merged weights, many at once, and a base that does not notice."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sie_core.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from sie_core.local import LocalAsyncClient, LocalClient, native
from sie_core.local.adapters import AdapterStore
from sie_core.local.encoder import PairEncoder
from sie_core.local.lora import AdaptedPair, Adapter
from sie_core.local.registry import LoadedModel
from sie_core.local.requests import check_score_request
from sie_core.local.scheduler import Scheduler
from sie_core.models.sources import ModelFiles
from sie_core.types import Item

PATIENCE_SECONDS = 60
QUERY = Item(text="how many people live in berlin")
TEXTS = [
    "berlin population people",
    "the museum is on the river",
    "",
    "banana",
    "a new film of the american director " * 8,
    "paris is the capital of france",
]

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS",
    "base_model_name_or_path": "test/tiny",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "target_modules": ["query", "value"],
    "modules_to_save": ["classifier", "score"],
    "init_lora_weights": True,
}
"""What PEFT writes, as far as it matters."""

PREFIX = "base_model.model."


def make_adapter(
    folder: Path,
    base: Path,
    layers: str = "query|value",
    *,
    seed: int = 3,
    whole: str | None = "classifier",
    prefix: str = PREFIX,
    **config: Any,
) -> Path:
    """Write an adapter of random weights.

    Args:
        folder: Where to.
        base: The checkpoint that it is for.
        layers: A regular expression for the ends of the names of the layers adapted.
        seed: Of the weights.
        whole: The same for layers that are saved whole.
        prefix: What stands before all names.
        config: In place of what `CONFIG` says.
    """
    generator, settings = torch.Generator().manual_seed(seed), CONFIG | config
    tensors = {}
    for key, weight in load_file(base / "model.safetensors").items():
        name, _, kind = key.rpartition(".")
        if whole is not None and re.search(rf"(^|\.)({whole})$", name):
            noise = torch.randn(weight.shape, generator=generator)
            tensors[f"{prefix}{key}"] = weight + 0.3 * noise
        elif kind == "weight" and re.search(rf"(^|\.)({layers})$", name):
            rank = setting(settings["rank_pattern"], name, settings["r"])
            for letter, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
                share = 0.3 * torch.randn(shape, generator=generator)
                tensors[f"{prefix}{name}.lora_{letter}.weight"] = share
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def merge(folder: Path, base: Path, adapter: Path) -> Path:
    """Write the checkpoint that an adapter makes of its base: W + B A * scale."""
    shutil.copytree(base, folder)
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(base / "model.safetensors")
    changes = load_file(adapter / "adapter_model.safetensors")
    for key, change in changes.items():
        name = key.removeprefix(PREFIX)
        if name in weights:
            weights[name] = change
        elif name.endswith(".lora_A.weight"):
            layer, rank = name.removesuffix(".lora_A.weight"), len(change)
            alpha = setting(config["alpha_pattern"], layer, config["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            up = changes[key.replace("lora_A", "lora_B")]
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * up @ change
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def setting(pattern: dict[str, int], name: str, default: int) -> int:
    """Return a layer's own setting, by PEFT's rule."""
    return next((it for key, it in pattern.items() if re.search(rf"(^|\.)({key})$", name)), default)


def scores(client: LocalClient, model: Path, lora: Path | None = None) -> list[float]:
    """Return the raw score of each text."""
    options = {"score_space": "raw"} | ({} if lora is None else {"lora": str(lora)})
    result = client.score(str(model), QUERY, [Item(text=text) for text in TEXTS], options=options)
    found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
    return [found[f"item-{i}"] for i in range(len(TEXTS))]


@pytest.fixture
def exact() -> Iterator[LocalClient]:
    """A client that computes in float32 on the CPU."""
    with LocalClient(mode="exact", device="cpu") as client:
        yield client


@pytest.fixture(scope="session")
def blocky_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose sizes suit the compiled kernels."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("checkpoints") / "blocky-bert"
    shutil.copytree(tiny_bert, folder)
    config = BertConfig.from_pretrained(tiny_bert)
    config.hidden_size, config.num_attention_heads, config.intermediate_size = 64, 2, 96
    config.initializer_range = 0.3
    torch.manual_seed(17)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


FAMILIES = {
    "bert": ("tiny_bert", "query|value", {}),
    "bert-all-linear": (
        "tiny_bert",
        "query|key|value|dense",  # the pooler's as well
        {"target_modules": "all-linear", "alpha_pattern": {r"layer\.0\..*": 2}},
    ),
    "bert-two-labels": ("tiny_bert_two_labels", "key", {"target_modules": ["key"]}),
    "xlmr": (
        "tiny_xlmr",
        r"query|key|layer\.\d\.output\.dense",
        {
            "whole": r"classifier\.(dense|out_proj)",
            "target_modules": r".*(query|key|layer\.\d\.output\.dense)",
            "rank_pattern": {"query": 8},
            "use_rslora": True,
        },
    ),
    "xlmr-head": (
        "tiny_xlmr",
        r"value|classifier\.dense",
        {"whole": r"classifier\.out_proj", "target_modules": ["value", "classifier.dense"]},
    ),
    "modernbert": ("tiny_modernbert", r"attn\.Wqkv|Wi", {"target_modules": ["Wqkv", "Wi"]}),
    "modernbert-all-linear": (
        "tiny_modernbert",
        r"Wqkv|Wo|Wi|head\.dense",
        {"target_modules": "all-linear", "whole": r"classifier|layers\.1\.attn\.Wqkv"},
    ),
    "kernels": (
        "blocky_bert",
        "query|key|value|dense",
        {"target_modules": "all-linear", "use_rslora": True},
    ),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_scores_are_those_of_merged_weights(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, exact: LocalClient
) -> None:
    """In every family, whatever is adapted, and the base's stay to the last bit."""
    fixture, layers, settings = FAMILIES[case]
    base = request.getfixturevalue(fixture)
    adapter = make_adapter(tmp_path / "adapter", base, layers, **settings)
    before = scores(exact, base)
    merged = scores(exact, merge(tmp_path / "merged", base, adapter))
    assert scores(exact, base, adapter) == pytest.approx(merged, abs=1e-4)
    assert scores(exact, base) == before
    assert before != pytest.approx(merged, abs=1e-2)  # it is not by doing nothing


def test_modernbert_by_its_first_token(
    make_tiny_modernbert: Callable[..., Path], tmp_path: Path, exact: LocalClient
) -> None:
    """Also where the last layer is computed for the first tokens alone."""
    base = make_tiny_modernbert(classifier_pooling="cls")
    adapter = make_adapter(tmp_path / "adapter", base, "Wqkv|Wo|Wi", target_modules=["Wqkv"])
    merged = scores(exact, merge(tmp_path / "merged", base, adapter))
    assert scores(exact, base, adapter) == pytest.approx(merged, abs=1e-4)


@pytest.mark.parametrize("fixture", ["tiny_xlmr", "tiny_modernbert", "blocky_bert"])
def test_half_precision_rounds_no_more_than_it_does_without(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In bfloat16 an adapter's scores are near those of merged weights."""
    base = request.getfixturevalue(fixture)
    layers = "Wqkv|Wi" if fixture == "tiny_modernbert" else "query|value"
    adapter = make_adapter(
        tmp_path / "adapter", base, layers, target_modules=layers.split("|"), lora_alpha=1
    )
    merged = merge(tmp_path / "merged", base, adapter)
    with LocalClient(dtype="bfloat16", device="cpu") as rounded, LocalClient(mode="exact") as exact:
        wanted = scores(exact, merged)
        rounding = np.abs(np.subtract(scores(rounded, merged), wanted)).max()
        assert scores(rounded, base, adapter) == pytest.approx(wanted, abs=0.05 + 2 * rounding)


def test_names_without_pefts_prefix_are_understood(
    tiny_bert: Path, tmp_path: Path, exact: LocalClient
) -> None:
    """Some tools leave out `base_model.model.`."""
    usual = make_adapter(tmp_path / "usual", tiny_bert)
    bare = make_adapter(tmp_path / "bare", tiny_bert, prefix="")
    same = pytest.approx(scores(exact, tiny_bert, usual), abs=1e-5)  # in other batches
    assert scores(exact, tiny_bert, bare) == same
    assert scores(exact, tiny_bert, None) != same


def test_one_batch_holds_several_adapters_and_the_base(tiny_xlmr: Path, tmp_path: Path) -> None:
    """A worker gives every pair of a mixed batch the score of its own adapter, in one pass."""
    files = ModelFiles(name="tiny", folder=tiny_xlmr, source="folder")
    encoder = PairEncoder.load(files, device=torch.device("cpu"), dtype=torch.float32)
    pairs = encoder.tokenizer.encode_pairs(QUERY["text"], TEXTS, encoder.max_length)
    whole = r"classifier\.(dense|out_proj)"
    adapters: list[Adapter | None] = [None]
    for seed in range(3):
        folder = make_adapter(tmp_path / str(seed), tiny_xlmr, seed=seed, whole=whole, r=2 + seed)
        loading = encoder.adapters.acquire(str(folder), lambda folder=folder: folder)  # type: ignore[misc]
        adapters.append(loading.result(PATIENCE_SECONDS))
    mixed = [
        (pair if adapter is None else AdaptedPair.of(pair, adapter))
        for pair in pairs
        for adapter in adapters
    ]
    random.Random(5).shuffle(mixed)
    worker = encoder.open_worker()
    assert worker(mixed) == pytest.approx([worker([pair])[0] for pair in mixed], abs=1e-5)
    assert len(set(worker(mixed))) == len(mixed)


def test_threads_that_mix_the_base_and_three_adapters_each_get_their_own(
    blocky_bert: Path, tmp_path: Path, exact: LocalClient
) -> None:
    """8 threads, 1,000 calls: every score is the solo score of the call's adapter."""
    loras = [None, *(make_adapter(tmp_path / str(i), blocky_bert, seed=i) for i in range(3))]
    solo = [scores(exact, blocky_bert, lora) for lora in loras]
    wrong: list[Any] = []

    def call(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(125):
            which = dice.randrange(4)
            found = scores(exact, blocky_bert, loras[which])
            if found != pytest.approx(solo[which], abs=1e-4):
                wrong.append((which, found))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(
        one != pytest.approx(other, abs=1e-2) for i, one in enumerate(solo) for other in solo[:i]
    )


@pytest.mark.parametrize("fixture", ["tiny_bert", "blocky_bert"])
def test_the_base_is_bit_identical_before_during_and_after(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path, exact: LocalClient
) -> None:
    """In torch and in the kernels, while an adapter is there and after it was unloaded."""
    base = request.getfixturevalue(fixture)
    adapter = make_adapter(tmp_path / "adapter", base)
    before, computed_by = scores(exact, base), exact.loaded()
    exact.load_lora(str(base), str(adapter))
    assert scores(exact, base) == before
    scores(exact, base, adapter)
    assert scores(exact, base) == before
    assert exact.unload_lora(str(base)) == 1
    assert scores(exact, base) == before
    assert exact.loaded() == computed_by
    if fixture == "blocky_bert" and native.available_kernels():
        assert "kernels" in computed_by[str(base)]


def test_the_least_recently_used_adapter_leaves(tiny_bert: Path, tmp_path: Path) -> None:
    """`max_loras` are kept; one that left is loaded again when it is asked for."""
    loras = [make_adapter(tmp_path / str(i), tiny_bert, seed=i) for i in range(3)]
    with LocalClient(mode="exact", max_loras=2) as client:
        first = scores(client, tiny_bert, loras[0])
        scores(client, tiny_bert, loras[1])
        scores(client, tiny_bert, loras[0])
        scores(client, tiny_bert, loras[2])
        assert list(client.loras(str(tiny_bert))) == [str(loras[0]), str(loras[2])]
        assert all(num_bytes > 0 for num_bytes in client.loras(str(tiny_bert)).values())
        scores(client, tiny_bert, loras[1])
        assert scores(client, tiny_bert, loras[0]) == first


def test_unloading_names_one_or_all(tiny_bert: Path, tmp_path: Path, exact: LocalClient) -> None:
    """And says how many there were; of a model that is not loaded there are none."""
    assert exact.unload_lora("not/loaded") == 0
    loras = [make_adapter(tmp_path / str(i), tiny_bert, seed=i) for i in range(3)]
    for lora in loras:
        exact.load_lora(str(tiny_bert), str(lora))
    assert exact.unload_lora(str(tiny_bert), str(loras[1])) == 1
    assert exact.unload_lora(str(tiny_bert), str(loras[1])) == 0
    assert exact.unload_lora(str(tiny_bert)) == 2
    assert exact.loras(str(tiny_bert)) == {}


def test_adapters_count_as_memory_of_the_model(blocky_bert: Path, tmp_path: Path) -> None:
    """Also what they need beside compiled kernels; unloaded, they count no more."""
    files = ModelFiles(name="tiny", folder=blocky_bert, source="folder")
    encoder = PairEncoder.load(files, device=torch.device("cpu"), dtype=torch.float32)
    before = encoder.num_bytes
    folder = make_adapter(tmp_path / "adapter", blocky_bert)
    encoder.adapters.acquire("it", lambda: folder).result(PATIENCE_SECONDS)
    assert encoder.num_bytes >= before + encoder.adapters.loaded()["it"]
    assert (
        encoder.adapters.loaded()["it"] >= (folder / "adapter_model.safetensors").stat().st_size / 2
    )


def test_callers_who_arrive_together_load_once_and_others_are_served() -> None:
    """A load in progress is shared, blocks nobody else, and a failure is tried again."""
    reads: list[str] = []
    may_read, start = threading.Event(), threading.Barrier(8)

    def read(name: str, folder: Path) -> Adapter:
        del folder
        if name == "slow":
            may_read.wait(PATIENCE_SECONDS)
        reads.append(name)
        if name == "broken":
            msg = "no such layer"
            raise ModelLoadError(msg)
        return Adapter(name, {}, {})

    store, got = AdapterStore(read), []

    def ask() -> None:
        start.wait(PATIENCE_SECONDS)
        got.append(store.acquire("slow", Path).result(PATIENCE_SECONDS))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert store.acquire("other", Path).result(PATIENCE_SECONDS).name == "other"
    may_read.set()
    for thread in threads:
        thread.join()
    assert reads == ["other", "slow"]
    assert len({id(adapter) for adapter in got}) == 1
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="no such layer"):
            store.acquire("broken", Path).result(PATIENCE_SECONDS)
    assert reads[2:] == ["broken", "broken"]
    assert sorted(store.loaded()) == ["other", "slow"]  # either may have been asked for first


def test_adapters_work_from_coroutines(tiny_bert: Path, tmp_path: Path, exact: LocalClient) -> None:
    """With the same scores, also for the base beside them."""
    lora = make_adapter(tmp_path / "adapter", tiny_bert)
    wanted = scores(exact, tiny_bert, lora)
    client = LocalAsyncClient(exact)
    items = [Item(text=text) for text in TEXTS]
    options = {"lora": str(lora), "score_space": "raw"}

    async def ask() -> list[float]:
        result = await client.score(str(tiny_bert), QUERY, items, options=options)
        found = {entry["item_id"]: entry["score"] for entry in result["scores"]}
        return [found[f"item-{i}"] for i in range(len(TEXTS))]

    assert asyncio.run(ask()) == wanted


REFUSED = {
    "DoRA": {"use_dora": True},
    "bias='all'": {"bias": "all"},
    "peft_type 'LOHA'": {"peft_type": "LOHA"},
    r"biases in LoRA layers \(lora_bias\)": {"lora_bias": True},
    "init_lora_weights='pissa_niter_4'": {"init_lora_weights": "pissa_niter_4"},
    "layer_replication": {"layer_replication": [[0, 2]]},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_computed_is_refused_by_its_name(
    reason: str, tiny_bert: Path, tmp_path: Path, exact: LocalClient
) -> None:
    """Rather than scored as if it were plain LoRA."""
    lora = make_adapter(tmp_path / "adapter", tiny_bert, **REFUSED[reason])
    with pytest.raises(UnsupportedModelError, match=reason):
        exact.load_lora(str(tiny_bert), str(lora))


MISFITS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "there is no such layer": lambda t: t.update(
        {
            f"{PREFIX}bert.encoder.layer.7.output.dense.lora_{x}.weight": torch.ones(4, 4)
            for x in "AB"
        }
    ),
    "embeddings and LayerNorms are not": lambda t: t.update(
        {f"{PREFIX}bert.embeddings.LayerNorm.weight": torch.ones(32)}
    ),
    r"lora_B has the shape \(7, 4\), not \(32, 4\)": lambda t: t.update(
        {f"{PREFIX}bert.encoder.layer.0.attention.self.query.lora_B.weight": torch.ones(7, 4)}
    ),
    r"query\.lora_A\.weight is missing": lambda t: t.pop(
        f"{PREFIX}bert.encoder.layer.1.attention.self.query.lora_A.weight"
    ),
    "target_modules names 'value'": lambda t: [t.pop(key) for key in list(t) if ".value." in key],
    "classifier has no bias": lambda t: t.pop(f"{PREFIX}classifier.bias"),
    "has rank 2, but adapter_config.json says 4": lambda t: t.update(
        {
            f"{PREFIX}bert.encoder.layer.0.attention.self.key.lora_A.weight": torch.ones(2, 32),
            f"{PREFIX}bert.encoder.layer.0.attention.self.key.lora_B.weight": torch.ones(32, 2),
        }
    ),
}


@pytest.mark.parametrize("reason", MISFITS)
def test_an_adapter_of_another_model_is_refused(
    reason: str, tiny_bert: Path, tmp_path: Path, exact: LocalClient
) -> None:
    """The error says what does not fit, and which model it was made for; the base serves on."""
    lora = make_adapter(tmp_path / "adapter", tiny_bert)
    path = lora / "adapter_model.safetensors"
    tensors = load_file(path)
    MISFITS[reason](tensors)
    save_file(tensors, path)
    with pytest.raises(ModelLoadError, match=rf"{reason}.*it was made for test/tiny"):
        scores(exact, tiny_bert, lora)
    assert len(scores(exact, tiny_bert)) == len(TEXTS)


def test_pickled_and_incomplete_adapters_are_refused(
    tiny_bert: Path, tmp_path: Path, exact: LocalClient
) -> None:
    """As models are; a folder that is none is not asked for at the hub."""
    lora = make_adapter(tmp_path / "adapter", tiny_bert)
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.bin")
    with pytest.raises(UnsupportedModelError, match="only pickled weights"):
        exact.load_lora(str(tiny_bert), str(lora))
    (lora / "adapter_model.bin").unlink()
    with pytest.raises(ModelLoadError, match=r"there is no adapter_model\.safetensors"):
        exact.load_lora(str(tiny_bert), str(lora))
    (lora / "adapter_config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"has no adapter_config\.json"):
        exact.load_lora(str(tiny_bert), str(lora))


@pytest.mark.parametrize("lora", ["", "  ", 3, ["x"]])
def test_what_names_no_adapter_is_an_error(lora: Any, tiny_bert: Path, exact: LocalClient) -> None:
    """Before anything is loaded."""
    with pytest.raises(InvalidRequestError, match="lora must be the name or the folder"):
        exact.score(str(tiny_bert), QUERY, [QUERY], options={"lora": lora})


def test_a_model_that_takes_no_adapters_says_so(exact: LocalClient) -> None:
    """Instead of scoring without."""
    model: Any = object()
    loaded = LoadedModel(model, Scheduler([], name="m"), "nothing")
    request = check_score_request("m", QUERY, [QUERY], None, {"lora": "owner/adapter"})
    with pytest.raises(InvalidRequestError, match="m takes no adapters; cross-encoders do"):
        exact.load_adapter(loaded, request)
