"""`sie rerank`, in this process, over a fake model that scores a text by its length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sie_core import Reranker

Run = Callable[..., Any]

DOCUMENTS = ["bb", "", "dddd", "a"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A file of four lines, one of them blank."""
    path = tmp_path / "documents.txt"
    path.write_text("\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    return path


def test_lines_come_back_best_first_with_their_place_in_the_file(run: Run, lines: Path) -> None:
    """A row has the query, the rank, the score, the line's number and the line itself."""
    finished = run("rerank", lines, "--query", "cats")
    assert finished.exit_code == 0
    assert finished.rows[0] == {
        "query_index": 0,
        "query": "cats",
        "rank": 0,
        "score": 4.0,
        "index": 2,
        "text": "dddd",
    }
    assert [row["index"] for row in finished.rows] == [2, 0, 3, 1]
    assert finished.stderr == ""


def test_no_row_is_lost_and_blank_rows_come_last_unscored(run: Run, lines: Path) -> None:
    """Four lines in, four rows out."""
    rows = run("rerank", lines, "-q", "cats").rows
    assert len(rows) == len(DOCUMENTS)
    assert rows[-1]["score"] is None
    assert rows[-1]["text"] == ""


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_documents_come_from_stdin_where_no_file_is_named(run: Run, arguments: list[str]) -> None:
    """Standard input is read as lines unless said otherwise."""
    finished = run("rerank", *arguments, "-q", "cats", input="a\nccc\n")
    assert [row["text"] for row in finished.rows] == ["ccc", "a"]


def test_stdin_can_be_said_to_hold_records(run: Run) -> None:
    """--format applies to standard input too."""
    finished = run("rerank", "-q", "x", "--format", "jsonl", input='{"text": "a", "n": 1}\n')
    assert finished.rows[0]["document"] == {"text": "a", "n": 1}


def test_jsonl_records_come_back_untouched(run: Run, tmp_path: Path) -> None:
    """Nested values, numbers, nulls and non-ASCII survive under `document`."""
    records = [
        {"id": 7, "text": "short", "meta": {"tags": ["a", None]}, "score": 0.25},
        {"id": 8, "text": "much longer ü 日本", "rank": 99},
        {"id": 9, "text": None},
        {"id": 10},
    ]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    rows = run("rerank", path, "-q", "x").rows
    assert [row["document"] for row in rows] == [records[1], records[0], records[2], records[3]]
    assert [row["score"] is None for row in rows] == [False, False, True, True]


def test_half_a_surrogate_pair_leaves_as_it_came(run: Run, tmp_path: Path) -> None:
    r"""`\ud83d` alone is legal JSON, and impossible UTF-8."""
    path = tmp_path / "documents.jsonl"
    path.write_text('{"text": "ok", "title": "\\ud83d"}\n', encoding="utf-8")
    finished = run("rerank", path, "-q", "x")
    assert finished.rows[0]["document"]["title"] == "\ud83d"


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".csv", 'key,text\n1,"two,\nlines"\n2,long enough to win\n'),
        (".tsv", 'key\ttext\n1\t"two,\nlines"\n2\tlong enough to win\n'),
        (".CSV", '\ufeffkey,text\r\n1,"two,\nlines"\r\n\r\n2,long enough to win\r\n'),
    ],
)
def test_csv_and_tsv_are_told_by_their_extension(
    run: Run, tmp_path: Path, suffix: str, content: str
) -> None:
    """Quoted line ends, a byte order mark, CRLF and empty lines are no trouble."""
    path = tmp_path / f"documents{suffix}"
    path.write_bytes(content.encode())
    rows = run("rerank", path, "-q", "x").rows
    assert [row["document"] for row in rows] == [
        {"key": "2", "text": "long enough to win"},
        {"key": "1", "text": "two,\nlines"},
    ]
    assert [row["index"] for row in rows] == [1, 0]


@pytest.mark.parametrize("column", ["text", "content", "page_content", "passage"])
def test_the_usual_text_columns_are_found(run: Run, column: str) -> None:
    """Records need no option where the text is where it usually is."""
    finished = run("rerank", "-q", "x", "--format", "csv", input=f"key,{column}\n1,abc\n")
    assert finished.rows[0]["score"] == 3.0


def test_the_text_column_can_be_named(run: Run) -> None:
    """--text-column wins over `text`."""
    text = '{"text": "longer", "body": "ab"}\n'
    finished = run("rerank", "-q", "x", "--format", "jsonl", "--text-column", "body", input=text)
    assert finished.rows[0]["score"] == 2.0


def test_an_id_column_is_carried_to_the_top_of_the_row(run: Run) -> None:
    """--id-column shows whose score it is."""
    text = '{"key": 5, "text": "ab"}\n{"text": "abc"}\n'
    finished = run("rerank", "-q", "x", "--format", "jsonl", "--id-column", "key", input=text)
    assert [row["id"] for row in finished.rows] == [None, 5]


@pytest.mark.parametrize(
    ("arguments", "content", "expected"),
    [
        (["--format", "csv"], "key,body\n1,a\n", "add --text-column with one of: key, body"),
        (["--format", "csv"], "content,passage\n1,a\n", "with one of: content, passage"),
        (
            ["--format", "csv", "--text-column", "txt"],
            "text\na\n",
            "'txt' is not in standard input",
        ),
        (["--format", "csv", "--id-column", "key"], "text\na\n", "whose columns are: text"),
        (["--text-column", "body"], "a\n", "is read as plain lines; add --format"),
    ],
)
def test_a_column_that_cannot_be_told_is_a_usage_error(
    run: Run, arguments: list[str], content: str, expected: str
) -> None:
    """The message lists the columns that are there."""
    finished = run("rerank", "-q", "x", *arguments, input=content)
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: ")
    assert expected in finished.stderr


@pytest.mark.parametrize(
    ("file_format", "content", "expected"),
    [
        ("jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        (
            "jsonl",
            b'{"text": "a"}\n\n["a"]\n',
            "line 3: expected one JSON object per line, but got a",
        ),
        ("jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("jsonl", b'{"text": "a"}\n{"text": 5}\n', "line 2: column 'text' holds a number"),
        (
            "csv",
            b'key,text\n1,"two\nlines"\n2\n',
            "line 4: 1 fields, but the header has 2 (key, text)",
        ),
        ("csv", b'key,text\n1,"never closed\n2,b\n', "line 2: not valid CSV"),
        ("csv", b"text,text\na,b\n", "the header names a column twice: text"),
        ("lines", b"good\nbad \xff\n", "line 2: byte 0xff is not UTF-8"),
        ("lines", b"\xef\xbb\xbfgood\nbad \xff\n", "line 2: byte 0xff is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_the_line(
    run: Run, file_format: str, content: bytes, expected: str
) -> None:
    """One line on stderr, nothing on stdout, exit code 1."""
    finished = run("rerank", "-q", "x", "--format", file_format, input=content)
    assert finished.exit_code == 1
    assert finished.stdout == ""
    assert finished.stderr.startswith("error: standard input")
    assert expected in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_lines_end_at_line_ends_only(run: Run) -> None:
    """CRLF and a byte order mark are taken off; form feeds and U+2028 are text."""
    content = "\ufeffa\r\nbb\x0cb\u2028b\r\n".encode()
    rows = run("rerank", "-q", "x", input=content).rows
    assert [row["text"] for row in rows] == ["bb\x0cb\u2028b", "a"]


def test_a_csv_field_may_be_longer_than_python_allows_by_default(run: Run) -> None:
    """Documents are longer than 131,072 characters now and then."""
    text = "x" * 200_000
    finished = run("rerank", "-q", "x", "--format", "csv", input=f"text\n{text}\n")
    assert finished.exit_code == 0
    assert finished.rows[0]["document"]["text"] == text


def test_no_documents_give_no_rows(run: Run) -> None:
    """An empty input is not an error."""
    for file_format in ("lines", "jsonl", "csv", "tsv"):
        finished = run("rerank", "-q", "x", "--format", file_format, input="")
        assert (finished.exit_code, finished.stdout) == (0, "")


def test_every_query_of_a_file_is_answered_in_turn(run: Run, lines: Path, tmp_path: Path) -> None:
    """Rows say which query they belong to; blank lines are not queries."""
    queries = tmp_path / "queries.txt"
    queries.write_text("cats\n\ndogs\r\n", encoding="utf-8")
    rows = run("rerank", lines, "--queries", queries, "--top-k", 1).rows
    assert [(row["query_index"], row["query"]) for row in rows] == [(0, "cats"), (1, "dogs")]


def test_queries_may_be_records(run: Run, lines: Path, tmp_path: Path) -> None:
    """JSONL by its extension, with a query column of any name."""
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"q": "cats"}\n{"q": "dogs"}\n', encoding="utf-8")
    rows = run("rerank", lines, "--queries", queries, "--query-column", "q", "-k", 1).rows
    assert [row["query"] for row in rows] == ["cats", "dogs"]
    finished = run("rerank", lines, "--queries", queries)
    assert finished.exit_code == 2
    assert "--query-column 'query' is not in" in finished.stderr


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "queries.jsonl",
            '{"query": "a"}\n{"query": " "}\n',
            "line 2: the query in column 'query'",
        ),
        ("queries.txt", "\n\n", "holds no query"),
    ],
)
def test_a_file_without_queries_is_an_error(  # noqa: PLR0917 - fixtures and parameters
    run: Run, lines: Path, tmp_path: Path, name: str, content: str, expected: str
) -> None:
    """A blank query has no answer, and is not passed over."""
    queries = tmp_path / name
    queries.write_text(content, encoding="utf-8")
    finished = run("rerank", lines, "--queries", queries)
    assert finished.exit_code == 1
    assert expected in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "either --query TEXT or --queries FILE"),
        (["-q", "  "], "--query must contain text"),
        (["-q", "x", "--queries", "q.txt"], "either --query TEXT or --queries FILE"),
        (["--queries", "-"], "cannot both come from standard input"),
        (["-q", "x", "--threshold", "nan"], "score_threshold must be a finite number"),
        (["-q", "x", "--top-k", "0"], "Invalid value for '--top-k'"),
        (["nowhere.txt", "-q", "x"], "cannot read nowhere.txt: No such file"),
        (["/", "-q", "x"], "cannot read /: Is a directory"),
        (["-q", "x", "--format", "xml"], "'xml' is not one of"),
    ],
)
def test_a_wrong_call_is_told_apart_from_work_that_failed(
    run: Run, arguments: list[str], expected: str
) -> None:
    """Exit code 2, and nothing on stdout."""
    finished = run("rerank", *arguments, input="a\n")
    assert finished.exit_code == 2
    assert finished.stdout == ""
    assert expected in " ".join(finished.stderr.replace("│", " ").split())


def test_top_k_and_threshold_cut_over_all_documents(run: Run, client: object) -> None:
    """Documents are scored in chunks, but ranked as one list."""
    # Every length from 1 to 601 but one, in an order that mixes them over the chunks.
    texts = ["x" * (1 + 7 * number % 601) for number in range(600)]
    content = "\n".join(texts)
    every = run("rerank", "-q", "x", input=content).rows
    expected = sorted(range(600), key=lambda index: -len(texts[index]))
    assert [row["index"] for row in every] == expected
    assert [row["rank"] for row in every] == list(range(600))
    assert len(client.calls) > 1  # type: ignore[attr-defined]
    best = run("rerank", "-q", "x", "-k", 300, input=content).rows
    assert best == every[:300]
    above = run("rerank", "-q", "x", "--threshold", 590, input=content).rows
    assert [row["score"] for row in above] == [row["score"] for row in every if row["score"] >= 590]


def test_a_threshold_keeps_documents_without_text(run: Run, lines: Path) -> None:
    """Nothing was measured that could be below it."""
    rows = run("rerank", lines, "-q", "x", "--threshold", 3).rows
    assert [row["score"] for row in rows] == [4.0, None]


def test_truncation_is_told(run: Run) -> None:
    """The fake model says that texts over 500 characters were cut."""
    finished = run("rerank", "-q", "x", input="a" * 501 + "\nb\n")
    assert finished.exit_code == 0
    assert finished.stderr.startswith("note: 1 pairs ")


def test_a_table_shows_the_text_and_nothing_that_steers_the_terminal(run: Run) -> None:
    """Markup stays text, escape codes are taken out, long texts are cut."""
    content = "[bold red]x[/]\n\x1b[31mred\n" + "long " * 100 + "\n"
    finished = run("rerank", "-q", "[link]q", "--output", "table", input=content)
    assert finished.exit_code == 0
    assert "[bold red]x[/]" in finished.stdout
    assert "[link]q" in finished.stdout
    assert "\x1b" not in finished.stdout
    assert "…" in finished.stdout
    assert finished.stdout.count("long") < 60


def test_a_file_appears_with_the_results_and_nothing_beside_it(
    run: Run, lines: Path, tmp_path: Path
) -> None:
    """--out replaces what was there."""
    out = tmp_path / "out" / "ranked.jsonl"
    out.parent.mkdir()
    out.write_text("old", encoding="utf-8")
    finished = run("rerank", lines, "-q", "x", "--out", out)
    assert (finished.exit_code, finished.stdout) == (0, "")
    assert len(out.read_text(encoding="utf-8").splitlines()) == len(DOCUMENTS)
    assert list(out.parent.iterdir()) == [out]


def test_a_table_can_go_to_a_file(run: Run, lines: Path, tmp_path: Path) -> None:
    """--output and --out are independent."""
    out = tmp_path / "ranked.txt"
    assert run("rerank", lines, "-q", "cats", "--output", "table", "--out", out).exit_code == 0
    assert "dddd" in out.read_text(encoding="utf-8")


def test_an_error_leaves_an_older_file_alone(run: Run, tmp_path: Path) -> None:
    """Nothing is written before everything is known."""
    out = tmp_path / "ranked.jsonl"
    out.write_text("old", encoding="utf-8")
    finished = run("rerank", "-q", "x", "--format", "jsonl", "--out", out, input="not json\n")
    assert finished.exit_code == 1
    assert out.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_cannot_be_written_is_an_error(run: Run, tmp_path: Path) -> None:
    """The message says why, before anything is loaded; no traceback."""
    finished = run("rerank", "-q", "x", "--out", tmp_path / "missing" / "out.jsonl", input="a\n")
    assert finished.exit_code == 2
    assert "there is no folder" in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_a_link_stays_a_link(run: Run, lines: Path, tmp_path: Path) -> None:
    """The file it leads to is replaced, not the link."""
    target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    assert run("rerank", lines, "-q", "x", "--out", link).exit_code == 0
    assert link.is_symlink()
    assert target.read_text(encoding="utf-8").startswith("{")


def test_a_device_is_written_to_and_not_replaced(run: Run, lines: Path) -> None:
    """`--out /dev/null` must not make a plain file of it."""
    assert run("rerank", lines, "-q", "x", "--out", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("given", "device"), [("cpu", "cpu"), ("cuda:0,cuda:1", ["cuda:0", "cuda:1"])]
)
def test_how_the_model_runs_is_passed_on(
    run_with: Callable[..., Any], client: Any, lines: Path, given: str, device: object
) -> None:
    """Devices separated by commas are a list; mode and number of threads go as they are."""
    received: dict[str, Any] = {}

    def make_reranker(model: str, **settings: Any) -> Reranker:
        received.update(settings)
        return Reranker(model, client=client)

    options = ["--device", given, "--mode", "fast", "--num-threads", 3]
    assert run_with(make_reranker, "rerank", lines, "-q", "cats", *options).exit_code == 0
    assert received["device"] == device
    assert (received["mode"], received["num_threads"]) == ("fast", 3)


def test_an_unknown_mode_lists_the_modes(run: Run, lines: Path) -> None:
    """The mistake is named before anything is read."""
    finished = run("rerank", lines, "-q", "cats", "--mode", "quick")
    assert finished.exit_code == 2
    for word in ("quick", "auto", "exact", "fast"):
        assert f"'{word}'" in finished.stderr
