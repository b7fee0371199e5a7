"""`sie finetune` from the command line to a folder that is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Finished, Run
from tests.training.conftest import toy_examples, write_lists

QUICK = (
    *("--rank", 8, "--alpha", 16, "--queries-per-step", 4, "--no-bf16", "--num-threads", 1),
    *("--device", "cpu", "--mode", "exact"),
)
LEARNING = ("--learning-rate", 0.02, "--epochs", 6, "--evaluations", 6)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Queries that the tiny model can learn to answer."""
    return write_lists(tmp_path / "toy.jsonl", toy_examples(56))


def test_one_command_trains_measures_and_says_how_to_use_it(
    run_real: Run, toy: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    """The table is that of `sie compare`."""
    out = tmp_path / "out"
    splits = ("--dev", 8, "--test", 24)
    done = run_real("finetune", toy, "--out", out, "-m", tiny_bert, *splits, *QUICK, *LEARNING)
    assert done.exit_code == 0, done.stderr
    assert "24 queries to train on, 8 to decide when to stop, 24 to test on" in done.stderr
    assert "0 of the test split's" in done.stderr
    assert "step 0: nDCG@10 of the dev split is" in done.stderr
    flat = " ".join(done.stdout.split())
    assert "after - before" in flat
    assert "95 % interval" in flat
    assert "It helped. nDCG@10" in flat
    assert "use it: Reranker(" in flat
    assert (out / "adapter_model.safetensors").exists()
    query, texts = "river film 3", ["band song year banana", "band song year berlin"]
    from sie_core import Reranker

    with Reranker(str(tiny_bert), lora=str(out), mode="exact", device="cpu") as reranker:
        assert next(iter(reranker.rerank(query, texts))).index == 1


def test_json_has_every_figure_and_says_when_it_did_not_help(
    run_real: Run, toy: Path, tmp_path: Path, tiny_bert: Path
) -> None:
    """Standard output is JSON alone."""
    arguments = ("--out", tmp_path / "out", "-m", tiny_bert, "--dev", 8, "--test", 24, "--json")
    done = run_real("finetune", toy, *arguments, *QUICK, "--learning-rate", 1e-9, "--keep-run")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["helped"] is False
    assert report["verdict"].startswith("It did not help")
    assert report["pairs"][0]["name"] == "nDCG@10"
    kept = tmp_path / "out" / "run" / "checkpoints"
    assert list(kept.glob("tensorboard/events*"))


def write_corpus(folder: Path) -> tuple[Path, Path]:
    """Write documents and queries in BEIR's form; answers have `berlin` in them."""
    documents, queries = folder / "docs.jsonl", folder / "queries.jsonl"
    rows: list[dict[str, Any]] = []
    names = []
    for place, example in enumerate(toy_examples(30)):
        names.append({"_id": f"q{place}", "text": example.query})
        rows += [
            {"_id": f"d{place}-{i}", "text": f"{example.query.split()[-1]} {one.text}"}
            for i, one in enumerate(example.documents)
        ]
    documents.write_text("\n".join(map(json.dumps, rows)))
    queries.write_text("\n".join(map(json.dumps, names)))
    return documents, queries


def test_queries_and_a_corpus_are_enough_with_a_teacher(
    run_real: Run, tmp_path: Path, tiny_bert: Path, tiny_xlmr: Path
) -> None:
    """Candidates come by BM25, the teacher names answers and refuses negatives, and is learnt."""
    documents, queries = write_corpus(tmp_path)
    source = ("--corpus", documents, "--query-file", queries)
    done = run_real(
        *("finetune", *source, "--out", tmp_path / "out", "-m", tiny_bert, *QUICK),
        *("--teacher", tiny_xlmr, "--dev", 4, "--test", 6, "--candidates", 8),
        *("--max-ratio", 1.0, "--min-probability", 0.01, "--loss", "margin-mse"),
    )
    assert done.exit_code == 0, done.stderr
    assert "train: negatives mined by bm25 for 20 queries" in done.stderr
    assert "the test split was judged by the teacher" in done.stderr


def test_dense_retrieval_finds_negatives_as_well(
    run_real: Run, tmp_path: Path, tiny_bert: Path, tiny_embedder: Path
) -> None:
    """By an embedder of this process, and for judged queries without a teacher."""
    documents, queries = write_corpus(tmp_path)
    qrels = tmp_path / "qrels.tsv"
    lines = [f"q{place}\td{place}-0\t1" for place in range(30)]
    qrels.write_text("query-id\tcorpus-id\tscore\n" + "\n".join(lines))
    done = run_real(
        *("finetune", "--corpus", documents, "--query-file", queries, "--qrels", qrels),
        *("--out", tmp_path / "out", "-m", tiny_bert, *QUICK, "--dev", 4, "--test", 6),
        *("--first-stage", "dense", "--embedding-model", tiny_embedder, "--candidates", 8),
    )
    assert done.exit_code == 0, done.stderr
    assert "train: negatives mined by dense for 20 queries" in done.stderr
    assert "first stage dense, 8 candidates" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of: a FILE of labelled records"),
        (("FILE", "--dataset", "hotpotqa"), "give one of: a FILE"),
        (("--corpus", "FILE"), "--corpus and --query-file belong together"),
        (("--corpus", "FILE", "--query-file", "FILE"), "name a model that does, with --teacher"),
        (("FILE", "--qrels", "FILE"), "--qrels are of --corpus and --query-file"),
        (("--dataset", "hotpotqa", "--test-file", "FILE"), "go with a FILE of labelled records"),
        (("--dataset", "msmarco"), "must be hotpotqa or a folder in BEIR's layout"),
        (("FILE", "--first-stage", "splade"), "first stage must be bm25, dense, hybrid"),
        (("FILE", "--learning-rate", "2"), "learning_rate must be above 0 and below 1"),
        (("FILE", "--dev", "40", "--test", "40"), "56 queries cannot be split into 40 for dev"),
    ],
)
def test_a_wrong_call_is_named_before_anything_is_trained(
    run_real: Run, toy: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Nothing is written."""
    given = [str(toy) if one == "FILE" else one for one in arguments]
    done: Finished = run_real("finetune", *given, "--out", tmp_path / "out")
    assert done.exit_code != 0
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_result_is_not_written_over(run_real: Run, toy: Path, tmp_path: Path) -> None:
    """A folder that holds something else is refused before the data is read."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    done = run_real("finetune", toy, "--out", tmp_path / "mine")
    assert done.exit_code == 2
    assert "is not empty (it holds thesis.txt)" in done.stderr


def test_what_is_not_installed_is_named_with_the_command(toy: Path, tmp_path: Path) -> None:
    """Before the data is read."""
    code = (
        "import sys\n"
        "sys.modules['peft'] = None\n"
        "from sie_core.cli.__main__ import main\n"
        f"sys.argv = ['sie', 'finetune', {str(toy)!r}, '--out', {str(tmp_path / 'out')!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "peft is not installed; run: pip install 'sie-core[local,training]'" in done.stderr


def test_help_needs_neither_torch_nor_peft() -> None:
    """The options are read without them."""
    code = (
        "import sys\n"
        "sys.argv = ['sie', 'finetune', '--help']\n"
        "from sie_core.cli.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    loaded = {'torch', 'peft', 'transformers', 'sie_core.training'} & set(sys.modules)\n"
        "    print('loaded:', loaded or 'nothing')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "--teacher" in done.stdout
    assert "loaded: nothing" in done.stdout
