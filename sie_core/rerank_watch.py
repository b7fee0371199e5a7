"""`RerankWatch`: follows the plans of one reranker: counts them, traces them, tells a hook.

What is followed is the plan (see `sie_core.rerank_plan`), so that it is done once for blocking
calls, awaited ones, and many queries at a time.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from sie_core.errors import InvalidRequestError
from sie_core.ranking import Ranking
from sie_core.rerank_plan import RerankCall
from sie_core.steps import Outcome, Plan, Step
from sie_core.telemetry.rerank_event import RerankEvent
from sie_core.telemetry.rerank_span import RerankSpan
from sie_core.telemetry.rerank_stats import RerankCounter, RerankStats
from sie_core.types import Timing

_logger = logging.getLogger(__name__)

OnRerank = Callable[[RerankEvent], object]
"""Told of each call that has ended, in the thread that made it."""


def check_hook(on_rerank: object) -> None:
    """Raise InvalidRequestError unless it is None or a function that need not be awaited."""
    if on_rerank is None:
        return
    if not callable(on_rerank) or inspect.iscoroutinefunction(on_rerank):
        msg = f"on_rerank must be a plain function that takes an event, but got {on_rerank!r}"
        raise InvalidRequestError(msg)


class RerankWatch:
    """Follow plans from their beginning to their end."""

    def __init__(self) -> None:
        self._counter = RerankCounter()
        self._has_warned = False

    def stats(self, *, engine: Any = None, cache: Any = None) -> RerankStats:
        """Return what the plans came to, beside what others count."""
        return self._counter.read(engine=engine, cache=cache)

    def over(
        self,
        plan: Plan[Ranking],
        call: RerankCall,
        *,
        on_rerank: OnRerank | None = None,
        trace_content: bool | None = None,
    ) -> Plan[Ranking]:
        """Return the same plan, followed.

        Args:
            plan: A plan that has not begun.
            call: What it was made for.
            on_rerank: Told of its end; what that raises is logged once, and fails no call.
            trace_content: Whether query and texts are written on spans; None: SIE_TRACE_CONTENT.
        """
        begun_at = time.perf_counter()
        span = RerankSpan.start(
            call.model,
            call.query,
            lambda: call.documents,
            num_documents=len(call.documents),
            top_k=call.top_k,
            trace_content=trace_content,
        )
        timing: dict[str, float] = {}
        ranking: Ranking | None = None
        error: BaseException | None = None
        try:
            steps = next(plan)
            while True:
                outcomes = yield _under(span.context, steps)
                _add_timing(timing, outcomes)
                steps = plan.send(outcomes)
        except StopIteration as end:
            ranking = end.value
        except GeneratorExit as exit_:
            error = exit_.__context__  # what stopped the one who runs the plan
            raise
        except BaseException as exc:
            error = exc
            raise
        finally:
            plan.close()
            seconds = time.perf_counter() - begun_at
            event = _event(call, ranking, error, cast("Timing", timing), seconds)
            self._counter.add(event)
            is_shown = ranking is not None and span.is_recording
            span.finish(event, _ranked(ranking) if is_shown else ())
            if on_rerank is not None:
                self._tell(on_rerank, event)
        return cast("Ranking", ranking)

    def _tell(self, on_rerank: OnRerank, event: RerankEvent) -> None:
        try:
            on_rerank(event)
        except Exception:
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            _logger.log(level, "on_rerank failed, which fails no call", exc_info=True)


def _under(context: Any, steps: Sequence[Step]) -> Sequence[Step]:
    """Let what is done for the steps belong to the call's span."""
    return steps if context is None else [replace(step, context=context) for step in steps]


def _add_timing(timing: dict[str, float], outcomes: Sequence[Outcome]) -> None:
    """Add the longest of each of the times of steps that ran side by side."""
    longest: dict[str, float] = {}
    for outcome in outcomes:
        said = None if isinstance(outcome, BaseException) else outcome.get("timing")
        for name, milliseconds in (said or {}).items():
            longest[name] = max(milliseconds, longest.get(name, 0.0))
    for name, milliseconds in longest.items():
        timing[name] = timing.get(name, 0.0) + milliseconds


def _event(
    call: RerankCall,
    ranking: Ranking | None,
    error: BaseException | None,
    timing: Timing,
    seconds: float,
) -> RerankEvent:
    if ranking is None:
        failure = error if isinstance(error, Exception) else None
        return RerankEvent(
            model=call.model,
            status="cancelled" if failure is None else "failed",
            duration_seconds=seconds,
            num_documents=len(call.documents),
            error=failure,
            timing=timing,
        )
    return RerankEvent(
        model=call.model,
        status=ranking.status,
        duration_seconds=seconds,
        num_documents=len(call.documents),
        num_ranked=len(ranking),
        num_input_tokens=ranking.usage.get("input_tokens", 0),
        num_truncated=ranking.usage.get("truncated_items", 0),
        num_scored=ranking.num_scored,
        num_cached=ranking.num_cached,
        num_duplicates=ranking.num_duplicates,
        served_by=ranking.served_by,
        reason=ranking.reason,
        timing=timing,
    )


def _ranked(ranking: Ranking | None) -> list[tuple[int, float | None]]:
    return [] if ranking is None else [(entry.index, entry.score) for entry in ranking]
