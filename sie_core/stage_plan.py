"""How one model scores the candidates of a call: equal texts once, known scores not at all.

`StagePlan` decides what is sent and when it is enough; as all plans it asks nobody itself. With a
deadline, or where it is to stop early, candidates are scored in portions, in the order given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from sie_core.deadline import Deadline
from sie_core.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ModelError,
    SIEError,
)
from sie_core.long_documents import check_confirmed
from sie_core.pace import Pace, cost_of, num_fitting, pace_of
from sie_core.ranking import match_entries
from sie_core.score_cache import CachedScore, ScoreCache, score_keys, source_of_reply
from sie_core.steps import Outcome, Plan, Reply, Step
from sie_core.types import COUNTS, Item, ScoreSpace, Usage, encodable

STABLE_BATCH_DOCUMENTS: Final = 16
"""Documents between two looks at whether the top changes, where `batch_size` names no number."""

STABLE_TOP_K: Final = 10
"""The top that is looked at, where `top_k` names none."""


_TIME_UP: Final = "time was up"

_NOT_OF_TIME: Final = (InvalidRequestError, InvalidResponseError, ModelError)
"""Errors that more time would not have spared."""

_RETURN_SECONDS: Final = 0.01
_RETURN_SHARE: Final = 0.1
"""Kept of a deadline for waking up and returning on a busy machine: this, or this part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a call goes on.

    Attributes:
        moment: When it must stop, on the monotonic clock; infinite: when all is scored.
        timeout: When its call's timeout ends, which is an error.
        num_together: Calls that share the time and the machine with this one, itself included.
        stop_when_stable: Batches in a row that must not change the top before it stops; None: it
            does not stop for that.
        top_k: How many documents that top has.
        clock: Monotonic seconds.
    """

    moment: float = math.inf
    timeout: Deadline = Deadline.never
    num_together: int = 1
    stop_when_stable: int | None = None
    top_k: int = STABLE_TOP_K
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, seconds: float | None, **settings: Any) -> Self:
        """Start the clock of a call that must have returned after so many seconds, if any."""
        if seconds is None:
            return cls(**settings)
        working = seconds - min(_RETURN_SECONDS, _RETURN_SHARE * seconds)
        return cls(moment=time.monotonic() + working, **settings)

    @property
    def left_seconds(self) -> float:
        """Seconds until it must stop."""
        return self.moment - self.clock()

    @property
    def has_deadline(self) -> bool:
        """Whether there is such a moment."""
        return self.moment < math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """A score cache, and whose scores a client would give now; see `score_cache.source_of`."""

    cache: ScoreCache | None = None
    source_of: Callable[[str, str | None], str | None] = lambda _model, _lora: None


@dataclass(slots=True)
class StageScores:
    """What a model said of the candidates.

    Attributes:
        entries: By the candidate's index: `score`, and what else the reply said of it.
        reply: The first reply, without its scores; empty where all was known.
        usage: Of all replies together.
        space: What the scores are, as far as that is known.
        num_cached: Candidates whose score was known.
        stopped: Why some have no score, else None.
    """

    entries: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    reply: dict[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    space: ScoreSpace | None = None
    num_cached: int = 0
    stopped: str | None = None

    @property
    def is_degraded(self) -> bool:
        """Whether another model gave them, or none."""
        return self.reply.get("status") == "degraded"


class StagePlan:
    """One model's part of a call.

    Args:
        model: Who is to score.
        query: What is looked for.
        texts: The candidates' texts by their index, in the order in which they are to be scored.
        arguments: Named arguments of the client's `score`.
        place: Where the model runs, for its pace.
        max_length: Tokens of a pair that the model reads; None where that is not known.
        sends_once: Whether equal texts are sent once; otherwise the client is left to share them,
            as a model in this process does, which then counts all of them in its usage.
        patience: How long it goes on.
        keeping: Where scores are kept.
    """

    def __init__(
        self,
        model: str,
        query: str,
        texts: Mapping[int, str],
        arguments: Mapping[str, Any],
        *,
        place: str,
        max_length: int | None,
        sends_once: bool,
        patience: Patience,
        keeping: Keeping,
    ) -> None:
        self._model = model
        self._query = Item(text=encodable(query))
        self._arguments = arguments
        self._options: Mapping[str, Any] = arguments.get("options") or {}
        self._max_length = self._options.get("max_length") or max_length
        self._sends_once = sends_once
        self._patience = patience
        self._keeping = keeping
        self._pace: Pace = pace_of(place, model, str(self._options.get("lora")))
        self._alike: dict[str, list[int]] = {}
        for index, text in texts.items():
            self._alike.setdefault(encodable(text), []).append(index)
        self._known: list[str] = []
        self._known_space: ScoreSpace | None = None
        self._source: str | None = None
        self._found = StageScores()
        self._num_stable = 0
        self._top: tuple[int, ...] = ()

    def run(self) -> Plan[StageScores]:
        """Score the candidates, as many as patience allows.

        Raises:
            SIEError: What the client raised, but for a time that ran out by the deadline.
        """
        found = self._found
        if not self._alike:
            return found
        if self._keeping.cache is not None or self._patience.has_deadline:
            lora = self._options.get("lora")
            self._source = self._keeping.source_of(self._model, lora)
        waiting = self._take_known(list(self._alike))
        while waiting:
            portion = waiting[: self._num_next(waiting)]
            if not portion:
                found.stopped = found.stopped or _TIME_UP
                break
            begin = self._patience.clock()
            [outcome] = yield [self._step(portion)]
            self._measure(portion, outcome, self._patience.clock() - begin)
            if isinstance(outcome, Exception):
                if not self._is_out_of_time(outcome):
                    raise outcome
                found.stopped = _TIME_UP
                break
            if (refused := self._take(portion, outcome)) is not None:
                found.stopped = refused
                break
            waiting = waiting[len(portion) :] + self._forget_known(outcome)
            if waiting and self._is_stable():
                found.stopped = "the top did not change any more"
                break
        return found

    def _num_next(self, waiting: Sequence[str]) -> int:
        """Return how many texts to score next."""
        patience = self._patience
        num = len(waiting)
        if patience.has_deadline:
            costs = [cost_of(self._query["text"], text, self._max_length) for text in waiting]
            num = num_fitting(
                costs,
                self._pace.seconds_per_char,
                patience.left_seconds / patience.num_together,
                is_first=not self._found.reply,
            )
        if patience.stop_when_stable is not None:
            num = min(num, self._options.get("batch_size") or STABLE_BATCH_DOCUMENTS)
        return num

    def _step(self, portion: Sequence[str]) -> Step:
        items = [Item(id=str(index), text=text) for index, text in self._sent(portion)]
        patience = self._patience
        left = max(patience.left_seconds, 1e-3) if patience.has_deadline else None
        return Step(
            model=self._model,
            query=self._query,
            items=items,
            arguments=self._arguments,
            deadline=Deadline.after(left),
            timeout=patience.timeout,
        )

    def _sent(self, portion: Sequence[str]) -> list[tuple[int, str]]:
        """Return what is sent of some texts, in the candidates' order."""
        num = 1 if self._sends_once else None
        return sorted((index, text) for text in portion for index in self._alike[text][:num])

    def _measure(self, portion: Sequence[str], outcome: Outcome, seconds: float) -> None:
        """Learn from how long it took, unless a model had to be loaded, or was not there at all."""
        patience = self._patience
        is_loading = self._source is None and not self._found.reply
        if not patience.has_deadline or is_loading:
            return
        if isinstance(outcome, Exception) and not self._is_out_of_time(outcome):
            return
        cost = sum(cost_of(self._query["text"], text, self._max_length) for text in portion)
        self._pace.observe(cost * patience.num_together, seconds)

    def _is_out_of_time(self, error: Exception) -> bool:
        if not self._patience.has_deadline:
            return False
        if isinstance(error, DeadlineExceededError):
            return True
        is_up = self._patience.left_seconds <= 0  # a chain names its first error, not its last
        return is_up and isinstance(error, SIEError) and not isinstance(error, _NOT_OF_TIME)

    def _take(self, portion: Sequence[str], reply: Reply) -> str | None:
        """Take a reply's scores; return why they cannot stand beside those before, if so."""
        found = self._found
        is_degraded = reply.get("status") == "degraded"
        if is_degraded and not reply["scores"] and self._patience.left_seconds <= 0:
            return _TIME_UP  # who stands in came too late as well
        if reply["scores"]:  # retrieval order comes without scores
            check_confirmed(self._options, reply)
        if not found.reply:
            found.reply = {name: it for name, it in reply.items() if name != "scores"}
            found.space = reply.get("score_space")
        elif is_degraded != found.is_degraded:
            return f"{reply.get('served_by')} answered in its place: {reply.get('reason')}"
        elif reply["scores"] and reply.get("score_space") != found.space:
            return f"{reply.get('served_by') or 'the next reply'} gave scores of another kind"
        found.usage = sum_usage([found.usage, reply.get("usage") or Usage()])
        if is_degraded and not reply["scores"]:
            return None
        sent = self._sent(portion)
        entries = match_entries(reply["scores"], [str(index) for index, _ in sent])
        for (index, text), entry in zip(sent, entries, strict=True):
            alike = self._alike[text] if self._sends_once else [index]
            found.entries.update(dict.fromkeys(alike, entry))
        self._keep([text for _, text in sent], entries, reply)
        return None

    def _take_known(self, texts: list[str]) -> list[str]:
        """Take the scores that are known; return the texts whose score is not."""
        cache, found = self._keeping.cache, self._found
        if cache is None or self._source is None:
            return texts
        keys = self._keys(self._source, texts)
        waiting: list[str] = []
        for text, cached in zip(texts, cache.get_many(keys), strict=True):
            if cached is None:
                waiting.append(text)
                continue
            entry = {"score": cached.score, **cached.more}
            found.entries.update(dict.fromkeys(self._alike[text], entry))
            self._known.append(text)
            self._known_space = found.space = cached.space
        found.num_cached = sum(len(self._alike[text]) for text in self._known)
        return waiting

    def _forget_known(self, reply: Reply) -> list[str]:
        """Return the texts with known scores where a reply's cannot stand beside those."""
        known, self._known = self._known, []
        if not known or self._fits_known(reply):
            self._known = known
            return []
        for text in known:
            for index in self._alike[text]:
                del self._found.entries[index]
        self._found.num_cached = 0
        return known

    def _fits_known(self, reply: Reply) -> bool:
        """Tell whether a reply comes from where the known scores came from."""
        is_same = source_of_reply(reply, self._source) == self._source
        return is_same and reply.get("score_space") == self._known_space

    def _keep(
        self, portion: Sequence[str], entries: Sequence[Mapping[str, Any]], reply: Reply
    ) -> None:
        source = source_of_reply(reply, self._source)
        if self._keeping.cache is None or source is None:
            return
        space = reply.get("score_space")
        scores = [CachedScore.of(entry, space) for entry in entries]
        keys = self._keys(source, portion)
        self._keeping.cache.put_many(dict(zip(keys, scores, strict=True)))

    def _keys(self, source: str, texts: Sequence[str]) -> list[bytes]:
        return score_keys(source, self._model, self._query, texts, self._arguments)

    def _is_stable(self) -> bool:
        """Count batches that left the top as it was; say whether that is enough of them."""
        patience, found = self._patience, self._found
        if patience.stop_when_stable is None:
            return False
        by_score = sorted(found.entries, key=lambda index: (-found.entries[index]["score"], index))
        top = tuple(by_score[: patience.top_k])
        self._num_stable = self._num_stable + 1 if top == self._top else 0
        self._top = top
        is_whole = len(top) == patience.top_k
        return is_whole and self._num_stable >= patience.stop_when_stable


def sum_usage(usages: Iterable[Usage]) -> Usage:
    """Add up what was consumed, as far as it is known."""
    total = Usage()
    for usage in usages:
        for name in COUNTS:
            if name in usage:
                total[name] = total.get(name, 0) + usage[name]
    return total
