"""One GPU: correct first, then how fast, side by side with sentence-transformers.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --models MiniLM-L6 --quick
    python benchmarks/gpu.py --device cpu --tiny      # the same script where there is no GPU

It needs torch, transformers, tokenizers, safetensors, numpy and this repository (`PYTHONPATH=.`);
sentence-transformers is raced where it is installed, flash-attn used where it is. Checkpoints have
the exact architectures and random weights, texts are invented (`invented.py`): neither the hub nor
a data set is asked. Every time is that of the library's call, from texts to scores, on texts that
it has not seen.

Scores are compared with transformers' float32 forward before anything is timed; the script ends
with status 1 if they differ by more than their number format explains, or if running out of memory
is not recovered from. `fraction` is the time that the linear layers alone would take for exactly
the tokens there are, at the rate of a large matrix product on this GPU, over the time measured.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import Agreement
from invented import corpus_of, make_checkpoint
from race import Lap, Laps, race
from report import Report, add_arguments
from scaling import caller_rows
from workload import CHECKPOINTS, MODELS, Corpus, Workload

from sie_core.local import LocalClient
from sie_core.local.architecture import Architecture
from sie_core.local.attention import Attention, GroupedAttention, VarlenAttention
from sie_core.local.bert import BertClassifier
from sie_core.local.cuda import find_varlen_kernel
from sie_core.local.graphs import Bucket
from sie_core.local.layers import PackedInputs, Placement
from sie_core.local.modernbert import ModernBertClassifier
from sie_core.local.packing import PackedBatch
from sie_core.local.weights import Weights
from sie_core.local.worker import choose_rounding
from sie_core.models.sources import ModelFiles
from sie_core.types import Item

XLM_R_LARGE = {
    "model_type": "xlm-roberta",
    "vocab_size": 250_002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
"""The published configuration of BAAI/bge-reranker-v2-m3."""

MODERNBERT_BASE = {
    "model_type": "modernbert",
    "vocab_size": 50_368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
    "local_attention": 128,
    "classifier_pooling": "mean",
    "pad_token_id": 3,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
"""That of Alibaba-NLP/gte-reranker-modernbert-base, but for the special tokens' ids."""

GPU_MODELS: dict[str, Mapping[str, Any]] = {
    "MiniLM-L6": MODELS["MiniLM-L6"],
    "MiniLM-L12": MODELS["MiniLM-L12"],
    "gte-reranker-modernbert-base": MODERNBERT_BASE,
    "bge-reranker-v2-m3": XLM_R_LARGE,
}

_TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 3_000,
}

TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.4}
"""How far scores may be from the reference, in standard deviations of the reference's own."""

MATMUL_SIZE, TINY_MATMUL_SIZE = 8192, 256
CALLERS = 16
REFERENCE_BATCH = 8
FEW_DOCUMENTS = 10
"""So few that also a large model's work is small enough for a graph."""

WARM_UP_ROUNDS = 8
"""Texts that are scored before the clock starts: enough to capture the graphs of usual sizes."""

OOM_HEADROOM_BYTES = 256 * 2**20
OOM_DOCUMENTS = 2000
OOM_BATCH_TOKENS = 2**20
_WARM_UP_SEED, _SEARCH_SEED, _FORWARD_SEED, _OOM_SEED = 10_000, 20_000, 30_000, 40_000
_MS = 1000
_TERA = 1e12


# --- who is raced ---------------------------------------------------------------------------------


class Ours:
    """A `LocalClient`.

    Args:
        folder: The model's.
        device: Where it runs.
        mode: `fast` or `exact`.
        options: Other arguments of the client.
    """

    def __init__(self, folder: Path, device: str, mode: str, **options: Any) -> None:
        self.name = f"sie {mode}"
        logging.getLogger("sie_core").setLevel(logging.ERROR)  # long texts are meant to be cut
        # A processor without bfloat16 refuses `fast`, and is here to try the script out.
        asked = {"dtype": "bfloat16"} if (device, mode) == ("cpu", "fast") else {"mode": mode}
        self.client = LocalClient(device=device, **asked, **options)  # type: ignore[arg-type]
        self.model = str(folder)
        loaded = self.client.load(self.model).result()
        self.encoder, self.description = loaded.model, loaded.description

    def run(self, workload: Workload) -> Lap:
        """Score a workload once."""
        started = time.perf_counter()
        items = [Item(text=document) for document in workload.documents]
        options = {"score_space": "raw"}
        query = Item(text=workload.query)
        result = self.client.score(self.model, query, items, options=options)
        ms = _MS * (time.perf_counter() - started)
        scores = {entry["item_id"]: entry["score"] for entry in result["scores"]}
        return Lap(ms, [scores[f"item-{i}"] for i in range(len(items))])

    def close(self) -> None:
        """Unload the model."""
        self.client.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How sentence-transformers runs.

    Attributes:
        dtype: The number format; None for its default.
        attention: transformers' name of the attention; None for its default.
        batch_size: Pairs per batch; None for its default.
    """

    dtype: str | None = None
    attention: str | None = None
    batch_size: int | None = None

    def __str__(self) -> str:
        size = None if self.batch_size is None else f"batch {self.batch_size}"
        given = [value for value in (self.dtype, self.attention, size) if value is not None]
        return " ".join(["sentence-transformers", *(given or ["default"])])


class SentenceTransformers:
    """A `CrossEncoder`.

    Args:
        folder: The model's.
        device: Where it runs.
        settings: How.
    """

    def __init__(self, folder: Path, device: str, settings: Settings) -> None:
        from sentence_transformers import CrossEncoder

        self.settings = settings
        arguments = {"dtype": settings.dtype, "attn_implementation": settings.attention}
        given = {key: value for key, value in arguments.items() if value is not None}
        self._model = CrossEncoder(str(folder), device=device, model_kwargs=given)

    @property
    def name(self) -> str:
        """Say what it is, and how it runs."""
        return str(self.settings)

    def with_batch_size(self, batch_size: int) -> None:
        """Run on with other batches."""
        fixed = {"dtype": self.settings.dtype, "attention": self.settings.attention}
        self.settings = Settings(**fixed, batch_size=batch_size)

    def run(self, workload: Workload) -> Lap:
        """Score a workload once."""
        size = self.settings.batch_size
        arguments = {} if size is None else {"batch_size": size}
        started = time.perf_counter()
        pairs = [(workload.query, document) for document in workload.documents]
        scores = self._model.predict(pairs, show_progress_bar=False, **arguments).tolist()
        return Lap(_MS * (time.perf_counter() - started), scores)

    def close(self) -> None:
        """Drop the model."""
        del self._model


def find_best_peer(
    folder: Path, device: str, workloads: Sequence[Workload], *, is_quick: bool
) -> tuple[SentenceTransformers, int]:
    """Search number formats, kinds of attention and batch sizes; return the best, and how many."""
    has_flash = importlib.util.find_spec("flash_attn") is not None and device != "cpu"
    attentions = ["sdpa", *["flash_attention_2"] * has_flash]
    dtypes = ["bfloat16"] if device == "cpu" or is_quick else ["float16", "bfloat16"]
    sizes = (32, 128) if is_quick else (8, 16, 32, 64, 128, 256)
    best: tuple[float, Settings] | None = None
    for dtype, attention in itertools.product(dtypes, attentions):
        settings = Settings(dtype=dtype, attention=attention, batch_size=sizes[0])
        peer = SentenceTransformers(folder, device, settings)
        for size in sizes:
            peer.with_batch_size(size)
            ms = statistics.median([peer.run(workload).ms for workload in workloads][1:])
            if best is None or ms < best[0]:
                best = ms, peer.settings
        peer.close()
        free_memory()
    assert best is not None  # noqa: S101  there is at least one format
    return SentenceTransformers(folder, device, best[1]), len(dtypes) * len(attentions) * len(sizes)


def free_memory() -> None:
    """Give back what dropped models had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- correct --------------------------------------------------------------------------------------


def reference_scores(folder: Path, device: str, workload: Workload) -> list[float]:
    """Return the logits of transformers' float32 forward, in small padded batches."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model = model.to(device).eval()
    scores: list[float] = []
    with torch.inference_mode():
        for begin in range(0, len(workload.documents), REFERENCE_BATCH):
            documents = workload.documents[begin : begin + REFERENCE_BATCH]
            inputs = tokenizer(
                [workload.query] * len(documents),
                documents,
                padding=True,
                truncation=True,
                return_tensors="pt",
            )
            scores += model(**inputs.to(device)).logits[:, 0].tolist()
    del model
    free_memory()
    return scores


def correctness_row(
    model: str, contender: str, scores: Sequence[float], expected: Sequence[float], dtype: Any
) -> dict[str, Any]:
    """Compare scores with the reference; `ok` is None where no bound is set for them."""
    agreement, spread = Agreement.of(scores, expected), float(np.std(expected))
    tolerance = None if dtype is None else TOLERANCES[dtype]
    relative = agreement.max_difference / spread
    return {
        "model": model,
        "contender": contender,
        "max difference": agreement.max_difference,
        "in deviations": relative,
        "allowed": tolerance,
        "Kendall tau": agreement.kendall_tau,
        "ok": None if tolerance is None else relative <= tolerance,
    }


def out_of_memory_row(model: str, folder: Path, device: str, corpus: Corpus) -> dict[str, Any]:
    """Score with less memory than one batch takes, and compare with having enough."""
    workload = corpus.mixed(_OOM_SEED, OOM_DOCUMENTS)
    plenty = Ours(folder, device, "fast")
    expected = plenty.run(workload).scores
    plenty.close()
    free_memory()
    scarce = Ours(folder, device, "fast", max_batch_tokens=OOM_BATCH_TOKENS)
    scarce.run(corpus.mixed(_OOM_SEED + 1))
    total = torch.cuda.get_device_properties(device).total_memory
    allowed = torch.cuda.memory_reserved(device) + OOM_HEADROOM_BYTES
    num_before = torch.cuda.memory_stats(device).get("num_ooms", 0)
    torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0), device)
    try:
        scores = scarce.run(workload).scores
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    has_run_out = torch.cuda.memory_stats(device).get("num_ooms", 0) > num_before
    row = correctness_row(model, "sie fast, memory short", scores, expected, torch.float16)
    row["ok"] = row["ok"] and has_run_out
    scarce.close()
    free_memory()
    return row


# --- fast -----------------------------------------------------------------------------------------


def matmul_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Return the operations per second of a large square product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(12):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        synchronize(device)
        times.append((time.perf_counter() - started) / 5)
    return float(2 * size**3 / statistics.median(times[2:]))


def synchronize(device: str) -> None:
    """Wait for the device, where it does not wait for us."""
    if device != "cpu":
        torch.cuda.synchronize()


def best_ms(device: str, work: Callable[[], Any], num_rounds: int = 7) -> float:
    """Time some work, the device's part included; return the median in milliseconds."""
    times = []
    for _ in range(num_rounds + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(_MS * (time.perf_counter() - started))
    return statistics.median(times[2:])


def step_row(model: str, ours: Ours, device: str, workload: Workload) -> dict[str, Any]:
    """Time the parts of a call on the same texts again and again, each by itself."""
    encoder, documents = ours.encoder, workload.documents
    tokenizer, shape = encoder.tokenizer, encoder.architecture
    worker = encoder.open_worker()

    def tokenise() -> Any:
        tokenizer.cache.resize(0)
        return tokenizer.encode_pairs(workload.query, documents, encoder.max_length)

    pairs = tokenise()
    batch = PackedBatch.of(pairs, position_offset=shape.position_offset)
    bucket = Bucket.coarse(batch)
    row = np.empty(bucket.size, np.int32)
    fill = {"pad_token_id": shape.pad_token_id, "position": shape.position_offset}
    return {
        "model": model,
        "tokens": batch.num_tokens,
        "tokens with dummies": bucket.num_tokens,
        "tokenise": best_ms(device, tokenise),
        "pack": best_ms(device, lambda: PackedBatch.of(pairs)),
        "fill": best_ms(device, lambda: bucket.fill(row, batch, **fill)),
        "worker, pack and fill in it": best_ms(device, lambda: worker(pairs)),
        "call": best_ms(device, lambda: ours.run(workload)),
    }


def stage_row(model: str, folder: Path, ours: Ours, device: str, texts: Workload) -> dict[str, Any]:
    """Time the stages of torch's forward pass, each by itself and without graphs."""
    encoder = ours.encoder
    placement = Placement(torch.device(device), encoder.dtype)
    files = ModelFiles(name=model, folder=folder, source="folder")
    classifier = make_classifier(encoder.architecture, Weights.open(files), placement)
    pairs = encoder.tokenizer.encode_pairs(texts.query, texts.documents, encoder.max_length)
    pairs = sorted(pairs, key=lambda pair: -len(pair.token_ids))
    offset = encoder.architecture.position_offset
    batch = PackedBatch.of(pairs, position_offset=offset, rounding=choose_rounding(placement))
    kernel = find_varlen_kernel(placement.device, placement.dtype, encoder.architecture)
    with torch.inference_mode():
        inputs = PackedInputs.of(batch).to(placement.device)
        attention: Attention = GroupedAttention(batch, placement.device)
        if kernel is not None:
            cu_seqlens = torch.from_numpy(batch.cu_seqlens).to(placement.device)
            attention = VarlenAttention(cu_seqlens, batch.max_length, kernel)
        hidden = classifier.embed(inputs)
        rest: list[Any] = [attention]
        if isinstance(classifier, ModernBertClassifier):
            rest.insert(0, classifier.rotations(inputs))
        last_arguments = [*rest[:-1], inputs, attention]
        pooled = classifier.last_layer(hidden.clone(), *last_arguments)
        num_others = classifier.num_layers - 1

        def layers() -> None:
            rows = hidden.clone()
            for index in range(num_others):
                rows = classifier.layer(index, rows, *rest)

        return {
            "model": model,
            "tokens": batch.num_tokens,
            "embed": best_ms(device, lambda: classifier.embed(inputs)),
            "all layers but the last": best_ms(device, layers),
            "last layer": best_ms(
                device, lambda: classifier.last_layer(hidden.clone(), *last_arguments)
            ),
            "head": best_ms(device, lambda: classifier.head(pooled)),
        }


def make_classifier(
    architecture: Architecture, weights: Weights, placement: Placement
) -> BertClassifier | ModernBertClassifier:
    """Load torch's forward pass, also where compiled kernels would take its place."""
    if architecture.model_type == "modernbert":
        return ModernBertClassifier(architecture, weights, placement)
    return BertClassifier(architecture, weights, placement)


def floor_row(
    model: str, ours: Ours, laps: Laps, tokens: Sequence[int], rate: float
) -> dict[str, Any]:
    """Compare the time of calls with that of their linear layers at the device's rate."""
    num_tokens = statistics.median(tokens)
    flops = ours.encoder.architecture.flops_per_token * num_tokens
    floor_ms = _MS * flops / rate
    return {
        "model": model,
        "tokens": num_tokens,
        "linear TFLOP": flops / _TERA,
        "matmul TFLOP/s": rate / _TERA,
        "floor ms": floor_ms,
        "p50 ms": laps.median,
        "fraction": floor_ms / laps.median,
    }


def time_rows(model: str, laps: Mapping[str, Laps]) -> list[dict[str, Any]]:
    """Put everybody's times side by side, the quickest first."""
    peers = [own.median for name, own in laps.items() if not name.startswith("sie ")]
    default = laps.get(str(Settings()))
    return [
        {
            "model": model,
            "contender": name,
            "p50 ms": own.median,
            "p95 ms": float(np.percentile(own.times, 95)),
            "rounds": len(own.times),
            "x default": None if default is None else default.median / own.median,
            "x best peer": min(peers) / own.median if peers else None,
        }
        for name, own in sorted(laps.items(), key=lambda item: item[1].median)
    ]


# --- the command ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        num_documents: Candidates in a call.
        num_rounds: Calls that are timed.
        num_warm_up: Calls before them.
        num_callers: Threads that call at once.
        num_calls: Their calls, all together.
        matmul_size: Of the product whose rate counts.
    """

    num_documents: int = 100
    num_rounds: int = 40
    num_warm_up: int = WARM_UP_ROUNDS
    num_callers: int = CALLERS
    num_calls: int = 320
    matmul_size: int = MATMUL_SIZE


QUICK = Size(num_rounds=12, num_calls=96)
TINY = Size(
    num_documents=12,
    num_rounds=3,
    num_warm_up=2,
    num_callers=3,
    num_calls=6,
    matmul_size=TINY_MATMUL_SIZE,
)


class Measurement:
    """Everything about one model.

    Args:
        model: Its name.
        folder: Its checkpoint.
        device: Where it runs.
        size: How much is measured.
        is_quick: Whether fewer of the peer's configurations are searched.
    """

    def __init__(
        self, model: str, folder: Path, device: str, size: Size, *, is_quick: bool
    ) -> None:
        self._model, self._folder, self._device = model, folder, device
        self._size, self._is_quick = size, is_quick
        self._corpus = corpus_of(folder)
        self._first = self._corpus.mixed(0, size.num_documents)

    def check(self) -> list[dict[str, Any]]:
        """Compare both modes with the reference, graphs included, and short of memory."""
        few = self._corpus.mixed(0, FEW_DOCUMENTS)
        workloads = {f"{FEW_DOCUMENTS} candidates": few, "all candidates": self._first}
        expected = {
            name: reference_scores(self._folder, self._device, workload)
            for name, workload in workloads.items()
        }
        rows = []
        for mode, (name, workload) in itertools.product(("fast", "exact"), workloads.items()):
            ours = Ours(self._folder, self._device, mode)
            dtype = ours.encoder.dtype
            contender = f"{ours.name} {str(dtype).removeprefix('torch.')}, {name}"
            print(f"{self._model}, {name}: {ours.description}", flush=True)
            # The third time the same sizes come from a graph, where there are graphs.
            runs = [ours.run(workload).scores for _ in range(3)]
            for scores, time_ in ((runs[0], "first time"), (runs[2], "third time")):
                label = f"{contender}, {time_}"
                rows.append(correctness_row(self._model, label, scores, expected[name], dtype))
            ours.close()
            free_memory()
        if self._device != "cpu" and torch.cuda.is_available():
            row = out_of_memory_row(self._model, self._folder, self._device, self._corpus)
            rows.append(row)
        if has_sentence_transformers():
            peer = SentenceTransformers(self._folder, self._device, Settings(dtype="float16"))
            scores = peer.run(few).scores
            truth = expected[f"{FEW_DOCUMENTS} candidates"]
            rows.append(correctness_row(self._model, peer.name, scores, truth, None))
            peer.close()
            free_memory()
        return rows

    def race(self, rate: float) -> dict[str, list[dict[str, Any]]]:
        """Time calls of everybody in turn, then ours in parts and by several callers."""
        size = self._size
        ours = Ours(self._folder, self._device, "fast")
        with self._peers() as peers:
            contenders = [ours, *peers]
            for contender, number in itertools.product(contenders, range(size.num_warm_up)):
                seed = _WARM_UP_SEED + number
                contender.run(self._corpus.mixed(seed, size.num_documents))
            rounds = [
                self._corpus.mixed(1 + number, size.num_documents)
                for number in range(size.num_rounds)
            ]
            laps = race(contenders, rounds)
        tokens = [self._num_tokens(ours, workload) for workload in rounds]
        tables = {
            "times": time_rows(self._model, laps),
            "floor": [floor_row(self._model, ours, laps[ours.name], tokens, rate)],
            "callers": self._caller_rows(ours),
            "steps, ms": [step_row(self._model, ours, self._device, self._first)],
            "stages in torch, ms": [
                stage_row(self._model, self._folder, ours, self._device, self._first)
            ],
        }
        if self._device != "cpu":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
            tables["floor"][0]["peak MiB, peers included"] = peak
        ours.close()
        free_memory()
        return tables

    def _num_tokens(self, ours: Ours, workload: Workload) -> int:
        tokenizer, longest = ours.encoder.tokenizer, ours.encoder.max_length
        pairs = tokenizer.encode_pairs(workload.query, workload.documents, longest)
        return sum(len(pair.token_ids) for pair in pairs)

    def _caller_rows(self, ours: Ours) -> list[dict[str, Any]]:
        size = self._size
        # Of the same sizes as those that are timed, so that their graphs are there.
        caller_rows(ours, self._corpus, [size.num_callers], size.num_calls)  # type: ignore[arg-type]
        rows = caller_rows(ours, self._corpus, [1, size.num_callers], size.num_calls)  # type: ignore[arg-type]
        return [{"model": self._model} | row for row in rows]

    @contextmanager
    def _peers(self) -> Iterator[list[SentenceTransformers]]:
        """Open sentence-transformers as it comes, and its best configuration."""
        if not has_sentence_transformers():
            yield []
            return
        search = [
            self._corpus.mixed(_SEARCH_SEED + number, self._size.num_documents)
            for number in range(4)
        ]
        best, num_tried = find_best_peer(
            self._folder, self._device, search, is_quick=self._is_quick
        )
        print(f"{self._model}: the best of {num_tried} is {best.name}", flush=True)
        peers = [SentenceTransformers(self._folder, self._device, Settings()), best]
        yield peers
        for peer in peers:
            peer.close()


def has_sentence_transformers() -> bool:
    """Tell whether it is installed."""
    return importlib.util.find_spec("sentence_transformers") is not None


def describe_device(device: str) -> dict[str, Any]:
    """Say what the figures belong to."""
    if device == "cpu" or not torch.cuda.is_available():
        return {"device": device}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory GiB": properties.total_memory / 2**30,
        "CUDA": torch.version.cuda,
        "system": platform.platform(),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1 or cpu")
    parser.add_argument("--models", nargs="+", choices=GPU_MODELS, default=list(GPU_MODELS))
    parser.add_argument("--tiny", action="store_true", help="shrink models and numbers: no figures")
    parser.add_argument("--check-only", action="store_true", help="time nothing")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, metavar="FOLDER")
    return parser.parse_args(arguments)


def main() -> int:
    """Check, time, and return the process's status."""
    options = parse(sys.argv[1:])
    device: str = options.device
    size = TINY if options.tiny else QUICK if options.quick else Size()
    report = Report("gpu", **describe_device(device))
    correctness: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    dtype = torch.float32 if device == "cpu" else torch.float16
    rate = matmul_rate(device, dtype, size.matmul_size)
    for model in options.models:
        shape = dict(GPU_MODELS[model]) | (_TINY if options.tiny else {})
        kind = "tiny-invented" if options.tiny else "invented"
        folder = make_checkpoint(shape, options.checkpoints / f"{model}-{kind}")
        measurement = Measurement(model, folder, device, size, is_quick=options.quick)
        rows = measurement.check()
        correctness += rows
        report.add(f"{model}: scores against transformers float32", rows)
        if not options.check_only:
            for title, rows in measurement.race(rate).items():
                tables.setdefault(title, []).extend(rows)
                report.add(f"{model}: {title}", rows)
    for title, rows in {"scores against transformers float32": correctness, **tables}.items():
        report.add(f"all: {title}", rows)
    report.save(options.json)
    failed = [row for row in correctness if row["ok"] is False]
    for row in failed:
        print(f"WRONG: {row['model']}, {row['contender']}: {row['in deviations']:.3f} deviations")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
