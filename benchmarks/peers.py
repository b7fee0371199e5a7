"""The other libraries, run as a child process in an environment of their own.

It imports nothing of sie. A request is one line of JSON on standard input, its answer one line on
standard output; each library is imported when the first of its contenders is opened:

    {"do": "open", "contender": {"library": "sentence-transformers", …}, "folder": "/…"}
    {"do": "score", "query": "…", "documents": ["…"]}        -> {"ms": 1.0, "scores": [0.5]}
    {"do": "close"}

Scores are raw logits, in the order of the documents. The time is that of the library's own call,
from texts to scores.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Score = Callable[[str, Sequence[str]], list[float]]
EXPORTS = Path(__file__).resolve().parents[1] / ".build" / "exports"
"""Where exported graphs are kept; `calibration.json` there has texts for post-training
quantisation, which the parent writes: a query and documents."""

NUM_THREADS = len(os.sched_getaffinity(0))


# --- exported graphs ------------------------------------------------------------------------------


def exports(folder: Path, kind: str) -> Path:
    """Return a model's folder with an exported graph, exported the first time.

    Kinds: `onnx` (float32), `onnx-int8` (dynamic, by sentence-transformers' exporter for VNNI),
    `openvino` (float32), `openvino-int8` (post-training quantisation by nncf).
    """
    target = EXPORTS / f"{folder.parent.name}-{folder.name}" / kind
    if not target.exists():
        partial = target.with_name(f"{kind}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _EXPORTERS[kind](folder, partial)
        partial.rename(target)
    return target


def _export_onnx(folder: Path, target: Path) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(folder), backend="onnx").save_pretrained(str(target))


def _export_onnx_int8(folder: Path, target: Path) -> None:
    from sentence_transformers import CrossEncoder, export_dynamic_quantized_onnx_model

    model = CrossEncoder(str(exports(folder, "onnx")), backend="onnx")
    model.save_pretrained(str(target))
    export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(target), file_suffix="int8")
    shutil.move(target / "onnx" / "model_int8.onnx", target / "onnx" / "model.onnx")


def _export_openvino(folder: Path, target: Path) -> None:
    from sentence_transformers import CrossEncoder

    CrossEncoder(str(folder), backend="openvino").save_pretrained(str(target))


def _export_openvino_int8(folder: Path, target: Path) -> None:
    import nncf
    import openvino as ov

    source = exports(folder, "openvino")
    shutil.copytree(source, target, dirs_exist_ok=True)
    model = ov.Core().read_model(source / "openvino" / "openvino_model.xml")
    names = {node.get_any_name() for node in model.inputs}
    tokenizer = load_tokenizer(folder)
    query, documents = json.loads((EXPORTS / "calibration.json").read_text(encoding="utf-8"))

    def to_inputs(document: str) -> dict[str, Any]:
        return _padded(tokenizer.encode_batch([(query, document)]), names)

    quantized = nncf.quantize(
        model, nncf.Dataset(documents, to_inputs), model_type=nncf.ModelType.TRANSFORMER
    )
    ov.save_model(quantized, target / "openvino" / "openvino_model.xml", compress_to_fp16=False)


_EXPORTERS: dict[str, Callable[[Path, Path], None]] = {
    "onnx": _export_onnx,
    "onnx-int8": _export_onnx_int8,
    "openvino": _export_openvino,
    "openvino-int8": _export_openvino_int8,
}


# --- the libraries --------------------------------------------------------------------------------


def open_sentence_transformers(folder: Path, contender: dict[str, Any]) -> Score:
    """Call `CrossEncoder.predict` with the contender's backend, number format and batch size."""
    from sentence_transformers import CrossEncoder

    backend, dtype = contender.get("backend", "torch"), contender.get("dtype")
    options: dict[str, Any] = {}
    if backend == "torch":
        if dtype:
            options["model_kwargs"] = {"torch_dtype": dtype}
        if "attention" in contender:
            options.setdefault("model_kwargs", {})
            options["model_kwargs"]["attn_implementation"] = contender["attention"]
    elif backend == "onnx":
        folder = exports(folder, "onnx-int8" if dtype == "int8" else "onnx")
        options = {"backend": "onnx", "model_kwargs": {"provider": "CPUExecutionProvider"}}
    else:
        folder = exports(folder, "openvino-int8" if dtype == "int8" else "openvino")
        hint = "bf16" if dtype == "bfloat16" else "f32"
        config = {"INFERENCE_PRECISION_HINT": hint}
        options = {"backend": "openvino", "model_kwargs": {"ov_config": config}}
    model = CrossEncoder(str(folder), **options)
    arguments = {"batch_size": contender["batch_size"]} if "batch_size" in contender else {}

    def score(query: str, documents: Sequence[str]) -> list[float]:
        pairs = [(query, document) for document in documents]
        scores: list[float] = model.predict(pairs, **arguments).tolist()
        return scores

    return score


def open_sentence_transformers_encode(folder: Path, _: dict[str, Any]) -> Score:
    """Call `SentenceTransformer.encode` as it comes; scores are products with the query's."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")

    def score(query: str, documents: Sequence[str]) -> list[float]:
        asked = model.encode([query])[0]
        products: list[float] = (model.encode(list(documents)) @ asked).tolist()
        return products

    return score


def open_transformers(folder: Path, contender: dict[str, Any]) -> Score:
    """Run the float32 forward of transformers, one pair at a time, without padding: the truth."""
    del contender
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).float().eval()

    def score(query: str, documents: Sequence[str]) -> list[float]:
        with torch.inference_mode():
            return [
                model(
                    **tokenizer(
                        query, document, truncation=True, max_length=512, return_tensors="pt"
                    )
                ).logits.item()
                for document in documents
            ]

    return score


def open_onnxruntime(folder: Path, contender: dict[str, Any]) -> Score:
    """Drive onnxruntime by hand: pairs sorted by length, batches of near lengths."""
    import onnxruntime

    path = contender.get("graph") or exports(folder, "onnx-int8") / "onnx" / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = NUM_THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    tokenizer = load_tokenizer(folder)
    batch_size = contender["batch_size"]

    def score(query: str, documents: Sequence[str]) -> list[float]:
        encodings = tokenizer.encode_batch([(query, document) for document in documents])
        scores = [0.0] * len(documents)
        order = sorted(range(len(documents)), key=lambda i: -len(encodings[i].ids))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = _padded([encodings[i] for i in batch], names)
            logits = session.run(None, inputs)[0].reshape(-1)
            for i, logit in zip(batch, logits.tolist(), strict=True):
                scores[i] = logit
        return scores

    return score


def open_openvino(folder: Path, contender: dict[str, Any]) -> Score:
    """Drive OpenVINO by hand: sorted, batches by a budget of tokens, several streams at once."""
    import openvino as ov

    dtype, num_streams = contender["dtype"], contender["num_streams"]
    core = ov.Core()
    kind = "openvino-int8" if dtype == "int8" else "openvino"
    model = core.read_model(exports(folder, kind) / "openvino" / "openvino_model.xml")
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
            "NUM_STREAMS": num_streams,
            "INFERENCE_NUM_THREADS": NUM_THREADS,
        },
    )
    names = {node.get_any_name() for node in compiled.inputs}
    tokenizer = load_tokenizer(folder)
    budget = contender["batch_tokens"]
    queue = ov.AsyncInferQueue(compiled, num_streams)

    def score(query: str, documents: Sequence[str]) -> list[float]:
        encodings = tokenizer.encode_batch([(query, document) for document in documents])
        scores = [0.0] * len(documents)

        def keep(request: Any, batch: list[int]) -> None:
            logits = request.get_output_tensor(0).data.reshape(-1)
            for i, logit in zip(batch, logits.tolist(), strict=True):
                scores[i] = logit

        queue.set_callback(keep)
        order = sorted(range(len(documents)), key=lambda i: -len(encodings[i].ids))
        while order:
            size = max(1, budget // len(encodings[order[0]].ids))
            batch, order = order[:size], order[size:]
            queue.start_async(_padded([encodings[i] for i in batch], names), batch)
        queue.wait_all()
        return scores

    return score


def open_flashrank(folder: Path, contender: dict[str, Any]) -> Score:
    """Run FlashRank's own `Ranker` over a folder laid out as its download is.

    Its model is the int8 graph; the scores are turned back from its sigmoid to logits.
    """
    from flashrank import Ranker, RerankRequest

    home = exports(folder, "onnx-int8").parent / "flashrank"
    name, file = "ms-marco-MiniLM-L-12-v2", "flashrank-MiniLM-L-12-v2_Q.onnx"
    place = home / name
    if not place.exists():
        place.mkdir(parents=True)
        graph = contender.get("graph") or exports(folder, "onnx-int8") / "onnx" / "model.onnx"
        (place / file).symlink_to(graph)
        for path in folder.iterdir():
            if path.suffix in {".json", ".txt"}:
                (place / path.name).symlink_to(path)
    ranker = Ranker(model_name=name, cache_dir=str(home), log_level="WARNING")

    def score(query: str, documents: Sequence[str]) -> list[float]:
        passages = [{"id": i, "text": document} for i, document in enumerate(documents)]
        results = ranker.rerank(RerankRequest(query=query, passages=passages))
        by_id = {result["id"]: float(result["score"]) for result in results}
        return [_logit(by_id[i]) for i in range(len(documents))]

    return score


def open_fastembed(folder: Path, contender: dict[str, Any]) -> Score:
    """Run fastembed's own `TextCrossEncoder` (float32) over a folder laid out as its own."""
    del contender
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    model = TextCrossEncoder(
        "Xenova/ms-marco-MiniLM-L-12-v2", specific_model_path=str(exports(folder, "onnx"))
    )
    return lambda query, documents: list(model.rerank(query, documents))


def open_rerankers(folder: Path, contender: dict[str, Any]) -> Score:
    """Run the `rerankers` library's cross-encoder, as it comes or with the number format named."""
    from rerankers import Reranker

    options = {"dtype": contender["dtype"]} if "dtype" in contender else {}
    ranker = Reranker(str(folder), model_type="cross-encoder", verbose=0, **options)

    def score(query: str, documents: Sequence[str]) -> list[float]:
        results = ranker.rank(query, list(documents), doc_ids=list(range(len(documents)))).results
        by_id = {result.document.doc_id: result.score for result in results}
        return [by_id[i] for i in range(len(documents))]

    return score


LIBRARIES: dict[str, Callable[[Path, dict[str, Any]], Score]] = {
    "sentence-transformers": open_sentence_transformers,
    "sentence-transformers-encode": open_sentence_transformers_encode,
    "transformers": open_transformers,
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "flashrank": open_flashrank,
    "fastembed": open_fastembed,
    "rerankers": open_rerankers,
}


# --- inputs ---------------------------------------------------------------------------------------


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizers library's object, which cuts pairs to 512 tokens and does not pad."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=512)
    tokenizer.no_padding()
    return tokenizer


def _padded(encodings: Sequence[Any], names: set[str]) -> dict[str, Any]:
    import numpy as np

    shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
    arrays = {name: np.zeros(shape, dtype=np.int64) for name in names}
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    for row, encoding in enumerate(encodings):
        for name, array in arrays.items():
            array[row, : len(encoding.ids)] = getattr(encoding, fields[name])
    return arrays


def _logit(probability: float) -> float:
    probability = min(max(probability, 1e-12), 1 - 1e-12)
    return math.log(probability / (1 - probability))


# --- the conversation -----------------------------------------------------------------------------


class Conversation:
    """Answers requests; holds one contender per name."""

    def __init__(self) -> None:
        self._contenders: dict[str, Score] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request asks."""
        if request["do"] == "open":
            contender = request["contender"]
            self._contenders[request["name"]] = LIBRARIES[contender["library"]](
                Path(request["folder"]), contender
            )
            return {}
        if request["do"] == "close":
            del self._contenders[request["name"]]
            gc.collect()
            return {}
        score = self._contenders[request["name"]]
        started = time.perf_counter()
        scores = score(request["query"], request["documents"])
        ms = 1000 * (time.perf_counter() - started)
        return {"ms": ms, "scores": [float(value) for value in scores]}


def main() -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    logging.disable(logging.WARNING)
    conversation = Conversation()
    for line in sys.stdin:
        try:
            reply = conversation.answer(json.loads(line))
        except Exception as exc:  # noqa: BLE001  the parent decides what a failure means
            reply = {"error": f"{type(exc).__name__}: {exc}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
