"""Contenders take turns, and what they score is compared with transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from race import Lap
    from workload import Corpus, Workload


class Runner:
    """A contender that takes as long as it is told to, and says when its turn was."""

    def __init__(self, name: str, times: list[float], turns: list[str]) -> None:
        self.name = name
        self.times = times
        self.turns = turns
        self.scored: list[Workload] = []

    def run(self, workload: Workload) -> Lap:
        """Take the next time."""
        from race import Lap

        self.turns.append(self.name)
        self.scored.append(workload)
        return Lap(self.times[len(self.scored) - 1], [float(len(self.scored)), 0.0])


def test_rounds_begin_with_another_contender_each(tiny_corpus: Corpus) -> None:
    """All get the same texts; one that leaves early is not asked again."""
    from race import race

    turns: list[str] = []
    first, second = Runner("a", [3.0, 1.0, 2.0], turns), Runner("b", [5.0, 7.0], turns)
    workloads = [tiny_corpus.mixed(number, 10) for number in range(3)]
    laps = race([first, second], workloads, num_rounds={"b": 2})
    assert turns == ["a", "b", "b", "a", "a"]
    assert first.scored == workloads
    assert second.scored == workloads[:2]
    assert (laps["a"].median, laps["a"].min) == (2.0, 1.0)
    assert laps["b"].times == [5.0, 7.0]
    assert laps["b"].first_scores == [1.0, 0.0]


def test_ours_scores_as_transformers_does_in_its_child(
    tiny_bert: Path, tiny_corpus: Corpus
) -> None:
    """The whole way that every benchmark goes first: texts, both sides, comparison."""
    from agreement import Agreement
    from race import Ours, reference

    workload = tiny_corpus.of_lengths([5, 40, 12, 80], "race")
    ours = Ours("exact", tiny_bert)
    lap = ours.run(workload)
    ours.close()
    with reference(tiny_bert) as truth:
        expected = truth(workload)
    assert lap.ms > 0
    assert expected.ms > 0
    agreement = Agreement.of(lap.scores, expected.scores)
    assert agreement.max_difference < 1e-4
    assert agreement.kendall_tau == 1


def test_a_childs_failure_is_an_error_here_and_the_child_lives_on(tiny_bert: Path) -> None:
    """A library that is not installed must not end a run of many."""
    from race import Child, ContenderError, Peer

    with Child(sys.executable) as child:
        with pytest.raises(ContenderError, match="ModuleNotFoundError"):
            Peer("other", {"library": "fastembed"}, tiny_bert, child)
        Peer("reference", {"library": "transformers"}, tiny_bert, child).close()


def test_a_child_that_is_gone_is_named_as_such() -> None:
    """An interpreter that ends at once, for example."""
    from race import Child, ContenderError

    with Child("/bin/false") as child, pytest.raises(ContenderError, match="exit status 1"):
        child.ask(do="score", name="none", query="", documents=[])


class ListedChild:
    """A child whose configurations take the milliseconds listed, and which notes their laps."""

    def __init__(self, ms: dict[tuple[int, str], float]) -> None:
        self.ms = ms
        self.laps: list[tuple[int, str]] = []
        self._open = (0, "")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Answer as a child does."""
        if request["do"] == "open":
            contender = request["contender"]
            self._open = (contender["batch_size"], contender["attention"])
        if request["do"] == "score":
            self.laps.append(self._open)
            return {"ms": self.ms[self._open], "scores": [0.0]}
        return {}


def test_the_search_finds_the_quickest(tiny_bert: Path, tiny_corpus: Corpus) -> None:
    """Axis by axis; what is far behind is timed once, and nothing where the first is hopeless."""
    from families import family
    from vs_peers import Found, search

    axes: dict[str, Any] = {"batch_size": (8, 4, 2), "attention": ("sdpa", "eager")}
    one = family("one", {"library": "x"}, axes, is_quick=True)
    workloads = [tiny_corpus.mixed(number, 2) for number in range(3)]
    ms = {(8, "sdpa"): 9.0, (4, "sdpa"): 7.0, (2, "sdpa"): 20.0, (4, "eager"): 6.0}
    child: Any = ListedChild(ms)
    found = search(one, 25.0, tiny_bert, child, workloads)
    best = {"library": "x", "batch_size": 4, "attention": "eager"}
    assert found == Found(best, 6.0, 4, is_hopeless=False)
    assert [child.laps.count(configuration) for configuration in ms] == [3, 3, 1, 3]
    quick = search(one, 25.0, tiny_bert, child, workloads, is_quick=True)
    assert quick == Found(dict(one.choice), 9.0, 1, is_hopeless=False)
    hopeless = search(one, 8.0, tiny_bert, child, workloads)
    assert hopeless == Found(dict(one.choice), 9.0, 1, is_hopeless=True)


def test_a_mode_that_this_machine_has_not_is_left_out(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where AMX is hidden, there is no fast mode to measure."""
    import torch
    from race import open_modes

    if torch.cuda.is_available():
        pytest.skip("a GPU has the fast mode whatever the processor lacks")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    monkeypatch.setenv("SIE_MAX_CPU_ISA", "avx512")
    (ours,) = open_modes(["fast", "exact"], tiny_bert)
    ours.close()
    assert ours.name == "sie exact"
    assert "mode='fast'" in capsys.readouterr().out


def test_ratios_are_against_the_default_and_the_best_of_the_others() -> None:
    """Ours is not a peer of itself."""
    from race import Laps
    from vs_peers import DEFAULT, rows_of

    laps = {
        "sie fast": Laps([10.0], [1.0, 2.0]),
        "other": Laps([20.0], [2.0, 1.0]),
        DEFAULT: Laps([100.0], [1.0, 2.5]),
    }
    rows = rows_of(laps, [1.0, 2.0])
    assert [row["contender"] for row in rows] == ["sie fast", "other", DEFAULT]
    assert [row["x default"] for row in rows] == [10.0, 5.0, 1.0]
    assert [row["x best peer"] for row in rows] == [2.0, 1.0, 0.2]
    assert [row["Kendall tau"] for row in rows] == [1.0, -1.0, 1.0]
    assert [row["max difference"] for row in rows] == [0.0, 1.0, 0.5]


def test_the_neighbour_is_busy_only_for_the_second_lap(tiny_corpus: Corpus) -> None:
    """Each contender runs alone, then beside it, round by round."""
    from vs_peers import busy_rows

    turns: list[str] = []
    runners = [Runner("a", [1.0, 2.0, 1.0, 4.0], turns), Runner("b", [1.0] * 4, turns)]
    rows = busy_rows(runners, [tiny_corpus.mixed(number, 2) for number in range(2)])
    assert turns == ["a", "a", "b", "b"] * 2
    assert rows[0] == {
        "contender": "a",
        "quiet ms": 1.0,
        "busy ms": 3.0,
        "slowdown": 3.0,
        "busiest ms": 4.0,
    }
