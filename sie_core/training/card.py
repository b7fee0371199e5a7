"""The model card: what it was made of, how, when, and whether it paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"

_NAMES = {"RR@10": "MRR@10", "AP": "MAP"}


def write_card(
    folder: Path,
    *,
    base: str,
    is_adapter: bool,
    data: str,
    notes: Sequence[str],
    settings: Mapping[str, Any],
    training: Sequence[str],
    figures: Mapping[str, Any] | None,
    verdict: str,
) -> Path:
    """Write `README.md` beside the weights, in the form that hubs read.

    Args:
        folder: Of the weights.
        base: The model that it was trained from.
        is_adapter: Whether the folder holds an adapter for it, or all weights.
        data: What it learnt from.
        notes: What should be known about the data.
        settings: Of the run, by name.
        training: What happened, in sentences.
        figures: Before and after on the test split; None if nothing was measured.
        verdict: Whether it helped.
    """
    made = "A LoRA adapter for" if is_adapter else "A reranker, fine-tuned from"
    lines = [
        "---",
        f"base_model: {base}",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        "pipeline_tag: text-ranking",
        "tags:",
        "- reranker",
        "- cross-encoder",
        *(["- lora"] if is_adapter else []),
        "---",
        "",
        f"# {folder.resolve().name}",
        "",
        f"{made} `{base}`, made by `sie finetune`.",
        "",
        *_use(folder, base, is_adapter=is_adapter),
        "## Did it help?",
        "",
        verdict,
        "",
        *_table(figures),
        "## Data",
        "",
        f"{data}.",
        "",
        *(f"- {note}" for note in notes),
        "",
        "## Training",
        "",
        *(f"- {line}" for line in training),
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {_shown(value)} |" for name, value in settings.items()),
        "",
    ]
    path = folder / CARD
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _use(folder: Path, base: str, *, is_adapter: bool) -> list[str]:
    name = folder.resolve().name
    call = f'Reranker("{base}", lora="{name}")' if is_adapter else f'Reranker("{name}")'
    return [
        "```python",
        "from sie_core import Reranker",
        "",
        f"{call}.rerank(query, documents)",
        "```",
        "",
    ]


def _table(figures: Mapping[str, Any] | None) -> list[str]:
    if figures is None:
        return []
    before, after = (
        {metric["name"]: metric["after"] for metric in model["metrics"]}
        for model in figures["models"]
    )
    first, machine = figures["first_stage"], figures["machine"]
    rows = [
        f"| {_NAMES.get(pair['name'], pair['name'])} | {before[pair['name']]:.4f} "
        f"| {after[pair['name']]:.4f} | {pair['difference']:+.4f} "
        f"| {pair['low']:+.4f} … {pair['high']:+.4f} | {pair['p_value']:.4f} |"
        for pair in figures["pairs"]
    ]
    source = (
        f"{figures['data']['num_queries']:,} test queries, {figures['data']['num_documents']:,} "
        f"documents; candidates: {first['name']}, at most {first['num_candidates']} per query; "
        f"{figures['statistics']['interval']}. Measured on {figures['date'][:10]} with sie "
        f"{machine['sie']}, {machine['processor']}."
    )
    return [
        "| | before | after | difference | 95 % interval | p |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        source,
        "",
    ]


def _shown(value: Any) -> str:
    return "default" if value is None else str(value)
