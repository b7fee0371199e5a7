"""`sie rerank --base-url`: a server answers, or whoever stands in for it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sie_core.errors import SIEConnectionError
from sie_core.reranker import Reranker
from sie_core.types import Item, ScoreResult

Run = Callable[..., Any]

MODEL = "test/tiny-bert"
NOWHERE = "http://127.0.0.1:9"
"""A port that nothing listens on."""

QUERY = "how many people live in berlin"
DOCUMENTS = ["berlin museum", "", "berlin population", "yellow banana"]
INPUT = "\n".join(DOCUMENTS)
MARKS = {"status", "served_by", "reason"}


def scored(rows: Sequence[dict[str, Any]]) -> list[tuple[int, Any]]:
    """List who came where, with which score."""
    return [(row["index"], row["score"] and pytest.approx(row["score"], abs=1e-4)) for row in rows]


def expected(model: str, documents: Sequence[str] = DOCUMENTS, **settings: Any) -> list[Any]:
    """Rank with the library, as `scored` shows it."""
    with Reranker(model, **settings) as reranker:
        return [(entry.index, entry.score) for entry in reranker.rerank(QUERY, documents)]


def test_a_server_ranks_as_the_library_lets_it(run_real: Run, sie_server: str) -> None:
    """The same order and scores; nothing on stderr, and no row is marked."""
    finished = run_real("rerank", "-q", QUERY, "-m", MODEL, "--base-url", sie_server, input=INPUT)
    assert (finished.exit_code, finished.stderr) == (0, "")
    assert scored(finished.rows) == expected(MODEL, base_url=sie_server)
    assert not MARKS & set(finished.rows[0])


def test_the_address_comes_from_the_environment(
    run_real: Run, sie_server: str, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIE_BASE_URL is enough, and the scores are those of the same model in-process."""
    monkeypatch.setenv("SIE_BASE_URL", sie_server)
    finished = run_real("rerank", "-q", QUERY, "-m", MODEL, input=INPUT)
    monkeypatch.delenv("SIE_BASE_URL")
    assert scored(finished.rows) == expected(str(tiny_bert))


def test_a_server_spares_this_process_torch(environment: dict[str, str], sie_server: str) -> None:
    """A machine without the local extra can rerank on a server, and the others start quickly."""
    script = textwrap.dedent("""
        import sys
        from sie_core.cli.__main__ import main
        try:
            main()
        finally:
            heavy = {"torch", "transformers", "huggingface_hub"} & set(sys.modules)
            assert not heavy, heavy
    """)
    finished = subprocess.run(
        [sys.executable, "-c", script, "rerank", "-q", QUERY, "-m", MODEL],
        check=False,
        capture_output=True,
        text=True,
        input=INPUT,
        env=environment | {"SIE_BASE_URL": sie_server},
        timeout=120,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.count("\n") == len(DOCUMENTS)


def test_top_k_and_threshold_cut_what_a_server_scored(run_real: Run, sie_server: str) -> None:
    """Over all documents of a query, though the client sends them in two requests."""
    documents = [f"berlin {number}" for number in range(600)]
    arguments = ("rerank", "-q", QUERY, "-m", MODEL, "--base-url", sie_server)
    scores = [score for _, score in expected(MODEL, documents, base_url=sie_server)]
    best = run_real(*arguments, "-k", 5, input="\n".join(documents))
    assert [row["score"] for row in best.rows] == pytest.approx(scores[:5], abs=1e-4)
    # How requests meet in a batch moves scores a little: the threshold stands in a wide gap.
    number = max(range(200, 400), key=lambda i: scores[i - 1] - scores[i])
    threshold = (scores[number - 1] + scores[number]) / 2
    above = run_real(*arguments, "--threshold", threshold, input="\n".join(documents))
    assert [row["score"] for row in above.rows] == pytest.approx(scores[:number], abs=1e-4)


def test_without_a_fallback_a_dead_server_is_an_error(run_real: Run) -> None:
    """Exit code 1, one line that names the address, nothing on stdout."""
    finished = run_real("rerank", "-q", QUERY, "--base-url", NOWHERE, input=INPUT)
    assert (finished.exit_code, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"error: no reply from {NOWHERE}")
    assert finished.stderr.count("\n") == 1


def test_this_process_stands_in_for_a_dead_server(run_real: Run, tiny_bert: Path) -> None:
    """The same model's scores are no degraded answer, but one line says who gave them, and why."""
    finished = run_real(
        *("rerank", "-q", QUERY, "-m", tiny_bert, "--base-url", NOWHERE, "--fallback", "local"),
        input=INPUT,
    )
    assert finished.exit_code == 0
    assert scored(finished.rows) == expected(str(tiny_bert))
    assert not MARKS & set(finished.rows[0])
    assert finished.stderr.startswith(f"note: local answered, because {NOWHERE}: SIEConnection")
    assert finished.stderr.count("\n") == 1


def test_a_degraded_answer_says_so_and_keeps_everything(run_real: Run) -> None:
    """In retrieval order every row says who answered and why; no threshold cuts, top-k does."""
    finished = run_real(
        *("rerank", "-q", QUERY, "--base-url", NOWHERE, "--fallback", "retrieval_order"),
        *("--threshold", 1000, "--top-k", 3),
        input=INPUT,
    )
    assert finished.exit_code == 0
    assert [(row["index"], row["score"]) for row in finished.rows] == [(i, None) for i in range(3)]
    for row in finished.rows:
        assert (row["status"], row["served_by"]) == ("degraded", "retrieval_order")
        assert row["reason"].startswith(f"{NOWHERE}: SIEConnectionError: ")
    reason = finished.rows[0]["reason"]
    assert finished.stderr == f"note: degraded: retrieval_order answered, because {reason}\n"


def test_fallbacks_are_asked_in_turn(run_real: Run, sie_server: str) -> None:
    """The first that answers gives the ranking; its own server is as good as the first."""
    finished = run_real(
        *("rerank", "-q", QUERY, "-m", MODEL, "--base-url", NOWHERE),
        *("--fallback", sie_server, "--fallback", "retrieval_order"),
        input=INPUT,
    )
    assert scored(finished.rows) == expected(MODEL, base_url=sie_server)
    assert finished.stderr.startswith(f"note: {sie_server} answered, because {NOWHERE}: ")


def test_many_queries_give_one_note(run_real: Run, tmp_path: Path) -> None:
    """It counts them."""
    queries = tmp_path / "queries.txt"
    queries.write_text("one\ntwo\n", encoding="utf-8")
    finished = run_real(
        *("rerank", "--queries", queries, "--base-url", NOWHERE),
        *("--fallback", "retrieval_order"),
        input=INPUT,
    )
    assert [row["status"] for row in finished.rows] == ["degraded"] * 2 * len(DOCUMENTS)
    expected = "note: degraded: retrieval_order answered 2 of 2 queries, because "
    assert finished.stderr.startswith(expected)
    assert finished.stderr.count("\n") == 1


def test_a_table_says_that_it_is_degraded(run_real: Run, tmp_path: Path) -> None:
    """Where it goes to a file, standard error is not there to be read with it."""
    out = tmp_path / "ranked.txt"
    finished = run_real(
        *("rerank", "-q", QUERY, "--base-url", NOWHERE, "--fallback", "retrieval_order"),
        *("--output", "table", "--out", out),
        input=INPUT,
    )
    assert finished.exit_code == 0
    assert "degraded: retrieval_order answered" in out.read_text(encoding="utf-8")


def test_a_fallback_stands_in_for_a_missing_torch(environment: dict[str, str]) -> None:
    """An in-process model may have one too."""
    script = "import sys; sys.modules['torch'] = None\n"
    script += "from sie_core.cli.__main__ import main; main()"
    finished = subprocess.run(
        [sys.executable, "-c", script, "rerank", "-q", QUERY, "--fallback", "retrieval_order"],
        check=False,
        capture_output=True,
        text=True,
        input=INPUT,
        env=environment,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count('"status": "degraded"') == len(DOCUMENTS)
    assert "pip install 'sie-core[local]'" in finished.stderr


class FailingLater:
    """Scores the first call, and fails from then on."""

    def __init__(self) -> None:
        self.num_calls = 0

    def score(self, model: str, query: Item, items: Sequence[Item], **_: Any) -> ScoreResult:
        """Score as `LocalClient` does."""
        del query
        self.num_calls += 1
        if self.num_calls > 1:
            msg = "gone"
            raise SIEConnectionError(msg)
        scores: Any = [
            {"item_id": item["id"], "score": float(-i), "rank": i} for i, item in enumerate(items)
        ]
        return ScoreResult(model=model, query_id=None, scores=scores, usage={})


def test_one_backend_answers_for_all_documents_of_a_query(run_with: Run, tmp_path: Path) -> None:
    """Scores of two are never mixed: with a fallback, documents are not scored in chunks."""
    queries = tmp_path / "queries.txt"
    queries.write_text("one\ntwo\n", encoding="utf-8")
    client = FailingLater()

    def make_reranker(model: str, **_: Any) -> Reranker:
        return Reranker(model, client=client, fallback="retrieval_order")

    documents = "\n".join(f"document {number}" for number in range(600))
    finished = run_with(make_reranker, "rerank", "--queries", queries, input=documents)
    assert client.num_calls == 2
    first, second = finished.rows[:600], finished.rows[600:]
    assert not any(row["score"] is None or "status" in row for row in first)
    assert all(row["score"] is None and "status" in row for row in second)
    assert finished.stderr.startswith("note: degraded: retrieval_order answered 1 of 2 queries")


def test_the_settings_of_a_server_reach_the_reranker(run_with: Run, sie_server: str) -> None:
    """And no key is among them: it comes from SIE_API_KEY only."""
    given: dict[str, Any] = {}

    def make_reranker(model: str, **settings: Any) -> Reranker:
        given.update(settings)
        return Reranker(model, **settings)

    finished = run_with(
        make_reranker,
        *("rerank", "-q", QUERY, "-m", MODEL, "--base-url", sie_server, "--timeout", 9),
        *("--gpu", "l4", "--wait-for-capacity", "--fallback", "local"),
        input=INPUT,
    )
    assert finished.exit_code == 0
    settings = {name: value for name, value in given.items() if value is not None}
    assert settings == {
        "base_url": sie_server,
        "fallback": ["local"],
        "gpu": "l4",
        "wait_for_capacity": True,
        "timeout_seconds": 9.0,
        "mode": "auto",
    }


def test_a_key_cannot_stand_on_the_command_line(run_real: Run) -> None:
    """Other users of the machine could read it there; the help says where it belongs."""
    finished = run_real("rerank", "-q", "x", "--api-key", "secret", input="a\n")
    assert finished.exit_code == 2
    assert "No such option" in finished.stderr
    assert "SIE_API_KEY" in run_real("rerank", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--base-url", "gpu:8080"], 2, "base_url must be like"),
        (["--base-url", "http://me:secret@gpu"], 2, "must not hold credentials"),
        (["--base-url", NOWHERE, "--fallback", "nobody"], 2, "but got 'nobody'"),
        (
            ["--base-url", NOWHERE, "--fallback", "retrieval_order", "--fallback", "local"],
            2,
            "put it last",
        ),
        (["--base-url", "SERVER", "--model", "no/such"], 1, "no/such"),
    ],
)
def test_what_cannot_work_is_one_line(
    run_real: Run, sie_server: str, arguments: list[str], exit_code: int, message: str
) -> None:
    """Exit code 2 for a wrong call, 1 for what the server refuses."""
    given = [argument.replace("SERVER", sie_server) for argument in arguments]
    finished = run_real("rerank", "-q", "x", *given, input="a\n")
    assert (finished.exit_code, finished.stdout) == (exit_code, "")
    assert finished.stderr.startswith("error: ")
    assert message in finished.stderr
    assert "secret" not in finished.stderr
    assert finished.stderr.count("\n") == 1
