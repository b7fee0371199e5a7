"""The report: one HTML page that needs no network, no script and no other file, and PNGs beside it.

Every figure stands in a `<data>` element with its exact value, as it is in the JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sie_core.evaluation.plots import Plot, draw

PAGE = "report.html"

_TITLES = {"RR@10": "MRR@10", "AP": "MAP"}

_STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --panel: #f5f6f8; --ink: #1f2430; --muted: #5a6372; --grid: #d8dce3;
  --lost: #b5362c; --won: #2d7d53; --series-1: #2764ae; --series-2: #c0601d; --series-3: #7d4ea8;
  --series-4: #1d8a8a; --series-5: #a02c68; --series-6: #77701c; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171d; --panel: #1d2129; --ink: #e6e9ef; --muted: #a0a8b6; --grid: #343a46;
  --lost: #f0857b; --won: #6cc796; --series-1: #7fb2ee; --series-2: #eda067; --series-3: #c39be8;
  --series-4: #62cccc; --series-5: #ea85b6; --series-6: #cfc763; } }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; } .muted, figcaption { color: var(--muted); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--grid); text-align: right;
  vertical-align: top; font-variant-numeric: tabular-nums; }
th { font-weight: 600; } th:first-child, td:first-child, td.text, th.text { text-align: left; }
.lost, .worse { color: var(--lost); } .won, .better { color: var(--won); }
figure { margin: .8rem 0; padding: .8rem; background: var(--panel); border-radius: .5rem; }
figure svg { width: 100%; height: auto; display: block; }
.query td.text { min-width: 12rem; } .query td:first-child { white-space: nowrap; }
.depths td:first-child { white-space: nowrap; } .tag { font-size: .85em; font-weight: 600; }
code { overflow-wrap: anywhere; }
"""


def write_report(folder: Path, outcome: Mapping[str, Any]) -> Path:
    """Write `report.html` and the plots as PNG into `folder`, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw(outcome)
    for plot in plots:
        plot.save_png(folder)
    page = folder / PAGE
    content = render(outcome, plots)
    page.write_bytes(content.encode("utf-8", errors="replace"))
    return page


def render(outcome: Mapping[str, Any], plots: Sequence[Plot]) -> str:
    """Return the page."""
    data, models = outcome["data"], outcome["models"]
    title = f"Reranking on {data['name']}"
    # The page promises to load nothing: the policy has the browser hold it to that.
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head>{head}</head><body>',
        f"<h1>{escape(title)}</h1>",
        _summary(outcome),
        *(_model_section(model, is_one=len(models) == 1) for model in models),
        _pairs_section(outcome["pairs"]),
        "<h2>Depth and latency</h2>",
        *(_figure(plot) for plot in plots if not plot.name.startswith("gains")),
        _depth_table(outcome),
        "<h2>Query by query</h2>",
    ]
    gain_plots = [plot for plot in plots if plot.name.startswith("gains")]
    for model, plot in zip(models, gain_plots, strict=True):
        parts += [_figure(plot), _query_tables(model)]
    parts += [_circumstances(outcome), "</body></html>"]
    return "\n".join(part for part in parts if part) + "\n"


def _summary(outcome: Mapping[str, Any]) -> str:
    data, first = outcome["data"], outcome["first_stage"]
    depth = str(first["num_candidates"])
    left_out = (
        f" ({_whole(data['num_queries_left_out'])} more have no text or nothing relevant)"
        if data["num_queries_left_out"]
        else ""
    )
    of_data = (
        f"{_whole(data['num_queries'])} queries{left_out} over {_whole(data['num_documents'])} "
        f"documents. First stage: {escape(first['name'])}, {_whole(first['num_candidates'])} "
        "candidates per query."
    )
    of_recall = (
        f"Of what is relevant, {_ratio(first['recall'][depth])} is among the candidates "
        f"(Recall@{depth}): the ceiling of any reranker."
    )
    sentences = [of_data, of_recall]
    sentences += [_verdict(model) for model in outcome["models"]]
    return "".join(f"<p>{sentence}</p>" for sentence in sentences)


def _verdict(model: Mapping[str, Any]) -> str:
    (metric,) = [metric for metric in model["metrics"] if metric["name"] == "nDCG@10"]
    said = {
        "better": "improves the order",
        "worse": "worsens the order",
        "unclear": "makes no difference that these queries can show",
    }
    return (
        f"<strong>{escape(model['label'])}</strong> "
        f"<span class='{metric['verdict']}'>{said[metric['verdict']]}</span>: nDCG@10 goes from "
        f"{_ratio(metric['before'])} to {_ratio(metric['after'])}. "
        f"<span class='lost'>{_whole(model['num_lost'])} queries lost</span>, "
        f"{_whole(model['num_unchanged'])} stayed, "
        f"<span class='won'>{_whole(model['num_won'])} won</span>."
    )


def _model_section(model: Mapping[str, Any], *, is_one: bool) -> str:
    rows = [
        [
            _TITLES.get(metric["name"], metric["name"]),
            _ratio(metric["before"]),
            _ratio(metric["after"]),
            *_difference(metric),
        ]
        for metric in model["metrics"]
    ]
    columns = ["", "before", "after", "difference", "95 % interval", "p", ""]
    heading = "Before and after" if is_one else f"Before and after: {escape(model['label'])}"
    latency = model["latency"]
    return (
        f"<h2>{heading}</h2>{_table(columns, rows, kind='metrics')}"
        f"<p>Latency per query, all candidates: p50 {_amount(latency['p50_ms'])} ms, "
        f"p95 {_amount(latency['p95_ms'])} ms; {_amount(latency['pairs_per_second'])} pairs per "
        f"second. {_whole(latency['num_truncated'])} of {_whole(latency['num_pairs'])} documents "
        f"were longer than the model reads, and were cut; {_whole(latency['num_scored'])} were "
        f"scored by the model. Scored by: "
        f"{escape(', '.join(model['served_by']))}.</p>"
    )


def _pairs_section(pairs: Sequence[Mapping[str, Any]]) -> str:
    if not pairs:
        return ""
    rows = [
        [
            f"{escape(pair['second'])} minus {escape(pair['first'])}",
            _TITLES.get(pair["name"], pair["name"]),
            *_difference(pair),
        ]
        for pair in pairs
    ]
    columns = ["", "", "difference", "95 % interval", "p", ""]
    return f"<h2>Model against model</h2>{_table(columns, rows, kind='pairs')}"


def _depth_table(outcome: Mapping[str, Any]) -> str:
    names = list(outcome["first_stage"]["metrics"])
    rows = [
        [
            escape(model["label"]),
            _whole(point["depth"]),
            _ratio(outcome["first_stage"]["recall"][str(point["depth"])]),
            *(_ratio(point["metrics"][name]) for name in names),
            _amount(point["p50_ms"]),
            _amount(point["p95_ms"]),
            _whole(point["num_calls"]),
        ]
        for model in outcome["models"]
        for point in model["depths"]
    ]
    columns = ["model", "candidates", "recall", *(_TITLES.get(name, name) for name in names)]
    return _table([*columns, "p50 ms", "p95 ms", "calls timed"], rows, kind="depths") + (
        "<p class='muted'>Quality at each depth is exact, from the scores of the deepest list; "
        "candidates below the depth follow in the first stage's order. Latency is that of real "
        "calls with that many candidates, for a sample of the queries; a model in the same "
        "process may still know the token ids of these documents.</p>"
    )


def _query_tables(model: Mapping[str, Any]) -> str:
    tables = []
    for key, heading in (("lost_most", "lost most"), ("won_most", "won most")):
        queries = model[key]
        tables.append(f"<h3>Queries that {heading}: {escape(model['label'])}</h3>")
        rows = [
            [
                f"{_ratio(query['before'])} → {_ratio(query['after'])}",
                escape(query["query"]),
                _document(query["first_before"]),
                _document(query["first_after"]),
            ]
            for query in queries
        ]
        columns = ["nDCG@10", "query", "first before", "first after"]
        tables.append(
            _table(columns, rows, kind=f"query {key}", text_from=1) if rows else "<p>None.</p>"
        )
    return "".join(tables)


def _document(document: Mapping[str, Any]) -> str:
    kind, said = ("won", "relevant") if document["is_relevant"] else ("lost", "not relevant")
    return f"<span class='tag {kind}'>{said}</span> {escape(document['text'])}"


def _circumstances(outcome: Mapping[str, Any]) -> str:
    machine = outcome["machine"]
    settings = [
        f"{model['label']}: "
        + ", ".join(f"{name}={value}" for name, value in model["settings"].items())
        + (f" ({model['execution']})" if model["execution"] else "")
        for model in outcome["models"]
    ]
    statistics = outcome["statistics"]
    rows = [
        ["command", f"<code>{escape(outcome['command'])}</code>"],
        ["date", escape(outcome["date"])],
        ["machine", escape(", ".join(f"{name} {value}" for name, value in machine.items()))],
        ["models", "<br>".join(map(escape, settings))],
        [
            "versions",
            escape(", ".join(f"{name} {value}" for name, value in outcome["versions"].items())),
        ],
        [
            "statistics",
            escape(
                f"{statistics['interval']}; {statistics['test']}; "
                f"{statistics['num_resamples']:,} resamples, seed {statistics['seed']}"
            ),
        ],
    ]
    return f"<h2>Circumstances</h2>{_table(['', ''], rows, kind='circumstances', text_from=0)}"


def _figure(plot: Plot) -> str:
    return (
        f"<figure id='{plot.name}'>{plot.inline_svg()}"
        f"<figcaption>{escape(plot.title)}</figcaption></figure>"
    )


def _difference(found: Mapping[str, Any]) -> list[str]:
    return [
        f"<span class='{found['verdict']}'>{_ratio(found['difference'], sign='+')}</span>",
        f"{_ratio(found['low'], sign='+')} … {_ratio(found['high'], sign='+')}",
        _ratio(found["p_value"]),
        f"<span class='{found['verdict']}'>{found['verdict']}</span>",
    ]


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    kind: str,
    text_from: int | None = None,
) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{_text_class(number, text_from)}>{value}</{tag}>"
            for number, value in enumerate(values)
        )

    head = f"<thead><tr>{cells('th', columns)}</tr></thead>" if any(columns) else ""
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<div class='scroll'><table class='{kind}'>{head}<tbody>{body}</tbody></table></div>"


def _text_class(number: int, text_from: int | None) -> str:
    return ' class="text"' if text_from is not None and number >= text_from else ""


def _ratio(value: float, *, sign: str = "") -> str:
    return f'<data value="{value!r}">{value:{sign}.4f}</data>'


def _amount(value: float | None) -> str:
    if value is None:
        return "not timed"
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 -- three digits
    return f'<data value="{value!r}">{shown}</data>'


def _whole(value: int) -> str:
    return f'<data value="{value}">{value:,}</data>'
