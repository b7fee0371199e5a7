"""The names by which a component's settings are given: its own, and those that users may bring.

SIE's own packages call some of them otherwise (`timeout_s`), and so do other frameworks (`top_k`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeVar

from sie_core.errors import InvalidRequestError

T = TypeVar("T")


def one_of(name: str, value: T | None, alias: str, other: T | None) -> T | None:
    """Return the value of a setting with two names; None means not given.

    Raises:
        InvalidRequestError: Both are given, and do not agree.
    """
    if other is None or value in (None, other):
        return other if value is None else value
    msg = (
        f"{name}={value!r} and {alias}={other!r} contradict each other: "
        f"they are two names for one setting, so give {name} only"
    )
    raise InvalidRequestError(msg)


def renamed(values: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Copy, with each alias replaced by the name it stands for.

    Raises:
        InvalidRequestError: Both are given, and do not agree.
    """
    names = dict(values)
    for alias in names.keys() & aliases:
        name, other = aliases[alias], names.pop(alias)
        names[name] = one_of(name, names.get(name), alias, other)
    return names


def check_known(names: Iterable[str], known: Container[str], *, component: str) -> None:
    """Raise InvalidRequestError for the first name that is none of the component's."""
    for name in names:
        if name not in known:
            msg = f"{component} has no field {name!r}"
            raise InvalidRequestError(msg)
