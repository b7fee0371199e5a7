"""What running a query's prompt once is worth: `python benchmarks/prefix_sharing.py`.

A call has one query, whose prompt before the document has 80 tokens, and 100 documents of 200
tokens, for a Qwen3-Reranker. It is scored twice: as `LocalClient` does, and with every prompt run
whole. Tokens are those that the model counts as it computes them. Weights are random, in layers of
exactly the shape of Qwen3-Reranker-0.6B; there are fewer layers than its 28, since each takes the
same part of the time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from report import Report, add_arguments

NUM_DOCUMENTS = 100
DOCUMENT_TOKENS = 200
HEAD_TOKENS = 80
CLOSING_TOKENS = 9
"""Behind the document, in the real tokenizer."""

QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
"""Of Qwen/Qwen3-Reranker-0.6B; its vocabulary of 151,669 is looked up and costs no time."""


def write_checkpoint(folder: Path, num_layers: int, **sizes: int) -> Path:
    """Write a Qwen3 with random weights and a tokenizer of single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

    words = [*sorted(ByteLevel.alphabet()), "ye", "yes", "no"]
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    special = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer = Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=merges,
        additional_special_tokens=special,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = QWEN3_06B | {"vocab_size": len(tokenizer), "num_hidden_layers": num_layers} | sizes
    Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype) -> Any:
    """Load a checkpoint as `LocalClient` does."""
    from sie_core.local.decoder import CausalReranker
    from sie_core.models.sources import ModelFiles

    files = ModelFiles(name=folder.name, folder=folder, source="folder")
    return CausalReranker.load(files, device=torch.device("cpu"), dtype=dtype)


def prompts(model: Any, num_documents: int) -> list[Any]:
    """Make a call's prompts of random tokens, a prefix in common."""
    import numpy as np

    from sie_core.local.prefix import DecoderSequence, Prefix

    dice = np.random.default_rng(5)

    def draw(count: int) -> Any:
        return dice.integers(model.architecture.vocab_size, size=count, dtype=np.int32)

    prefix = Prefix(draw(HEAD_TOKENS))
    return [
        DecoderSequence(prefix, draw(DOCUMENT_TOKENS + CLOSING_TOKENS), is_truncated=False)
        for _ in range(num_documents)
    ]


def run(model: Any, sequences: Sequence[Any], batch_tokens: int) -> tuple[list[float], int, float]:
    """Score in batches, as a scheduler fills them.

    Returns:
        The scores, the tokens computed, and the processor's seconds, which neighbours on the
        machine disturb less than those of the clock.
    """
    worker, scores = model.open_worker(), []
    before, started = model.stats().num_tokens, time.process_time()
    for batch in batches(sequences, batch_tokens):
        scores += worker(batch)
    seconds = time.process_time() - started
    return scores, model.stats().num_tokens - before, seconds


def batches(sequences: Sequence[Any], batch_tokens: int) -> list[list[Any]]:
    """Fill batches up to a number of tokens."""
    filled: list[list[Any]] = [[]]
    room = batch_tokens
    for sequence in sequences:
        if filled[-1] and sequence.num_tokens > room:
            filled.append([])
            room = batch_tokens
        filled[-1].append(sequence)
        room -= sequence.num_tokens
    return filled


def main() -> None:
    """Print tokens, times and how far scores are apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--documents", type=int, default=NUM_DOCUMENTS)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3, help="with --quick 1")
    arguments = parser.parse_args()
    arguments.rounds = 1 if arguments.quick else arguments.rounds
    report = Report(
        "prefix_sharing",
        layers=arguments.layers,
        documents=arguments.documents,
        dtype=arguments.dtype,
    )
    torch.set_num_threads(1)  # as a worker has
    with tempfile.TemporaryDirectory() as folder:
        model = load(
            write_checkpoint(Path(folder), arguments.layers), getattr(torch, arguments.dtype)
        )
        measure(model, arguments, report)


def measure(model: Any, arguments: argparse.Namespace, report: Report) -> None:
    """Run both ways in turn, and report the fastest round of each."""
    rows: list[dict[str, Any]] = []
    best: dict[str, tuple[list[float], int, float]] = {}
    for _ in range(arguments.rounds):
        shared = prompts(model, arguments.documents)
        for way, sequences in (("whole", [s.whole() for s in shared]), ("shared", shared)):
            result = run(model, sequences, arguments.batch_tokens)
            if way not in best or result[2] < best[way][2]:
                best[way] = result
    scores, tokens, seconds = best["whole"]
    for way, (found, computed, took) in best.items():
        rows.append(
            {
                "prompts": way,
                "tokens": computed,
                "of whole": round(computed / tokens, 3),
                "CPU seconds": round(took, 2),
                "time of whole": round(took / seconds, 3),
                "scores apart": max(abs(a - b) for a, b in zip(found, scores, strict=True)),
            }
        )
    report.add("A query's prompt before the documents run once, and in every prompt", rows)
    report.save(arguments.json)


if __name__ == "__main__":
    main()
