"""`sie eval` and `sie compare`: with a fake model in this process, and as processes."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval

from sie_core.reranker import Reranker

NUM_QUERIES = 12
DEADLINE_SECONDS = 300
Run = Callable[..., Any]


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def make_beir(folder: Path, *, num_queries: int, num_distractors: int) -> Path:
    """Write a data set in which every topic has documents of growing length, one relevant.

    The model of these tests scores by length: it lifts the relevant document of even topics,
    which is their longest, and buries that of odd ones, which is their shortest.
    """
    (folder / "qrels").mkdir(parents=True)
    documents, judgements = [], ["query-id\tcorpus-id\tscore"]
    for topic in range(num_queries):
        for number in range(num_distractors):
            text = f"topic{topic} " + "word " * (number + 1)
            documents.append({"_id": f"d{topic}-{number}", "title": "", "text": text})
        relevant = num_distractors - 1 if topic % 2 == 0 else 0
        judgements.append(f"q{topic}\td{topic}-{relevant}\t1")
    write_jsonl(folder / "corpus.jsonl", documents)
    write_jsonl(
        folder / "queries.jsonl",
        [{"_id": f"q{i}", "text": f"topic{i} <b>"} for i in range(num_queries)],
    )
    (folder / "qrels" / "test.tsv").write_text("\n".join(judgements) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def beir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve queries with eight documents each; the cache is empty."""
    monkeypatch.setenv("SIE_CACHE_DIR", str(tmp_path / "cache"))
    return make_beir(tmp_path / "topics", num_queries=NUM_QUERIES, num_distractors=8)


def evaluated(run: Run, *arguments: object) -> dict[str, Any]:
    """Run a command with `--json -` and return what it printed."""
    finished = run(*arguments, "--json", "-")
    assert finished.exit_code == 0, finished.stderr
    outcome: dict[str, Any] = json.loads(finished.stdout)
    return outcome


def test_the_table_says_what_the_json_says(run: Run, beir: Path, tmp_path: Path) -> None:
    """Figures, losses as well as gains, and the queries behind them."""
    out = tmp_path / "out.json"
    finished = run("eval", "--dataset", beir, "--candidates", 8, "--json", out)
    assert (finished.exit_code, finished.stderr) == (0, "")
    outcome = json.loads(out.read_bytes())
    (model,) = outcome["models"]
    assert outcome["data"]["num_queries"] == NUM_QUERIES
    assert outcome["first_stage"]["recall"]["8"] == 1.0
    assert model["num_lost"] == model["num_won"] == NUM_QUERIES // 2
    ndcg = model["metrics"][0]
    best, worst = 1.0, 1 / math.log2(8 + 1)
    assert ndcg["name"] == "nDCG@10"
    assert ndcg["after"] == pytest.approx((best + worst) / 2)
    assert ndcg["before"] == pytest.approx((best + worst) / 2)  # BM25 prefers short ones
    assert [one["after"] for one in model["lost_most"]] == pytest.approx([worst] * 5)
    assert [one["before"] for one in model["won_most"]] == pytest.approx([worst] * 5)
    assert model["lost_most"][0]["first_after"]["is_relevant"] is False
    shown = " ".join(finished.stdout.split())
    for metric in model["metrics"]:
        assert f"{metric['before']:.4f} {metric['after']:.4f}" in shown
    assert "6 lost, 0 unchanged, 6 won" in shown
    assert "queries that lost most" in shown
    assert "queries that won most" in shown
    assert "topic1 <b>" in shown


def test_figures_are_those_of_pytrec_eval_on_the_written_runs(
    run: Run, beir: Path, tmp_path: Path
) -> None:
    """To 1e-6, from the files alone."""
    runs = tmp_path / "runs"
    outcome = evaluated(run, "eval", "--dataset", beir, "--candidates", 6, "--runs", runs)
    assert {path.name for path in runs.iterdir()} == {"before.trec", "after.trec", "qrels.txt"}
    with (runs / "qrels.txt").open(encoding="utf-8") as stream:
        qrels = pytrec_eval.parse_qrel(stream)
    evaluator = pytrec_eval.RelevanceEvaluator(
        qrels, {"ndcg_cut.10", "recip_rank", "P.5", "map", "recall.6"}
    )
    names = {"nDCG@10": "ndcg_cut_10", "RR@10": "recip_rank", "P@5": "P_5", "AP": "map"}
    for file, key in (("before", "before"), ("after", "after")):
        with (runs / f"{file}.trec").open(encoding="utf-8") as stream:
            values = evaluator.evaluate(pytrec_eval.parse_run(stream))
        assert len(values) == NUM_QUERIES
        for metric in outcome["models"][0]["metrics"]:
            mean = sum(one[names[metric["name"]]] for one in values.values()) / NUM_QUERIES
            assert metric[key] == pytest.approx(mean, abs=1e-6)
        recall = sum(one["recall_6"] for one in values.values()) / NUM_QUERIES
        assert outcome["first_stage"]["recall"]["6"] == pytest.approx(recall, abs=1e-6)


def test_quality_at_a_depth_is_that_of_reranking_so_many(run: Run, beir: Path) -> None:
    """From one scoring of the deepest list, exactly as if only so many had been retrieved."""
    deep = evaluated(run, "eval", "--dataset", beir, "--candidates", 8, "--depths", "2,4")
    points = {point["depth"]: point for point in deep["models"][0]["depths"]}
    assert list(points) == [2, 4, 8]
    for depth in (2, 4):
        shallow = evaluated(run, "eval", "--dataset", beir, "--candidates", depth)
        after = {one["name"]: one["after"] for one in shallow["models"][0]["metrics"]}
        assert after["RR@10"] <= points[depth]["metrics"]["RR@10"]  # what follows may be relevant
        assert (
            deep["first_stage"]["recall"][str(depth)]
            == shallow["first_stage"]["recall"][str(depth)]
        )
        assert points[depth]["metrics"]["P@5"] >= after["P@5"]
    last = {one["name"]: one["after"] for one in deep["models"][0]["metrics"]}
    assert points[8]["metrics"] == pytest.approx(last)


def test_every_depth_is_really_called(run: Run, client: Any, beir: Path) -> None:
    """Once for each of the sampled queries, beside the one scoring of all."""
    outcome = evaluated(
        run,
        *("eval", "--dataset", beir, "--candidates", 8, "--depths", "2,4", "--timed-queries", 3),
    )
    sizes = [len(texts) for _, texts in client.calls]
    assert sizes[:NUM_QUERIES] == [8] * NUM_QUERIES
    assert sorted(sizes[NUM_QUERIES:]) == [2, 2, 2, 4, 4, 4, 8, 8, 8]
    assert [point["num_calls"] for point in outcome["models"][0]["depths"]] == [3, 3, 3]


class ByModel:
    """Scores by length; the model called `contrary` the other way round."""

    def score(
        self, model: str, query: Mapping[str, Any], items: Sequence[Mapping[str, Any]], **_: Any
    ) -> Mapping[str, Any]:
        """Score as `LocalClient` does."""
        del query
        sign = -1.0 if model == "contrary" else 1.0
        scores = [{"item_id": it["id"], "score": sign * len(it["text"]), "rank": 0} for it in items]
        return {"model": model, "scores": scores}


def _with_economy(model: str, **settings: Any) -> Reranker:
    known = {name: settings.get(name) for name in ("cascade", "stop_when_stable", "max_latency_ms")}
    options = {"batch_size": settings["batch_size"]} if settings.get("batch_size") else None
    return Reranker(model, client=ByModel(), options=options, **known)


def test_a_cascade_has_a_point_of_its_own(
    run_with: Callable[..., Any], beir: Path, tmp_path: Path
) -> None:
    """Quality is that of the whole order, and it says how many the expensive model scored."""

    def run(*arguments: object) -> Any:
        return run_with(_with_economy, *arguments)

    def after(outcome: Mapping[str, Any]) -> dict[str, float]:
        return {one["name"]: one["after"] for one in outcome["models"][0]["metrics"]}

    told = ("eval", "--dataset", beir, "--candidates", 8, "-m", "contrary", "--runs", tmp_path)
    outcome = evaluated(run, *told, "--cascade", "long:0.25")
    latency = outcome["models"][0]["latency"]
    assert (latency["num_scored"], latency["num_pairs"]) == (2 * NUM_QUERIES, 8 * NUM_QUERIES)
    assert [point["depth"] for point in outcome["models"][0]["depths"]] == [8]
    assert outcome["models"][0]["settings"]["cascade"] == ["long:0.25"]
    # The longest two go on, and the shorter of them wins: the relevant longest comes second.
    lines = (tmp_path / "after.trec").read_text(encoding="utf-8").splitlines()
    assert [line.split()[2] for line in lines[:4]] == ["d0-6", "d0-7", "d0-5", "d0-4"]
    assert after(outcome) != after(evaluated(run, *told))
    shown = run(*told, "--cascade", "long:2")
    assert "scored by the model: 24 of 96 documents" in " ".join(shown.stdout.split())


@pytest.mark.usefixtures("beir")  # an empty cache
def test_an_early_stop_has_one_too(run_with: Callable[..., Any], tmp_path: Path) -> None:
    """Documents that were not reached follow as retrieved, and are not counted as scored."""
    large = make_beir(tmp_path / "large", num_queries=3, num_distractors=40)

    def run(*arguments: object) -> Any:
        return run_with(_with_economy, *arguments)

    told = ("eval", "--dataset", large, "--candidates", 40, "--batch-size", 10, "-m", "contrary")
    # BM25 has the shorter documents first, as the model: the first ten stay the best.
    early = evaluated(run, *told, "--stop-when-stable", 1)
    assert early["models"][0]["latency"]["num_scored"] == 3 * 20
    late = evaluated(run, *told, "--max-latency-ms", 60_000)
    assert late["models"][0]["latency"]["num_scored"] == 3 * 40
    assert early["models"][0]["metrics"] == late["models"][0]["metrics"]


@pytest.mark.parametrize("wrong", ["long", "long:much", ":0.3", "long:0", "long:1.5"])
def test_a_wrong_cascade_is_refused(run: Run, beir: Path, wrong: str) -> None:
    """Before any work, with the form that is expected."""
    finished = run("eval", "--dataset", beir, "--cascade", wrong)
    assert finished.exit_code == 2
    assert "keep" in finished.stderr.lower()


def test_truncated_documents_are_counted(run: Run, beir: Path) -> None:
    """As the model says it."""
    records = [{"_id": f"d{i}", "text": "topic0 " + "x" * 600 * (i % 2)} for i in range(4)]
    write_jsonl(beir / "corpus.jsonl", records)
    (beir / "qrels" / "test.tsv").write_text("a\tb\tc\nq0\td0\t1\n", encoding="utf-8")
    outcome = evaluated(run, "eval", "--dataset", beir)
    latency = outcome["models"][0]["latency"]
    assert (latency["num_truncated"], latency["num_pairs"]) == (2, 4)
    assert outcome["data"]["num_queries_left_out"] == NUM_QUERIES - 1


def test_a_run_file_and_three_files_are_enough(run: Run, beir: Path, tmp_path: Path) -> None:
    """The first stage from elsewhere; its order is what reranking is compared with."""
    trec = tmp_path / "run.trec"
    lines = [
        f"q{topic} Q0 d{topic}-{number} {number + 1} {8 - number} mine"
        for topic in range(NUM_QUERIES - 1)
        for number in range(4)
    ]
    trec.write_text("\n".join(lines), encoding="utf-8")
    finished = run(
        "eval",
        *("--corpus", beir / "corpus.jsonl", "--query-file", beir / "queries.jsonl"),
        *("--qrels", beir / "qrels" / "test.tsv", "--first-stage", trec, "--json", "-"),
    )
    assert finished.exit_code == 0, finished.stderr
    assert "note: 1 queries have no candidate, and count as 0" in finished.stderr
    outcome = json.loads(finished.stdout)
    found = sum(topic % 2 for topic in range(NUM_QUERIES - 1))  # the shortest is relevant
    assert outcome["first_stage"]["metrics"]["RR@10"] == pytest.approx(found / NUM_QUERIES)
    assert outcome["first_stage"]["mean_candidates"] == pytest.approx(
        4 * (NUM_QUERIES - 1) / NUM_QUERIES
    )


@pytest.mark.weights
@pytest.mark.parametrize("first_stage", ["dense", "hybrid"])
def test_embeddings_of_this_process_are_a_first_stage(
    run: Run, tmp_path: Path, first_stage: str
) -> None:
    """By the embedder of the wheel: what means the same comes first, though words differ."""
    folder = tmp_path / "meanings"
    (folder / "qrels").mkdir(parents=True)
    pairs = {
        "how many people live in berlin": "The capital of Germany has 3.5 million inhabitants.",
        "what colour is a banana": "These fruits are yellow when they are ripe.",
        "parts of a violin": "The instrument has four strings, a bridge and a scroll.",
    }
    write_jsonl(
        folder / "corpus.jsonl",
        [{"_id": f"d{i}", "text": text} for i, text in enumerate(pairs.values())],
    )
    write_jsonl(
        folder / "queries.jsonl", [{"_id": f"q{i}", "text": text} for i, text in enumerate(pairs)]
    )
    judgements = "".join(f"q{i}\td{i}\t1\n" for i in range(3))
    (folder / "qrels" / "test.tsv").write_text(judgements, encoding="utf-8")
    state = tmp_path / "state"
    outcome = evaluated(
        run, "eval", "--dataset", folder, "--first-stage", first_stage, "--resume", state
    )
    assert outcome["first_stage"]["metrics"]["nDCG@10"] == 1.0
    assert (state / "vectors.f32").stat().st_size == 3 * 384 * 4


def test_a_finished_run_leaves_no_state(run: Run, beir: Path, tmp_path: Path) -> None:
    """Only what was asked for: the same command then measures anew."""
    evaluated(run, "eval", "--dataset", beir)
    assert list((tmp_path / "cache" / "evaluations").iterdir()) == []


def test_resume_keeps_scores_for_the_next_time(
    run: Run, client: Any, beir: Path, tmp_path: Path
) -> None:
    """No pair is scored again; the figures are the same."""
    arguments = ("eval", "--dataset", beir, "--resume", tmp_path / "state")
    first = evaluated(run, *arguments)
    num_calls = len(client.calls)
    finished = run(*arguments, "--json", "-")
    assert len(client.calls) == num_calls
    assert f"{NUM_QUERIES} of {NUM_QUERIES} queries were scored" in finished.stderr
    second = json.loads(finished.stdout)
    assert second["models"] == first["models"]
    assert second["first_stage"] == first["first_stage"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--candidates", "5"], "candidates was 100 and is now 5"),
        (["--queries", "3"], "queries was not set and is now 3"),
        (["--seed", "7"], "seed was 0 and is now 7"),
    ],
)
def test_settings_that_changed_are_said(
    run: Run, beir: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    """And the folder is left as it is."""
    arguments = ("eval", "--dataset", beir, "--resume", tmp_path / "state")
    evaluated(run, *arguments)
    finished = run(*arguments, *options)
    assert finished.exit_code == 2
    assert message in finished.stderr
    evaluated(run, *arguments)


def test_data_that_changed_is_noticed(run: Run, beir: Path, tmp_path: Path) -> None:
    """Its scores are of other documents."""
    arguments = ("eval", "--dataset", beir, "--resume", tmp_path / "state")
    evaluated(run, *arguments)
    with (beir / "corpus.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"_id": "new", "text": "topic0"}\n')
    finished = run(*arguments)
    assert finished.exit_code == 2
    assert "data corpus bytes was" in finished.stderr


def test_a_model_with_other_settings_is_scored_anew(
    run: Run, client: Any, beir: Path, tmp_path: Path
) -> None:
    """Which is said; the candidates stay."""
    arguments = ("eval", "--dataset", beir, "--resume", tmp_path / "state", "--timed-queries", 0)
    evaluated(run, *arguments)
    finished = run(*arguments, "--max-length", 64, "--json", "-")
    assert "max_length was not set and is now 64" in finished.stderr
    assert len(client.calls) == 2 * NUM_QUERIES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --dataset, or --corpus"),
        (["--corpus", "c.jsonl"], "--corpus, --query-file and --qrels belong together"),
        (["--dataset", "BEIR", "--first-stage", "splade"], "bm25, dense, hybrid or the file"),
        (["--dataset", "BEIR", "--depths", "10,x"], "--depths must be numbers of at least 1"),
        (["--dataset", "BEIR", "--split", "dev"], "the splits there are: test"),
        (["--dataset", "BEIR", "--json", "nowhere/out.json"], "there is no folder nowhere"),
    ],
)
def test_a_wrong_call_is_refused_before_any_work(
    run: Run, client: Any, beir: Path, arguments: list[str], message: str
) -> None:
    """Exit code 2, one line, nothing scored."""
    finished = run("eval", *[str(beir) if one == "BEIR" else one for one in arguments])
    assert finished.exit_code == 2
    assert message in finished.stderr
    assert client.calls == []


def test_models_are_compared_on_the_same_candidates(
    run_with: Run, beir: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that scores by length against one that scores the other way round."""
    monkeypatch.setenv("COLUMNS", "200")
    with_server = "shortest@http://gpu:8080"
    addresses: dict[str, str | None] = {}

    class Shortest:
        def score(self, *arguments: Any, **named: Any) -> Any:
            result = client.score(*arguments, **named)
            for entry in result["scores"]:
                entry["score"] = -entry["score"]
            return result

    def make(model: str, *, base_url: str | None, **_: Any) -> Reranker:
        addresses[model] = base_url
        return Reranker(model, client=client if model == "longest" else Shortest())

    arguments = ("compare", "longest", with_server, "--dataset", beir, "--report", tmp_path / "r")
    out = tmp_path / "out.json"
    finished = run_with(make, *arguments, "--json", out)
    assert (finished.exit_code, finished.stderr) == (0, "")
    outcome = json.loads(out.read_bytes())
    assert addresses == {"longest": None, "shortest": "http://gpu:8080"}
    assert [one["label"] for one in outcome["models"]] == ["longest", with_server]
    after = {
        one["label"]: {metric["name"]: metric["after"] for metric in one["metrics"]}
        for one in outcome["models"]
    }
    for pair in outcome["pairs"]:
        name = pair["name"]
        difference = after[with_server][name] - after["longest"][name]
        assert pair["difference"] == pytest.approx(difference, abs=1e-9)
        assert pair["low"] <= pair["difference"] <= pair["high"]
    assert {pair["name"] for pair in outcome["pairs"]} == set(after["longest"])
    shown = " ".join(finished.stdout.split())
    assert "first stage" in shown
    assert f"{with_server} - longest" in shown
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert {"report.html", "quality-by-latency.png", "gains-1.png", "gains-2.png"} <= names


def test_a_model_here_is_compared_with_the_same_on_a_server(
    run_real: Run, beir: Path, tiny_bert: Path, sie_server: str
) -> None:
    """Real models: the same scores, so no difference, and each says who answered."""
    on_server = f"test/tiny-bert@{sie_server}"
    arguments = ("--candidates", 4, "--depths", "2", "--timed-queries", 2)
    outcome = evaluated(run_real, "compare", tiny_bert, on_server, "--dataset", beir, *arguments)
    assert [one["served_by"] for one in outcome["models"]] == [["local"], [sie_server]]
    assert outcome["models"][0]["execution"]
    assert outcome["models"][1]["execution"] is None
    assert all(one["latency"]["p50_ms"] > 0 for one in outcome["models"])
    assert [pair["difference"] for pair in outcome["pairs"]] == pytest.approx([0.0] * 4)
    assert {pair["verdict"] for pair in outcome["pairs"]} == {"unclear"}


def test_a_model_named_twice_is_refused(run: Run, beir: Path) -> None:
    """There would be nothing to compare."""
    finished = run("compare", "a", "a", "--dataset", beir)
    assert finished.exit_code == 2
    assert "a model is named twice: a, a" in finished.stderr


class _Page(HTMLParser):
    """What the tests look for on a page: exact figures with what is shown, and what it loads."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.figures: list[tuple[float, str]] = []
        self.tables: dict[str, list[list[float]]] = {}
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._value: str | None = None
        self._table = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember figures by table and row."""
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [str(given[name]) for name in ("src", "href") if name in given]
        if tag == "table":
            self._table = given["class"] or ""
            self.tables[self._table] = []
        elif tag == "tr" and self._table:
            self.tables[self._table].append([])
        elif tag == "data":
            self._value = given["value"]
            if self._table:
                self.tables[self._table][-1].append(float(self._value or "nan"))

    def handle_endtag(self, tag: str) -> None:
        """Leave the table."""
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        """Take what is shown for a figure."""
        if self._value is not None:
            self.figures.append((float(self._value), data))
            self._value = None


def test_the_page_holds_the_figures_of_the_json(run: Run, beir: Path, tmp_path: Path) -> None:
    """Exactly in `data` elements, and rounded where they are read; nothing is loaded."""
    report = tmp_path / "report"
    outcome = evaluated(run, "eval", "--dataset", beir, "--depths", "2,4", "--report", report)
    content = (report / "report.html").read_text(encoding="utf-8")
    page = _Page(content)
    (model,) = outcome["models"]
    rows = [row for row in page.tables["metrics"] if row]
    assert rows == [
        [one[key] for key in ("before", "after", "difference", "low", "high", "p_value")]
        for one in model["metrics"]
    ]
    rows = [row for row in page.tables["depths"] if row]
    assert rows == [
        [
            point["depth"],
            outcome["first_stage"]["recall"][str(point["depth"])],
            *point["metrics"].values(),
            point["p50_ms"],
            point["p95_ms"],
            point["num_calls"],
        ]
        for point in model["depths"]
    ]
    for value, shown in page.figures:
        assert float(shown.replace(",", "")) == pytest.approx(value, rel=0.05, abs=6e-5)
    lost = [row for row in page.tables["query lost_most"] if row]
    won = [row for row in page.tables["query won_most"] if row]
    assert lost == [[one["before"], one["after"]] for one in model["lost_most"]]
    assert won == [[one["before"], one["after"]] for one in model["won_most"]]
    assert content.index("query lost_most") < content.index("query won_most")
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("svg") == 3
    assert "topic1 &lt;b&gt;" in content
    assert "prefers-color-scheme: dark" in content
    assert not re.findall(r'(?<!xmlns=")(?<!xlink=")https?://', content)
    ids = re.findall(r'\bid=[\'"]([^\'"]+)', content)
    assert len(set(ids)) == len(ids)
    for name in ("quality-by-depth", "latency-by-depth", "gains"):
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def waiting_script(tmp_path: Path) -> Path:
    """`sie` with a model that writes down each call, and at one of them waits without end."""
    script = tmp_path / "waiting_sie.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, threading
        from sie_core.cli.program import program
        from sie_core.reranker import Reranker

        class Client:
            def score(self, model, query, items, **_):
                with open(os.environ["CALLS"], "a", encoding="utf-8") as calls:
                    calls.write(query["text"] + "\\n")
                if query["text"] == os.environ.get("WAIT_AT"):
                    print("waiting", flush=True)
                    threading.Event().wait()
                scores = [
                    {"item_id": item["id"], "score": float(len(item["text"])), "rank": 0}
                    for item in items
                ]
                return {"model": model, "query_id": None, "scores": scores}

        program(obj=lambda model, **_: Reranker(model, client=Client()), prog_name="sie")
        """),
        encoding="utf-8",
    )
    return script


def test_ctrl_c_loses_at_most_one_batch(
    beir: Path, tmp_path: Path, environment: dict[str, str], waiting_script: Path
) -> None:
    """The same command continues with the query that was under way, and then starts anew."""
    calls = tmp_path / "calls.txt"
    environment = environment | {"CALLS": str(calls)}
    command = [sys.executable, str(waiting_script), "eval", "--dataset", str(beir)]
    command += ["--timed-queries", "0", "--json", "-"]
    with subprocess.Popen(
        command,
        env=environment | {"WAIT_AT": "topic7 <b>"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            os.kill(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=DEADLINE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "the same command continues there" in errors
    assert errors.endswith("interrupted\n")
    assert "Traceback" not in errors
    first = calls.read_text(encoding="utf-8").splitlines()
    assert first == [f"topic{i} <b>" for i in range(8)]

    calls.unlink()
    finished = subprocess.run(
        command,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr
    assert f"7 of {NUM_QUERIES} queries were scored" in finished.stderr
    second = calls.read_text(encoding="utf-8").splitlines()
    assert second == [f"topic{i} <b>" for i in range(7, NUM_QUERIES)]
    model = json.loads(finished.stdout)["models"][0]
    assert model["num_lost"] == model["num_won"] == NUM_QUERIES // 2


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path, environment: dict[str, str]) -> None:
    """5,000 documents of 8 KB and 200 queries: far less than the corpus is ever held.

    What grows is measured from after a first, small evaluation in the same process, which has
    imported all that is needed.
    """
    large = tmp_path / "large"
    (large / "qrels").mkdir(parents=True)
    filler = f"{'x' * 79} " * 100
    write_jsonl(
        large / "corpus.jsonl",
        [{"_id": f"d{i}", "text": f"topic{i % 200} {filler}"} for i in range(5000)],
    )
    write_jsonl(
        large / "queries.jsonl", [{"_id": f"q{i}", "text": f"topic{i}"} for i in range(200)]
    )
    judgements = [f"q{i}\td{i}\t1" for i in range(200)]
    (large / "qrels" / "test.tsv").write_text("\n".join(judgements), encoding="utf-8")
    corpus_bytes = (large / "corpus.jsonl").stat().st_size
    assert corpus_bytes > 38 * 2**20
    small = make_beir(tmp_path / "small", num_queries=4, num_distractors=4)
    script = textwrap.dedent("""
        import json, resource, sys
        from typer.testing import CliRunner
        from sie_core.cli.program import program
        from sie_core.reranker import Reranker

        class Client:
            def score(self, model, query, items, **_):
                scores = [
                    {"item_id": item["id"], "score": float(len(item["text"])), "rank": 0}
                    for item in items
                ]
                return {"model": model, "query_id": None, "scores": scores}

        def evaluate(folder):
            result = CliRunner().invoke(
                program,
                ["eval", "--dataset", folder, "--json", "-"],
                obj=lambda model, **_: Reranker(model, client=Client()),
            )
            assert result.exit_code == 0, result.output
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            return peak, json.loads(result.stdout)["data"]

        before, _ = evaluate(sys.argv[1])
        after, data = evaluate(sys.argv[2])
        print(after - before, data["num_documents"], data["num_queries"])
    """)
    finished = subprocess.run(
        [sys.executable, "-c", script, str(small), str(large)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    growth, num_documents, num_queries = map(int, finished.stdout.split())
    assert (num_documents, num_queries) == (5000, 200)
    assert growth < corpus_bytes / 2
