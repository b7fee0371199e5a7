"""The report in headless Chromium with the network off: `make test-browser`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sie_core.evaluation.outcome import MAIN_MEASURE
from sie_core.evaluation.report import write_report

pytestmark = pytest.mark.browser

METRICS = ("nDCG@10", "RR@10", "P@5", "AP")
NUM_QUERIES = 40
TIMEOUT_MS = 240_000
"""A browser on a busy machine is slow to start."""


def _metric(name: str, before: float, after: float) -> dict[str, Any]:
    difference = after - before
    return {
        "name": name,
        "before": before,
        "after": after,
        "difference": difference,
        "low": difference - 0.02,
        "high": difference + 0.02,
        "p_value": 0.0123,
        "verdict": "better",
    }


def _shown(number: int) -> dict[str, Any]:
    document = {"id": f"d{number}", "score": 1.5, "is_relevant": False, "text": "a <i>text</i>"}
    return {
        "query_id": f"q{number}",
        "query": f"query {number} <script>alert(1)</script>",
        "before": 0.5,
        "after": 0.25,
        "first_before": document,
        "first_after": document | {"is_relevant": True},
    }


def _model(label: str, quality: float) -> dict[str, Any]:
    gains = {f"q{i}": (i - 15) / 40 for i in range(NUM_QUERIES)}
    return {
        "label": label,
        "settings": {"model": label, "mode": "auto"},
        "execution": "fast on cpu: bfloat16",
        "served_by": ["local"],
        "metrics": [_metric(name, 0.5, quality) for name in METRICS],
        "latency": {
            "p50_ms": 123.4,
            "p95_ms": 234.5,
            "pairs_per_second": 456.7,
            "num_pairs": 4000,
            "num_scored": 3990,
            "num_truncated": 3,
        },
        "depths": [
            {
                "depth": depth,
                "metrics": dict.fromkeys(METRICS, quality - 1 / depth),
                "p50_ms": 1.2 * depth,
                "p95_ms": 2.3 * depth,
                "num_calls": 20,
            }
            for depth in (10, 20, 50, 100)
        ],
        "num_lost": 15,
        "num_unchanged": 1,
        "num_won": 24,
        "gains": gains,
        "lost_most": [_shown(i) for i in range(5)],
        "won_most": [_shown(i) for i in range(5, 10)],
    }


@pytest.fixture
def outcome() -> dict[str, Any]:
    """What a comparison of two models found, made up."""
    return {
        "command": "sie compare a b --dataset '<topics>'",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": {"processor": "Some & Co", "cores": 2},
        "versions": {"sie-core": "0.1.0"},
        "data": {
            "name": "topics",
            "num_documents": 12345,
            "num_queries": NUM_QUERIES,
            "num_queries_left_out": 2,
            "num_relevant": 80,
        },
        "first_stage": {
            "name": "bm25",
            "num_candidates": 100,
            "mean_candidates": 99.0,
            "num_queries_without_candidates": 0,
            "metrics": dict.fromkeys(METRICS, 0.5),
            "recall": {"10": 0.7, "20": 0.8, "50": 0.9, "100": 0.95},
        },
        "statistics": {"interval": "95%", "test": "paired", "num_resamples": 10000, "seed": 0},
        "models": [_model("owner/small", 0.6), _model("owner/large@http://gpu:8080", 0.7)],
        "pairs": [
            {"first": "owner/small", "second": "owner/large@http://gpu:8080"}
            | _metric(name, 0.6, 0.7)
            for name in METRICS
        ],
    }


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a browser that reaches no network, and keeps what goes wrong."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium; on Debian: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"], timeout=TIMEOUT_MS
        )
        context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
        opened = context.new_page()
        opened.set_default_timeout(TIMEOUT_MS)
        opened.wrong = []
        opened.on("console", lambda message: opened.wrong.append(message.text))
        opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
        opened.on("requestfailed", lambda request: opened.wrong.append(request.url))
        opened.asked = []
        opened.on("request", lambda request: opened.asked.append(request.url))
        yield opened
        browser.close()


def test_the_page_is_whole_with_the_network_off(
    page: Any, outcome: dict[str, Any], tmp_path: Path
) -> None:
    """Plots have lines on them, figures are those of the JSON, and nothing goes wrong or out."""
    address = write_report(tmp_path / "report", outcome).as_uri()
    page.goto(address)
    assert page.asked == [address]
    assert page.wrong == []
    plots = page.locator("figure svg")
    assert plots.count() == 5
    for number in range(5):
        box = plots.nth(number).bounding_box()
        assert box["width"] > 400
        assert box["height"] > 150
        assert plots.nth(number).locator("path").count() > 5
    for model in outcome["models"]:
        assert model["label"] in page.locator("body").inner_text()
    values = page.locator("table.metrics data").evaluate_all(
        "elements => elements.map(one => [Number(one.value), one.textContent])"
    )
    expected = [
        metric[key]
        for model in outcome["models"]
        for metric in model["metrics"]
        for key in ("before", "after", "difference", "low", "high", "p_value")
    ]
    assert [value for value, _ in values] == json.loads(json.dumps(expected))
    assert all(abs(float(shown) - value) <= 6e-5 for value, shown in values)
    assert "<script>alert(1)</script>" in page.locator("body").inner_text()
    picture = tmp_path / "page.png"
    page.screenshot(path=str(picture), full_page=True)
    assert picture.stat().st_size > 50_000


def test_the_plots_can_be_read_in_the_dark(
    page: Any, outcome: dict[str, Any], tmp_path: Path
) -> None:
    """Ground and lines change with the reader's choice, and stay apart."""
    address = write_report(tmp_path / "report", outcome).as_uri()
    found = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        found[scheme] = page.evaluate(
            """() => {
                const style = getComputedStyle(document.body);
                const text = document.querySelector("figure svg text");
                return [style.backgroundColor, style.color, getComputedStyle(text).fill];
            }"""
        )
        assert len(set(found[scheme])) > 1
    assert all(light != dark for light, dark in zip(found["light"], found["dark"], strict=True))
    assert outcome["models"][0]["metrics"][0]["name"] == MAIN_MEASURE
