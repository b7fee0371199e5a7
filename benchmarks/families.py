"""The configurations of other libraries that `vs_peers.py` searches, by library and backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workload import REAL_MODEL

from sie_core.models.cache import cache_folder
from sie_core.models.embedded import source_folder
from sie_core.settings import DEFAULT_MODEL

AS_IT_COMES_ROUNDS = 2
"""For libraries that take ten seconds and more on mixed lengths."""


@dataclass(frozen=True, slots=True)
class Family:
    """Configurations of one library and backend in one number format, the likeliest first.

    Attributes:
        name: What the tables call the best of them.
        fixed: What all have in common.
        axes: What differs, and the values.
        choice: The configuration that is taken without a search, and where a search begins.
        is_quick: Whether it takes part in the quick race.
        num_rounds: Rounds in the race; None for all.
    """

    name: str
    fixed: Mapping[str, Any]
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    choice: Mapping[str, Any] = field(default_factory=dict)
    is_quick: bool = False
    num_rounds: int | None = None

    def describe(self, configuration: Mapping[str, Any]) -> str:
        """Name what sets a configuration apart from the family's others."""
        return " ".join(f"{axis}={configuration[axis]}" for axis in self.axes)


def families(model: str) -> list[Family]:
    """List what is searched."""
    batch_sizes = (8, 4, 16, 2, 32, 1)
    quick = {("torch", "bfloat16"), ("openvino", "bfloat16"), ("openvino", "int8")}
    found = []
    for backend, dtype in (
        ("torch", "float32"),
        ("torch", "bfloat16"),
        ("onnx", "float32"),
        ("onnx", "int8"),
        ("openvino", "float32"),
        ("openvino", "bfloat16"),
        ("openvino", "int8"),
    ):
        fixed = {"library": "sentence-transformers", "backend": backend, "dtype": dtype}
        axes: dict[str, Sequence[Any]] = {"batch_size": batch_sizes}
        if backend == "torch":
            axes["attention"] = ("sdpa", "eager")
        found.append(
            family(
                f"sentence-transformers {backend} {dtype}",
                fixed,
                axes,
                is_quick=(backend, dtype) in quick,
            )
        )
    graph = wheel_graph() if model == REAL_MODEL else None
    own = {"graph": str(graph)} if graph else {}
    onnx = {"library": "onnxruntime"} | own
    found.append(family("onnxruntime int8", onnx, {"batch_size": (4, 8, 2, 16, 1)}, is_quick=True))
    for dtype in ("bfloat16", "int8"):
        openvino = {"library": "openvino", "dtype": dtype}
        axes = {"num_streams": (2, 1), "batch_tokens": (1024, 2048, 512)}
        found.append(family(f"OpenVINO {dtype}", openvino, axes, is_quick=dtype == "bfloat16"))
    for library in ("rerankers", "flashrank", "fastembed"):
        fixed = {"library": library} | (own if library == "flashrank" else {})
        found.append(Family(library, fixed, choice=fixed, num_rounds=AS_IT_COMES_ROUNDS))
    return found


def family(
    name: str, fixed: dict[str, Any], axes: dict[str, Sequence[Any]], *, is_quick: bool
) -> Family:
    """Make a family whose choice is the first value of each axis."""
    choice = fixed | {axis: values[0] for axis, values in axes.items()}
    return Family(name, fixed, axes, choice, is_quick)


def wheel_graph() -> Path | None:
    """Return the int8 graph of the wheel that the default model came in, if it is here."""
    path = source_folder(cache_folder()) / DEFAULT_MODEL.replace("/", "--") / "model.onnx"
    return path if path.exists() else None
