"""Comparisons with the packages that a family's authors publish; `make test-reference` runs them.

Those packages live in an environment of their own (`requirements.txt`), never in sie's. Where they
are missing, as in `make test`, nothing is collected here.
"""

from __future__ import annotations

import importlib.util

collect_ignore_glob = (
    [] if importlib.util.find_spec("sentence_transformers") is not None else ["test_*.py"]
)
